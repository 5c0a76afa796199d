// Headless Chromium on SwiftShader's WebGPU, and a server of files for it.

import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize, resolve } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

export const WEB = fileURLToPath(new URL('..', import.meta.url));
/** Case files: those of the folder that the variable names, below the workspace where it is relative. */
export const GOLDENS = resolve(WEB, '..', process.env.LOCAL_ATTENTION_GOLDENS ?? 'tests/goldens');

const TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.txt': 'text/plain',
  '.wasm': 'application/wasm',
};

/** Serves folders, by the first part of a path; its address and what ends it. */
export const serve = async (folders) => {
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
    const [, first, ...rest] = path.split('/');
    const file = folders[first] !== undefined ? join(folders[first], ...rest) : join(folders[''], path);
    if (path.includes('..') || !existsSync(file) || !statSync(file).isFile()) {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { 'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream' });
    createReadStream(file).pipe(response);
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
};

/** Debian's browser, or the one that the variable names: playwright-core brings none. */
const chromiumPath = () => {
  const found = process.env.CHROMIUM ?? process.env.PATH.split(':').map((folder) => join(folder, 'chromium')).find(existsSync);
  if (!found) throw new Error('chromium is not in the PATH: install it, or name it in CHROMIUM');
  return found;
};

/** Browsers by number: each has a process of its own for its GPU, which is a thread of this machine here. */
const running = new Map();
after(async () => {
  for (const { browser, server } of await Promise.all(running.values())) {
    await browser.close();
    server.close();
  }
});

const start = async () => {
  const browser = await chromium.launch({
    executablePath: chromiumPath(),
    args: [
      '--no-sandbox',
      '--enable-unsafe-webgpu',
      '--use-webgpu-adapter=swiftshader',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      // Compiling a kernel takes it seconds on a busy machine, which it would take for a hang.
      '--disable-gpu-watchdog',
    ],
  });
  const server = await serve({ '': WEB, goldens: GOLDENS });
  return { browser, server };
};

/** A page of its own, with what it says on its console; the package is `la` there. */
export const open = async ({ url, path = 'test/page/index.html', number = 0 } = {}) => {
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
  await page.goto(url ?? server.url + path);
  return { page, said };
};

/** By browser, a page that tests share: its device compiles a kernel once, which takes seconds here. */
const shared = new Map();
export const openShared = async (number) => {
  if (!shared.has(number)) shared.set(number, open({ number }));
  return shared.get(number);
};
