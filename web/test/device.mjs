// The device: what is made on it is freed, it may go and come back, and there may be none.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open } from './browser.mjs';

/** Counts the buffers of every device that the page makes from now on, and keeps the devices. */
const watch = () => {
  globalThis.buffers = { made: 0, destroyed: 0, live: new Set(), bytes: 0 };
  globalThis.devices = [];
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (...args) {
    const device = await request.apply(this, args);
    devices.push(device);
    return device;
  };
  const create = GPUDevice.prototype.createBuffer;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = create.call(this, descriptor);
    buffers.made += 1;
    buffers.live.add(buffer);
    return buffer;
  };
  const destroy = GPUBuffer.prototype.destroy;
  GPUBuffer.prototype.destroy = function () {
    buffers.live.delete(this);
    return destroy.call(this);
  };
};

export const device = () => {
  test('over 200 calls every buffer is destroyed or used again', async () => {
    const { page, said } = await open({ number: 1 });
    await page.evaluate(watch);
    const { made, sizes, left } = await page.evaluate(async () => {
      const attention = await la.LocalAttention.create({ windowSize: 8, causal: true, dim: 16, backend: 'webgpu' });
      const x = Float32Array.from({ length: 2 * 32 * 16 }, (_, i) => Math.sin(i));
      const mask = new Uint8Array(32).fill(1);
      const tensor = await attention.upload(x, [2, 32, 16]);
      const out = await attention.upload(x, [2, 32, 16]);
      const maskTensor = await attention.upload(mask, [1, 32]);
      const sizes = [];
      for (let i = 0; i < 200; i++) {
        // Of two lengths, arrays and tensors, forward and backward, and some that fail.
        const n = i % 3 ? 32 : 16;
        const numbers = x.subarray(0, 2 * n * 16);
        const call = { q: numbers, k: numbers, v: numbers, shape: [2, n, 16], mask: mask.subarray(0, n) };
        const kept = { q: tensor, k: tensor, v: tensor, mask: maskTensor };
        if (i % 5 === 0) {
          const { out, lse } = await attention.forward({ ...call, returnLse: true });
          await attention.backward({ ...call, out, lse, dout: numbers });
        } else if (i % 5 === 1) await attention.forward({ ...kept, out });
        else if (i % 5 === 2) (await attention.forward(kept)).dispose();
        else if (i % 5 === 3) await attention.forward({ ...call, windowSize: 4 }).then(() => null, () => null);
        else await attention.forward(call);
        if (i >= 30) sizes.push(buffers.live.size);
      }
      await tensor.read();
      maskTensor.dispose();
      tensor.dispose();
      out.dispose();
      attention.dispose();
      await new Promise((done) => setTimeout(done, 50));
      return { made: buffers.made, sizes, left: buffers.live.size };
    });
    assert.ok(made > 1000, `${made} buffers were made`);
    const most = (part) => Math.max(...part);
    assert.ok(most(sizes.slice(-30)) <= most(sizes.slice(0, 30)), `buffers kept: ${sizes}`);
    assert.equal(left, 0, 'after all is disposed of');
    assert.deepEqual(said, []);
    await page.close();
  });

  test('a lost device is an error, and create works again', async () => {
    const { page, said } = await open({ number: 1 });
    await page.evaluate(watch);
    const told = await page.evaluate(async () => {
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      const attention = await la.LocalAttention.create(options);
      const x = new Float32Array(32 * 16).fill(0.5);
      const call = { q: x, k: x, v: x, shape: [32, 16] };
      const tensor = await attention.upload(x, [32, 16]);
      const kept = { q: tensor, k: tensor, v: tensor };
      await attention.forward(kept);
      // While a call runs, and between calls.
      const running = attention.forward(call).then(() => 'done', (error) => error.code);
      devices[0].destroy();
      const told = [await running];
      for (const ask of [() => attention.forward(call), () => attention.forward(kept), () => tensor.read(), () => attention.upload(x, [32, 16]), () => attention.backward({ ...call, out: x, lse: x.subarray(0, 32), dout: x })]) {
        told.push(await ask().then(() => 'done', (error) => `${error instanceof Error} ${error.code}`));
      }
      const again = await la.LocalAttention.create(options);
      const out = await again.forward(call);
      told.push(again.backend, out.every((y) => Math.abs(y - 0.5) < 1e-6), devices.length);
      told.push(await again.forward(kept).then(() => 'done', (error) => error.code));
      tensor.dispose();
      attention.dispose();
      return told;
    });
    const lost = 'true DeviceError.Lost';
    assert.ok(['done', 'DeviceError.Lost'].includes(told[0]), told[0]);
    assert.deepEqual(told.slice(1), [lost, lost, lost, lost, lost, 'webgpu', true, 2, 'ArgumentError.Backend']);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('as soon as a call says that the device is lost, create makes another', async () => {
    const { page, said } = await open({ number: 1 });
    await page.evaluate(watch);
    const told = await page.evaluate(async () => {
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      const x = new Float32Array(32 * 16).fill(0.5);
      const told = [];
      for (let i = 0; i < 5; i++) {
        const attention = await la.LocalAttention.create(options);
        const tensor = await attention.upload(x, [32, 16]);
        const reading = tensor.read();
        devices[i].destroy();
        await reading.catch((error) => told.push(error.code));
        const again = await la.LocalAttention.create(options);
        told.push((await (await again.upload(x, [32, 16])).read())[0], devices.length);
      }
      return told;
    });
    // A read may be done before the device is gone.
    const rest = told.filter((x) => x !== 'DeviceError.Lost');
    assert.deepEqual(rest, [2, 3, 4, 5, 6].flatMap((n) => [0.5, n]));
    assert.deepEqual(said, []);
    await page.close();
  });

  test('a module that stops is an error, and create works again', async () => {
    const { page } = await open({ number: 1 });
    const told = await page.evaluate(async () => {
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      const attention = await la.LocalAttention.create(options);
      const x = new Float32Array(32 * 16).fill(0.5);
      const call = { q: x, k: x, v: x, shape: [32, 16] };
      // An error that wgpu does not know, and panics at.
      const pop = GPUDevice.prototype.popErrorScope;
      GPUDevice.prototype.popErrorScope = async () => new GPUInternalError('an injected error');
      const told = [await attention.forward(call).then(() => 'done', (error) => error.code)];
      GPUDevice.prototype.popErrorScope = pop;
      told.push(await attention.forward(call).then(() => 'done', (error) => error.code));
      const again = await la.LocalAttention.create(options);
      const out = await again.forward(call);
      told.push(out.every((y) => Math.abs(y - 0.5) < 1e-6));
      attention.dispose();
      again.dispose();
      return told;
    });
    assert.deepEqual(told, ['BackendError.Crashed', 'BackendError.Crashed', true]);
    await page.close();
  });

  test('without WebGPU the CPU engine computes, in a worker, and the page hears why', async () => {
    const { page, said } = await open({ number: 1 });
    const told = await page.evaluate(async () => {
      const { LocalAttention } = la;
      const options = { windowSize: 256, causal: true };
      const chosen = await LocalAttention.create(options);
      const first = [chosen.backend, chosen.fallbackReason];
      Object.defineProperty(navigator, 'gpu', { value: undefined, configurable: true });
      const none = await LocalAttention.create(options);
      const second = [none.backend, none.fallbackReason, none.device];
      const forced = await LocalAttention.create({ ...options, backend: 'webgpu' }).catch((error) => [error.code, error.message]);
      Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => null }, configurable: true });
      // The page goes on while the worker computes.
      const n = 4096;
      const x = new Float32Array(4 * n * 64).fill(0.5);
      let [ticks, running] = [0, true];
      const tick = () => {
        ticks += 1;
        if (running) setTimeout(tick, 0);
      };
      tick();
      const start = performance.now();
      await none.forward({ q: x, k: x, v: x, shape: [4, n, 64] });
      running = false;
      return { first, second, forced, ticks, time: performance.now() - start };
    });
    assert.deepEqual(told.first, ['webgpu', null]);
    assert.equal(told.second[0], 'wasm');
    assert.match(told.second[1], /navigator\.gpu is missing/);
    assert.equal(told.second[2], 'simd128');
    assert.equal(told.forced[0], 'BackendError.Unavailable');
    assert.match(told.forced[1], /^webgpu is not available: navigator\.gpu is missing/);
    assert.ok(told.ticks > 5, `${told.ticks} turns of the event loop in ${told.time} ms`);
    assert.deepEqual(said, []);
    await page.close();
  });
};
