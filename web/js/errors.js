// What fails is one of these: the library's error with its name as the code, or one of the package's own.

export class LocalAttentionError extends Error {
  constructor(code, message) {
    super(message);
    this.name = 'LocalAttentionError';
    this.code = code;
  }
}

/** The module stopped where it was: its memory is in no known state. */
export const crashed = (message) => new LocalAttentionError('BackendError.Crashed', `the backend stopped: ${message}`);

export const unavailable = (backend, why) =>
  new LocalAttentionError('BackendError.Unavailable', `${backend} is not available: ${why}`);

/** Whether the module stopped where it was: a trap, or a stack without an end. */
export const isCrash = (error) =>
  error instanceof WebAssembly.RuntimeError || /call stack|too much recursion/i.test(error?.message ?? '');

/** An error from the library's module, a worker or the browser as one of these. */
export const asError = (error) => {
  if (error instanceof LocalAttentionError) return error;
  if (typeof error?.code === 'string') return new LocalAttentionError(error.code, error.message);
  const message = error?.message ?? error;
  if (isCrash(error)) return crashed(message);
  // What browsers throw where an array finds no room: nothing has stopped.
  if (error instanceof RangeError) {
    return new LocalAttentionError('BackendError.OutOfMemory', `there is no memory for it: ${message}`);
  }
  return new LocalAttentionError('BackendError.Internal', `a fault of local-attention: ${message}`);
};

/** What a value looks like, for messages. */
export const show = (value) => {
  if (typeof value === 'string') return JSON.stringify(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (value === null || typeof value !== 'object') return String(value);
  const name = value.constructor?.name ?? 'object';
  if (Array.isArray(value)) return value.length > 8 ? `an Array of ${value.length}` : `[${value.map(show).join(', ')}]`;
  return ArrayBuffer.isView(value) ? `a ${name} of ${value.length ?? value.byteLength}` : `of class ${name}`;
};

export const wrongType = (name, value, allowed) =>
  new LocalAttentionError('ArgumentError.Type', `${name} is ${show(value)}: it must be ${allowed}`);

export const wrongValue = (name, value, allowed) =>
  new LocalAttentionError('ArgumentError.Value', `${name} is ${show(value)}: it must be ${allowed}`);

export const missing = (name, allowed) =>
  new LocalAttentionError('ArgumentError.Missing', `${name} is missing: it must be ${allowed}`);
