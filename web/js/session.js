// The library's module and what is held in it, by number: used on the page for WebGPU, in the worker for the CPU engine.

import init, { __wbg_reset_state, Attention, Config, Dtype, Engine, on_crash, Request } from '../dist/local_attention_web.js';
import { LocalAttentionError } from './errors.js';

const DTYPES = { f32: Dtype.F32, f16: Dtype.F16, u8: Dtype.U8 };
const NAMES = { [Dtype.F32]: 'f32', [Dtype.F16]: 'f16', [Dtype.U8]: 'u8' };

/** The module's memory: it stops with the first panic, and what it held is not to be touched any more. */
let memory = { stopped: false };

/** The module, loaded once; after a panic it gets new memory. */
const load = async () => {
  try {
    await init();
  } catch (error) {
    throw new LocalAttentionError('BackendError.Unavailable', `the WebAssembly could not be loaded: ${error.message}`);
  }
  if (!memory.stopped) return;
  memory = { stopped: false };
  __wbg_reset_state();
};

export class Session {
  #engine;
  #held = new Map();
  #next = 1;
  /** How the calls that are running fail. */
  #running = new Set();
  #memory;

  static async start(backend) {
    await load();
    const session = new Session();
    session.#memory = memory;
    // A call that crashes is never answered: the module stops where it is.
    on_crash((message) => {
      session.#memory.stopped = true;
      const error = new LocalAttentionError('BackendError.Crashed', `the backend stopped: ${message}`);
      session.#running.forEach((reject) => reject(error));
      session.#running.clear();
    });
    session.#engine = backend === 'webgpu' ? await session.#answered(Engine.webgpu()) : Engine.wasm();
    return session;
  }

  #answered(promise) {
    return new Promise((resolve, reject) => {
      this.#running.add(reject);
      promise.then(resolve, reject).finally(() => this.#running.delete(reject));
    });
  }

  get name() {
    return this.#engine.name();
  }

  /** Whether the device is gone. */
  get lost() {
    return this.#memory.stopped || this.#engine.lost();
  }

  #hold(object) {
    this.#held.set(this.#next, object);
    return this.#next++;
  }

  /** An attention. */
  create(settings) {
    const [[, , windowSize], ...others] = settings;
    const config = new Config(windowSize);
    for (const [kind, name, value] of others) {
      if (kind === 'integers') config.rel_pos_emb_config(new Float64Array(value));
      else if (!config[kind](name, value)) throw new Error(`${name} is unknown`);
    }
    const attention = new Attention(this.#engine, config);
    return { id: this.#hold(attention), rotary: attention.rotary() };
  }

  /** A tensor. */
  async upload(array) {
    return { id: this.#hold(await this.#upload(array)) };
  }

  #upload({ bytes, dtype, shape }) {
    return this.#answered(this.#engine.upload(bytes, DTYPES[dtype], new Uint32Array(shape)));
  }

  /** A tensor's bytes. */
  read(id) {
    return this.#answered(this.#engine.read(this.#held.get(id)));
  }

  /** Frees an attention or a tensor. */
  release(id) {
    if (!this.#memory.stopped) this.#held.get(id)?.free();
    this.#held.delete(id);
  }

  async forward({ id, call }) {
    return this.#with(id, call, async (attention, request) => {
      const results = await this.#answered(attention.forward(request));
      return this.#results(results, call.keep, [call.out, call.lse]);
    });
  }

  async backward({ id, call }) {
    return this.#with(id, call, async (attention, request) => {
      const results = await this.#answered(attention.backward(request));
      return this.#results(results, call.keep, []);
    });
  }

  async weights({ id, call, queries: [first, end] }) {
    return this.#with(id, call, async (attention, request) => {
      const [weights, shape, keys] = await this.#answered(attention.weights(request, first, end));
      return { weights, shape: [...shape], keys };
    });
  }

  visible({ id, n, keys, windowSize, queries: [first, end] }) {
    const [start, ends, window, slots, paddedLength] = this.#held.get(id).visible(n, keys, windowSize, first, end);
    return { start, end: ends, window, slots, paddedLength };
  }

  /** Runs something with an attention on the tensors of a call; arrays are uploaded for it. */
  async #with(id, call, run) {
    const named = Object.entries(call).filter(([, input]) => input?.id !== undefined || input?.bytes !== undefined);
    const tensors = {};
    // Handles first: what is disposed of meanwhile is still used by this call.
    const attention = this.#held.get(id).clone_handle();
    for (const [name, { id }] of named) if (id !== undefined) tensors[name] = this.#held.get(id).clone_handle();
    const request = { made: undefined };
    try {
      // At the same time, and all to their end: those that are there are freed below.
      const arrays = named.filter(([name]) => !tensors[name]);
      const uploads = await Promise.allSettled(arrays.map(([, input]) => this.#upload(input)));
      uploads.forEach(({ value }, i) => value && (tensors[arrays[i][0]] = value));
      const failed = uploads.find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
      request.made = new Request(tensors.q, tensors.k, tensors.v);
      for (const name of ['mask', 'attnBias', 'out', 'lse', 'dout']) {
        if (tensors[name]) request.made.tensor(name, tensors[name]);
      }
      if (call.returnLse) request.made.want_lse();
      if (call.biasGradient === false) request.made.without_bias_gradient();
      if (call.windowSize !== undefined) request.made.window_size(call.windowSize);
      if (call.dropout) request.made.dropout(call.dropout.seed, call.dropout.offset);
      return await run(attention, request.made);
    } finally {
      if (!this.#memory.stopped) {
        request.made?.free();
        attention.free();
        Object.values(tensors).forEach((tensor) => tensor.free());
      }
    }
  }

  /** Results as they are wanted: held, or as bytes; those that went into tensors of the caller's are there already. */
  async #results(results, keep, given) {
    const each = results.map(async (tensor, i) => {
      if (given[i]) {
        tensor.free();
        return null;
      }
      const [shape, dtype] = [[...tensor.shape()], NAMES[tensor.dtype()]];
      if (keep) return { id: this.#hold(tensor), shape, dtype };
      try {
        return { bytes: await this.#answered(this.#engine.read(tensor)), shape, dtype };
      } finally {
        if (!this.#memory.stopped) tensor.free();
      }
    });
    return Promise.all(each);
  }
}
