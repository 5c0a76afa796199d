// Runs a test program compiled for WASI preview 1: node wasi.mjs PROGRAM.wasm [ARGS]
// Arguments, environment, clock, random numbers and output are all that tests use. (Node's own WASI
// crashes now and then as the process ends: Node 20.20.)
import { randomFillSync } from "node:crypto";
import { readFileSync, writeSync } from "node:fs";
import { argv, env, exit, hrtime } from "node:process";

const BADF = 8;
const encoder = new TextEncoder();
const args = argv.slice(2);
const environ = Object.entries(env).map(([name, value]) => `${name}=${value}`);

let memory;
const view = () => new DataView(memory.buffer);
const bytes = (at, length) => new Uint8Array(memory.buffer, at, length);

// Lists of strings, each ended by a zero byte: how many and how long, then where each begins.
const encoded = (strings) => strings.map((text) => encoder.encode(`${text}\0`));
const sizes = (strings) => (count, size) => {
  view().setUint32(count, strings.length, true);
  view().setUint32(size, encoded(strings).reduce((sum, text) => sum + text.length, 0), true);
  return 0;
};
const get = (strings) => (pointers, at) => {
  for (const text of encoded(strings)) {
    view().setUint32(pointers, at, true);
    bytes(at, text.length).set(text);
    pointers += 4;
    at += text.length;
  }
  return 0;
};

// A pipe may take output in parts, or not yet.
const write = (file, at, length) => {
  for (let done = 0; done < length; ) {
    try {
      done += writeSync(file, bytes(at + done, length - done));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
};

const wasi = {
  args_sizes_get: sizes(args),
  args_get: get(args),
  environ_sizes_get: sizes(environ),
  environ_get: get(environ),
  clock_time_get(_clock, _precision, at) {
    view().setBigUint64(at, hrtime.bigint(), true);
    return 0;
  },
  random_get(at, length) {
    randomFillSync(bytes(at, length));
    return 0;
  },
  fd_write(file, vectors, count, written) {
    let total = 0;
    for (let i = 0; i < count; i++) {
      const [at, length] = [0, 4].map((offset) => view().getUint32(vectors + 8 * i + offset, true));
      write(file, at, length);
      total += length;
    }
    view().setUint32(written, total, true);
    return 0;
  },
  proc_exit: exit,
  sched_yield: () => 0,
};

const module = new WebAssembly.Module(readFileSync(args[0]));
const { exports } = new WebAssembly.Instance(module, {
  // Files there are none.
  wasi_snapshot_preview1: new Proxy(wasi, { get: (all, name) => all[name] ?? (() => BADF) }),
});
memory = exports.memory;
exports._start();
