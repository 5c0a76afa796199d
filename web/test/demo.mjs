// The page: its controls do what they say, in both themes and at a phone's width.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { open } from './browser.mjs';

const SCREENSHOTS = process.env.LOCAL_ATTENTION_SCREENSHOTS ?? join(tmpdir(), 'local-attention-screenshots');
const PATH = 'demo/index.html';
/** The first use of a kernel compiles it, which takes a busy machine half a minute here. */
const PATIENCE = { timeout: 240_000 };

const compared = (page) => page.waitForFunction(() => /Largest difference/.test(document.getElementById('difference').textContent), null, PATIENCE);

/** The page with these settings, once it has shown them. */
const show = async (settings, number) => {
  const { page, said } = await open({ number, path: `${PATH}#${new URLSearchParams(settings)}` });
  await page.waitForFunction(() => /Computed by/.test(document.getElementById('engine').textContent), null, PATIENCE);
  await page.waitForFunction(() => document.getElementById('top').children.length > 0, null, PATIENCE);
  return { page, said };
};

const text = (page, id) => page.textContent(`#${id}`);
const seen = (page, expected) =>
  page.waitForFunction((expected) => document.getElementById('seen').textContent.includes(expected), expected, PATIENCE);

const shoot = async (page, name) => {
  mkdirSync(SCREENSHOTS, { recursive: true });
  await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage: true });
};

export const demo = (number) => {
  test('the controls of the page drive what it says', async () => {
    const { page, said } = await show({ n: 1024, window: 128, heads: 2, d: 32 }, number);
    assert.match(await text(page, 'engine'), /WebGPU/);
    await seen(page, 'Query 614 sees keys 384 to 614: 231.');

    // Each control, and what it does to that query.
    const check = (name, on) => page.setChecked(`[name=${name}]`, on);
    const fill = (name, value) => page.fill(`[name=${name}]`, String(value));
    await check('exact', true);
    await seen(page, 'keys 486 to 614: 129.');
    await check('exact', false);
    await fill('back', 3);
    await seen(page, 'keys 128 to 614: 487.');
    assert.ok(await page.isDisabled('[name=forward]'));
    await check('causal', false);
    await fill('forward', 2);
    await seen(page, 'keys 128 to 895: 768.');
    await fill('back', 0);
    await page.fill('[name=window]', '6');
    await seen(page, 'keys 608 to 703: 96.');
    await page.fill('[name=n]', '11');
    assert.equal(await page.textContent('output[name=nText]'), '816');
    assert.match(page.url(), /n=816&window=32&back=0&forward=2/);

    // Heads and rotation change what it attends to.
    const letters = () => page.innerHTML('#letters');
    await page.waitForFunction(() => document.getElementById('letters').children.length === 96, null, PATIENCE);
    let before = await letters();
    const changes = async (act) => {
      await act();
      await page.waitForFunction((before) => document.getElementById('letters').innerHTML !== before, before, PATIENCE);
      before = await letters();
    };
    await changes(() => page.selectOption('#head', { value: '1' }));
    await changes(() => check('rotary', false));
    // Without rotation all letters of one kind have one weight.
    const [first, second] = await page.$$eval('#top li', (items) => items.map((item) => item.textContent.match(/[\d.]+ %/)[0]));
    assert.equal(first, second);
    await changes(() => check('shared', true));
    // A query's own logit is far below the others.
    assert.equal((await page.$$('#letters .self')).length, 0);
    await check('shared', false);

    await compared(page);
    const difference = await page.$eval('#difference dd', (element) => +element.textContent);
    assert.ok(difference > 0 && difference < 1e-4, `${difference}`);
    assert.equal(await page.isHidden('#trouble'), true);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('the picture answers keys and the pointer', async () => {
    const { page, said } = await show({ n: 4096, window: 256, heads: 1, d: 16 }, number);
    await seen(page, 'Query 2,457 sees');
    await page.focus('#canvas');
    await page.keyboard.press('ArrowDown');
    await seen(page, 'Query 2,458 sees keys 2,048 to 2,458');
    await page.keyboard.press('Shift+ArrowUp');
    await seen(page, 'Query 2,202 sees');
    await page.keyboard.press('End');
    await seen(page, 'Query 4,095 sees');
    const zoomed = () => page.$eval('#canvas', (canvas) => canvas.classList.contains('zoomed'));
    const drawn = () => page.$eval('#canvas', (canvas) => canvas.toDataURL());
    const settled = () => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    assert.equal(await zoomed(), false);
    const whole = await drawn();
    await page.keyboard.press('+');
    await settled();
    assert.equal(await zoomed(), true);
    assert.notEqual(await drawn(), whole);
    await page.keyboard.press('0');
    await settled();
    assert.equal(await drawn(), whole);
    // As near as single keys.
    await page.click('#zoomQuery');
    for (let i = 0; i < 12; i++) await page.click('#zoomIn');
    await settled();
    await shoot(page, 'near');
    await page.click('#zoomFit');

    const box = await page.locator('#canvas').boundingBox();
    await page.mouse.move(box.x + 5, box.y + box.height / 2);
    const hovered = await page.waitForFunction(() => {
      const query = +document.getElementById('seen').textContent.match(/Query ([\d,]+)/)[1].replace(',', '');
      return Math.abs(query - 2048) < 16;
    }, null, PATIENCE);
    assert.ok(hovered);
    // A click keeps it.
    await page.mouse.down();
    await page.mouse.up();
    const kept = await text(page, 'seen');
    await page.mouse.move(box.x + 5, box.y + box.height / 4);
    await settled();
    assert.equal(await text(page, 'seen'), kept);
    // What lies where: seen left of the diagonal, not right of it.
    const colours = await page.$eval('#canvas', (canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const at = (key, query) => {
        const pixel = (x) => Math.floor(((x + 0.5) / 4096) * canvas.width);
        return data.subarray(4 * (pixel(query) * canvas.width + pixel(key))).slice(0, 4).join();
      };
      return [at(900, 1100), at(1000, 1100), at(1200, 1100), at(400, 1100), at(700, 1000), at(3000, 100)];
    });
    assert.equal(colours[0], colours[1]);
    assert.equal(colours[0], colours[4]);
    assert.equal(new Set([colours[2], colours[3], colours[5]]).size, 1);
    assert.notEqual(colours[0], colours[2]);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('the chart fills in, and stops when it is told', async () => {
    const { page, said } = await show({ n: 512, window: 64, heads: 1, d: 16 }, number);
    await page.selectOption('#most', '1024');
    await page.click('#run');
    assert.ok(await page.isDisabled('#run'));
    await page.waitForFunction(() => document.getElementById('progress').value === 1, null, PATIENCE);
    assert.equal(await page.locator('#chart circle').count(), 6);
    assert.equal(await page.locator('#times tbody tr').count(), 3);
    const cells = await page.$$eval('#times tbody td', (cells) => cells.map((cell) => cell.textContent));
    assert.ok(cells.every((cell) => /^[\d.,]+( ms)?$/.test(cell)), cells.join());
    await shoot(page, 'light');
    await page.selectOption('#most', '16384');
    await page.click('#run');
    await page.waitForFunction(() => document.getElementById('progress').value > 0, null, PATIENCE);
    await page.click('#cancel');
    await page.waitForFunction(() => !document.getElementById('run').disabled, null, PATIENCE);
    assert.ok((await page.$eval('#progress', (bar) => bar.value)) < 1);
    assert.ok(await page.isDisabled('#cancel'));
    assert.equal(await page.isHidden('#trouble'), true);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('a device that goes away comes back', async () => {
    const { page, said } = await open({ number, path: PATH });
    await compared(page);
    await page.evaluate(async () => {
      // Devices, as they are made or used.
      const request = GPUAdapter.prototype.requestDevice;
      globalThis.made = [];
      GPUAdapter.prototype.requestDevice = async function (...args) {
        const device = await request.apply(this, args);
        made.push(device);
        return device;
      };
    });
    const top = () => text(page, 'top');
    const lose = async () => {
      await page.evaluate(() => made.at(-1).destroy());
      await page.focus('#canvas');
      await page.keyboard.press('ArrowDown');
    };
    await page.evaluate(() => {
      const create = GPUDevice.prototype.createBuffer;
      GPUDevice.prototype.createBuffer = function (...args) {
        if (!made.includes(this)) made.push(this);
        return create.apply(this, args);
      };
    });
    await page.keyboard.press('Tab');
    await page.click('#compare');
    await compared(page);
    await lose();
    // Another device, and the weights of the query that was asked for.
    await page.waitForFunction(() => made.length > 1 && document.getElementById('top').children.length > 0, null, PATIENCE);
    assert.ok((await top()).length > 0);
    assert.match(await text(page, 'engine'), /WebGPU/);
    await page.waitForFunction(() => document.getElementById('trouble').hidden, null, PATIENCE);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('dark, on a phone, and without WebGPU', async () => {
    const { page, said } = await show({ n: 512, window: 64, heads: 1, d: 16, causal: false, forward: 1 }, number);
    const back = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await back();
    await page.emulateMedia({ colorScheme: 'dark' });
    assert.notEqual(await back(), light);
    await compared(page);
    await shoot(page, 'dark');
    for (const width of [390, 320]) {
      await page.setViewportSize({ width, height: 800 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} of ${width}`);
    }
    await page.setViewportSize({ width: 390, height: 844 });
    await shoot(page, 'phone');
    assert.deepEqual(said, []);

    await page.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
    await page.reload();
    await page.waitForFunction(() => /WebAssembly/.test(document.getElementById('engine').textContent), null, PATIENCE);
    assert.match(await text(page, 'engine'), /: .*(gpu|WebGPU)/i);
    assert.match(await text(page, 'difference'), /WebGPU/);
    await seen(page, 'Query 307 sees keys 192 to 383: 192.');
    assert.deepEqual(said, []);
    await page.close();
  });
};
