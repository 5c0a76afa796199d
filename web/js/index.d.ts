/**
 * Windowed ("local") attention in the browser, with the semantics of the PyTorch module `LocalAttention`
 * (local-attention 1.11.2): on WebGPU, or on one thread of WebAssembly's SIMD in a worker.
 *
 * ```js
 * import { LocalAttention } from 'local-attention';
 *
 * const attention = await LocalAttention.create({ windowSize: 128, causal: true, dim: 64 });
 * const out = await attention.forward({ q, k, v, shape: [1, 8, 1024, 64] }); // Float32Array
 * attention.dispose();
 * ```
 */

/** Where attention is computed. */
export type Backend = 'webgpu' | 'wasm';

/** The type that tensors are stored in. Everything is computed in f32. */
export type Dtype = 'f32' | 'f16';

/**
 * Numbers of q, k, v or a bias, row-major. A `Float16Array` is stored as f16, where the browser has that class. All of
 * one call are of one type, and results come in it.
 */
export type Data = Float32Array | Float16ArrayLike;

/** A `Float16Array`, also for compilers whose library does not know that class yet. */
export interface Float16ArrayLike {
  readonly [Symbol.toStringTag]: 'Float16Array';
  readonly BYTES_PER_ELEMENT: number;
  readonly buffer: ArrayBufferLike;
  readonly byteOffset: number;
  readonly byteLength: number;
  readonly length: number;
  [index: number]: number;
}

/** Sizes of a tensor's dimensions, outermost first. */
export type Shape = readonly number[];

/** Artefacts of the PyTorch module, reproduced by default so that results match; `false` switches one off. */
export interface Quirks {
  /** Queries rotate as if in the last window they see: distances are `lookForward * windowSize` too long. */
  tailAlignedRotary?: boolean;
  /** Without a mask, the zeros that `autopad` appends are attended to. */
  visibleAutopadKeys?: boolean;
  /** A query that sees nothing gets the mean of what it does not see, instead of 0. */
  uniformMaskedRows?: boolean;
}

/** The PyTorch module's constructor arguments in camelCase, and where to compute. An unknown name is an error. */
export interface Options {
  /** Positions in a window; at least 1. */
  windowSize: number;
  /** Whether a query sees no later key. Default false. */
  causal?: boolean;
  /** **Windows** before its own that a query sees. Default 1. */
  lookBackward?: number;
  /** **Windows** after its own that a query sees. Default 0 if causal, else 1. */
  lookForward?: number | null;
  /** Probability with which a weight is dropped, in `[0, 1)`; only in calls that bring a `seed`. Default 0. */
  dropout?: number;
  /** Keys are l2-normalised; a query's own logit is -5e4. Default false. */
  sharedQk?: boolean;
  /** Legacy: its first element overrides `dim`. */
  relPosEmbConfig?: readonly number[] | null;
  /** Rotary dimension, equal to the head's size. **Unset means no rotary embedding.** */
  dim?: number | null;
  /** Pad sequences with zeros to a multiple of `windowSize`. Default false. */
  autopad?: boolean;
  /** Also limit distances, to `windowSize` times the windows looked at. Default false. */
  exactWindowsize?: boolean;
  /** Factor on the logits. Default `headDim ** -0.5`. */
  scale?: number | null;
  /** `false` switches rotary embeddings off even with `dim`. Default true. */
  useRotaryPosEmb?: boolean;
  /** xpos decay; also permits `windowSize` in a call. Default false. */
  useXpos?: boolean;
  /** Positions over which xpos decays by one power. Default `Math.floor(windowSize / 2)`. */
  xposScaleBase?: number | null;
  /** Artefacts of the PyTorch module: all (the default), none, or each. */
  quirks?: 'all' | 'none' | Quirks;
  /** Where to compute. Default: WebGPU, and WebAssembly where there is none; `fallbackReason` then says why. */
  backend?: Backend;
}

/** `[Symbol.dispose]`, the same as `dispose()`, for compilers whose library knows that symbol. */
export type Using = SymbolConstructor extends { readonly dispose: infer S extends symbol }
  ? { [K in S]: () => void }
  : {};

/**
 * A tensor that stays where attention is computed: in memory of the GPU, or of the worker. Usable by every attention of
 * its backend. Its memory is freed by `dispose()`, and by nothing else. `A` is the array that it is read as.
 */
export interface Tensor<A extends Data | Uint8Array = Float32Array> extends Using {
  readonly shape: Shape;
  /** `u8`: a mask. */
  readonly dtype: Dtype | 'u8';
  readonly backend: Backend;
  readonly disposed: boolean;
  /** Waits for the calls made before and copies it out, row-major: `Float32Array`, `Float16Array` or `Uint8Array`. */
  read(): Promise<A>;
  /** Frees its memory; calls already made still use it. Once more does nothing. */
  dispose(): void;
}

/** Numbers as a call takes them: an array, which is copied to where attention is computed, or a tensor. */
export type Numbers = Data | Tensor<Data>;

/** Shapes of arrays, where they are not all q's. Tensors bring their own. */
export interface Shapes {
  /** `[.., n, d]` */
  q?: Shape;
  /** `[.., m, d]`; default q's. */
  k?: Shape;
  /** `[.., m, dv]`; default k's. */
  v?: Shape;
  /** `[rows, m]`; rows divide the packed batch. Default `[mask.length / m, m]`. */
  mask?: Shape;
  /** `[rows, 1 or windowSize, 1 or slots]`: needed with `attnBias`; packed row `b` reads row `b % rows`. */
  attnBias?: Shape;
}

/** The inputs of a call: arrays and tensors in any mixture, all numbers of one dtype. Results come as q does. */
export interface Inputs<T extends Numbers = Numbers> {
  /** Queries `[.., n, d]`. */
  q: T;
  /** Keys `[.., m, d]`. */
  k: Numbers;
  /** Values `[.., m, dv]`. */
  v: Numbers;
  /** 0 hides a key from every query; `[rows, m]`. */
  mask?: Uint8Array | Tensor<Uint8Array> | null;
  /** Added to the logits after the scale. */
  attnBias?: Numbers | null;
  /** The shape of q, k and v, `[.., n, d]`, or that of each. Not needed for tensors. */
  shape?: Shape | Shapes;
  /** Overrides the window; needs `useXpos`. */
  windowSize?: number | null;
}

/** What makes a call drop weights: the same seed and offset, the same weights, on every backend. */
export interface Seed {
  /** Up to 64 bits: one a training step, say. */
  seed?: number | bigint | null;
  /** Up to 32 bits: one a layer, say. Default 0. */
  offset?: number;
}

/** A forward pass. */
export interface ForwardCall<
  T extends Numbers = Numbers,
  O extends Tensor<Data> | undefined = Tensor<Data> | undefined,
  L extends boolean = boolean,
> extends Inputs<T>, Seed {
  /**
   * Where the result goes instead of a new tensor or array: a tensor of its shape that the call does not read. The call
   * gives that tensor, also where q is an array.
   */
  out?: O;
  /** Also give `lse`, which `backward` needs. Default false. */
  returnLse?: L;
}

/** What a forward pass gives: `out` where there is one, else as q came, an array for an array, a tensor for a tensor. */
export type OutOf<T, O> = O extends Tensor<Data> ? O : T;
/** `lse` is always f32. */
export type LseOf<T> = T extends Tensor<Data> ? Tensor : Float32Array;

export interface ForwardResult<T extends Numbers, O = undefined> {
  /** `[.., n, dv]` */
  out: OutOf<T, O>;
  /** Logarithm of the sum of exponentials of the logits a query sees, `[.., n]`. */
  lse: LseOf<T>;
}

/** A backward pass: what the forward pass took and gave, and the gradient of a loss by `out`. */
export interface BackwardCall<T extends Numbers = Numbers> extends Inputs<T>, Seed {
  /** The forward pass's `out`. */
  out: Numbers;
  /** Its `lse`. */
  lse: Float32Array | Tensor;
  /** The gradient by `out`, `[.., n, dv]`. */
  dout: Numbers;
  /** Whether to compute `dattnBias` where there is a bias. Default true. */
  biasGradient?: boolean;
}

export interface Gradients<T extends Numbers> {
  /** In q's shape. */
  dq: T;
  /** In k's shape. */
  dk: T;
  /** In v's shape. */
  dv: T;
  /** In the bias's shape; there with a bias, unless `biasGradient` is false. */
  dattnBias?: T;
}

/** Attention weights, before dropout. */
export interface Weights {
  /** `[rows, queries, slots]`, each row of slots summing to 1. */
  weights: Float32Array;
  /** `[rows, queries, slots]`; rows are the packed leading dimensions. */
  shape: [number, number, number];
  /** The key of each slot, `[queries, slots]`; -1 outside the padded sequence. */
  keys: Int32Array;
}

/** Who sees whom, before any mask. */
export interface Visible {
  /** First key that each query sees, one for each of `queries`. */
  start: Uint32Array;
  /** One past the last key that each query sees. */
  end: Uint32Array;
  /** Positions in a window. */
  window: number;
  /** Slots a window gathers, `(lookBackward + 1 + lookForward) * window`: the width of a bias. */
  slots: number;
  /** Length after autopad; keys from the sequence's length on are zeros. */
  paddedLength: number;
}

export interface VisibleCall {
  /** Length of the sequence. */
  n: number;
  /** Length of the keys, where it is another. */
  keyLength?: number;
  /** First query, and one past the last; default all. */
  queries?: readonly [number, number];
  /** Overrides the window; needs `useXpos`. */
  windowSize?: number | null;
}

/** Everything that fails is one of these: bad arguments, no backend, a lost device. */
export class LocalAttentionError extends Error {
  constructor(code: string, message: string);
  readonly name: 'LocalAttentionError';
  /**
   * What failed, stable between versions: an error of the Rust library by its name (`ConfigError.WindowSize`,
   * `ShapeError.Indivisible`, `PlanError.HeadDim`, `DeviceError.Lost`, ..), or one of this package:
   * `ArgumentError.Type`, `ArgumentError.Value`, `ArgumentError.Unknown` (a name that is none), `ArgumentError.Missing`,
   * `ArgumentError.Backend` (a tensor of another backend or device), `ArgumentError.Disposed`,
   * `BackendError.Unavailable`, `BackendError.Crashed` (its tensors and attentions are gone),
   * `BackendError.OutOfMemory` (the browser had no room for an array; nothing is gone) and `BackendError.Internal` (a
   * fault of this package).
   */
  readonly code: string;
}

export interface LocalAttention extends Using {}
export class LocalAttention {
  private constructor();

  /**
   * Checks the options and gets a backend ready. All attentions of a page share one device, or one worker.
   *
   * @throws {LocalAttentionError} Options that are wrong, or a `backend` asked for that this browser does not have.
   */
  static create(options: Options): Promise<LocalAttention>;

  /** Where it computes. */
  readonly backend: Backend;
  /** Why it is not `webgpu`, where no backend was asked for; else null. */
  readonly fallbackReason: string | null;
  /** The adapter's name as the browser tells it, often empty; `simd128` on `wasm`. */
  readonly device: string;
  /** Whether queries and keys are rotated: `dim` is set and `useRotaryPosEmb` is not false. */
  readonly rotary: boolean;
  readonly disposed: boolean;

  /** `softmax(q k^T * scale + bias over what each query sees) v`, `[.., n, dv]`. */
  forward<T extends Numbers, L extends boolean = false>(
    call: ForwardCall<T, undefined, L>,
  ): Promise<L extends true ? ForwardResult<T> : T>;
  forward<T extends Numbers, O extends Tensor<Data> | undefined, L extends boolean = false>(
    call: ForwardCall<T, O, L> & { out: O },
  ): Promise<L extends true ? ForwardResult<T, O> : OutOf<T, O>>;
  forward<T extends Numbers>(
    call: ForwardCall<T>,
  ): Promise<ForwardResult<T, Tensor<Data> | undefined> | T | Tensor<Data>>;

  /** The gradients of a loss by q, k, v and the bias. */
  backward<T extends Numbers>(call: BackwardCall<T>): Promise<Gradients<T>>;

  /** The attention weights of some queries, first and one past the last: computed by the CPU engine on either backend,
   * with `webgpu` on the page's own thread. */
  weights(call: Inputs & { queries: readonly [number, number] }): Promise<Weights>;

  /** The range of keys that each query sees. */
  visible(call: VisibleCall): Promise<Visible>;

  /** Copies an array to where attention is computed: upload once, run many, read once. */
  upload<A extends Data | Uint8Array>(data: A, shape: Shape): Promise<Tensor<A>>;

  /** Frees what it holds; its tensors live on. Once more does nothing. */
  dispose(): void;
}
