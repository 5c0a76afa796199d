// Ours and theirs, one after the other, again and again.

import { repeatsOf } from '../../demo/numbers.js';
import { error, inputs } from './oracle.js';
import { ours } from './ours.js';
import { sizes, WARM_UP } from './plan.js';
import { theirs } from './theirs.js';

/**
 * Milliseconds of each run, by engine, and how far results are from the oracle's. A signal ends it before its next run;
 * what is known after each round goes to `progress`, which is waited for.
 */
export const compare = async ({ backend, n, mode }, pairs, { signal, progress } = {}) => {
  const all = inputs(sizes(n));
  const engines = [];
  try {
    for (const engine of [ours, theirs]) {
      signal?.throwIfAborted();
      engines.push(await engine(backend, sizes(n), all));
    }
    const [a, b] = engines;
    // Where theirs has no tensors of its own, arrays are what there is.
    const runs = [a[mode], b[mode] ?? b.arrays];
    const last = [];
    const took = [];
    const times = [[], []];
    // Browsers tell wgpu no name.
    const known = { device: a.device || b.device, ours: times[0], theirs: times[1] };
    let repeats = 1;
    for (let i = -WARM_UP; i < pairs; i++) {
      // In turn, so that neither is always the first.
      for (const j of i % 2 ? [1, 0] : [0, 1]) {
        signal?.throwIfAborted();
        const start = performance.now();
        for (let k = 0; k < repeats; k++) last[j] = await runs[j]();
        took[j] = (performance.now() - start) / repeats;
      }
      if (i >= 0) took.forEach((ms, j) => times[j].push(ms));
      if (i === -1) repeats = repeatsOf(Math.min(...took));
      await progress?.(known);
    }
    const results = [last[0] ?? (await a.read()), last[1] ? b.whole(last[1]) : await b.read()];
    return { ...known, errors: results.map((out) => error(sizes(n), all, out)) };
  } finally {
    for (const engine of engines) await engine.end();
  }
};

/** One call of one engine, so that what it loads is loaded. */
export const once = async (engine, backend, n) => {
  const one = await { ours, theirs }[engine](backend, sizes(n), inputs(sizes(n)));
  await one.arrays();
  await one.end();
};
