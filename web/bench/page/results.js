// The table: a row for each comparison, which fills in while it runs.

import { cells, HEADS, isWrong } from './summary.js';

const cell = (name, text, rest) => Object.assign(document.createElement(name), { textContent: text, ...rest });

export class Results {
  #body;

  constructor(table) {
    table.tHead.replaceChildren(document.createElement('tr'));
    table.tHead.rows[0].append(...HEADS.map((text) => cell('th', text, { scope: 'col' })));
    this.#body = table.tBodies[0];
  }

  clear() {
    this.#body.replaceChildren();
  }

  /** A new row; what it gives fills it in, with what is known and how far that is. */
  add(job) {
    const row = this.#body.insertRow();
    return (known, state) => {
      const run = { ...job, ...known };
      const all = cells(run).map((text, i) => {
        // The first three say what is compared.
        const made = i < 3 ? cell('th', text, { scope: 'row' }) : cell('td', text);
        made.dataset.head = HEADS[i];
        return made;
      });
      if (!run.errors) all.push(cell('td', state, { className: 'state', colSpan: HEADS.length - all.length }));
      row.classList.toggle('wrong', Boolean(run.errors && isWrong(run)));
      row.replaceChildren(...all);
    };
  }
}
