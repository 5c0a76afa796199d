// Compiled, never run; with libraries that know Symbol.dispose and Float16Array.

import { LocalAttention, type Tensor } from 'local-attention';

using attention = await LocalAttention.create({ windowSize: 128 });
const half = new Float16Array(64 * 128);
const shape = [1, 128, 64];

// f16 in, f16 out.
const out: Float16Array = await attention.forward({ q: half, k: half, v: half, shape });
using tensor = await attention.upload(half, shape);
using result = await attention.forward({ q: tensor, k: tensor, v: tensor });
const read: Float16Array = await result.read();
const { lse } = await attention.forward({ q: tensor, k: tensor, v: tensor, returnLse: true });
const logarithms: Tensor = lse;
const { dq } = await attention.backward({ q: tensor, k: half, v: half, shape, out: result, lse, dout: half });
const gradient: Tensor<Float16Array> = dq;
lse[Symbol.dispose]();

export { gradient, logarithms, out, read };
