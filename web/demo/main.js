// What the page shows follows from its settings, one step after the other; what comes too late is dropped.

import { Data } from './data.js';
import { Pattern } from './pattern.js';
import { optionsOf, Settings, wordsOf } from './settings.js';
import { Times } from './times.js';
import { WeightsView } from './weights.js';

const $ = (id) => document.getElementById(id);
/** Products up to which both engines are compared unasked: some tenths of a second on one thread. */
const UNASKED = 1 << 28;

const read = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  return answer.text();
};
/** What needs a build: a static import that fails would end the page before it could say so. */
const load = () => Promise.all([import('../js/index.js'), import('./measure.js'), read('../dist/text.txt')]);
const [{ LocalAttention }, { difference, time }, text] = await load().catch((error) => {
  $('engine').textContent = 'The package could not be loaded. To build it: cargo xtask web';
  throw error;
});

const settings = new Settings($('settings'), () => soon());
const pattern = new Pattern($('canvas'), () => show());
const weights = new WeightsView({ bars: $('bars'), letters: $('letters'), top: $('top') });
const times = new Times($('chart'), $('times'));

/** What is shown: an attention, its data, and what its queries see. */
let shown = null;
let turn = 0;
/** Whether the settings are not those of what is shown, because of an error. */
let refused = false;
let timer;
/** Ends what was begun for earlier settings. */
let outdated = new AbortController();

/** An error where it belongs, in one of the page's alerts. */
const alarm = (id, error) => {
  $(id).hidden = !error;
  $(id).textContent = error?.message ?? '';
};

/** After a slider has come to rest. */
const soon = () => {
  clearTimeout(timer);
  timer = setTimeout(update, 120);
};

async function update() {
  const mine = ++turn;
  outdated.abort();
  outdated = new AbortController();
  const chosen = settings.read();
  let attention;
  try {
    attention = await LocalAttention.create(optionsOf(chosen));
    const visible = await attention.visible({ n: chosen.n });
    if (mine !== turn) {
      attention.dispose();
      return;
    }
    shown?.attention.dispose();
    shown = { attention, chosen, visible, data: new Data(text, chosen) };
    refused = false;
    alarm('trouble', null);
    engine(attention);
    headChoices(chosen.heads);
    pattern.show(visible, chosen.n);
    const pairs = visible.end.reduce((sum, end, t) => sum + end - visible.start[t], 0);
    $('run').disabled = running !== null;
    $('compare').disabled = attention.backend !== 'webgpu';
    if (attention.backend !== 'webgpu') agreement([['WebGPU', attention.fallbackReason]]);
    else if (2 * pairs * chosen.heads * chosen.d <= UNASKED) await compare();
    else agreement([['Not compared', 'this size takes a while: press the button']]);
  } catch (error) {
    if (attention && shown?.attention !== attention) attention.dispose();
    if (mine !== turn) return;
    if (!shown) $('engine').textContent = 'Not started: see the error below';
    refused = true;
    alarm('trouble', error);
  }
}

function engine({ backend, device, fallbackReason }) {
  const name = backend === 'webgpu' ? 'WebGPU' : 'WebAssembly, one thread';
  $('engine').textContent = `Computed by ${name}${device ? ` (${device})` : ''}${fallbackReason ? `: ${fallbackReason}` : ''}`;
}

function headChoices(heads) {
  const before = +$('head').value || 0;
  $('head').replaceChildren(...Array.from({ length: heads }, (_, i) => new Option(`${i + 1}`, i)));
  $('head').value = Math.min(before, heads - 1);
}

/** The chosen query: what it sees in words, and its weights, those of one query at a time: the last pointed at. */
let showing = false;
let wanted = false;
async function show() {
  if (!shown) return;
  $('seen').textContent = pattern.words;
  wanted = true;
  if (showing) return;
  showing = true;
  while (wanted) {
    wanted = false;
    const { attention, data } = shown;
    const t = pattern.query;
    try {
      const result = await attention.weights({ ...data.head(+$('head').value), queries: [t, t + 1] });
      if (attention === shown.attention) weights.show({ query: t, letters: data.letters, ...result });
      if (!refused) alarm('trouble', null);
    } catch (error) {
      if (attention !== shown.attention) continue;
      weights.clear();
      alarm('trouble', error);
      // The device is gone, or the module has stopped: there is another one.
      if (['DeviceError.Lost', 'BackendError.Crashed'].includes(error.code)) soon();
    }
  }
  showing = false;
}

function agreement(pairs) {
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  $('difference').replaceChildren(...pairs.flatMap(([name, value]) => [element('dt', name), element('dd', value)]));
}

/** The turn that is being compared. */
let comparing = null;
async function compare() {
  if (comparing === turn) return;
  const mine = (comparing = turn);
  const { data, chosen } = shown;
  agreement([['Comparing', '…']]);
  try {
    const { worst, largest, numbers } = await difference(data, chosen, outdated.signal);
    if (mine !== turn) return;
    agreement([
      ['Largest difference', worst.toExponential(2)],
      ['Largest output', largest.toPrecision(3)],
      ['Numbers compared', numbers.toLocaleString()],
    ]);
  } catch (error) {
    if (mine === turn) agreement([['Not compared', error.message]]);
  } finally {
    if (comparing === mine) comparing = null;
  }
}

/** Of two buttons one can be pressed. The focus goes with that, as it cannot stay on the other. */
function swap(from, to) {
  const focused = document.activeElement === $(from);
  $(to).disabled = false;
  if (focused) $(to).focus();
  $(from).disabled = true;
}

let running = null;
async function measure() {
  if (!$('settings').reportValidity()) return;
  alarm('failure', null);
  running = new AbortController();
  const { signal } = running;
  const chosen = settings.read();
  const lengths = [];
  for (let n = 256; n <= +$('most').value; n *= 2) lengths.push(n);
  const backends = shown.attention.backend === 'webgpu' ? ['webgpu', 'wasm'] : ['wasm'];
  $('measured').hidden = false;
  times.start(backends, lengths, wordsOf(chosen));
  $('progress').value = 0;
  $('state').textContent = 'Measuring …';
  swap('run', 'cancel');
  let done = 0;
  try {
    for (const n of lengths) {
      for (const backend of backends) {
        signal.throwIfAborted();
        const ms = await time(backend, text, { ...chosen, n }, signal);
        times.add(backend, n, ms);
        $('progress').value = ++done / (lengths.length * backends.length);
      }
    }
    $('state').textContent = 'Measured.';
  } catch (error) {
    $('state').textContent = signal.aborted ? 'Cancelled.' : '';
    if (!signal.aborted) alarm('failure', error);
  } finally {
    running = null;
    swap('cancel', 'run');
  }
}

$('zoomIn').addEventListener('click', () => pattern.zoom(1.5));
$('zoomOut').addEventListener('click', () => pattern.zoom(1 / 1.5));
$('zoomFit').addEventListener('click', () => pattern.fit());
$('zoomQuery').addEventListener('click', () => pattern.zoomToQuery());
$('head').addEventListener('change', show);
$('compare').addEventListener('click', compare);
$('run').addEventListener('click', measure);
$('cancel').addEventListener('click', () => {
  running.abort();
  // A run that has begun goes on to its end.
  $('state').textContent = 'Stopping …';
});

await update();
