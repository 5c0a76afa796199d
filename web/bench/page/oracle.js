// Inputs, and what comes out of them, in f64 from the definition.

/** Numbers like those of activations: a sum of uniform ones, from a counter. */
export const inputs = ({ n, heads, d }) => {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const tensor = () => Float32Array.from({ length: heads * n * d }, () => 2 * (uniform() + uniform() + uniform()));
  return { q: tensor(), k: tensor(), v: tensor() };
};

/** The result of one query: of the keys up to itself in its own window and the one before. */
const row = ({ n, w, d }, { q, k, v }, head, query) => {
  const first = Math.max(0, (Math.floor(query / w) - 1) * w);
  const at = (head * n + query) * d;
  const logits = [];
  for (let key = first; key <= query; key++) {
    let sum = 0;
    for (let i = 0; i < d; i++) sum += q[at + i] * k[(head * n + key) * d + i];
    logits.push(sum * d ** -0.5);
  }
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const weights = logits.map((x) => Math.exp(x - largest));
  const total = weights.reduce((a, b) => a + b);
  return Array.from({ length: d }, (_, i) => {
    let sum = 0;
    weights.forEach((weight, j) => (sum += weight * v[(head * n + first + j) * d + i]));
    return sum / total;
  });
};

/** The largest error of a result [heads, n, d], of queries of each window of each head: its first, last and another. */
export const error = (sizes, all, out) => {
  const { n, w, heads, d } = sizes;
  let worst = 0;
  for (let head = 0; head < heads; head++) {
    for (let window = 0; window < n / w; window++) {
      for (const query of [0, w - 1, (window * 37 + head * 11) % w]) {
        const at = window * w + query;
        row(sizes, all, head, at).forEach((x, i) => {
          const difference = Math.abs(x - out[(head * n + at) * d + i]);
          // What is no number is no less than anything, either.
          if (!(difference <= worst)) worst = Number.isNaN(difference) ? Infinity : difference;
        });
      }
    }
  }
  return worst;
};
