// The picture of who sees whom: ranges of keys, one a query, drawn by rows of pixels and never by pairs.

const MOST_ZOOM = 48;

export class Pattern {
  #canvas;
  #chosen;
  #ranges = null;
  #n = 1;
  #keys = 1;
  /** The top left corner, in keys and queries, and pixels of the page a key. */
  #view = { x: 0, y: 0, scale: 1 };
  /** Pixels of the page that the view is for. */
  #width = 0;
  #query = 0;
  #pointers = new Map();
  #frame = 0;
  #kept = false;

  /** `chosen(query)` is told which query is pointed at. */
  constructor(canvas, chosen) {
    this.#canvas = canvas;
    this.#chosen = chosen;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw());
    canvas.addEventListener('pointermove', (event) => this.#move(event));
    canvas.addEventListener('pointerdown', (event) => this.#down(event));
    for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener('keydown', (event) => this.#key(event));
  }

  get query() {
    return this.#query;
  }

  /** The chosen query and the keys it sees, in words. */
  get words() {
    const [start, end] = this.#seen(this.#query);
    const text = (number) => number.toLocaleString();
    if (end <= start) return `Query ${text(this.#query)} sees no key.`;
    const padding = end > this.#n ? `, ${text(end - Math.max(start, this.#n))} of them padding` : '';
    return `Query ${text(this.#query)} sees keys ${text(start)} to ${text(end - 1)}: ${text(end - start)}${padding}.`;
  }

  /** Shows what `visible` gave for a sequence of `n`. */
  show(visible, n) {
    const fresh = !this.#ranges;
    this.#ranges = visible;
    this.#n = n;
    this.#keys = Math.max(visible.paddedLength, n);
    this.fit();
    this.choose(fresh ? Math.floor(n * 0.6) : Math.min(this.#query, n - 1));
  }

  fit() {
    this.#kept = false;
    this.#view = { x: 0, y: 0, scale: this.#least() };
    this.#draw();
  }

  /** About a point of the canvas, or about the query, or the middle where that is not wholly in sight. */
  zoom(factor, x, y) {
    const view = this.#view;
    const size = this.#canvas.clientWidth;
    if (x === undefined) {
      // As far into the query's cell as that is into the view: at an edge, too, all of it stays in sight.
      [x, y] = [view.x, view.y].map((from) => ((this.#query - from) / (size / view.scale - 1)) * size);
      if (Math.min(x, y) < -1 || Math.max(x, y) > size + 1) x = y = size / 2;
    }
    const scale = Math.min(Math.max(view.scale * factor, this.#least()), MOST_ZOOM);
    const moved = 1 / view.scale - 1 / scale;
    this.#view = { x: view.x + x * moved, y: view.y + y * moved, scale };
    this.#clamp();
  }

  /** The chosen query and what it sees, as large as they fit. */
  zoomToQuery() {
    if (!this.#ranges) return;
    const [start, end] = this.#seen(this.#query);
    const size = this.#canvas.clientWidth;
    const span = Math.max(end - start, 12) * 1.25;
    const scale = Math.min(Math.max(size / span, this.#least()), MOST_ZOOM);
    const middle = (start + end) / 2;
    this.#view = { x: middle - size / scale / 2, y: this.#query + 0.5 - size / scale / 2, scale };
    this.#clamp();
  }

  choose(query) {
    this.#query = Math.min(Math.max(query, 0), this.#n - 1);
    this.#canvas.setAttribute('aria-valuemax', this.#n - 1);
    this.#canvas.setAttribute('aria-valuenow', this.#query);
    this.#canvas.setAttribute('aria-valuetext', this.words);
    this.#draw();
    this.#chosen(this.#query);
  }

  #least() {
    return (this.#canvas.clientWidth || 1) / this.#keys;
  }

  #seen(query) {
    return [this.#ranges.start[query], this.#ranges.end[query]];
  }

  #clamp() {
    const span = this.#canvas.clientWidth / this.#view.scale;
    const inside = (at) => Math.min(Math.max(at, 0), Math.max(this.#keys - span, 0));
    this.#view.x = inside(this.#view.x);
    this.#view.y = inside(this.#view.y);
    this.#draw();
  }

  #resize() {
    const width = this.#canvas.clientWidth;
    const size = Math.round(width * (devicePixelRatio || 1));
    if (!size || size === this.#canvas.width) return;
    this.#canvas.width = this.#canvas.height = size;
    // What was in sight stays in sight: all of it by the very scale that shows all, or pixels at edges may differ.
    if (!this.#zoomed()) this.#view.scale = this.#least();
    else if (this.#width) this.#view.scale = Math.min((this.#view.scale * width) / this.#width, MOST_ZOOM);
    this.#width = width;
    this.#clamp();
  }

  /** Whether there is more than is in sight. */
  #zoomed() {
    return this.#view.scale > ((this.#width || 1) / this.#keys) * 1.001;
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [event.clientX - box.left - this.#canvas.clientLeft, event.clientY - box.top - this.#canvas.clientTop];
  }

  #point([, y]) {
    const query = Math.floor(this.#view.y + y / this.#view.scale);
    if (query >= 0 && query < this.#n && query !== this.#query) this.choose(query);
  }

  #down(event) {
    // Of a mouse the first button.
    if (event.button) return;
    this.#canvas.focus({ preventScroll: true });
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, { at: this.#at(event), moved: 0 });
  }

  #up(event) {
    const pointer = this.#pointers.get(event.pointerId);
    this.#pointers.delete(event.pointerId);
    // A click keeps the query, and lets it go again.
    if (pointer && pointer.moved < 4 && event.type === 'pointerup') {
      this.#kept = event.pointerType === 'mouse' && !this.#kept;
      this.#point(pointer.at);
    }
  }

  #move(event) {
    if (!this.#ranges) return;
    const at = this.#at(event);
    const pointer = this.#pointers.get(event.pointerId);
    if (!pointer) {
      if (!this.#kept) this.#point(at);
      return;
    }
    const others = [...this.#pointers.values()].filter((other) => other !== pointer);
    const [dx, dy] = [at[0] - pointer.at[0], at[1] - pointer.at[1]];
    if (others.length) {
      // Two fingers: as their distance grows.
      const distance = ([x, y]) => Math.hypot(x - others[0].at[0], y - others[0].at[1]) || 1;
      this.zoom(distance(at) / distance(pointer.at), others[0].at[0], others[0].at[1]);
    } else if (this.#zoomed()) {
      this.#view.x -= dx / this.#view.scale;
      this.#view.y -= dy / this.#view.scale;
      this.#clamp();
    } else if (event.pointerType !== 'mouse') {
      this.#point(at);
    }
    pointer.moved += Math.abs(dx) + Math.abs(dy);
    pointer.at = at;
  }

  #wheel(event) {
    // Until it is asked for, the wheel is the page's.
    if (document.activeElement !== this.#canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), ...this.#at(event));
  }

  #key(event) {
    if (!this.#ranges) return;
    const step = event.shiftKey ? this.#ranges.window : 1;
    const does = {
      ArrowUp: () => this.#step(-step),
      ArrowDown: () => this.#step(step),
      ArrowLeft: () => this.#step(-step),
      ArrowRight: () => this.#step(step),
      PageUp: () => this.#step(-this.#ranges.window),
      PageDown: () => this.#step(this.#ranges.window),
      Home: () => this.#step(-this.#n),
      End: () => this.#step(this.#n),
      '+': () => this.zoom(1.5),
      '=': () => this.zoom(1.5),
      '-': () => this.zoom(1 / 1.5),
      0: () => this.fit(),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  }

  #step(by) {
    this.choose(this.#query + by);
    // It stays in sight.
    const { y, scale } = this.#view;
    const span = this.#canvas.clientHeight / scale;
    if (this.#query < y || this.#query + 1 > y + span) {
      const [start, end] = this.#seen(this.#query);
      this.#view.y = this.#query - span / 2;
      this.#view.x = (start + end) / 2 - span / 2;
      this.#clamp();
    }
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    const canvas = this.#canvas;
    canvas.classList.toggle('zoomed', this.#zoomed());
    if (!this.#ranges || !canvas.width) return;
    // Computed colours: light-dark() is no colour to a canvas.
    const colour = (name) => {
      canvas.style.color = `var(--${name})`;
      const found = getComputedStyle(canvas).color;
      canvas.style.color = '';
      return found;
    };
    const [back, sees, some, mark, line] = ['back', 'sees', 'some', 'mark', 'line'].map(colour);
    const context = canvas.getContext('2d');
    const size = canvas.width;
    const scale = this.#view.scale * (size / canvas.clientWidth);
    const { x: left, y: top } = this.#view;
    const column = (key) => Math.round((key - left) * scale);
    context.fillStyle = back;
    context.fillRect(0, 0, size, size);
    const { start, end, window } = this.#ranges;
    const bottom = Math.min(size, Math.ceil((this.#n - top) * scale));
    for (let y = 0; y < bottom; y++) {
      // The queries of this row of pixels, or the one in its middle where queries are larger.
      const at = scale < 1 ? [y, y + 1] : [y + 0.5, y + 0.5];
      const first = Math.min(Math.floor(top + at[0] / scale), this.#n - 1);
      const last = Math.min(Math.max(Math.ceil(top + at[1] / scale) - 1, first), this.#n - 1);
      // Neither end of the ranges moves left from one query to the next.
      const any = [column(start[first]), column(end[last])];
      const all = [column(start[last]), column(end[first])];
      if (first !== last) {
        context.fillStyle = some;
        context.fillRect(any[0], y, any[1] - any[0], 1);
      }
      if (all[1] > all[0]) {
        context.fillStyle = sees;
        context.fillRect(all[0], y, all[1] - all[0], 1);
      }
    }
    const lines = (step, width, colour) => {
      context.fillStyle = colour;
      for (let key = Math.ceil(left / step) * step; key <= left + size / scale; key += step) {
        context.fillRect(column(key), 0, width, size);
      }
      for (let query = Math.ceil(top / step) * step; query <= top + size / scale; query += step) {
        context.fillRect(0, Math.round((query - top) * scale), size, width);
      }
    };
    if (scale >= 9) lines(1, 1, back);
    if (scale * window >= 24) lines(window, 1, line);
    // Zeros that padding appends.
    if (this.#keys > this.#n) {
      context.fillStyle = line;
      const edge = column(this.#n);
      for (let x = edge - (edge % 6); x < size; x += 6) if (x >= edge) context.fillRect(x, 0, 1, size);
    }
    // The query, thick enough to be seen.
    const y = Math.round((this.#query - top) * scale);
    const height = Math.max(Math.round(scale), 3 * Math.round(devicePixelRatio || 1));
    const [from, to] = this.#seen(this.#query).map(column);
    context.fillStyle = mark;
    context.globalAlpha = 0.25;
    context.fillRect(0, y, size, height);
    context.globalAlpha = 1;
    context.fillRect(from, y, Math.max(to - from, 1), height);
  }
}
