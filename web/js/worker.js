// The CPU engine in a worker, so that the page stays alive while it computes.

import { asError } from './errors.js';
import { Session } from './session.js';

const session = Session.start('wasm');

/** Buffers that are handed over instead of copied. */
const buffers = (value) => {
  if (ArrayBuffer.isView(value)) return [value.buffer];
  return value !== null && typeof value === 'object' ? Object.values(value).flatMap(buffers) : [];
};

// A call that could not be read has no number to answer: the page hears that this worker failed.
addEventListener('messageerror', () => {
  throw new Error('a call could not be read');
});

addEventListener('message', async ({ data: { number, method, argument } }) => {
  try {
    const member = (await session)[method];
    const value = typeof member === 'function' ? await member.call(await session, argument) : member;
    postMessage({ number, value }, buffers(value));
  } catch (error) {
    // Only text crosses over.
    const { code, message } = asError(error);
    postMessage({ number, error: { code, message } });
  }
});
