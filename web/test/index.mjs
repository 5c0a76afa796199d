// All tests. Two browsers at the same time: both spend most of it compiling kernels, each on one thread.

import { describe, test } from 'node:test';
import { benchPage } from '../bench/page.test.mjs';
import { api } from './api.mjs';
import { demo } from './demo.mjs';
import { device } from './device.mjs';
import { cases, goldens, odd, whole } from './goldens.mjs';
import { kernels } from './kernels.mjs';
import { packed } from './package.mjs';

describe('local-attention', { concurrency: true }, () => {
  describe('one', { concurrency: false }, () => {
    test('golden cases of whole vec4s on webgpu', goldens('webgpu', 0, whole));
    // With kernels that are compiled by now, for the most part.
    api();
    demo(0);
    benchPage(0);
  });
  describe('two', { concurrency: false }, () => {
    packed();
    test('golden cases on wasm', goldens('wasm', 1, cases));
    test('golden cases of other sizes on webgpu', goldens('webgpu', 1, odd));
    device();
    kernels();
  });
});
