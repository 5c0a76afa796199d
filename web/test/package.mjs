// What is published: small, typed, and found by a bundler.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { LIMIT, open, serve, WEB } from './browser.mjs';

/** What a program says; other tests go on meanwhile. */
const run = async (cwd, program, ...args) => {
  try {
    const { stdout } = await promisify(execFile)(program, args, { cwd, ...LIMIT });
    return stdout;
  } catch (error) {
    throw new Error(`${error.message}\n${error.stdout}`);
  }
};

export const packed = () => {
  test('the WebAssembly is at most 300 KiB, compressed', () => {
    const size = gzipSync(readFileSync(join(WEB, 'dist/local_attention_web_bg.wasm')), { level: 9 }).length;
    console.log(`${(size / 1024).toFixed(1)} KiB of WebAssembly, compressed`);
    assert.ok(size <= 300 * 1024, `${size} bytes`);
  });

  test('packed, its types are right, and it builds and runs in a fresh Vite project', LIMIT, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'local-attention-'));
    try {
      const [{ filename, files }] = JSON.parse(await run(WEB, 'npm', 'pack', '--json', '--ignore-scripts', '--pack-destination', folder));
      const names = files.map((file) => file.path);
      for (const name of ['LICENSE-APACHE', 'LICENSE-MIT', 'README.md', 'package.json', 'js/index.js', 'js/index.d.ts', 'js/worker.js', 'dist/local_attention_web.js', 'dist/local_attention_web_bg.wasm']) {
        assert.ok(names.includes(name), `${name} is not in the package: ${names}`);
      }
      assert.deepEqual(names.filter((name) => /test|src|node_modules|Cargo/.test(name)), []);
      writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'fresh', private: true, type: 'module' }));
      await run(folder, 'npm', 'install', '--no-audit', '--no-fund', '--offline', `./${filename}`);

      // With libraries of types old and new; what is forbidden is an error there.
      cpSync(join(WEB, 'test/types'), join(folder, 'types'), { recursive: true });
      for (const config of ['tsconfig.json', 'tsconfig.esnext.json']) {
        await run(folder, 'node', join(WEB, 'node_modules/typescript/bin/tsc'), '--project', join('types', config));
      }

      writeFileSync(join(folder, 'index.html'), '<!doctype html><link rel="icon" href="data:,"><script type="module" src="/main.js"></script>');
      writeFileSync(
        join(folder, 'main.js'),
        `import { LocalAttention } from 'local-attention';
         const x = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
         const each = ['webgpu', 'wasm'].map(async (backend) => {
           const attention = await LocalAttention.create({ windowSize: 4, causal: true, dim: 8, backend });
           return [attention.backend, [...(await attention.forward({ q: x, k: x, v: x, shape: [1, 8, 8] }))]];
         });
         globalThis.result = Promise.all(each);`,
      );
      // Vite of this package's own tools: nothing is downloaded.
      await run(folder, 'node', join(WEB, 'node_modules/vite/bin/vite.js'), 'build', '--logLevel', 'warn');
      const server = await serve({ '': join(folder, 'dist') });
      const { page, said } = await open({ number: 1, url: `${server.url}index.html` });
      await page.waitForFunction(() => globalThis.result);
      const [[webgpu, one], [wasm, two]] = await page.evaluate(() => globalThis.result);
      assert.deepEqual([webgpu, wasm], ['webgpu', 'wasm']);
      const error = one.reduce((worst, x, i) => Math.max(worst, Math.abs(x - two[i])), 0);
      assert.ok(one.length === 64 && error < 1e-6, `backends differ by ${error}`);
      assert.deepEqual(said, []);
      await page.close();
      server.close();
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
};
