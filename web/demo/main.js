// What the page shows follows from its settings, one step after the other; what comes too late is dropped.

import { LocalAttention } from '../js/index.js';
import { Data } from './data.js';
import { difference, time } from './measure.js';
import { Pattern } from './pattern.js';
import { optionsOf, Settings } from './settings.js';
import { Times } from './times.js';
import { WeightsView } from './weights.js';

const $ = (id) => document.getElementById(id);
/** Products up to which both engines are compared unasked: some tenths of a second on one thread. */
const UNASKED = 1 << 28;

const answer = await fetch('../dist/text.txt');
if (!answer.ok) {
  $('engine').textContent = 'The package is not built: cargo xtask web';
  throw new Error(`${answer.url}: ${answer.status}`);
}
const text = await answer.text();
const settings = new Settings($('settings'), () => soon());
const pattern = new Pattern($('canvas'), () => show());
const weights = new WeightsView({ bars: $('bars'), letters: $('letters'), top: $('top') });
const times = new Times($('chart'), $('times'));

/** What is shown: an attention, its data, and what its queries see. */
let shown = null;
let turn = 0;
let timer;
/** Ends what was begun for earlier settings. */
let outdated = new AbortController();

const trouble = (error) => {
  $('trouble').hidden = !error;
  $('trouble').textContent = error?.message ?? '';
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
    trouble(null);
    engine(attention);
    headChoices(chosen.heads);
    pattern.show(visible, chosen.n);
    const pairs = visible.end.reduce((sum, end, t) => sum + end - visible.start[t], 0);
    $('compare').disabled = attention.backend !== 'webgpu';
    if (attention.backend !== 'webgpu') agreement([['WebGPU', attention.fallbackReason]]);
    else if (2 * pairs * chosen.heads * chosen.d <= UNASKED) await compare();
    else agreement([['Not compared', 'this size takes a while: press the button']]);
  } catch (error) {
    if (attention && shown?.attention !== attention) attention.dispose();
    if (mine === turn) trouble(error);
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

/** The chosen query: its range in words, its weights. One at a time: the last one pointed at. */
let showing = false;
let wanted = false;
async function show() {
  wanted = true;
  if (showing || !shown) return;
  showing = true;
  while (wanted) {
    wanted = false;
    const { attention, chosen, visible, data } = shown;
    const t = pattern.query;
    const [start, end] = [visible.start[t], visible.end[t]];
    const count = (end - start).toLocaleString();
    const padding = end > chosen.n ? `, ${(end - Math.max(start, chosen.n)).toLocaleString()} of them padding` : '';
    $('seen').textContent =
      end > start
        ? `Query ${t.toLocaleString()} sees keys ${start.toLocaleString()} to ${(end - 1).toLocaleString()}: ${count}${padding}.`
        : `Query ${t.toLocaleString()} sees no key.`;
    try {
      const result = await attention.weights({ ...data.head(+$('head').value), queries: [t, t + 1] });
      if (attention === shown.attention) weights.show({ query: t, letters: data.letters, ...result });
      trouble(null);
    } catch (error) {
      if (attention !== shown.attention) continue;
      weights.clear();
      trouble(error);
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

async function compare() {
  const mine = turn;
  const { data, chosen } = shown;
  agreement([['Comparing', '…']]);
  $('compare').disabled = true;
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
    $('compare').disabled = false;
  }
}

let running = null;
async function measure() {
  if (!shown || !$('settings').reportValidity()) return;
  trouble(null);
  running = new AbortController();
  const { signal } = running;
  const chosen = settings.read();
  const lengths = [];
  for (let n = 256; n <= +$('most').value; n *= 2) lengths.push(n);
  const backends = shown.attention.backend === 'webgpu' ? ['webgpu', 'wasm'] : ['wasm'];
  $('measured').hidden = false;
  times.start(backends, lengths);
  $('progress').value = 0;
  $('run').disabled = true;
  $('cancel').disabled = false;
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
  } catch (error) {
    if (!signal.aborted) trouble(error);
  } finally {
    running = null;
    $('run').disabled = false;
    $('cancel').disabled = true;
    $('cancel').textContent = 'Cancel';
  }
}

$('zoomIn').addEventListener('click', () => pattern.zoom(1.5));
$('zoomOut').addEventListener('click', () => pattern.zoom(1 / 1.5));
$('zoomFit').addEventListener('click', () => pattern.fit());
$('zoomQuery').addEventListener('click', () => pattern.zoomToQuery());
$('head').addEventListener('change', show);
$('compare').addEventListener('click', () => shown && compare());
$('run').addEventListener('click', measure);
$('cancel').addEventListener('click', () => {
  running?.abort();
  // A run that has begun goes on to its end.
  $('cancel').disabled = true;
  $('cancel').textContent = 'Stopping …';
});

await update();
