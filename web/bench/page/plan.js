// What is measured: one shape at some lengths, on each backend, with tensors that stay there and with arrays.

export const BACKENDS = { webgpu: 'WebGPU', wasm: 'wasm' };
export const LENGTHS = [1024, 4096, 16384];
export const PAIRS = 7;
export const WINDOW = 128;
/** Rounds of both engines before those that count: the first compiles. */
export const WARM_UP = 2;

const [HEADS, D] = [8, 64];
export const sizes = (n) => ({ n, w: WINDOW, heads: HEADS, d: D });
export const SHAPE = `one batch of ${HEADS} heads of ${D}, causal, windows of ${WINDOW} and the one before`;

/** All comparisons, in order. */
export const plan = (backends, lengths) =>
  backends.flatMap((backend) => lengths.flatMap((n) => ['tensors', 'arrays'].map((mode) => ({ backend, n, mode }))));

/** Where tensors are, in words. */
export const where = ({ backend, mode }) => {
  if (mode === 'arrays') return 'in and out';
  // On wasm theirs are copied in and out in any case.
  return backend === 'wasm' ? 'ours stay' : 'stay';
};
