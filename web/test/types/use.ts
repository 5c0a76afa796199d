// Compiled, never run; with libraries that know no Symbol.dispose and no Float16Array.

import { type ForwardCall, LocalAttention, LocalAttentionError, type Tensor } from 'local-attention';

const attention = await LocalAttention.create({ windowSize: 128, causal: true, lookBackward: 1, dim: 64 });
const backend: 'webgpu' | 'wasm' = attention.backend;
const x = new Float32Array(64 * 128);
const shape = [1, 128, 64];

// An array for arrays, a tensor for tensors.
const out: Float32Array = await attention.forward({ q: x, k: x, v: x, mask: new Uint8Array(128), shape });
const t: Tensor = await attention.upload(x, shape);
const kept: Tensor = await attention.forward({ q: t, k: t, v: t });
const mixed: Float32Array = await attention.forward({ q: x, k: t, v: x, shape });
const both = await attention.forward({ q: x, k: x, v: x, shape, returnLse: true });
const lse: Float32Array = both.lse;
const { dq, dattnBias } = await attention.backward({ q: x, k: x, v: x, shape, ...both, dout: x });
const gradients: [Float32Array, Float32Array | undefined] = [dq, dattnBias];
const bound: Tensor = (await attention.forward({ q: t, k: t, v: t, returnLse: true })).lse;

// In a tensor of the caller's, whatever q is.
const into: Tensor = await attention.forward({ q: x, k: x, v: x, shape, out: t });
const inBoth = await attention.forward({ q: x, k: x, v: x, shape, out: t, returnLse: true });
const intoBoth: { out: Tensor; lse: Float32Array } = inBoth;
const perhaps: Tensor | undefined = x.length ? t : undefined;
const either: Tensor | Float32Array = await attention.forward({ q: x, k: x, v: x, shape, out: perhaps });

// A flag that is known later.
const returnLse: boolean = x.length > 1;
const one = await attention.forward({ q: x, k: x, v: x, shape, returnLse });
const narrowed: Float32Array = 'lse' in one ? one.out : one;

// A call of which nothing is known but that it is one.
const call: ForwardCall<Float32Array> = { q: x, k: x, v: x, shape };
const some = await attention.forward(call);
const any: Float32Array | Tensor<any> = 'lse' in some ? some.out : some;

// Tensors are read as what was uploaded.
const read: Float32Array = await kept.read();
const mask = await attention.upload(new Uint8Array(128), [1, 128]);
const bits: Uint8Array = await mask.read();
await attention.forward({ q: t, k: t, v: t, mask });

const { start, end } = await attention.visible({ n: 128, queries: [0, 16] });
const { weights, keys } = await attention.weights({ q: x, k: t, v: x, shape, queries: [0, 16] });
const code = (error: unknown): string => (error instanceof LocalAttentionError ? error.code : '');
t.dispose();
attention.dispose();

// @ts-expect-error: windowSize is required
await LocalAttention.create({ causal: true });
// @ts-expect-error: the reference's names are in camelCase here
await LocalAttention.create({ windowSize: 128, look_backward: 1 });
// @ts-expect-error: numbers are Float32Array or Float16Array
await attention.forward({ q: [1, 2, 3], k: x, v: x, shape });
// @ts-expect-error: a call has no such name
await attention.forward({ q: x, k: x, v: x, shape, lse });
// @ts-expect-error: a result goes into a tensor
await attention.forward({ q: x, k: x, v: x, shape, out: x });
// @ts-expect-error: it is where it is put
const array: Float32Array = await attention.forward({ q: x, k: x, v: x, shape, out: t });
// @ts-expect-error: a mask is of u8
await attention.forward({ q: t, k: t, v: t, mask: t });
// @ts-expect-error: a mask's tensor is no tensor of numbers
await attention.forward({ q: t, k: t, v: mask });
// @ts-expect-error: without its symbol there is nothing to call
attention[Symbol.dispose]();
// @ts-expect-error: attentions come from create
new LocalAttention();

export { any, array, backend, bits, bound, code, either, end, gradients, into, intoBoth, keys };
export { lse, mixed, narrowed, out, read, start, weights };
