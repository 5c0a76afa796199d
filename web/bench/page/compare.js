// Ours and theirs, one after the other, again and again.

import { error, inputs } from './oracle.js';
import { ours } from './ours.js';
import { theirs } from './theirs.js';

const WARM_UP = 2;

const fetched = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());

const timed = async (run) => {
  const start = performance.now();
  await run();
  return performance.now() - start;
};

/** Milliseconds of each run, by engine, and how far results are from the oracle's. */
export const compare = async (backend, sizes, url, mode, pairs) => {
  const all = inputs(sizes);
  const [a, b] = [await ours(backend, sizes, all), await theirs(backend, sizes, all, await fetched(url))];
  try {
    // Where theirs has no tensors of its own, arrays are what there is.
    const runs = [a[mode], b[mode] ?? b.arrays];
    const last = [];
    for (let i = 0; i < WARM_UP; i++) {
      for (const [j, run] of runs.entries()) last[j] = await run();
    }
    const times = [[], []];
    for (let i = 0; i < pairs; i++) {
      for (const [j, run] of runs.entries()) times[j].push(await timed(async () => (last[j] = await run())));
    }
    const results = [last[0] ?? (await a.read()), last[1] ? b.whole(last[1]) : await b.read()];
    return { device: a.device, ours: times[0], theirs: times[1], errors: results.map((out) => error(sizes, all, out)) };
  } finally {
    a.end();
    await b.end();
  }
};

/** One call of one engine, so that what it loads is loaded. */
export const once = async (engine, backend, sizes, url) => {
  const all = inputs(sizes);
  const one = engine === 'ours' ? await ours(backend, sizes, all) : await theirs(backend, sizes, all, await fetched(url));
  await one.arrays();
  await one.end();
};
