// The form: backends, lengths and the number of pairs.

import { BACKENDS, LENGTHS, PAIRS, plan } from './plan.js';

/** A box to tick. */
const box = (name, value, text, checked) => {
  const input = Object.assign(document.createElement('input'), { type: 'checkbox', name, value, checked });
  const label = document.createElement('label');
  label.append(input, text);
  return label;
};

export class Choice {
  #form;

  constructor(form) {
    this.#form = form;
    const backends = Object.entries(BACKENDS).map(([name, text]) => box('backend', name, text, true));
    // The longest takes minutes where WebGPU is software.
    const lengths = LENGTHS.map((n) => box('length', n, n.toLocaleString('en'), n < LENGTHS.at(-1)));
    form.querySelector('#backends').append(...backends);
    form.querySelector('#lengths').append(...lengths);
    form.elements.pairs.value = PAIRS;
  }

  #ticked(name) {
    return [...this.#form.querySelectorAll(`[name=${name}]:checked`)].map(({ value }) => value);
  }

  /** A backend that this browser does not have. */
  without(backend) {
    const input = this.#form.querySelector(`[value=${backend}]`);
    Object.assign(input, { checked: false, disabled: true });
  }

  read() {
    const jobs = plan(this.#ticked('backend'), this.#ticked('length').map(Number));
    return { jobs, pairs: this.#form.elements.pairs.valueAsNumber };
  }
}
