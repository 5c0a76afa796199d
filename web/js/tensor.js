// Tensors that stay where attention is computed.

import { fromBytes } from './dtype.js';
import { asError, LocalAttentionError } from './errors.js';

export class Tensor {
  #session;
  #id;
  shape;
  dtype;
  backend;
  disposed = false;

  constructor(session, id, { shape, dtype, backend }) {
    this.#session = session;
    this.#id = id;
    this.shape = Object.freeze([...shape]);
    this.dtype = dtype;
    this.backend = backend;
  }

  /** Its number in a session. */
  static handle(name, tensor, session) {
    if (tensor.disposed) throw new LocalAttentionError('ArgumentError.Disposed', `${name} is a tensor that was disposed of`);
    if (tensor.#session !== session) {
      const message = `${name} is a tensor of another device (${tensor.backend}): read it and upload it again`;
      throw new LocalAttentionError('ArgumentError.Backend', message);
    }
    return { id: tensor.#id, shape: tensor.shape };
  }

  async read() {
    const { id } = Tensor.handle('this', this, this.#session);
    try {
      return fromBytes(await this.#session.read(id), this.dtype);
    } catch (error) {
      throw asError(error);
    }
  }

  dispose() {
    if (this.disposed) return;
    this.disposed = true;
    this.#session.release(this.#id);
  }
}

if (Symbol.dispose) Tensor.prototype[Symbol.dispose] = Tensor.prototype.dispose;
