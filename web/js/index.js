// The package's face: arguments are checked here, and carried out by a session.

import { open } from './backends.js';
import * as check from './check.js';
import { fromBytes } from './dtype.js';
import { asError, LocalAttentionError, wrongType } from './errors.js';
import { Tensor } from './tensor.js';

export { LocalAttentionError };

export class LocalAttention {
  #session;
  #id;
  backend;
  fallbackReason;
  device;
  rotary;
  disposed = false;

  static async create(options) {
    const settings = check.options(options);
    const { session, backend, fallbackReason } = await open(check.backend(options.backend));
    const attention = new LocalAttention();
    attention.#session = session;
    Object.assign(attention, { backend, fallbackReason, device: session.name });
    const { id, rotary } = await attention.#answer(() => session.create(settings));
    attention.#id = id;
    attention.rotary = rotary;
    return attention;
  }

  async #answer(ask) {
    if (this.disposed) throw new LocalAttentionError('ArgumentError.Disposed', 'this attention was disposed of');
    try {
      return await ask();
    } catch (error) {
      throw asError(error);
    }
  }

  /** The tensors and options of a call, and whether results stay where they are computed. */
  #call(given, names) {
    const handle = (name, value) => (value instanceof Tensor ? Tensor.handle(name, value, this.#session) : undefined);
    const call = check.call(given, names, handle);
    call.keep = given.q instanceof Tensor;
    if (names.includes('seed')) call.dropout = check.dropout(given);
    return call;
  }

  /** A result as callers take it. */
  #result({ id, bytes, shape, dtype }) {
    return id === undefined ? fromBytes(bytes, dtype) : new Tensor(this.#session, id, { shape, dtype, backend: this.backend });
  }

  async forward(given) {
    return this.#answer(async () => {
      const call = this.#call(given, ['seed', 'offset', 'returnLse', 'out']);
      call.returnLse = check.flag('returnLse', given.returnLse ?? false);
      if (given.out !== undefined) {
        if (!(given.out instanceof Tensor)) throw wrongType('out', given.out, 'a Tensor');
        call.out = { id: Tensor.handle('out', given.out, this.#session).id };
      }
      const [out, lse] = await this.#session.forward({ id: this.#id, call });
      const result = out === null ? given.out : this.#result(out);
      return call.returnLse ? { out: result, lse: this.#result(lse) } : result;
    });
  }

  async backward(given) {
    return this.#answer(async () => {
      const call = this.#call(given, ['seed', 'offset', 'out', 'lse', 'dout', 'biasGradient']);
      call.biasGradient = check.flag('biasGradient', given.biasGradient ?? true);
      const results = await this.#session.backward({ id: this.#id, call });
      const [dq, dk, dv, dattnBias] = results.map((result) => this.#result(result));
      return dattnBias === undefined ? { dq, dk, dv } : { dq, dk, dv, dattnBias };
    });
  }

  async weights(given) {
    return this.#answer(() => {
      const call = this.#call(given, ['queries']);
      return this.#session.weights({ id: this.#id, call, queries: check.range('queries', given.queries) });
    });
  }

  async visible(given) {
    return this.#answer(() => this.#session.visible({ id: this.#id, ...check.visible(given) }));
  }

  async upload(data, shape) {
    return this.#answer(async () => {
      const array = check.upload(data, shape);
      const { id } = await this.#session.upload(array);
      return new Tensor(this.#session, id, { ...array, backend: this.backend });
    });
  }

  dispose() {
    if (this.disposed) return;
    this.disposed = true;
    this.#session.release(this.#id);
  }
}

if (Symbol.dispose) LocalAttention.prototype[Symbol.dispose] = LocalAttention.prototype.dispose;
