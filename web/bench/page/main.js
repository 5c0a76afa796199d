// The page: what is chosen is compared, one after the other, until it is done or cancelled.

import { Choice } from './choice.js';
import { needs } from './needs.js';
import { BACKENDS, SHAPE, WARM_UP, where } from './plan.js';
import { Results } from './results.js';
import { isWrong, MOST } from './summary.js';

const $ = (id) => document.getElementById(id);
const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
const choice = new Choice($('choice'));
const results = new Results($('table'));
let running = null;

const state = (text) => ($('state').textContent = text);

const trouble = (text) => {
  $('trouble').hidden = !text;
  $('trouble').textContent = text;
};

const busy = (is) => {
  // A button that is disabled loses the keyboard: it goes to the other one.
  const held = [$('run'), $('cancel'), document.body].includes(document.activeElement);
  $('run').disabled = is;
  $('cancel').disabled = !is;
  if (held) $(is ? 'cancel' : 'run').focus({ preventScroll: true });
};

/** The next frame is drawn, so that no run has to wait for it. A hidden tab waits: its times would mean little. */
const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

/** By backend, what it ran on. */
const devices = (known) =>
  $('devices').replaceChildren(
    ...[...known].flatMap(([backend, name]) => [element('dt', BACKENDS[backend]), element('dd', name)]),
  );

const run = async ({ jobs, pairs }) => {
  const { signal } = (running = new AbortController());
  const ranOn = new Map();
  // Time grows with the length.
  const total = jobs.reduce((sum, { n }) => sum + n, 0) * (WARM_UP + pairs);
  let done = 0;
  let wrong = false;
  $('progress').value = 0;
  $('results').hidden = false;
  results.clear();
  let fill;
  let known;
  try {
    // Not before: it loads what may be missing.
    const { compare } = await import('./compare.js');
    for (const job of jobs) {
      fill = results.add(job);
      known = { ours: [] };
      state(`${BACKENDS[job.backend]}, ${job.n.toLocaleString('en')} positions, tensors: ${where(job)} …`);
      fill(known, 'loading and compiling');
      await drawn();
      const progress = async (all) => {
        known = all;
        const rounds = known.ours.length;
        fill(known, rounds ? `${rounds} of ${pairs} pairs` : 'warming up');
        devices(ranOn.set(job.backend, known.device));
        done += job.n;
        $('progress').value = done / total;
        await drawn();
      };
      const result = await compare(job, pairs, { signal, progress });
      fill(result);
      wrong ||= isWrong(result);
    }
    state('Done.');
    if (wrong) trouble(`Wrong: an error above ${MOST}.`);
  } catch (error) {
    if (signal.aborted) {
      state('Cancelled.');
      fill?.(known, `cancelled after ${known.ours.length} of ${pairs} pairs`);
    } else {
      state('Stopped.');
      // Times of a device that was lost are none.
      fill?.({}, 'failed');
      trouble(error.message);
    }
  } finally {
    running = null;
  }
};

$('shape').textContent = SHAPE;
$('choice').addEventListener('submit', async (event) => {
  event.preventDefault();
  const chosen = choice.read();
  trouble(chosen.jobs.length ? '' : 'Choose a backend and a length.');
  if (!chosen.jobs.length) return;
  busy(true);
  await run(chosen);
  busy(false);
});
$('cancel').addEventListener('click', () => {
  running?.abort();
  // A run that has begun goes on to its end.
  state('Stopping …');
});

const { peer, webgpu, ready, lines } = await needs();
if (!webgpu) choice.without('webgpu');
$('missing').hidden = !lines.length;
$('missing').replaceChildren(
  ...lines.map(([what, command, rest]) => {
    const item = element('li', `${what} `);
    item.append(element('code', command), ` ${rest}`);
    return item;
  }),
);
$('engine').textContent = ready ? `Against onnxruntime-web ${peer}` : 'Not ready';
$('run').disabled = !ready;
