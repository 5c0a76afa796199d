// Which backend: one device and one worker for the whole page.

import { asError, unavailable } from './errors.js';
import { Remote } from './remote.js';
import { Session } from './session.js';

/** By backend, the session that is started or being started. */
const sessions = new Map();

const start = (backend) => (backend === 'webgpu' ? Session.start(backend) : Remote.start());

/** The session of a backend, another one where the last is gone. */
const session = async (backend) => {
  for (;;) {
    let known = sessions.get(backend);
    if (!known) {
      known = start(backend);
      sessions.set(backend, known);
    }
    const forget = () => sessions.get(backend) === known && sessions.delete(backend);
    try {
      const found = await known;
      if (!found.lost) return found;
    } catch (error) {
      forget();
      throw asError(error);
    }
    forget();
  }
};

const noWebgpu = () => {
  const secure = globalThis.isSecureContext ? '' : ' (pages have it over https or from localhost only)';
  return `navigator.gpu is missing: this browser has no WebGPU here${secure}`;
};

/** A session, its backend, and why it is not WebGPU where nothing was asked for. */
export const open = async (asked) => {
  if (asked === 'wasm') return { backend: 'wasm', session: await session('wasm'), fallbackReason: null };
  let why = noWebgpu();
  if (globalThis.navigator?.gpu) {
    try {
      return { backend: 'webgpu', session: await session('webgpu'), fallbackReason: null };
    } catch (error) {
      why = error.message;
    }
  }
  if (asked === 'webgpu') throw unavailable('webgpu', why);
  return { backend: 'wasm', session: await session('wasm'), fallbackReason: why };
};
