// Timing forward passes, and comparing two engines.

import { LocalAttention } from '../js/index.js';
import { Data } from './data.js';
import { median, repeatsOf } from './numbers.js';
import { optionsOf } from './settings.js';

const LEAST = 5;
const ENOUGH_MS = 300;

/** Milliseconds of a forward pass on tensors that stay where they are computed: a median. */
export const time = async (backend, text, settings, signal) => {
  const attention = await LocalAttention.create({ ...optionsOf(settings), backend });
  const data = new Data(text, settings);
  const tensors = [];
  try {
    const upload = async (x) => {
      const tensor = await attention.upload(x, data.shape);
      tensors.push(tensor);
      return tensor;
    };
    const call = { q: await upload(data.q), k: await upload(data.k), v: await upload(data.v) };
    const run = async (repeats) => {
      const start = performance.now();
      for (let i = 0; i < repeats; i++) {
        signal.throwIfAborted();
        const out = await attention.forward(call);
        await out.read();
        out.dispose();
      }
      return (performance.now() - start) / repeats;
    };
    // The first compiles, the second says how long others take.
    await run(1);
    const repeats = repeatsOf(await run(1));
    const times = [];
    const end = performance.now() + ENOUGH_MS;
    while (times.length < LEAST || performance.now() < end) times.push(await run(repeats));
    return median(times);
  } finally {
    tensors.forEach((tensor) => tensor.dispose());
    attention.dispose();
  }
};

/** The outputs of both engines: their largest difference, and the largest number among them. */
export const difference = async (data, settings, signal) => {
  const { q, k, v, shape } = data;
  const outs = [];
  for (const backend of ['webgpu', 'wasm']) {
    signal.throwIfAborted();
    const attention = await LocalAttention.create({ ...optionsOf(settings), backend });
    try {
      outs.push(await attention.forward({ q, k, v, shape }));
    } finally {
      attention.dispose();
    }
  }
  let [worst, largest] = [0, 0];
  for (let i = 0; i < outs[0].length; i++) {
    worst = Math.max(worst, Math.abs(outs[0][i] - outs[1][i]));
    largest = Math.max(largest, Math.abs(outs[1][i]));
  }
  return { worst, largest, numbers: outs[0].length };
};
