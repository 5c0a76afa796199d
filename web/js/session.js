// The library's module and what is held in it, by number: used on the page for WebGPU, in the worker for the CPU engine.

import init, { __wbg_reset_state, Attention, Config, Dtype, Engine, on_crash, Request } from '../dist/local_attention_web.js';
import { crashed, isCrash, LocalAttentionError } from './errors.js';

/** The module's memory: how it stopped, after which what it held is not to be touched any more, and how calls fail. */
class Memory {
  failure;
  #running = new Set();

  alive() {
    if (this.failure) throw this.failure;
  }

  /** An answer of the module's: an error once that stops, because it will not come then. */
  answered(ask) {
    this.alive();
    const answer = ask();
    return new Promise((resolve, reject) => {
      this.#running.add(reject);
      answer.then(resolve, reject).finally(() => this.#running.delete(reject));
    });
  }

  stop(message) {
    this.failure ??= crashed(message);
    this.#running.forEach((reject) => reject(this.failure));
    this.#running.clear();
  }
}

let memory;

/** The module, loaded once; after it has stopped it gets new memory. */
const load = async () => {
  try {
    await init();
  } catch (error) {
    throw new LocalAttentionError('BackendError.Unavailable', `the WebAssembly could not be loaded: ${error.message}`);
  }
  if (memory && !memory.failure) return memory;
  if (memory) __wbg_reset_state();
  const fresh = new Memory();
  // Calls of every session in it: one of a lost device may still run.
  on_crash((message) => fresh.stop(message));
  memory = fresh;
  return fresh;
};

export class Session {
  #engine;
  /** For what the GPU does not compute. */
  #host;
  #held = new Map();
  #next = 1;
  #memory;
  /** Settled once what computes or reads has come to its end. */
  #last = Promise.resolve();

  static async start(backend) {
    const session = new Session();
    session.#memory = await load();
    session.#host = Engine.wasm();
    session.#engine = backend === 'webgpu' ? await session.#memory.answered(() => Engine.webgpu()) : session.#host;
    return session;
  }

  /** Runs something in the module, unless that has stopped. */
  async #inside(run) {
    this.#memory.alive();
    try {
      return await run();
    } catch (error) {
      if (!isCrash(error)) throw error;
      // Not every trap is a panic, which would have said more.
      this.#memory.stop(error.message);
      throw this.#memory.failure;
    }
  }

  get name() {
    return this.#engine.name();
  }

  /** Whether the device is gone. */
  get lost() {
    return this.#memory.failure !== undefined || this.#engine.lost();
  }

  #hold(object) {
    this.#held.set(this.#next, object);
    return this.#next++;
  }

  /** An attention. */
  create(settings) {
    return this.#inside(() => {
      const [[, , windowSize], ...others] = settings;
      const config = new Config(windowSize);
      for (const [kind, name, value] of others) {
        if (kind === 'integers') config.rel_pos_emb_config(new Float64Array(value));
        else if (!config[kind](name, value)) throw new Error(`${name} is unknown`);
      }
      const attention = new Attention(this.#engine, config);
      return { id: this.#hold(attention), rotary: attention.rotary() };
    });
  }

  /** A tensor. */
  upload(array) {
    return this.#inside(async () => ({ id: this.#hold(await this.#upload(array, this.#engine)) }));
  }

  async #upload({ bytes, dtype, shape }, engine) {
    return this.#memory.answered(() => engine.upload(bytes, Dtype[dtype.toUpperCase()], new Uint32Array(shape)));
  }

  /** A tensor's bytes, once the calls before this one are done. */
  read(id) {
    return this.#inside(async () => {
      const tensor = this.#held.get(id).clone_handle();
      const turn = this.#turn();
      try {
        await turn.before;
        return await this.#bytes(tensor);
      } finally {
        turn.done();
        if (!this.#memory.failure) tensor.free();
      }
    });
  }

  /** Calls that read or write tensors come one after the other, in the order they were made. */
  #turn() {
    const before = this.#last;
    let done;
    this.#last = new Promise((resolve) => (done = resolve));
    return { before, done };
  }

  #bytes(tensor) {
    return this.#memory.answered(() => this.#engine.read(tensor));
  }

  /** Frees an attention or a tensor. */
  release(id) {
    if (!this.#memory.failure) this.#held.get(id)?.free();
    this.#held.delete(id);
  }

  forward({ id, call }) {
    return this.#with(id, call, this.#engine, async (attention, request) => {
      const results = await this.#memory.answered(() => attention.forward(request));
      return this.#results(results, call.keep, [call.out]);
    });
  }

  backward({ id, call }) {
    return this.#with(id, call, this.#engine, async (attention, request) => {
      const results = await this.#memory.answered(() => attention.backward(request));
      return this.#results(results, call.keep, []);
    });
  }

  /** Weights, on either backend by the CPU engine: arrays do not go to the GPU and back. */
  weights({ id, call, queries: [first, end] }) {
    return this.#with(id, call, this.#host, async (attention, request) => {
      await this.#deviceThere();
      const [weights, shape, keys] = await this.#memory.answered(() => attention.weights(request, first, end));
      return { weights, shape: [...shape], keys };
    });
  }

  /** An error where the device is gone, though nothing is needed of it: it is asked for a tensor of nothing. */
  async #deviceThere() {
    if (this.#engine === this.#host) return;
    const tensor = await this.#upload({ bytes: new Uint8Array(0), dtype: 'u8', shape: [0] }, this.#engine);
    this.#memory.alive();
    tensor.free();
  }

  visible({ id, n, keys, windowSize, queries: [first, end] }) {
    return this.#inside(() => {
      const [start, ends, window, slots, paddedLength] = this.#held.get(id).visible(n, keys, windowSize, first, end);
      return { start, end: ends, window, slots, paddedLength };
    });
  }

  /** Runs something with an attention on the tensors of a call; arrays are uploaded to an engine for it. */
  #with(id, call, engine, run) {
    return this.#inside(() => this.#prepared(id, call, engine, run));
  }

  async #prepared(id, call, engine, run) {
    const named = Object.entries(call).filter(([, input]) => input?.id !== undefined || input?.bytes !== undefined);
    const tensors = {};
    // Handles first: what is disposed of meanwhile is still used by this call.
    const attention = this.#held.get(id).clone_handle();
    for (const [name, { id }] of named) if (id !== undefined) tensors[name] = this.#held.get(id).clone_handle();
    const request = { made: undefined };
    const turn = this.#turn();
    try {
      // At the same time, and all to their end: those that are there are freed below.
      const arrays = named.filter(([name]) => !tensors[name]);
      const uploads = await Promise.allSettled(arrays.map(([, input]) => this.#upload(input, engine)));
      uploads.forEach(({ value }, i) => value && (tensors[arrays[i][0]] = value));
      const failed = uploads.find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
      await turn.before;
      this.#memory.alive();
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
      turn.done();
      if (!this.#memory.failure) {
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
      const [shape, dtype] = [[...tensor.shape()], Dtype[tensor.dtype()].toLowerCase()];
      if (keep) return { id: this.#hold(tensor), shape, dtype };
      try {
        return { bytes: await this.#bytes(tensor), shape, dtype };
      } finally {
        if (!this.#memory.failure) tensor.free();
      }
    });
    return Promise.all(each);
  }
}
