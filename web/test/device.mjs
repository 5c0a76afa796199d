// Backends: what is made on a device is freed, devices and workers may go and come back, and there may be none.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMIT, open, serve, WEB } from './browser.mjs';

/** Counts the buffers of every device that the page makes from now on, and keeps the devices. */
const watch = () => {
  globalThis.buffers = { made: 0, live: new Set() };
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

/** A page whose buffers are counted, for tests of the same kernels: those are compiled once. */
let counted;
const openCounted = async () => (counted ??= open({ number: 1, first: watch }));

/** Gives a page calls on halves, which give halves, and what tells how they went. */
const halves = () => {
  const x = new Float32Array(32 * 16).fill(0.5);
  const right = (out) => (out.length === x.length && out.every((y) => Math.abs(y - 0.5) < 1e-6) ? 'done' : 'wrong');
  const code = (error) => (error instanceof la.LocalAttentionError ? error.code : `not one of ours: ${error}`);
  const shape = [32, 16];
  globalThis.halves = { x, shape, call: { q: x, k: x, v: x, shape }, code, tell: (out) => out.then(right, code) };
};
/** A page that has them; `first` runs before its scripts, too. */
const openHalves = (first = () => {}) => open({ number: 1, first: `(${halves})(); (${first})();` });

/** Keeps the workers that a page makes. */
const keepWorkers = () => {
  globalThis.workers = [];
  globalThis.Worker = class extends Worker {
    constructor(...args) {
      super(...args);
      workers.push(this);
    }
  };
};

/** How a worker stops. */
const STOPS = {
  'its module panics': (page) =>
    page.evaluate(async () => {
      const { x, shape, tell } = halves;
      const { postMessage } = Worker.prototype;
      Worker.prototype.postMessage = function (message, buffers) {
        // Not the bytes of whole numbers.
        message.argument.bytes = message.argument.bytes.slice(1);
        return postMessage.call(this, message, buffers);
      };
      const uploaded = tell(attention.upload(x, shape));
      Worker.prototype.postMessage = postMessage;
      if ((await uploaded) !== 'BackendError.Crashed') throw new Error(await uploaded);
    }),
  'a call could not be read': (page) =>
    page.workers()[0].evaluate(() => {
      dispatchEvent(new MessageEvent('messageerror'));
    }),
  'an answer could not be read': (page) =>
    page.evaluate(() => {
      workers[0].dispatchEvent(new MessageEvent('messageerror'));
    }),
};

/** Ways to be without a device, and what is then said. */
const WITHOUT = {
  'no adapter': [
    () => {
      GPU.prototype.requestAdapter = async () => null;
    },
    /there is no adapter/,
  ],
  'an adapter that gives no device': [
    () => {
      GPUAdapter.prototype.requestDevice = async () => {
        throw new DOMException('not today', 'OperationError');
      };
    },
    /gave no device: .*not today/,
  ],
};

export const device = () => {
  test('over 200 calls every buffer is destroyed or used again', LIMIT, async () => {
    const { page, said } = await openCounted();
    const { calls, made, sizes, codes, left } = await page.evaluate(async () => {
      const options = { windowSize: 8, causal: true, dropout: 0.25, backend: 'webgpu' };
      const attention = await la.LocalAttention.create(options);
      const shape = [2, 32, 8];
      const x = Float32Array.from({ length: 2 * 32 * 8 }, (_, i) => Math.sin(i));
      const half = Float16Array.from(x);
      const codes = new Set();
      let calls = 0;
      const call = (method, given) => {
        calls += 1;
        return attention[method](given);
      };
      const fails = (given) => call('forward', given).then(() => codes.add('done'), ({ code }) => codes.add(code));
      const free = (result) => Object.values(result).forEach((tensor) => tensor.dispose());
      const arrays = (n) => {
        const numbers = Float32Array.from({ length: 2 * n * 8 }, (_, i) => Math.sin(i));
        return { q: numbers, k: numbers, v: numbers, mask: new Uint8Array(n).fill(1), shape: [2, n, 8] };
      };
      const masked = arrays(32);
      const [tensor, out, lse, maskTensor] = await Promise.all([
        attention.upload(x, shape),
        attention.upload(x, shape),
        attention.upload(x.subarray(0, 64), [2, 32]),
        attention.upload(masked.mask, [1, 32]),
      ]);
      // More than bindings are kept for.
      const outs = await Promise.all(Array.from({ length: 9 }, () => attention.upload(x, shape)));

      const kept = { q: tensor, k: tensor, v: tensor, mask: maskTensor };
      // Backward in f16 and with a bias alone: its kernels take this machine most of a minute.
      const bias = half.subarray(0, 16);
      const back = { q: half, k: half, v: half, attnBias: bias, shape: { q: shape, attnBias: [1, 1, 16] } };
      const [tensorHalf, tensorBias] = [await attention.upload(half, shape), await attention.upload(bias, [1, 1, 16])];
      const keptBack = { q: tensorHalf, k: tensorHalf, v: tensorHalf, attnBias: tensorBias };
      const round = async () => {
        await call('forward', masked);
        await call('forward', { ...masked, seed: 3 });
        await call('forward', { ...masked, returnLse: true });
        await call('weights', { ...masked, queries: [0, 8] });
        await call('weights', { ...kept, queries: [0, 8] });
        await call('forward', { ...kept, out });
        await call('forward', { ...masked, out });
        (await call('forward', kept)).dispose();
        free(await call('forward', { ...kept, returnLse: true }));
        await call('backward', { ...back, out: half, lse: x.subarray(0, 64), dout: half });
        free(await call('backward', { ...keptBack, out: tensorHalf, lse, dout: tensorHalf }));
        // Errors before anything is made for a call, and after.
        await fails({ ...masked, windowSize: 4 });
        await fails({ ...kept, out: tensor });
        await fails({ ...kept, out: lse });
        // More lengths, and sets of tensors, than anything is kept for.
        for (let n = 8; n <= 72; n += 8) await call('forward', arrays(n));
        for (const out of outs) await call('forward', { ...kept, out });
        const weights = call('weights', { ...kept, queries: [0, 8] });
        await Promise.all([call('forward', masked), call('forward', { ...kept, out }), weights]);
      };
      const sizes = [];
      while (calls < 200) {
        await round();
        sizes.push(buffers.live.size);
      }
      await tensor.read();
      [tensor, out, lse, maskTensor, tensorHalf, tensorBias, ...outs, attention].forEach((x) => x.dispose());
      await new Promise((done) => setTimeout(done, 50));
      return { calls, made: buffers.made, sizes, codes: [...codes], left: buffers.live.size };
    });
    console.log(`${calls} calls made ${made} buffers, of which after each round there were ${sizes}`);
    assert.ok(made > 1000, `${made} buffers were made`);
    assert.deepEqual(codes, ['ShapeError.WindowNeedsXpos', 'BindError.Overlap', 'RunError.TensorShape']);
    // The first round fills what is kept.
    assert.ok(Math.max(...sizes.slice(1)) <= sizes[0], `buffers kept: ${sizes}`);
    assert.equal(left, 0, 'after all is disposed of');
    assert.deepEqual(said, []);
  });

  test('what a call has made is destroyed wherever it fails', LIMIT, async () => {
    const { page, said } = await openCounted();
    const { words, told, kept, left } = await page.evaluate(async () => {
      const start = buffers.live.size;
      const attention = await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'webgpu' });
      const half = new Float16Array(32 * 8).fill(0.5);
      const saved = { out: half, lse: new Float32Array(32), dout: half };
      const bias = { attnBias: half.subarray(0, 16), shape: { q: [32, 8], attnBias: [1, 1, 16] } };
      const call = { q: half, k: half, v: half, ...bias, ...saved };
      const right = await attention.backward(call);
      // The device's words, of which one in each call is an error.
      const pop = GPUDevice.prototype.popErrorScope;
      let [words, bad] = [0, 0];
      GPUDevice.prototype.popErrorScope = async function () {
        const error = await pop.call(this);
        words += 1;
        return words === bad ? new GPUValidationError('an injected error') : error;
      };
      const same = ({ dq }) => dq.every((y, i) => y === right.dq[i]);
      const run = async (index) => {
        [words, bad] = [0, index];
        return attention.backward(call).then((got) => same(got) || 'wrong', (error) => error.code);
      };
      const told = [await run(0)];
      const [all, kept] = [words, {}];
      for (let i = 1; i <= all; i++) {
        const live = buffers.live.size;
        told.push(await run(i));
        // Others of the call's results may still be on their way.
        for (let turn = 0; turn < 50 && buffers.live.size > live; turn++) {
          await new Promise((done) => setTimeout(done, 10));
        }
        if (buffers.live.size > live) kept[i] = buffers.live.size - live;
      }
      told.push(await run(0));
      GPUDevice.prototype.popErrorScope = pop;
      attention.dispose();
      await new Promise((done) => setTimeout(done, 50));
      return { words: all, told, kept, left: buffers.live.size - start };
    });
    assert.ok(words > 20, `${words} words of the device`);
    const [first, ...others] = told;
    assert.deepEqual([first, others.pop()], [true, true]);
    assert.deepEqual(others.filter((code) => !/^DeviceError\.(Refused|OutOfMemory)$/.test(code)), []);
    assert.deepEqual(kept, {}, 'buffers that were kept, by the word that was an error');
    assert.equal(left, 0, 'after all is disposed of');
    assert.deepEqual(said, []);
    await page.close();
  });

  test('a lost device is an error, and create works again', LIMIT, async () => {
    const { page, said } = await openHalves(watch);
    const told = await page.evaluate(async () => {
      const { x, shape, call, tell } = halves;
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      const attention = await la.LocalAttention.create(options);
      const tensor = await attention.upload(x, shape);
      const kept = { q: tensor, k: tensor, v: tensor };
      await attention.forward(kept);
      // While a call runs, and between calls.
      const running = tell(attention.forward(call));
      devices[0].destroy();
      const told = [await running];
      const saved = { out: x, lse: x.subarray(0, 32), dout: x };
      for (const ask of [
        () => attention.forward(call),
        () => attention.forward(kept),
        () => tensor.read(),
        () => attention.upload(x, shape),
        () => attention.backward({ ...call, ...saved }),
        () => attention.weights({ ...call, queries: [0, 1] }),
        () => attention.weights({ ...kept, queries: [0, 1] }),
      ]) {
        told.push(await tell(ask()));
      }
      const again = await la.LocalAttention.create(options);
      told.push(await tell(again.forward(call)), again.backend, devices.length);
      told.push(await tell(again.forward(kept)));
      tensor.dispose();
      attention.dispose();
      return told;
    });
    assert.ok(['done', 'DeviceError.Lost'].includes(told[0]), told[0]);
    assert.deepEqual(told.slice(1, 8), Array(7).fill('DeviceError.Lost'));
    assert.deepEqual(told.slice(8), ['done', 'webgpu', 2, 'ArgumentError.Backend']);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('as soon as a call says that the device is lost, create makes another', LIMIT, async () => {
    const { page, said } = await openHalves(watch);
    const told = await page.evaluate(async () => {
      const { x, shape, tell } = halves;
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      const told = [];
      for (let i = 0; i < 5; i++) {
        const attention = await la.LocalAttention.create(options);
        const tensor = await attention.upload(x, shape);
        const reading = tell(tensor.read());
        devices[i].destroy();
        const read = await reading;
        const again = await la.LocalAttention.create(options);
        told.push([read, await tell((await again.upload(x, shape)).read()), devices.length]);
      }
      return told;
    });
    // A read may be done before the device is gone.
    for (const [read] of told) assert.ok(['done', 'DeviceError.Lost'].includes(read), read);
    assert.deepEqual(told.map(([, ...rest]) => rest), [2, 3, 4, 5, 6].map((n) => ['done', n]));
    assert.deepEqual(said, []);
    await page.close();
  });

  test('a module that stops is an error, and create works again', LIMIT, async () => {
    const { page } = await openHalves(watch);
    const told = await page.evaluate(async () => {
      const { x, shape, call, tell } = halves;
      const options = { windowSize: 8, causal: true, backend: 'webgpu' };
      // A device that goes while a call waits for its word, which never comes.
      const pop = GPUDevice.prototype.popErrorScope;
      const old = await la.LocalAttention.create(options);
      GPUDevice.prototype.popErrorScope = () => new Promise(() => {});
      const waiting = tell(old.forward(call));
      GPUDevice.prototype.popErrorScope = pop;
      devices[0].destroy();
      await devices[0].lost;

      const attention = await la.LocalAttention.create(options);
      const tensor = await attention.upload(x, shape);
      // An error that wgpu does not know, and panics at.
      GPUDevice.prototype.popErrorScope = async () => new GPUInternalError('an injected error');
      const told = [devices.length, await tell(attention.forward(call)), await waiting];
      GPUDevice.prototype.popErrorScope = pop;
      const saved = { out: x, lse: x.subarray(0, 32), dout: x };
      for (const ask of [
        () => attention.forward(call),
        () => attention.backward({ ...call, ...saved }),
        () => attention.weights({ ...call, queries: [0, 1] }),
        () => attention.visible({ n: 8 }),
        () => attention.upload(x, shape),
        () => tensor.read(),
        () => old.forward(call),
      ]) {
        told.push(await tell(ask()));
      }
      const again = await la.LocalAttention.create(options);
      told.push(await tell(again.forward(call)), await tell(tensor.read()));
      [tensor, attention, old, again].forEach((x) => x.dispose());
      return told;
    });
    const crashed = 'BackendError.Crashed';
    assert.deepEqual(told, [2, ...Array(9).fill(crashed), 'done', crashed]);
    await page.close();
  });

  for (const [what, stop] of Object.entries(STOPS)) {
    test(`a worker that stops is an error, and create works again: ${what}`, LIMIT, async () => {
      const { page } = await openHalves(keepWorkers);
      const ask = () =>
        page.evaluate(async () => {
          const { x, shape, call, tell } = halves;
          globalThis.attention ??= await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'wasm' });
          globalThis.tensor ??= await attention.upload(x, shape);
          return Promise.all([tell(attention.forward(call)), tell(attention.visible({ n: 8 })), tell(tensor.read())]);
        });
      // What visible gives is no tensor.
      assert.deepEqual(await ask(), ['done', 'wrong', 'done']);
      const running = page.evaluate(() => halves.tell(attention.forward(halves.call)));
      await stop(page);
      assert.ok(['done', 'BackendError.Crashed'].includes(await running), await running);
      assert.deepEqual(await ask(), Array(3).fill('BackendError.Crashed'));
      const again = await page.evaluate(async () => {
        [tensor, attention].forEach((x) => x.dispose());
        const again = await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'wasm' });
        return [await halves.tell(again.forward(halves.call)), workers.length];
      });
      assert.deepEqual(again, ['done', 2]);
      await page.close();
    });
  }

  test('where there is no room for an array, that call is an error, and nothing stops', LIMIT, async () => {
    const { page, said } = await openHalves(keepWorkers);
    const ask = (prepare) =>
      page.evaluate(async (prepare) => {
        const { x, shape, call, tell, code } = halves;
        globalThis.attention ??= await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'wasm' });
        globalThis.tensor ??= await attention.upload(x, shape);
        const slice = Uint8Array.prototype.slice;
        if (prepare) {
          Uint8Array.prototype.slice = () => {
            throw new RangeError('Array buffer allocation failed');
          };
        }
        const told = await attention.forward(call).then(() => 'done', (error) => [code(error), error.message]);
        Uint8Array.prototype.slice = slice;
        return [told, await tell(tensor.read()), workers.length];
      }, prepare);
    assert.deepEqual(await ask(), ['done', 'done', 1]);
    const full = [['BackendError.OutOfMemory', 'there is no memory for it: Array buffer allocation failed'], 'done', 1];
    assert.deepEqual(await ask(true), full);
    // In the worker.
    await page.workers()[0].evaluate(() => {
      const { Uint32Array } = globalThis;
      globalThis.Uint32Array = function () {
        globalThis.Uint32Array = Uint32Array;
        throw new RangeError('Array buffer allocation failed');
      };
    });
    assert.deepEqual(await ask(), full);
    assert.deepEqual(await ask(), ['done', 'done', 1]);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('where the module finds no room for an array, that call is an error, and nothing stops', LIMIT, async () => {
    const { page, said } = await openHalves();
    const told = await page.evaluate(async () => {
      const { x, shape, code } = halves;
      const attention = await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'webgpu' });
      const tensor = await attention.upload(x, shape);
      const asks = [
        () => tensor.read(),
        () => attention.weights({ q: tensor, k: tensor, v: tensor, queries: [0, 32] }),
        () => attention.visible({ n: 512 }),
      ];
      const all = async () => {
        const told = [];
        for (const ask of asks) told.push(await ask().then(() => 'done', code));
        return told;
      };
      const { Uint8Array } = globalThis;
      globalThis.Uint8Array = function (length, ...more) {
        if (length > 256) throw new RangeError('Array buffer allocation failed');
        return new Uint8Array(length, ...more);
      };
      globalThis.Uint8Array.prototype = Uint8Array.prototype;
      const without = await all();
      globalThis.Uint8Array = Uint8Array;
      const told = [without, await all()];
      tensor.dispose();
      attention.dispose();
      return told;
    });
    assert.deepEqual(told, [Array(3).fill('RunError.OutOfMemory'), Array(3).fill('done')]);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('without WebGPU the CPU engine computes, in a worker, and the page hears why', LIMIT, async () => {
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

  for (const [what, [first, why]] of Object.entries(WITHOUT)) {
    test(`the CPU engine computes with ${what}`, LIMIT, async () => {
      const { page, said } = await openHalves(first);
      const told = await page.evaluate(async () => {
        const create = (backend) => la.LocalAttention.create({ windowSize: 8, causal: true, backend });
        const { call, tell } = halves;
        const chosen = await create();
        const forced = await create('webgpu').catch((error) => [error.code, error.message]);
        return { backend: chosen.backend, why: chosen.fallbackReason, forced, out: await tell(chosen.forward(call)) };
      });
      assert.deepEqual([told.backend, told.out], ['wasm', 'done']);
      assert.match(told.why, why);
      assert.deepEqual(told.forced, ['BackendError.Unavailable', `webgpu is not available: ${told.why}`]);
      assert.deepEqual(said, []);
      await page.close();
    });
  }

  test('where no worker may be made, the page hears what it needs', LIMIT, async () => {
    const create = async (from) => {
      const { LocalAttention } = await import(`${from}js/index.js`);
      const created = LocalAttention.create({ windowSize: 8, backend: 'wasm' });
      return created.then(() => 'done', (error) => [error.code, error.message]);
    };
    const needs = /^wasm is not available: its worker could not be loaded: .* page's own origin.* worker-src 'self'/;
    const other = await serve({ '': WEB });
    const { page } = await open({ number: 1 });
    // Scripts of another origin may be imported where that says so, but are no worker's.
    await page.route(`${other.url}**`, async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, headers: { ...response.headers(), 'access-control-allow-origin': '*' } });
    });
    const foreign = await page.evaluate(create, other.url);
    await page.evaluate(() => {
      const policy = { httpEquiv: 'Content-Security-Policy', content: "worker-src 'none'" };
      document.head.append(Object.assign(document.createElement('meta'), policy));
    });
    const forbidden = await page.evaluate(create, '/');
    for (const [code, message] of [foreign, forbidden]) {
      assert.equal(code, 'BackendError.Unavailable');
      assert.match(message, needs);
    }
    await page.close();
    other.close();
  });
};
