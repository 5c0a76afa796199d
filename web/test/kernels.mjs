// Every kernel's text through the browser's compiler: it checks uniform control flow, which others do not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, open } from './browser.mjs';

export const kernels = () => {
  test('the browser compiles every kernel without a word', LIMIT, async () => {
    const { page, said } = await open();
    const { keys, half, skipped, told } = await page.evaluate(async () => {
      const module = await import('/dist/local_attention_web.js');
      await module.default();
      const all = module.kernels();
      const adapter = await navigator.gpu.requestAdapter();
      const half = adapter.features.has('shader-f16');
      const device = await adapter.requestDevice({ requiredFeatures: half ? ['shader-f16'] : [] });
      const [skipped, told] = [[], []];
      for (let i = 0; i < all.length; i += 2) {
        // Kernels that need what this adapter has not are no kernels of it.
        if (/^enable f16;/m.test(all[i + 1]) && !half) {
          skipped.push(all[i]);
          continue;
        }
        const { messages } = await device.createShaderModule({ code: all[i + 1] }).getCompilationInfo();
        told.push(...messages.map((m) => `${all[i]}: ${m.type}: ${m.lineNum}: ${m.message}`));
      }
      device.destroy();
      return { keys: all.filter((_, i) => i % 2 === 0), half, skipped, told };
    });
    const compiled = keys.length - skipped.length;
    assert.ok(compiled > 100, `${compiled} kernels`);
    // By their names: only results that are written as f16 need it.
    assert.deepEqual(skipped, half ? [] : keys.filter((key) => key.includes('-f16out')));
    assert.deepEqual(told, []);
    assert.deepEqual(said, []);
    console.log(`${compiled} kernels compiled, ${skipped.length} skipped`);
    await page.close();
  });
};
