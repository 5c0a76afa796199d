// Queries, keys and values made of letters, so that attention has something to find.

/** mulberry32: numbers from 0 to 1, the same for the same seed. */
const random = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};

/** Logit of two equal letters, before rotation. */
const MATCH = 6;

export class Data {
  /** `heads` heads of `d` features for each of `n` letters of a text, which is repeated. */
  constructor(text, { n, heads, d, shared }) {
    const letters = Array.from(text);
    this.letters = Array.from({ length: n }, (_, i) => letters[i % letters.length]);
    this.shape = [1, heads, n, d];
    const known = new Map();
    const vector = (letter) => {
      let found = known.get(letter);
      if (!found) {
        const next = random(letter.codePointAt(0));
        found = Float32Array.from({ length: d }, () => next() - 0.5);
        const norm = Math.hypot(...found);
        found = found.map((x) => (x / norm) * Math.sqrt(MATCH * Math.sqrt(d)));
        known.set(letter, found);
      }
      return found;
    };
    [this.q, this.k, this.v] = Array.from({ length: 3 }, () => new Float32Array(heads * n * d));
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < n; i++) {
        const at = (head * n + i) * d;
        this.q.set(vector(this.letters[i]), at);
        // The key of what came `head` letters after a letter is that letter's.
        if (i >= head) this.k.set(vector(this.letters[i - head]), at);
        this.v.set(vector(this.letters[i]), at);
      }
    }
    if (shared) this.k = this.q;
  }

  /** One head alone. */
  head(head) {
    const [, , n, d] = this.shape;
    const part = (x) => x.subarray(head * n * d, (head + 1) * n * d);
    return { q: part(this.q), k: part(this.k), v: part(this.v), shape: [1, 1, n, d] };
  }
}
