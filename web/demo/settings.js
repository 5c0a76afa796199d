// What the form says, and the address that says the same.

/** Lengths and windows of the sliders' steps, each some larger than the one before. */
const lengthOf = (step) => Math.round((64 * 2 ** (step / 3)) / 16) * 16;
const windowOf = (step) => Math.round(4 * 2 ** (step / 2));
const stepOf = (value, of, most) => {
  let best = 0;
  for (let step = 0; step <= most; step++) if (Math.abs(of(step) - value) < Math.abs(of(best) - value)) best = step;
  return best;
};

const FIRST = { n: 1024, window: 128, back: 1, forward: 0, heads: 2, d: 32, causal: true, exact: false, shared: false, rotary: true };

export class Settings {
  #form;

  /** `changed` is told of every change. */
  constructor(form, changed) {
    this.#form = form;
    this.#write({ ...FIRST, ...fromAddress() });
    form.addEventListener('submit', (event) => event.preventDefault());
    form.addEventListener('input', () => {
      this.#label();
      if (!form.checkValidity()) return;
      history.replaceState(null, '', '#' + new URLSearchParams(this.read()));
      changed();
    });
    addEventListener('hashchange', () => {
      this.#write({ ...FIRST, ...fromAddress() });
      changed();
    });
  }

  read() {
    const { n, window, back, forward, heads, d, causal, exact, shared, rotary } = this.#form.elements;
    return {
      n: lengthOf(+n.value),
      window: windowOf(+window.value),
      back: +back.value,
      forward: +forward.value,
      heads: +heads.value,
      d: +d.value,
      causal: causal.checked,
      exact: exact.checked,
      shared: shared.checked,
      rotary: rotary.checked,
    };
  }

  #write(settings) {
    const fields = this.#form.elements;
    const all = Object.entries(settings);
    for (const [name, value] of all) if (typeof value === 'boolean') fields[name].checked = value;
    // First what that switches off: it would not be checked.
    this.#label();
    for (const [name, value] of all) {
      if (name === 'n') fields.n.value = stepOf(value, lengthOf, +fields.n.max);
      else if (name === 'window') fields.window.value = stepOf(value, windowOf, +fields.window.max);
      else if (typeof value !== 'boolean') {
        fields[name].value = value;
        // What an address says, a control may not allow.
        if (!fields[name].value || !fields[name].checkValidity()) fields[name].value = FIRST[name];
      }
    }
    this.#label();
  }

  #label() {
    const { nText, windowText, forward, causal } = this.#form.elements;
    const { n, window } = this.read();
    this.#form.elements.n.setAttribute('aria-valuetext', `${n} positions`);
    this.#form.elements.window.setAttribute('aria-valuetext', `${window} positions`);
    nText.value = n.toLocaleString();
    windowText.value = window.toLocaleString();
    // A causal query sees nothing after itself: the library refuses both.
    forward.disabled = causal.checked;
    if (causal.checked) forward.value = 0;
  }
}

function fromAddress() {
  const given = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(FIRST, name)) continue;
    if (typeof FIRST[name] === 'boolean') given[name] = text === 'true';
    else if (/^\d{1,6}$/.test(text)) given[name] = +text;
  }
  return given;
}

/** The package's options for what the form says. */
export const optionsOf = ({ window, back, forward, causal, exact, shared, rotary, d }) => ({
  windowSize: window,
  lookBackward: back,
  lookForward: causal ? null : forward,
  causal,
  exactWindowsize: exact,
  sharedQk: shared,
  dim: rotary ? d : null,
  autopad: true,
});

/** The same in words, without the length. */
export const wordsOf = ({ window, back, forward, causal, exact, shared, rotary, heads, d }) => {
  const count = (number, name) => `${number} ${name}${number === 1 ? '' : 's'}`;
  const options = { causal, 'exact windows': exact, 'shared QK': shared, rotary };
  return [
    `window ${window}`,
    `${count(back, 'window')} back`,
    `${forward} forward`,
    `${count(heads, 'head')} of size ${d}`,
    ...Object.keys(options).filter((name) => options[name]),
  ].join(', ');
};
