// Time against length: a chart and a table that fill in while they are measured.

import { milliseconds } from './numbers.js';
import { onWidth, svg } from './svg.js';

const HEIGHT = 250;
const MARGIN = { left: 52, right: 22, top: 28, bottom: 40 };
/** As wide as a length is written. */
const LABEL = 48;
const COLOURS = { webgpu: 'var(--sees)', wasm: 'var(--other)' };
const NAMES = { webgpu: 'WebGPU', wasm: 'Wasm' };

/** A whole power of ten, in milliseconds, as the axis has it. */
const decade = (power) => {
  if (power >= 3) return `${(10 ** (power - 3)).toLocaleString()} s`;
  return `${power < 0 ? (10 ** power).toFixed(-power) : 10 ** power} ms`;
};

export class Times {
  #chart;
  #table;
  /** By backend, `[n, ms]`. */
  #series = new Map();
  #lengths = [];

  constructor(chart, table) {
    this.#chart = chart;
    this.#table = table;
    onWidth(chart, () => this.#draw());
  }

  /** `measured` says in words what is measured. */
  start(backends, lengths, measured) {
    this.#table.caption.textContent = `Median milliseconds of a forward pass with the result read back: ${measured}`;
    this.#series = new Map(backends.map((backend) => [backend, []]));
    this.#lengths = lengths;
    this.#draw();
  }

  add(backend, n, ms) {
    this.#series.get(backend).push([n, ms]);
    this.#draw();
  }

  #draw() {
    const width = this.#chart.clientWidth || 480;
    const all = [...this.#series.values()].flat();
    const range = (values) => [Math.min(...values), Math.max(...values)];
    const [low, high] = all.length ? range(all.map(([, ms]) => ms)) : [1, 10];
    // Whole powers of ten around what was measured.
    const decades = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high * 1.01))];
    const [shortest, longest] = range(this.#lengths).map(Math.log2);
    const x = (n) => MARGIN.left + ((Math.log2(n) - shortest) / (longest - shortest || 1)) * (width - MARGIN.left - MARGIN.right);
    const y = (ms) =>
      HEIGHT - MARGIN.bottom - ((Math.log10(ms) - decades[0]) / (decades[1] - decades[0] || 1)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const chart = svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img' });
    chart.append(svg('title', {}, 'Time of a forward pass against the length of the sequence, both axes logarithmic'));
    const line = (x1, y1, x2, y2) => svg('line', { x1, y1, x2, y2, stroke: 'var(--line)' });
    const label = (x, y, anchor, words, fill) =>
      svg('text', { x, y, 'text-anchor': anchor, ...(fill && { style: `fill: ${fill}` }) }, words);
    for (let power = decades[0]; power <= decades[1]; power++) {
      const at = y(10 ** power);
      chart.append(line(MARGIN.left, at, width - MARGIN.right, at));
      chart.append(label(MARGIN.left - 6, at + 4, 'end', decade(power)));
    }
    // Every length, or as many as have room, the longest among them.
    const last = this.#lengths.length - 1;
    const every = Math.ceil((LABEL * last) / (width - MARGIN.left - MARGIN.right)) || 1;
    for (let i = last; i >= 0; i -= every) {
      const n = this.#lengths[i];
      chart.append(label(x(n), HEIGHT - MARGIN.bottom + 20, 'middle', n.toLocaleString()));
    }
    chart.append(label((width + MARGIN.left) / 2, HEIGHT - 3, 'middle', 'positions'));
    let legend = MARGIN.left;
    for (const [backend, points] of this.#series) {
      const stroke = COLOURS[backend];
      const path = points.map(([n, ms], i) => `${i ? 'L' : 'M'}${x(n)} ${y(ms)}`).join('');
      chart.append(svg('path', { d: path, fill: 'none', stroke, 'stroke-width': 2 }));
      for (const [n, ms] of points) chart.append(svg('circle', { cx: x(n), cy: y(ms), r: 3.5, fill: stroke }));
      chart.append(label(legend, 12, 'start', `● ${NAMES[backend]}`, stroke));
      legend += 84;
    }
    this.#chart.replaceChildren(chart);
    this.#fill();
  }

  #fill() {
    const cell = (name, text) => Object.assign(document.createElement(name), { textContent: text });
    const row = (cells) => {
      const line = document.createElement('tr');
      line.append(...cells);
      return line;
    };
    const backends = [...this.#series.keys()];
    const both = backends.length > 1;
    const head = ['positions', ...backends.map((backend) => NAMES[backend]), ...(both ? [backends.map((backend) => NAMES[backend]).reverse().join(' / ')] : [])];
    this.#table.tHead.replaceChildren(row(head.map((text) => Object.assign(cell('th', text), { scope: 'col' }))));
    const rows = this.#lengths.map((n) => {
      const times = backends.map((backend) => this.#series.get(backend).find(([length]) => length === n)?.[1]);
      const texts = times.map((ms) => (ms === undefined ? '' : milliseconds(ms)));
      if (both) texts.push(times.every((ms) => ms !== undefined) ? (times[1] / times[0]).toFixed(2) : '');
      return row([Object.assign(cell('th', n.toLocaleString()), { scope: 'row' }), ...texts.map((text) => cell('td', text))]);
    });
    this.#table.tBodies[0].replaceChildren(...rows);
  }
}
