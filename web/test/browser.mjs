// Pages for tests in headless Chromium.

import { resolve } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import { launch, serve } from './chromium.mjs';

export { serve };
export const WEB = fileURLToPath(new URL('..', import.meta.url));
/** Case files: those of the folder that the variable names, below the workspace where it is relative. */
export const GOLDENS = resolve(WEB, '..', process.env.LOCAL_ATTENTION_GOLDENS ?? 'tests/goldens');

/** What hangs ends, but not what is slow: kernels run on this machine's processor, which compiles each for seconds. */
export const LIMIT = { timeout: 15 * 60_000 };

/** Browsers by number: each has a process of its own for its GPU, which is a thread of this machine here. */
const running = new Map();
after(async () => {
  for (const { browser, server } of await Promise.all(running.values())) {
    await browser.close();
    server.close();
  }
});

const start = async () => {
  const browser = await launch();
  const server = await serve({ '': WEB, goldens: GOLDENS });
  return { browser, server };
};

/** A page of its own, with what it says on its console; the package is `la` there. `first` runs before its scripts. */
export const open = async ({ url, path = 'test/page/index.html', number = 0, first } = {}) => {
  if (!running.has(number)) running.set(number, start());
  const { browser, server } = await running.get(number);
  const page = await browser.newPage();
  const said = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) said.push(`${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => said.push(`uncaught: ${error.message}`));
  page.on('request', (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol.startsWith('http') && hostname !== '127.0.0.1') said.push(`foreign: ${request.url()}`);
  });
  if (first) await page.addInitScript(first);
  await page.goto(url ?? server.url + path);
  return { page, said };
};

/** By browser, a page that tests share: its device compiles a kernel once, which takes seconds here. */
const shared = new Map();
export const openShared = async (number) => {
  if (!shared.has(number)) shared.set(number, open({ number }));
  return shared.get(number);
};
