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

const text = (page, id) => page.textContent(`#${id}`);
/** Waits until an element says something. */
const says = (page, id, words) =>
  page.waitForFunction(([id, words]) => document.getElementById(id).textContent.includes(words), [id, words], PATIENCE);
const seen = (page, words) => says(page, 'seen', words);
const compared = (page) => says(page, 'difference', 'Largest difference');

/** The page with these settings, once it has shown them. */
const show = async (settings, number) => {
  const { page, said } = await open({ number, path: `${PATH}#${new URLSearchParams(settings)}` });
  await says(page, 'engine', 'Computed by');
  await page.waitForFunction(() => document.getElementById('top').children.length > 0, null, PATIENCE);
  return { page, said };
};

const settled = (page) =>
  page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
const near = (actual, expected) =>
  assert.ok(Math.abs(actual - expected) <= 0.03 * expected + 1, `${actual} instead of about ${expected}`);

/** The query that is chosen, and whether all of the picture is in sight. */
const chosen = async (page) => +(await page.getAttribute('#canvas', 'aria-valuenow'));
const zoomed = (page) => page.$eval('#canvas', (canvas) => canvas.classList.contains('zoomed'));

/** Colours of the picture where nothing is seen and where something is, and those that the theme has for it. */
const colours = (page) =>
  page.evaluate(() => {
    const canvas = document.getElementById('canvas');
    // Reading the picture itself more than once would slow it down.
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const at = (x, y) => `rgb(${[...copy.getImageData(x, y, 1, 1).data.slice(0, 3)].join(', ')})`;
    const probe = document.body.appendChild(document.createElement('i'));
    const theme = ['back', 'sees'].map((name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    });
    probe.remove();
    return { picture: [at(canvas.width - 5, 5), at(5, 5)], theme };
  });

/** The contrast of each letter with what is behind it, and of each control's border with both of its sides. */
const contrasts = (page) =>
  page.evaluate(() => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const luminance = (...layers) => {
      for (const layer of layers) {
        context.fillStyle = layer;
        context.fillRect(0, 0, 1, 1);
      }
      const linear = [...context.getImageData(0, 0, 1, 1).data].map((byte) => {
        const value = byte / 255;
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const styles = (selector) => [...document.querySelectorAll(selector)].map((element) => getComputedStyle(element));
    const card = styles('section')[0].backgroundColor;
    const letters = styles('#letters span').map(({ color, backgroundColor }) =>
      contrast(luminance(color), luminance(card, backgroundColor)),
    );
    const borders = styles('input[type=number], select, button').flatMap(({ borderTopColor, backgroundColor }) =>
      [card, backgroundColor].map((side) => contrast(luminance(borderTopColor), luminance(side))),
    );
    return { letters, borders };
  });

/** Checks the colours of a theme; the picture's, for others to compare. */
const themed = async (page) => {
  await settled(page);
  const { picture, theme } = await colours(page);
  assert.deepEqual(picture, theme);
  const { letters, borders } = await contrasts(page);
  // The letter with most weight has much colour behind it, others have none.
  const [least, most] = [Math.min(...letters), Math.max(...letters)];
  assert.ok(least >= 4.5 && least < 0.6 * most, `${least} to ${most}`);
  assert.ok(borders.length > 10 && Math.min(...borders) >= 3, borders.join());
  return picture;
};

/** Waits until charts are drawn as wide as they are, so that their text has its size. */
const redrawn = (page, ...ids) => {
  const wide = (ids) => {
    const charts = ids.map((id) => document.getElementById(id));
    return charts.every((chart) => chart.firstChild.viewBox.baseVal.width === chart.clientWidth);
  };
  return page.waitForFunction(wide, ids, PATIENCE);
};

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

    // As many heads as are chosen; the fourth looks for what came three letters after the query's.
    await page.selectOption('[name=heads]', '4');
    await page.selectOption('[name=d]', '16');
    await page.waitForFunction(() => document.getElementById('head').length === 4, null, PATIENCE);
    await page.selectOption('#head', { value: '3' });
    await page.waitForFunction(
      () => {
        const text = document.getElementById('letters').textContent;
        const best = +document.querySelector('#top li').textContent.match(/at ([\d,]+)/)[1] - 608;
        return best >= 3 && text[best - 3] === text[614 - 608];
      },
      null,
      PATIENCE,
    );
    assert.match(page.url(), /heads=4&d=16/);
    // All of the outputs: 4 heads, 816 queries, 16 numbers each.
    await says(page, 'difference', '52,224');

    // What an address says, a control may not allow.
    await page.evaluate(() => {
      location.hash = 'n=512&causal=false&forward=99&constructor=2';
    });
    await seen(page, 'Query 511 sees keys 256 to 511: 256.');
    assert.equal(await page.inputValue('[name=forward]'), '0');
    await says(page, 'difference', '32,768');

    const difference = await page.$eval('#difference dd', (element) => +element.textContent);
    assert.ok(difference > 0 && difference < 1e-4, `${difference}`);
    assert.equal(await page.getAttribute('#canvas', 'aria-valuetext'), await text(page, 'seen'));
    assert.equal(await page.isHidden('#trouble'), true);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('the picture answers keys, buttons and the pointer', async () => {
    const { page, said } = await show({ n: 4096, window: 256, heads: 1, d: 16 }, number);
    await seen(page, 'Query 2,457 sees');
    await page.focus('#canvas');
    await page.keyboard.press('ArrowDown');
    await seen(page, 'Query 2,458 sees keys 2,048 to 2,458');
    await page.keyboard.press('Shift+ArrowUp');
    await seen(page, 'Query 2,202 sees');
    await page.keyboard.press('PageDown');
    await seen(page, 'Query 2,458 sees');
    await page.keyboard.press('End');
    await seen(page, 'Query 4,095 sees');
    // Small, so that a line a pixel lower is no other picture.
    const drawn = () =>
      page.$eval('#canvas', (canvas) => {
        const small = new OffscreenCanvas(32, 32).getContext('2d');
        small.drawImage(canvas, 0, 0, 32, 32);
        return [...small.getImageData(0, 0, 32, 32).data];
      });
    const apart = (a, b) => a.reduce((sum, x, i) => sum + Math.abs(x - b[i]), 0) / a.length;
    assert.equal(await zoomed(page), false);
    await settled(page);
    const whole = await drawn();
    await page.keyboard.press('+');
    await settled(page);
    assert.equal(await zoomed(page), true);
    const nearer = apart(await drawn(), whole);
    assert.ok(nearer > 2, `${nearer} apart`);
    await page.keyboard.press('0');
    await settled(page);
    const again = apart(await drawn(), whole);
    assert.ok(again < 1, `${again} apart`);

    // What is in sight, by what the pointer chooses there.
    await page.setViewportSize({ width: 1280, height: 1100 });
    const width = await page.$eval('#canvas', (canvas) => canvas.clientWidth);
    const point = async (share) => {
      const box = await page.locator('#canvas').boundingBox();
      return [box.x + box.width / 2, box.y + box.height * share];
    };
    const queryAt = async (share) => {
      await page.mouse.move(...(await point(share)));
      await settled(page);
      return chosen(page);
    };
    const span = async () => (await queryAt(0.99)) - (await queryAt(0.01));
    const all = 0.98 * 4096;
    near(await span(), all);
    await page.click('#zoomIn');
    near(await span(), all / 1.5);
    assert.equal(await zoomed(page), true);
    await page.click('#zoomOut');
    near(await span(), all);
    assert.equal(await zoomed(page), false);
    const query = await queryAt(0.6);
    await page.click('#zoomQuery');
    const sees = +(await text(page, 'seen')).match(/: ([\d,]+)\./)[1].replace(',', '');
    const [first, last] = [await queryAt(0.01), await queryAt(0.99)];
    assert.ok(first < query && query < last, `${query} between ${first} and ${last}`);
    near(last - first, 0.98 * 1.25 * sees);
    // As near as single keys, of which the last stays in sight as a whole.
    await page.click('#zoomFit');
    await page.focus('#canvas');
    await page.keyboard.press('End');
    for (let i = 0; i < 16; i++) await page.click('#zoomIn');
    near(await span(), (0.98 * width) / 48);
    assert.equal(await queryAt(1 - 40 / width), 4095);
    await shoot(page, 'near');
    await page.click('#zoomFit');
    near(await span(), all);
    assert.equal(await zoomed(page), false);

    // The wheel zooms about the pointer once the picture has the focus, and dragging moves it.
    await page.focus('#canvas');
    const middle = await queryAt(0.5);
    await page.mouse.wheel(0, -300);
    await page.waitForFunction(() => document.getElementById('canvas').classList.contains('zoomed'), null, PATIENCE);
    near(await span(), all / Math.E);
    near(await queryAt(0.5), middle);
    const held = await chosen(page);
    const [x, y] = await point(0.5);
    await page.mouse.down();
    await page.mouse.move(x, y + 100, { steps: 4 });
    await page.mouse.up();
    assert.equal(await chosen(page), held);
    near(held - (await queryAt(0.5)), (100 / width / Math.E) * 4096);
    await page.keyboard.press('0');
    await settled(page);

    const box = await page.locator('#canvas').boundingBox();
    await page.mouse.move(box.x + 5, box.y + box.height / 2);
    const hovers = (at) =>
      page.waitForFunction((at) => {
        const query = +document.getElementById('seen').textContent.match(/Query ([\d,]+)/)[1].replace(',', '');
        return Math.abs(query - at) < 16;
      }, at, PATIENCE);
    await hovers(2048);
    // The other button is the browser's.
    await page.mouse.click(box.x + 5, box.y + box.height / 2, { button: 'right' });
    await page.mouse.move(box.x + 5, box.y + box.height / 4);
    await hovers(1024);
    await page.mouse.move(box.x + 5, box.y + box.height / 2);
    await hovers(2048);
    // A click keeps it.
    await page.mouse.down();
    await page.mouse.up();
    const kept = await text(page, 'seen');
    await page.mouse.move(box.x + 5, box.y + box.height / 4);
    await settled(page);
    assert.equal(await text(page, 'seen'), kept);
    // What lies where: seen left of the diagonal, not right of it.
    const pixels = await page.$eval('#canvas', (canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const at = (key, query) => {
        const pixel = (x) => Math.floor(((x + 0.5) / 4096) * canvas.width);
        return data.subarray(4 * (pixel(query) * canvas.width + pixel(key))).slice(0, 4).join();
      };
      return [at(900, 1100), at(1000, 1100), at(1200, 1100), at(400, 1100), at(700, 1000), at(3000, 100)];
    });
    assert.equal(pixels[0], pixels[1]);
    assert.equal(pixels[0], pixels[4]);
    assert.equal(new Set([pixels[2], pixels[3], pixels[5]]).size, 1);
    assert.notEqual(pixels[0], pixels[2]);
    // Without the focus the wheel is the page's.
    await page.click('#zoomIn');
    await settled(page);
    const before = await drawn();
    await page.mouse.move(...(await point(0.5)));
    await page.mouse.wheel(0, 120);
    await page.waitForFunction(() => scrollY > 0, null, PATIENCE);
    await settled(page);
    const moved = apart(await drawn(), before);
    assert.ok(moved < 1, `${moved} apart`);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('the chart fills in, and stops when it is told', async () => {
    const { page, said } = await show({ n: 512, window: 64, heads: 1, d: 16 }, number);
    await page.selectOption('#most', '1024');
    // All that is to be seen on the way, and where the focus is.
    await page.evaluate(() => {
      const $ = (id) => document.getElementById(id);
      // A clock as coarse as some browsers have it.
      const now = performance.now.bind(performance);
      performance.now = () => Math.floor(now());
      globalThis.states = [];
      globalThis.focused = [];
      new MutationObserver(() => {
        const state = [$('chart').querySelectorAll('circle').length, $('progress').value, $('run').disabled].join();
        if (state !== states.at(-1)) states.push(state);
        if (states.length === 4) $('most').focus();
      }).observe($('chart'), { childList: true });
      addEventListener('focusin', ({ target }) => focused.push(target.id));
    });
    await page.focus('#run');
    await page.keyboard.press('Enter');
    await says(page, 'state', 'Measured.');
    const states = Array.from({ length: 7 }, (_, i) => [i, i / 6, i < 6].join());
    assert.deepEqual(await page.evaluate(() => states), states);
    assert.deepEqual(await page.evaluate(() => focused), ['run', 'cancel', 'most']);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'most');
    assert.equal(await page.isDisabled('#run'), false);
    assert.ok(await page.isDisabled('#cancel'));
    assert.equal(await page.locator('#times tbody tr').count(), 3);
    const cells = await page.$$eval('#times tbody td', (cells) => cells.map((cell) => cell.textContent));
    assert.ok(cells.every((cell) => /^[\d.,]+$/.test(cell) && Number(cell.replaceAll(',', '')) > 0), cells.join());
    // It stays with what was measured.
    const caption = /: window 64, 1 window back, 0 forward, 1 head of size 16, causal, rotary$/;
    assert.match(await page.textContent('caption'), caption);
    await page.fill('[name=back]', '2');
    await seen(page, 'keys 128 to 307: 180.');
    assert.match(await page.textContent('caption'), caption);
    await shoot(page, 'light');

    await page.selectOption('#most', '16384');
    await page.focus('#run');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.getElementById('progress').value > 0, null, PATIENCE);
    await page.click('#cancel');
    await page.waitForFunction(() => !document.getElementById('run').disabled, null, PATIENCE);
    const circles = await page.locator('#chart circle').count();
    assert.ok(circles > 0 && circles < 14, `${circles}`);
    assert.equal(Math.round(14 * (await page.$eval('#progress', (bar) => bar.value))), circles);
    assert.equal(await text(page, 'state'), 'Cancelled.');
    assert.match(await page.textContent('caption'), /2 windows back/);
    assert.ok(await page.isDisabled('#cancel'));
    assert.equal(await page.evaluate(() => document.activeElement.id), 'run');
    assert.equal(await page.isHidden('#failure'), true);

    // Labels keep their size and have room, at every width.
    const labels = async () => {
      await redrawn(page, 'chart', 'bars');
      return page.$$eval('#chart text', (texts) =>
        texts.map((text) => {
          const { left, right, top, bottom } = text.getBoundingClientRect();
          return { words: text.textContent, left, right, top, bottom };
        }),
      );
    };
    const lengths = (labels) => labels.map(({ words }) => words).filter((words) => /^[\d,]+$/.test(words));
    assert.equal(lengths(await labels()).length, 7);
    await page.setViewportSize({ width: 320, height: 700 });
    const narrow = await labels();
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 320);
    assert.ok(lengths(narrow).length >= 3 && lengths(narrow).includes('16,384'), lengths(narrow).join());
    narrow.forEach((one, i) => {
      assert.ok(one.left >= 0 && one.right <= 320, one.words);
      assert.ok(one.bottom - one.top > 10, one.words);
      for (const other of narrow.slice(i + 1)) {
        const beside = one.right < other.left || other.right < one.left;
        const below = one.bottom <= other.top || other.bottom <= one.top;
        assert.ok(beside || below, `${one.words} and ${other.words}`);
      }
    });
    await shoot(page, 'narrow');
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
    const before = await top();
    await lose();
    // Another device, and the weights of the query that was asked for.
    const other = (before) => {
      const top = document.getElementById('top');
      return made.length > 1 && top.children.length > 0 && top.textContent !== before;
    };
    await page.waitForFunction(other, before, PATIENCE);
    assert.match(await text(page, 'engine'), /WebGPU/);
    await page.waitForFunction(() => document.getElementById('trouble').hidden, null, PATIENCE);
    assert.deepEqual(said, []);
    await page.close();
  });

  test('dark, on a phone, and without WebGPU', async () => {
    const { page, said } = await show({ n: 512, window: 64, heads: 1, d: 16, causal: false, forward: 1 }, number);
    const light = await themed(page);
    await page.emulateMedia({ colorScheme: 'dark' });
    const dark = await themed(page);
    assert.ok(light.every((colour, i) => colour !== dark[i]), `${light} and ${dark}`);
    await compared(page);
    await shoot(page, 'dark');
    for (const width of [390, 320]) {
      await page.setViewportSize({ width, height: 800 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} of ${width}`);
      await redrawn(page, 'bars');
      assert.equal(await zoomed(page), false);
    }
    await page.setViewportSize({ width: 390, height: 844 });
    await settled(page);

    // Fingers choose a query, zoom and move.
    await page.locator('#canvas').scrollIntoViewIfNeeded();
    const box = await page.locator('#canvas').boundingBox();
    const fingers = await page.context().newCDPSession(page);
    const touch = async (type, ...shares) => {
      const touchPoints = shares.map(([x, y], id) => ({ x: box.x + x * box.width, y: box.y + y * box.height, id }));
      await fingers.send('Input.dispatchTouchEvent', { type, touchPoints });
    };
    const tap = async (share) => {
      await touch('touchStart', [0.5, share]);
      await touch('touchEnd');
      await settled(page);
      return chosen(page);
    };
    near(await tap(0.25), 128);
    await touch('touchStart', [0.4, 0.5], [0.6, 0.5]);
    for (const x of [0.3, 0.2, 0.1]) await touch('touchMove', [x, 0.5], [1 - x, 0.5]);
    await touch('touchEnd');
    await page.waitForFunction(() => document.getElementById('canvas').classList.contains('zoomed'), null, PATIENCE);
    const upper = await tap(0.25);
    const lower = await tap(0.75);
    assert.ok(lower - upper < 200, `${upper} to ${lower}`);
    await touch('touchStart', [0.5, 0.25]);
    for (const y of [0.35, 0.45, 0.55]) await touch('touchMove', [0.5, y]);
    await touch('touchEnd');
    assert.equal(await chosen(page), lower);
    near(await tap(0.55), upper);
    await page.click('#zoomFit');
    near(await tap(0.6), 307);
    assert.deepEqual(said, []);

    await page.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
    await page.reload();
    await says(page, 'engine', 'WebAssembly');
    assert.match(await text(page, 'engine'), /: .*(gpu|WebGPU)/i);
    assert.match(await text(page, 'difference'), /WebGPU/);
    await seen(page, 'Query 307 sees keys 192 to 383: 192.');

    // What fails is said where it was asked for; the next time it is forgotten.
    await page.evaluate(() => {
      globalThis.post = Worker.prototype.postMessage;
      Worker.prototype.postMessage = () => {
        throw new Error('no messages today');
      };
    });
    await page.selectOption('#most', '1024');
    await page.click('#run');
    await page.waitForFunction(() => !document.getElementById('failure').hidden, null, PATIENCE);
    assert.match(await page.textContent('#speed [role=alert]'), /no messages today/);
    assert.equal(await page.isHidden('#trouble'), true);
    assert.equal(await page.isDisabled('#run'), false);
    await page.evaluate(() => (Worker.prototype.postMessage = post));
    await page.click('#run');
    await says(page, 'state', 'Measured.');
    assert.equal(await page.isHidden('#failure'), true);
    assert.equal(await page.locator('#chart circle').count(), 3);
    await shoot(page, 'phone');
    assert.deepEqual(said, []);
    await page.close();
  });

  test('what cannot start says so', async () => {
    const { page, said } = await open({ number, path: 'demo/icon.svg' });
    const without = async (file, words) => {
      await page.route(`**/dist/${file}`, (route) => route.fulfill({ status: 404 }));
      await page.goto(new URL('index.html', page.url()).href);
      await says(page, 'engine', words);
      assert.ok(await page.isDisabled('#run'));
    };
    await without('local_attention_web.js', 'cargo xtask web');
    await page.unrouteAll();
    await without('text.txt', 'cargo xtask web');
    await page.unrouteAll();
    said.splice(0);
    await without('*.wasm', 'Not started');
    assert.match(await text(page, 'trouble'), /WebAssembly/);
    // Nothing is there to choose from.
    await page.focus('#canvas');
    for (const key of ['ArrowDown', 'Shift+ArrowUp', 'End', '+', '0']) await page.keyboard.press(key);
    await settled(page);
    assert.equal(await text(page, 'seen'), '');
    assert.ok(said.length > 0 && said.every((what) => !what.startsWith('uncaught')), said.join());
    // The next one starts.
    await page.unrouteAll();
    said.splice(0);
    await page.setChecked('[name=exact]', true);
    await says(page, 'engine', 'Computed by');
    await seen(page, 'Query 614 sees');
    assert.equal(await page.isHidden('#trouble'), true);
    assert.equal(await page.isDisabled('#run'), false);
    assert.deepEqual(said, []);
    await page.close();
  });
};
