// A session in a worker: the same calls, as messages.

import { asError, crashed, LocalAttentionError, unavailable } from './errors.js';

const notLoaded = (why) => {
  const needs = "the package's files must come from the page's own origin, and a policy must allow worker-src 'self'";
  return new LocalAttentionError('BackendError.Unavailable', `its worker could not be loaded: ${needs}${why}`);
};

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
    if (typeof Worker === 'undefined') throw unavailable('wasm', 'there are no workers here');
    const remote = new Remote();
    try {
      remote.#open();
      remote.name = await remote.#call('name');
    } catch (error) {
      remote.#worker?.terminate();
      throw unavailable('wasm', error.message);
    }
    return remote;
  }

  #open() {
    try {
      this.#worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module', name: 'local-attention' });
    } catch (error) {
      throw notLoaded(` (${error.message})`);
    }
    this.#worker.addEventListener('message', ({ data: { number, value, error } }) => {
      const { resolve, reject } = this.#waiting.get(number) ?? {};
      // It failed meanwhile.
      if (!this.#waiting.delete(number)) return;
      if (!error) return resolve(value);
      const failure = asError(error);
      reject(failure);
      if (failure.code === 'BackendError.Crashed') this.#fail(failure);
    });
    this.#worker.addEventListener('error', (event) => {
      event.preventDefault();
      // Of a script that does not come, browsers say no more.
      this.#fail(event.message ? crashed(event.message) : notLoaded(''));
    });
    // Whose answer it was is not known.
    this.#worker.addEventListener('messageerror', () => this.#fail(crashed('an answer could not be read')));
  }

  get lost() {
    return this.#failure !== undefined;
  }

  #fail(failure) {
    this.#failure ??= failure;
    this.#worker.terminate();
    this.#waiting.forEach(({ reject }) => reject(this.#failure));
    this.#waiting.clear();
  }

  #call(method, argument) {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const buffers = [];
      const message = { number: this.#next++, method, argument: portable(argument, buffers) };
      this.#worker.postMessage(message, buffers);
      this.#waiting.set(message.number, { resolve, reject });
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
