// Times local-attention and onnxruntime-web in headless Chromium: node index.mjs [--n 1024,4096] [--backend webgpu,wasm]
// [--pairs 7] [--json FILE]

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { launch, serve } from '../test/chromium.mjs';
import { model } from './model.mjs';

const WEB = fileURLToPath(new URL('..', import.meta.url));
/** A result that is further from the oracle's is wrong. */
const MOST = 1e-5;

const { values: options } = parseArgs({
  options: {
    n: { type: 'string', default: '1024,4096,16384' },
    backend: { type: 'string', default: 'webgpu,wasm' },
    pairs: { type: 'string', default: '7' },
    json: { type: 'string' },
  },
});
const sizes = (n) => ({ n, w: 128, heads: 8, d: 64 });
const lengths = options.n.split(',').map(Number);
const backends = options.backend.split(',');
const pairs = Number(options.pairs);
if (!lengths.every((n) => n > 0 && n % 128 === 0)) throw new Error(`--n ${options.n}: lengths are multiples of 128`);
if (!backends.every((name) => name === 'webgpu' || name === 'wasm')) throw new Error(`--backend ${options.backend}: webgpu, wasm or both`);
if (!(pairs >= 1)) throw new Error(`--pairs ${options.pairs}: at least 1`);

const models = mkdtempSync(join(tmpdir(), 'local-attention-'));
const modelOf = (n) => {
  writeFileSync(join(models, `${n}.onnx`), model(sizes(n)));
  return `/models/${n}.onnx`;
};
const quantile = (numbers, part) => [...numbers].sort((a, b) => a - b)[Math.floor((numbers.length - 1) * part)];
const median = (numbers) => quantile(numbers, 0.5);
const folders = { '': WEB, models };
const browser = await launch();

/** What a new page gives; each has its own server, which knows what it loaded. */
const onPage = async (run, argument) => {
  const server = await serve(folders);
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.error(`uncaught: ${error.message}`));
  try {
    await page.goto(`${server.url}bench/page/index.html`);
    await page.waitForFunction(() => globalThis.compare);
    return { result: await page.evaluate(run, argument), served: [...server.served] };
  } finally {
    await page.close();
    server.close();
  }
};

/** Bytes, compressed, of all that an engine loads. */
const download = async (engine, backend) => {
  const n = 256;
  const { served } = await onPage((all) => globalThis.once(...all), [engine, backend, sizes(n), modelOf(n)]);
  const own = [join(WEB, 'bench/page'), models];
  const files = served.filter((file) => !own.some((folder) => file.startsWith(folder)));
  return files.reduce((sum, file) => sum + gzipSync(readFileSync(file), { level: 9 }).length, 0);
};

try {
  const report = { browser: browser.version(), downloads: [], runs: [] };
  console.log(`Chromium ${report.browser}, b=1 h=8 d=64, causal, windows of 128 and the one before, ${pairs} pairs, median ms\n`);
  console.log('| backend | download, KiB: ours | theirs | ratio |\n|---|---|---|---|');
  for (const backend of backends) {
    const [ours, theirs] = [await download('ours', backend), await download('theirs', backend)];
    report.downloads.push({ backend, ours, theirs });
    console.log(`| ${backend} | ${(ours / 1024).toFixed(0)} | ${(theirs / 1024).toFixed(0)} | ${(theirs / ours).toFixed(1)} |`);
  }
  console.log('\n| backend | tensors | n | ours | theirs | theirs / ours | its lower quartile | error: ours | theirs |\n|---|---|---|---|---|---|---|---|---|');
  for (const backend of backends) {
    for (const n of lengths) {
      for (const mode of ['tensors', 'arrays']) {
        const { result } = await onPage((all) => globalThis.compare(...all), [backend, sizes(n), modelOf(n), mode, pairs]);
        const ratios = result.ours.map((ms, i) => result.theirs[i] / ms);
        const [ratio, low] = [median(ratios), quantile(ratios, 0.25)];
        report.runs.push({ backend, n, mode, ...result, ratio, low });
        const [a, b] = [result.ours, result.theirs].map((times) => median(times).toFixed(1));
        const [c, e] = result.errors.map((error) => error.toExponential(1));
        // On wasm theirs are copied in and out in any case.
        const where = mode === 'tensors' ? 'stay' : 'in and out';
        console.log(`| ${backend} | ${where} | ${n} | ${a} | ${b} | ${ratio.toFixed(2)} | ${low.toFixed(2)} | ${c} | ${e} |`);
        if (!result.errors.every((error) => error <= MOST)) process.exitCode = 1;
        if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
      }
    }
  }
  if (process.exitCode) console.error(`\nwrong: an error above ${MOST}`);
} finally {
  await browser.close();
  rmSync(models, { recursive: true });
}
