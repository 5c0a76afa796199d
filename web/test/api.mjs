// What callers can do, on both backends: tensors that stay, dropout, weights, who sees whom, f16; and what they cannot.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LIMIT, openShared } from './browser.mjs';

/** Runs a function in the page, and says what was logged. */
const inPage = async (run, argument) => {
  const { page, said } = await openShared(0);
  return { value: await page.evaluate(run, argument), said };
};

const CODES = {
  'no options': 'ArgumentError.Type',
  'a number for options': 'ArgumentError.Type',
  'no windowSize': 'ArgumentError.Missing',
  'a window of 0': 'ConfigError.WindowSize',
  'half a window': 'ArgumentError.Value',
  'a window in words': 'ArgumentError.Type',
  'a window in BigInt': 'ArgumentError.Type',
  'a negative look': 'ConfigError.LookBackward',
  'looking ahead though causal': 'ConfigError.CausalLookForward',
  'the reference\'s own spelling': 'ArgumentError.Unknown',
  'an option that is none': 'ArgumentError.Unknown',
  'a flag that is a number': 'ArgumentError.Type',
  'a probability of 1': 'ConfigError.Dropout',
  'a probability that is NaN': 'ConfigError.Dropout',
  'an odd dim': 'ConfigError.RotaryDim',
  'an infinite scale': 'ConfigError.Scale',
  'no quirks': 'ArgumentError.Value',
  'a quirk that is none': 'ArgumentError.Unknown',
  'an empty relPosEmbConfig': 'ConfigError.RelPosEmbConfigEmpty',
  'another backend': 'ArgumentError.Value',
  'no q': 'ArgumentError.Missing',
  'a plain array': 'ArgumentError.Type',
  doubles: 'ArgumentError.Type',
  'a string': 'ArgumentError.Type',
  'no shape': 'ArgumentError.Missing',
  'a shape that is NaN': 'ArgumentError.Value',
  'a negative size': 'ArgumentError.Value',
  'a size in BigInt': 'ArgumentError.Type',
  'a size beyond counting': 'ArgumentError.Value',
  'too few numbers': 'ArgumentError.Value',
  'one dimension': 'ShapeError.Rank',
  'a name that is none': 'ArgumentError.Unknown',
  'a shape that is none': 'ArgumentError.Unknown',
  'windows that do not divide': 'ShapeError.Indivisible',
  'a head that is no dim': 'ShapeError.RotaryDim',
  'a window without xpos': 'ShapeError.WindowNeedsXpos',
  'a mask of numbers': 'ArgumentError.Type',
  'a mask of another length': 'ArgumentError.Value',
  'mask rows that do not divide': 'ShapeError.Rows',
  'a bias without a shape': 'ArgumentError.Missing',
  'a bias of another width': 'ShapeError.BiasSize',
  'k of f16': 'ArgumentError.Type',
  'a negative seed': 'ArgumentError.Value',
  'half a seed': 'ArgumentError.Type',
  'an offset beyond 32 bits': 'ArgumentError.Value',
  'an offset without a seed': 'ArgumentError.Type',
  'a mask for keys of one dimension': 'ShapeError.Rank',
  'a shape of k alone': 'ArgumentError.Missing',
  'a tensor of another shape': 'ArgumentError.Value',
  'a tensor that is gone': 'ArgumentError.Disposed',
  'a tensor of another backend': 'ArgumentError.Backend',
  'an array for a result': 'ArgumentError.Type',
  'a result in an input': 'BindError.Overlap',
  'a result of another shape': 'RunError.TensorShape',
  'a flag that is a word': 'ArgumentError.Type',
  'no call': 'ArgumentError.Type',
  'no dout': 'ArgumentError.Missing',
  'an lse of another length': 'ArgumentError.Value',
  'queries beyond the sequence': 'RunError.Queries',
  'queries that are a number': 'ArgumentError.Type',
  'ranges beyond the sequence': 'RunError.Queries',
  'ranges of nothing': 'ArgumentError.Missing',
  'ranges of windows that do not divide': 'ShapeError.Indivisible',
  'a tensor of doubles': 'ArgumentError.Type',
  'a tensor without a shape': 'ArgumentError.Type',
  'a tensor that is gone, read': 'ArgumentError.Disposed',
  'an attention that is gone': 'ArgumentError.Disposed',
};

export const api = () => {
  for (const backend of ['wasm', 'webgpu']) {
    describe(backend, () => {
      test('tensors stay where they are computed, and hold the same bits', LIMIT, async () => {
        const { value, said } = await inPage(async (backend) => {
          const attention = await la.LocalAttention.create({ windowSize: 16, causal: true, dim: 32, backend });
          // Parts of longer arrays.
          const numbers = (length, seed) =>
            Float32Array.from({ length: length + 3 }, (_, i) => Math.sin(i * 12.9898 + seed)).subarray(3);
          const shape = [2, 40 - 8, 32];
          const [q, k, v, dout] = [1, 2, 3, 4].map((seed) => numbers(2 * 32 * 32, seed));
          const mask = Uint8Array.from({ length: 64 }, (_, i) => Number(i % 5 !== 0));
          const attnBias = numbers(32, 5);
          const shapes = { q: shape, attnBias: [1, 1, 32] };
          const ask = { mask, attnBias, shape: shapes };
          const one = await attention.forward({ q, k, v, ...ask, returnLse: true });
          const oneBack = await attention.backward({ q, k, v, ...ask, ...one, dout });

          const whole = await attention.forward({ q: q.slice(), k: k.slice(), v: v.slice(), ...ask });

          // The call has its own copy.
          const reused = q.slice();
          const running = attention.forward({ q: reused, k, v, ...ask });
          reused.fill(7);
          const copied = await running;

          const up = async (data, shape) => attention.upload(data, shape);
          const [tq, tk, tv, td] = await Promise.all([q, k, v, dout].map((x) => up(x, shape)));
          const [tm, tb] = [await up(mask, [2, 32]), await up(attnBias, [1, 1, 32])];
          const out = await up(new Float32Array(2 * 32 * 32), shape);
          const call = { q: tq, k: tk, v: tv, mask: tm, attnBias: tb };
          // The same tensors again and again, as a model's steps do.
          for (let i = 0; i < 3; i++) await attention.forward({ ...call, out });
          const two = await attention.forward({ ...call, out, returnLse: true });
          const twoBack = await attention.backward({ ...call, out, lse: two.lse, dout: td });
          const same = (a, b) => a.length === b.length && a.every((x, i) => Object.is(x, b[i]));
          const compared = {
            out: two.out === out && same(one.out, await out.read()),
            lse: same(one.lse, await two.lse.read()),
            mask: same(mask, await tm.read()),
            kept: same(q, await tq.read()),
            copied: same(one.out, copied),
            whole: same(one.out, whole),
          };
          // What is asked for first comes first, whatever has to be compiled for it.
          const late = await up(new Float32Array(2 * 32 * 32), shape);
          const other = await la.LocalAttention.create({ windowSize: 32, backend });
          const pending = other.forward({ q: tq, k: tk, v: tv, out: late });
          const [early] = [await late.read(), await pending];
          compared.order = same(early, await late.read()) && early.some((x) => x !== 0);
          other.dispose();
          for (const name of ['dq', 'dk', 'dv', 'dattnBias']) {
            compared[name] = same(oneBack[name], await twoBack[name].read());
          }
          // Arrays and tensors in one call: the result comes as q does, or where it is put.
          const mixed = { q, k: tk, v, mask, attnBias: tb, shape };
          compared.mixed = same(one.out, await attention.forward(mixed));
          const into = await attention.forward({ ...mixed, out, returnLse: true });
          compared.into = into.out === out && same(one.out, await out.read()) && same(one.lse, into.lse);
          const both = { ...mixed, out, lse: one.lse, dout: td };
          compared.mixedBack = same(oneBack.dq, (await attention.backward(both)).dq);
          // A batch of nothing.
          const none = new Float32Array(0);
          const nothing = await attention.forward({ q: none, k: none, v: none, shape: [0, 32, 32], returnLse: true });
          compared.nothing = nothing.out.length === 0 && nothing.lse.length === 0;
          compared.read = (await (await up(none, [0, 3])).read()).length === 0;
          const kinds = [two.lse.dtype, two.lse.shape.join(), twoBack.dk.shape.join(), tm.dtype, out.backend];
          const bias = await attention.backward({ ...call, out, lse: two.lse, dout: td, biasGradient: false });
          // As `using` does it.
          tk[Symbol.dispose]();
          attention[Symbol.dispose]();
          compared.disposed = tk.disposed && attention.disposed;
          return { compared, kinds, withoutBias: Object.keys(bias) };
        }, backend);
        const same = Object.fromEntries(Object.keys(value.compared).map((name) => [name, true]));
        assert.deepEqual(value.compared, same);
        assert.deepEqual(value.kinds, ['f32', '2,32', '2,32,32', 'u8', backend]);
        assert.deepEqual(value.withoutBias, ['dq', 'dk', 'dv']);
        assert.deepEqual(said, []);
      });

      test('f16 is stored, computed in f32 and rounded', LIMIT, async () => {
        const { value, said } = await inPage(async (backend) => {
          const attention = await la.LocalAttention.create({ windowSize: 8, causal: true, backend });
          // 6 features: rows that are no whole vec4s.
          const half = [1, 2, 3].map((seed) => Float16Array.from({ length: 2 * 24 * 6 }, (_, i) => Math.sin(i * 7.13 + seed)));
          const shape = [2, 24, 6];
          const ask = ([q, k, v]) => attention.forward({ q, k, v, shape, returnLse: true });
          const narrow = await ask(half);
          const plain = await la.LocalAttention.create({ windowSize: 8, causal: true, backend: 'wasm' });
          const [q, k, v] = half.map((x) => Float32Array.from(x));
          const wide = { out: await plain.forward({ q, k, v, shape }) };
          const error = narrow.out.reduce((worst, x, i) => Math.max(worst, Math.abs(x - wide.out[i])), 0);
          const dout = half[0];
          const back = await attention.backward({ q: half[0], k: half[1], v: half[2], shape, ...narrow, dout });
          const kinds = [narrow.out, narrow.lse, back.dk].map((x) => x.constructor.name);
          const tensor = await attention.upload(half[0], shape);
          return { kinds, error, round: (await tensor.read()).every((x, i) => x === half[0][i]), finite: back.dk.every(Number.isFinite) };
        }, backend);
        assert.deepEqual(value.kinds, ['Float16Array', 'Float32Array', 'Float16Array']);
        assert.ok(value.error > 0 && value.error < 2 ** -11, `off by ${value.error}`);
        assert.ok(value.round && value.finite);
        assert.deepEqual(said, []);
      });

      test('weights and ranges say who sees whom', LIMIT, async () => {
        const { value, said } = await inPage(async (backend) => {
          const attention = await la.LocalAttention.create({ windowSize: 4, causal: true, exactWindowsize: true, backend });
          const n = 12;
          const numbers = (seed) => Float32Array.from({ length: 2 * n * 8 }, (_, i) => Math.sin(i * 3.7 + seed));
          const [q, k, v] = [1, 2, 3].map(numbers);
          const visible = await attention.visible({ n });
          const part = await attention.visible({ n, queries: [5, 7] });
          const weights = await attention.weights({ q, k, v, shape: [2, n, 8], queries: [3, 9] });
          // out = weights v, slot by slot.
          const out = await attention.forward({ q, k, v, shape: [2, n, 8] });
          let [worst, hidden] = [0, 0];
          const [rows, queries, slots] = weights.shape;
          for (let row = 0; row < rows; row++) {
            for (let i = 0; i < queries; i++) {
              const sum = new Float64Array(8);
              for (let s = 0; s < slots; s++) {
                const [key, weight] = [weights.keys[i * slots + s], weights.weights[(row * queries + i) * slots + s]];
                if (!(key >= visible.start[3 + i] && key < visible.end[3 + i])) hidden = Math.max(hidden, weight);
                else for (let c = 0; c < 8; c++) sum[c] += weight * v[(row * n + key) * 8 + c];
              }
              for (let c = 0; c < 8; c++) worst = Math.max(worst, Math.abs(sum[c] - out[(row * n + 3 + i) * 8 + c]));
            }
          }
          return { worst, hidden, visible: [[...visible.start], [...visible.end]], part: [[...part.start], [...part.end]], shape: weights.shape, sizes: [visible.window, visible.slots, visible.paddedLength] };
        }, backend);
        assert.ok(value.worst < 1e-6, `off by ${value.worst}`);
        assert.equal(value.hidden, 0);
        // The window of 4 before the query's own, no farther back than 4 positions, and no later key.
        assert.deepEqual(value.visible, [
          [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7],
          [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        ]);
        assert.deepEqual(value.part, [[1, 2], [6, 7]]);
        assert.deepEqual(value.shape, [2, 6, 8]);
        assert.deepEqual(value.sizes, [4, 8, 12]);
        assert.deepEqual(said, []);
      });

      test('bad input is an error, and the next call works', LIMIT, async () => {
        const { value, said } = await inPage(async (backend) => {
          const { LocalAttention, LocalAttentionError } = la;
          const told = [];
          const fails = async (what, run) => {
            try {
              await run();
              told.push([what, 'nothing failed']);
            } catch (error) {
              const real = error instanceof Error && error instanceof LocalAttentionError;
              told.push([what, real ? error.code : `not an error of ours: ${error}`, error.message]);
            }
          };
          const options = { windowSize: 4, causal: true, dim: 8, backend };
          for (const [what, change] of Object.entries({
            'no options': null,
            'a number for options': 5,
            'no windowSize': { windowSize: undefined },
            'a window of 0': { windowSize: 0 },
            'half a window': { windowSize: 1.5 },
            'a window in words': { windowSize: '128' },
            'a window in BigInt': { windowSize: 4n },
            'a negative look': { lookBackward: -1 },
            'looking ahead though causal': { lookForward: 1 },
            'the reference\'s own spelling': { look_backward: 1 },
            'an option that is none': { window: 4 },
            'a flag that is a number': { causal: 1 },
            'a probability of 1': { dropout: 1 },
            'a probability that is NaN': { dropout: NaN },
            'an odd dim': { dim: 7 },
            'an infinite scale': { scale: Infinity },
            'no quirks': { quirks: 'some' },
            'a quirk that is none': { quirks: { headAligned: false } },
            'an empty relPosEmbConfig': { relPosEmbConfig: [] },
            'another backend': { backend: 'webgl' },
          })) {
            const given = change === null ? undefined : typeof change === 'object' ? { ...options, ...change } : change;
            await fails(what, () => LocalAttention.create(given));
          }
          const attention = await LocalAttention.create(options);
          const x = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
          const good = { q: x, k: x, v: x, shape: [1, 8, 8] };
          const before = await attention.forward(good);
          const tensor = await attention.upload(x, [1, 8, 8]);
          const gone = await attention.upload(x, [1, 8, 8]);
          gone.dispose();
          gone.dispose();
          const elsewhere = await LocalAttention.create({ ...options, backend: backend === 'wasm' ? 'webgpu' : 'wasm' });
          const foreign = await elsewhere.upload(x, [1, 8, 8]);
          for (const [what, change] of Object.entries({
            'no q': { q: undefined },
            'a plain array': { q: [1, 2, 3] },
            'doubles': { k: new Float64Array(64) },
            'a string': { v: 'v' },
            'no shape': { shape: undefined },
            'a shape that is NaN': { shape: [1, NaN, 8] },
            'a negative size': { shape: [-1, -8, 8] },
            'a size in BigInt': { shape: [1n, 8, 8] },
            'a size beyond counting': { shape: [2 ** 40, 8, 8] },
            'too few numbers': { q: x.subarray(1) },
            'one dimension': { shape: [64] },
            'a name that is none': { key: x },
            'a shape that is none': { shape: { q: [1, 8, 8], out: [1, 8, 8] } },
            'windows that do not divide': { shape: [1, 2, 32], windowSize: null },
            'a head that is no dim': { shape: [1, 16, 4] },
            'a window without xpos': { windowSize: 8 },
            'a mask of numbers': { mask: x },
            'a mask of another length': { mask: new Uint8Array(7) },
            'mask rows that do not divide': { mask: new Uint8Array(24) },
            'a bias without a shape': { attnBias: x },
            'a bias of another width': { attnBias: x.subarray(0, 3), shape: { q: [1, 8, 8], attnBias: [1, 1, 3] } },
            'k of f16': { k: new Float16Array(64) },
            'a negative seed': { seed: -1 },
            'half a seed': { seed: 0.5 },
            'an offset beyond 32 bits': { seed: 1, offset: 2 ** 32 },
            'an offset without a seed': { offset: 0.5 },
            'a mask for keys of one dimension': { mask: new Uint8Array(8), shape: { q: [1, 8, 8], k: [64], v: [64] } },
            'a shape of k alone': { shape: { k: [1, 8, 8] } },
            'a tensor of another shape': { q: tensor, shape: [1, 4, 16] },
            'a tensor that is gone': { k: gone },
            'a tensor of another backend': { k: foreign },
            'an array for a result': { out: x },
            'a result in an input': { q: tensor, out: tensor },
            'a result of another shape': { q: tensor, out: await attention.upload(x, [8, 8]) },
            'a flag that is a word': { returnLse: 'yes' },
          })) {
            await fails(what, () => attention.forward({ ...good, ...change }));
            const next = await attention.forward(good);
            if (!next.every((y, i) => y === before[i])) told.push([`the call after ${what}`, 'it is wrong']);
          }
          await fails('no call', () => attention.forward());
          await fails('no dout', () => attention.backward({ ...good, out: x, lse: x.subarray(0, 8) }));
          await fails('an lse of another length', () => attention.backward({ ...good, out: x, lse: x, dout: x }));
          await fails('queries beyond the sequence', () => attention.weights({ ...good, queries: [4, 9] }));
          await fails('queries that are a number', () => attention.weights({ ...good, queries: 4 }));
          await fails('ranges beyond the sequence', () => attention.visible({ n: 8, queries: [0, 9] }));
          await fails('ranges of nothing', () => attention.visible({}));
          await fails('ranges of windows that do not divide', () => attention.visible({ n: 7 }));
          await fails('a tensor of doubles', () => attention.upload(new Float64Array(4), [4]));
          await fails('a tensor without a shape', () => attention.upload(x));
          await fails('a tensor that is gone, read', () => gone.read());
          const after = await attention.forward(good);
          // What runs is not ended by it.
          const running = attention.forward(good);
          attention.dispose();
          attention.dispose();
          if (!(await running).every((y, i) => y === before[i])) throw new Error('a call that ran is wrong');
          await fails('an attention that is gone', () => attention.forward(good));
          return { told, same: before.every((y, i) => y === after[i]) };
        }, backend);
        const codes = Object.fromEntries(value.told.map(([what, code]) => [what, code]));
        assert.deepEqual(codes, CODES);
        const messages = Object.fromEntries(value.told.map(([what, , message]) => [what, message]));
        assert.equal(messages['a window of 0'], 'window_size is 0: it must be at least 1');
        assert.equal(messages['a shape of k alone'], 'shape.q is missing: it must be the sizes of q, [.., n, d]');
        assert.equal(messages['a plain array'], 'q is [1, 2, 3]: it must be a Float32Array or a Float16Array or a Tensor');
        assert.equal(messages['a tensor of doubles'], 'data is a Float64Array of 4: it must be a Float32Array or a Float16Array or a Uint8Array');
        assert.equal(messages['the reference\'s own spelling'], 'look_backward is unknown in options: did you mean lookBackward?');
        assert.equal(messages['a shape that is NaN'], 'shape of q[1] is NaN: it must be an integer of at most 2147483647');
        assert.equal(messages['too few numbers'], 'the length of q is 63: it must be 64, the product of its shape [1, 8, 8]');
        assert.ok(value.same, 'the call after all that');
        assert.deepEqual(said, []);
      });
    });
  }


  test('both backends give the same on a long sequence', LIMIT, async () => {
    // Long enough for the tiles that software adapters take where compiling them pays.
    const { value, said } = await inPage(async () => {
      const shape = [1, 2048, 32];
      const numbers = (seed) => Float32Array.from({ length: 2048 * 32 }, (_, i) => Math.sin(i * 3.3 + seed));
      const [q, k, v] = [1, 2, 3].map(numbers);
      const [one, other] = await Promise.all(
        ['wasm', 'webgpu'].map(async (backend) => {
          const attention = await la.LocalAttention.create({ windowSize: 128, causal: true, dim: 32, backend });
          return attention.forward({ q, k, v, shape });
        }),
      );
      return one.reduce((worst, x, i) => Math.max(worst, Math.abs(x - other[i])), one.length === 2048 * 32 ? 0 : NaN);
    });
    assert.ok(value > 0 && value < 1e-5, `off by ${value}`);
    assert.deepEqual(said, []);
  });

  test('both backends drop the same weights and give the same lse', LIMIT, async () => {
    const { value, said } = await inPage(async () => {
      const numbers = (seed) => Float32Array.from({ length: 3 * 48 * 16 }, (_, i) => Math.sin(i * 5.1 + seed));
      const [q, k, v, dout] = [1, 2, 3, 4].map(numbers);
      const mask = Uint8Array.from({ length: 48 }, (_, i) => Number(i % 3 !== 0));
      const call = { q, k, v, mask, shape: [3, 48, 16], seed: 2n ** 63n + 5n, offset: 2, returnLse: true };
      const each = [];
      for (const backend of ['wasm', 'webgpu']) {
        const attention = await la.LocalAttention.create({ windowSize: 16, dropout: 0.5, useXpos: true, dim: 16, sharedQk: true, backend });
        const forward = await attention.forward(call);
        const { returnLse, ...rest } = call;
        const other = await attention.forward({ ...call, seed: 6 });
        if (other.out.every((x, i) => x === forward.out[i])) throw new Error('the seed changes nothing');
        each.push({ ...forward, ...(await attention.backward({ ...rest, ...forward, dout })) });
      }
      const error = (name) => each[0][name].reduce((worst, x, i) => Math.max(worst, Math.abs(x - each[1][name][i])), 0);
      return Object.fromEntries(Object.keys(each[0]).map((name) => [name, error(name)]));
    });
    assert.deepEqual(Object.keys(value), ['out', 'lse', 'dq', 'dk', 'dv']);
    for (const [name, error] of Object.entries(value)) assert.ok(error < 1e-5, `${name} differs by ${error}`);
    assert.deepEqual(said, []);
  });
};
