// The page of the benchmark, without its peer: what it says where something is missing, and its controls on a stand-in.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { open, serve, WEB } from '../test/browser.mjs';

const PATIENCE = { timeout: 240_000 };

/** The peer's modules: one that answers with q, and a maker of models that makes none. */
const STAND_IN = {
  'onnxruntime-web/package.json': '{ "version": "0.0.0" }',
  'onnxruntime-web/dist/ort.wasm.bundle.min.mjs': `
    export const env = { wasm: {} };
    export class Tensor { constructor(type, data, dims) { this.data = data; } }
    const run = async ({ q }) => ({ out: { getData: async () => q.data.slice() } });
    export const InferenceSession = { create: async () => ({ run, release: async () => {} }) };`,
  'protobufjs/package.json': '{ "version": "0.0.0" }',
  'protobufjs/dist/protobuf.min.js': `
    const type = { encode: () => ({ finish: () => new Uint8Array(0) }) };
    globalThis.protobuf = { parse: () => ({ root: { lookupType: () => type } }) };`,
};

/** The page where these packages are installed and others are not; `missing` is a path that is not there, either. */
const show = async (t, number, packages, { missing, webgpu = true } = {}) => {
  const server = await serve({ '': WEB });
  t.after(() => server.close());
  const { page, said } = await open({ number, url: 'about:blank' });
  if (!webgpu) await page.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { value: undefined }));
  await page.route('**/node_modules/**', (route) => {
    const body = packages[new URL(route.request().url()).pathname.replace(/^.*\/node_modules\//, '')];
    return route.fulfill(body ? { body, contentType: 'text/javascript' } : { status: 404 });
  });
  if (missing) await page.route(missing, (route) => route.fulfill({ status: 404 }));
  await page.goto(`${server.url}bench/page/index.html`);
  await page.waitForFunction(() => document.getElementById('engine').textContent !== 'Starting …', null, PATIENCE);
  return { page, said };
};

const state = (page, expected) =>
  page.waitForFunction((text) => document.getElementById('state').textContent === text, expected, PATIENCE);

export const benchPage = (number) => {
  test('the benchmark says what it misses', async (t) => {
    const { page, said } = await show(t, number, {}, { missing: '**/dist/**', webgpu: false });
    assert.equal(await page.textContent('#engine'), 'Not ready');
    assert.deepEqual(await page.$$eval('#missing code', (all) => all.map((one) => one.textContent)), [
      'cargo xtask web',
      'npm ci',
      '--enable-unsafe-webgpu',
    ]);
    assert.ok(await page.isDisabled('#run'));
    assert.ok(await page.isDisabled('[value=webgpu]'));
    // The browser itself says what it did not find.
    assert.deepEqual(said.filter((text) => !/status of 404/.test(text)), []);
    await page.close();
  });

  test('the controls of the benchmark start it and end it', async (t) => {
    const { page, said } = await show(t, number, STAND_IN);
    assert.equal(await page.textContent('#engine'), 'Against onnxruntime-web 0.0.0');
    assert.ok(await page.isHidden('#missing'));
    for (const value of ['webgpu', '1024', '4096']) await page.uncheck(`[value="${value}"]`);
    await page.click('#run');
    assert.match(await page.textContent('#trouble'), /Choose/);

    await page.check('[value="1024"]');
    await page.fill('[name=pairs]', '2');
    await page.click('#run');
    await state(page, 'Done.');
    const rows = await page.$$eval('#table tbody tr', (all) =>
      all.map((row) => [...row.cells].map(({ textContent }) => textContent)),
    );
    assert.deepEqual(rows.map((cells) => cells.slice(0, 3)), [
      ['wasm', 'ours stay', '1,024'],
      ['wasm', 'in and out', '1,024'],
    ]);
    for (const cells of rows) {
      assert.equal(cells.length, 9);
      assert.ok(cells.slice(3, 7).every((text) => +text > 0), `${cells}`);
      // Ours is right and the stand-in wrong, which it says.
      assert.ok(+cells[7] < 1e-5 && +cells[8] > 0.1, `${cells}`);
    }
    assert.match(await page.textContent('#trouble'), /^Wrong/);
    assert.equal(await page.$eval('#progress', ({ value }) => value), 1);
    assert.equal(await page.textContent('#devices'), 'wasmsimd128');

    await page.fill('[name=pairs]', '99');
    await page.click('#run');
    await page.waitForSelector('.state:text-matches("^[0-9]+ of 99 pairs")', PATIENCE);
    await page.click('#cancel');
    await state(page, 'Cancelled.');
    assert.match(await page.textContent('#table .state'), /^cancelled after \d+ of 99 pairs$/);
    assert.ok(await page.isEnabled('#run'));
    assert.ok(await page.isDisabled('#cancel'));
    assert.deepEqual(said, []);
    await page.close();
  });
};
