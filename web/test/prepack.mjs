// A package without its generated half would install, and then fail.

import { existsSync } from 'node:fs';

const missing = ['dist/local_attention_web.js', 'dist/local_attention_web_bg.wasm', 'LICENSE-MIT', 'LICENSE-APACHE'].filter(
  (name) => !existsSync(new URL(`../${name}`, import.meta.url)),
);
if (missing.length) {
  console.error(`${missing.join(', ')} missing: run \`cargo xtask web\` first`);
  process.exit(1);
}
