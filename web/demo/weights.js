// The attention weights of one query: bars, letters, and the largest.

import { onWidth, svg } from './svg.js';

/** Bars at most: beyond that one stands for several keys, and shows the largest. */
const BARS = 240;
/** Letters at most: those nearest to the query. */
const LETTERS = 3000;
/** Percent of colour behind a letter at most: its contrast stays above 4.5 in both themes. */
const DARKEST = 45;

/** A letter that can be seen. */
const shown = (letter) => ({ ' ': '␣', '\n': '⏎', '\t': '⇥' })[letter] ?? letter;

export class WeightsView {
  #bars;
  #letters;
  #top;
  #drawBars = () => {};

  constructor({ bars, letters, top }) {
    this.#bars = bars;
    this.#letters = letters;
    this.#top = top;
    onWidth(bars, () => this.#drawBars());
  }

  /** Keys with their weights, in order, of a query; keys from `letters.length` on are zeros of padding. */
  show({ query, keys, weights, letters }) {
    const sight = [];
    keys.forEach((key, i) => {
      if (key >= 0 && weights[i] > 0) sight.push({ key, weight: weights[i] });
    });
    const largest = sight.reduce((most, { weight }) => Math.max(most, weight), 0) || 1;
    this.#drawBars = () => this.#showBars(sight, largest, query);
    this.#drawBars();
    const near = Math.max(sight.findIndex(({ key }) => key >= query - LETTERS / 2), 0);
    this.#letters.replaceChildren(
      ...sight.slice(near, near + LETTERS).map(({ key, weight }) => {
        const span = document.createElement('span');
        span.textContent = key < letters.length ? (letters[key] === '\n' ? '⏎\n' : letters[key]) : '0';
        const share = Math.round((weight / largest) * DARKEST);
        if (share > 0) span.style.background = `color-mix(in srgb, var(--sees) ${share}%, transparent)`;
        if (key === query) span.className = 'self';
        span.title = `key ${key.toLocaleString()}: ${(weight * 100).toFixed(2)} %`;
        return span;
      }),
    );
    // The query's own letter is in sight.
    const own = this.#letters.querySelector('.self');
    if (own) this.#letters.scrollTop = own.offsetTop - this.#letters.offsetTop - this.#letters.clientHeight / 2;
    const best = [...sight].sort((a, b) => b.weight - a.weight).slice(0, 6);
    this.#top.replaceChildren(
      ...best.map(({ key, weight }) => {
        const item = document.createElement('li');
        const letter = key < letters.length ? `“${shown(letters[key])}”` : 'padding';
        item.textContent = `${letter} at ${key.toLocaleString()}: ${(weight * 100).toFixed(1)} %`;
        return item;
      }),
    );
  }

  clear() {
    this.#drawBars = () => {};
    for (const element of [this.#bars, this.#letters, this.#top]) element.replaceChildren();
  }

  #showBars(sight, largest, query) {
    const [width, height] = [this.#bars.clientWidth || 480, 110];
    if (!sight.length) {
      this.#bars.replaceChildren();
      return;
    }
    const [first, last] = [sight[0].key, sight[sight.length - 1].key];
    const span = last - first + 1;
    const each = Math.ceil(span / BARS);
    const tops = new Float64Array(Math.ceil(span / each));
    for (const { key, weight } of sight) {
      const at = Math.floor((key - first) / each);
      tops[at] = Math.max(tops[at], weight);
    }
    const step = width / tops.length;
    const chart = svg('svg', { viewBox: `0 0 ${width} ${height + 30}`, role: 'img' });
    chart.append(svg('title', {}, `Weights of query ${query} over keys ${first} to ${last}, at most ${(largest * 100).toFixed(1)} %`));
    tops.forEach((weight, i) => {
      const tall = Math.max((weight / largest) * height, 0.5);
      const own = query >= first + i * each && query < first + (i + 1) * each;
      const fill = own ? 'var(--mark)' : 'var(--sees)';
      const bar = { x: i * step, y: 14 + height - tall, width: Math.max(step * 0.86, 0.7), height: tall, fill };
      chart.append(svg('rect', bar));
    });
    const text = (x, y, anchor, words) => svg('text', { x, y, 'text-anchor': anchor }, words);
    chart.append(
      text(0, 9, 'start', `${(largest * 100).toFixed(1)} %`),
      text(0, height + 27, 'start', `key ${first.toLocaleString()}`),
      text(width, height + 27, 'end', `key ${last.toLocaleString()}`),
    );
    this.#bars.replaceChildren(chart);
  }
}
