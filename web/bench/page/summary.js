// Runs in numbers, and as a row of the table.

import { median, milliseconds, quantile } from '../../demo/numbers.js';
import { BACKENDS, where } from './plan.js';

/** A result that is further from the oracle's is wrong. */
export const MOST = 1e-5;

/** How many times as long as ours theirs takes, by pairs: the median and the lower quartile. */
export const ratios = ({ ours, theirs }) => {
  const all = ours.map((ms, i) => theirs[i] / ms);
  return { ratio: median(all), low: quantile(all, 0.25) };
};

export const isWrong = ({ errors }) => !errors.every((error) => error <= MOST);

export const HEADS = [
  'backend',
  'tensors',
  'n',
  'ours, ms',
  'theirs, ms',
  'theirs / ours',
  'lower quartile',
  'error of ours',
  'error of theirs',
];

/** The text of each column; of a comparison that is not at its end, that of those that are known. */
export const cells = (run) => {
  const { backend, n, ours = [], theirs = [], errors = [] } = run;
  const texts = [BACKENDS[backend], where(run), n.toLocaleString('en')];
  if (ours.length) {
    const { ratio, low } = ratios(run);
    texts.push(...[ours, theirs].map((times) => milliseconds(median(times))), ratio.toFixed(2), low.toFixed(2));
  }
  return [...texts, ...errors.map((error) => error.toExponential(1))];
};
