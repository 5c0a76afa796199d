// Every kernel's text through the browser's compiler: it checks uniform control flow, which others do not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from './browser.mjs';

export const kernels = () => {
  test('the browser compiles every kernel without a word', async () => {
    const { page, said } = await open();
    const { count, told } = await page.evaluate(async () => {
      const module = await import('/dist/local_attention_web.js');
      await module.default();
      const all = module.kernels();
      const adapter = await navigator.gpu.requestAdapter();
      const device = await adapter.requestDevice({ requiredFeatures: adapter.features.has('shader-f16') ? ['shader-f16'] : [] });
      const told = [];
      for (let i = 0; i < all.length; i += 2) {
        // Kernels that need what this adapter has not are no kernels of it.
        if (/^enable f16;/m.test(all[i + 1]) && !adapter.features.has('shader-f16')) continue;
        const { messages } = await device.createShaderModule({ code: all[i + 1] }).getCompilationInfo();
        told.push(...messages.map((m) => `${all[i]}: ${m.type}: ${m.lineNum}: ${m.message}`));
      }
      device.destroy();
      return { count: all.length / 2, told };
    });
    assert.ok(count > 100, `${count} kernels`);
    assert.deepEqual(told, []);
    assert.deepEqual(said, []);
    console.log(`${count} kernels`);
    await page.close();
  });
};
