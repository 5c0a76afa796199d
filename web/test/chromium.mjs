// Headless Chromium on SwiftShader's WebGPU, and a server of files for it.

import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { chromium } from 'playwright-core';

const TYPES = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
  '.txt': 'text/plain',
  '.wasm': 'application/wasm',
};

/** Serves folders, by the first part of a path; its address, what ends it, and the files it was asked for. */
export const serve = async (folders) => {
  const served = new Set();
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
    const [, first, ...rest] = path.split('/');
    const file = folders[first] !== undefined ? join(folders[first], ...rest) : join(folders[''], path);
    if (path.includes('..') || !existsSync(file) || !statSync(file).isFile()) {
      response.writeHead(404).end();
      return;
    }
    served.add(file);
    response.writeHead(200, { 'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream' });
    createReadStream(file).pipe(response);
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close(), served };
};

/** Debian's browser, or the one that the variable names: playwright-core brings none. */
const chromiumPath = () => {
  const found = process.env.CHROMIUM ?? process.env.PATH.split(':').map((folder) => join(folder, 'chromium')).find(existsSync);
  if (!found) throw new Error('chromium is not in the PATH: install it, or name it in CHROMIUM');
  return found;
};

/** The browser; who starts it closes it. */
export const launch = () =>
  chromium.launch({
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
