// Every golden case on both backends, within the tolerance that all backends are held to.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GOLDENS, openShared } from './browser.mjs';

const TOLERANCE = 1e-5;
/** A case that takes longer hangs. */
const PATIENCE_MS = 10 * 60_000;

export const cases = readdirSync(GOLDENS, { recursive: true }).filter((name) => name.endsWith('.safetensors')).sort();

/** Whether a case's features are whole vec4s: others take other kernels, so no kernel is compiled in two browsers. */
const isWhole = (name) => {
  try {
    const file = readFileSync(join(GOLDENS, name));
    const { q, v } = JSON.parse(file.subarray(8, 8 + Number(file.readBigUInt64LE())));
    return q.shape.at(-1) % 8 === 0 && v.shape.at(-1) % 4 === 0;
  } catch {
    // What is wrong with it, its check says.
    return false;
  }
};
export const whole = cases.filter(isWhole);
export const odd = cases.filter((name) => !isWhole(name));

/** What a promise gives, unless that takes too long. */
const inTime = async (promise) => {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

/** Checks cases on a backend, in a browser. */
export const goldens = (backend, number, names) => async () => {
  assert.ok(cases.length > 0, `no case in ${GOLDENS}`);
  const { page, said } = await openShared(number);
  const [failed, start] = [[], performance.now()];
  let [worst, where, tensors] = [0, '', 0];
  for (const name of names) {
    const check = ([name, backend, tolerance]) => {
      const told = (error) => `${error.code ?? error.name}: ${error.message}`;
      return globalThis.checkCase(name, backend, tolerance).then(Object.entries, told);
    };
    const shares = await inTime(page.evaluate(check, [name, backend, TOLERANCE])).catch((error) => {
      assert.fail([...failed, `${name}: ${error.message}`].join('\n'));
    });
    if (typeof shares === 'string') {
      failed.push(`${name}: ${shares}`);
      continue;
    }
    for (const [tensor, share] of shares) {
      tensors += 1;
      if (share > worst) [worst, where] = [share, `${tensor} of ${name}`];
      if (!(share <= 1)) failed.push(`${name}: ${tensor} is off by ${share} times what is allowed`);
    }
  }
  assert.deepEqual(failed, []);
  assert.deepEqual(said, []);
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  console.log(`${backend}: ${names.length} cases, ${tensors} tensors, at worst ${worst.toFixed(2)} of the tolerance (${where}), ${seconds} s`);
};
