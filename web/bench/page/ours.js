// local-attention: [1, heads, n, d].

export const ours = async (backend, { n, w, heads, d }, { q, k, v }) => {
  const { LocalAttention } = await import('../../js/index.js');
  const attention = await LocalAttention.create({ windowSize: w, causal: true, lookBackward: 1, backend });
  const shape = [1, heads, n, d];
  const tensors = await Promise.all([q, k, v, new Float32Array(q.length)].map((x) => attention.upload(x, shape)));
  const small = await attention.upload(new Float32Array(1), [1]);
  const [tq, tk, tv, out] = tensors;
  return {
    device: attention.device,
    arrays: () => attention.forward({ q, k, v, shape }),
    tensors: async () => {
      await attention.forward({ q: tq, k: tk, v: tv, out });
      // What is read after it waits for it.
      await small.read();
    },
    read: () => out.read(),
    end: () => {
      [...tensors, small].forEach((tensor) => tensor.dispose());
      attention.dispose();
    },
  };
};
