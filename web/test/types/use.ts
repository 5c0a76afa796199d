// Compiled, never run.

import { LocalAttention, LocalAttentionError, type Tensor } from '../../js/index.js';

const attention = await LocalAttention.create({ windowSize: 128, causal: true, lookBackward: 1, dim: 64 });
const backend: 'webgpu' | 'wasm' = attention.backend;
const x = new Float32Array(64 * 128);
const shape = [1, 128, 64];

// An array for arrays, a tensor for tensors.
const out: Float32Array = await attention.forward({ q: x, k: x, v: x, mask: new Uint8Array(128), shape });
const t: Tensor = await attention.upload(x, shape);
const kept: Tensor = await attention.forward({ q: t, k: t, v: t, out: t });
const both = await attention.forward({ q: x, k: x, v: x, shape, returnLse: true });
const lse: Float32Array = both.lse;
const { dq, dattnBias } = await attention.backward({ q: x, k: x, v: x, shape, ...both, dout: x });
const gradients: [Float32Array, Float32Array | undefined] = [dq, dattnBias];
const read: Float32Array = await kept.read();
const bits = await kept.read<Uint8Array>();
const { start, end } = await attention.visible({ n: 128, queries: [0, 16] });
const { weights, keys } = await attention.weights({ q: x, k: x, v: x, shape, queries: [0, 16] });
const code = (error: unknown): string => (error instanceof LocalAttentionError ? error.code : '');

// @ts-expect-error: windowSize is required
await LocalAttention.create({ causal: true });
// @ts-expect-error: the reference's names are in camelCase here
await LocalAttention.create({ windowSize: 128, look_backward: 1 });
// @ts-expect-error: numbers are Float32Array or Float16Array
await attention.forward({ q: [1, 2, 3], k: x, v: x, shape });
// @ts-expect-error: attentions come from create
new LocalAttention();

export { backend, bits, code, end, gradients, keys, lse, out, read, start, weights };
