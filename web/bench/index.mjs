// Times local-attention and onnxruntime-web in headless Chromium: node index.mjs [--n 1024,4096]
// [--backend webgpu,wasm] [--pairs 7] [--json FILE]

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { launch, serve } from '../test/chromium.mjs';
import { BACKENDS, LENGTHS, PAIRS, plan, SHAPE, WINDOW } from './page/plan.js';
import { cells, HEADS, isWrong, MOST, ratios } from './page/summary.js';

const WEB = fileURLToPath(new URL('..', import.meta.url));
/** What neither engine loads: the benchmark, and what makes its model. */
const OWN = ['bench/page', 'bench/node_modules/protobufjs'].map((folder) => join(WEB, folder, '/'));

const known = Object.keys(BACKENDS);
const { values: options } = parseArgs({
  options: {
    n: { type: 'string', default: LENGTHS.join() },
    backend: { type: 'string', default: known.join() },
    pairs: { type: 'string', default: `${PAIRS}` },
    json: { type: 'string' },
  },
});
const lengths = options.n.split(',').map(Number);
const backends = options.backend.split(',');
const pairs = Number(options.pairs);
const demand = (right, name, wanted) => {
  if (!right) throw new Error(`--${name} ${options[name]}: ${wanted}`);
};
demand(lengths.every((n) => n > 0 && n % WINDOW === 0), 'n', `lengths are multiples of ${WINDOW}`);
demand(backends.every((name) => known.includes(name)), 'backend', `${known.join(', ')} or both`);
demand(Number.isInteger(pairs) && pairs >= 1, 'pairs', 'at least 1');

const browser = await launch();

/** What a new page gives; each has its own server, which knows what it loaded. */
const onPage = async (run, argument) => {
  const server = await serve({ '': WEB });
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.error(`uncaught: ${error.message}`));
  try {
    await page.goto(`${server.url}bench/page/headless.html`);
    await page.waitForFunction(() => globalThis.compare);
    return { result: await page.evaluate(run, argument), served: [...server.served] };
  } finally {
    await page.close();
    server.close();
  }
};

/** Bytes, compressed, of all that an engine loads. */
const download = async (engine, backend) => {
  const { served } = await onPage((all) => globalThis.once(...all), [engine, backend, 2 * WINDOW]);
  const files = served.filter((file) => !OWN.some((folder) => file.startsWith(folder)));
  return files.reduce((sum, file) => sum + gzipSync(readFileSync(file), { level: 9 }).length, 0);
};

const line = (texts) => console.log(`| ${texts.join(' | ')} |`);
const head = (texts) => {
  line(texts);
  line(texts.map(() => '---'));
};

try {
  const report = { browser: browser.version(), downloads: [], runs: [] };
  console.log(`Chromium ${report.browser}: ${SHAPE}; ${pairs} pairs, medians\n`);
  head(['backend', 'download, KiB: ours', 'theirs', 'ratio']);
  for (const backend of backends) {
    const [ours, theirs] = [await download('ours', backend), await download('theirs', backend)];
    report.downloads.push({ backend, ours, theirs });
    line([BACKENDS[backend], ...[ours, theirs].map((bytes) => (bytes / 1024).toFixed(0)), (theirs / ours).toFixed(1)]);
  }
  console.log();
  head(HEADS);
  for (const job of plan(backends, lengths)) {
    const { result } = await onPage((all) => globalThis.compare(...all), [job, pairs]);
    const run = { ...job, ...result };
    report.runs.push({ ...run, ...ratios(run) });
    line(cells(run));
    if (isWrong(run)) process.exitCode = 1;
    if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
  }
  if (process.exitCode) console.error(`\nwrong: an error above ${MOST}`);
} finally {
  await browser.close();
}
