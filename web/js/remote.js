// A session in a worker: the same calls, as messages.

import { asError, LocalAttentionError } from './errors.js';

/** An argument for another thread: arrays are copied, their bytes alone, and the copies handed over. */
const portable = (value, buffers) => {
  if (ArrayBuffer.isView(value)) {
    const copy = value.slice();
    buffers.push(copy.buffer);
    return copy;
  }
  if (value === null || typeof value !== 'object') return value;
  if (Array.isArray(value)) return value.map((item) => portable(item, buffers));
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, portable(item, buffers)]));
};

export class Remote {
  #worker;
  #waiting = new Map();
  #next = 1;
  #failure;
  name;

  static async start() {
    const remote = new Remote();
    if (typeof Worker === 'undefined') {
      throw new LocalAttentionError('BackendError.Unavailable', 'wasm is not available: there are no workers here');
    }
    remote.#worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module', name: 'local-attention' });
    remote.#worker.addEventListener('message', ({ data: { number, value, error } }) => {
      const { resolve, reject } = remote.#waiting.get(number) ?? {};
      // It failed meanwhile.
      if (!remote.#waiting.delete(number)) return;
      if (!error) return resolve(value);
      reject(asError(error));
      if (error.code === 'BackendError.Crashed') remote.#fail(error.message);
    });
    remote.#worker.addEventListener('error', (event) => {
      event.preventDefault();
      remote.#fail(event.message ?? 'its script could not be loaded');
    });
    try {
      remote.name = await remote.#call('name');
    } catch (error) {
      remote.#worker.terminate();
      throw new LocalAttentionError('BackendError.Unavailable', `wasm is not available: ${error.message}`);
    }
    return remote;
  }

  get lost() {
    return this.#failure !== undefined;
  }

  #fail(message) {
    this.#failure = new LocalAttentionError('BackendError.Crashed', `the worker stopped: ${message}`);
    this.#worker.terminate();
    this.#waiting.forEach(({ reject }) => reject(this.#failure));
    this.#waiting.clear();
  }

  #call(method, argument) {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const buffers = [];
      const message = { number: this.#next++, method, argument: portable(argument, buffers) };
      this.#waiting.set(message.number, { resolve, reject });
      this.#worker.postMessage(message, buffers);
    });
  }

  create = (settings) => this.#call('create', settings);
  upload = (array) => this.#call('upload', array);
  read = (id) => this.#call('read', id);
  forward = (argument) => this.#call('forward', argument);
  backward = (argument) => this.#call('backward', argument);
  weights = (argument) => this.#call('weights', argument);
  visible = (argument) => this.#call('visible', argument);

  release(id) {
    // A worker that is gone has released everything.
    if (!this.#failure) this.#call('release', id).catch(() => {});
  }
}
