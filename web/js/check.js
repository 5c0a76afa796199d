// Names and types of arguments. Values are the library's matter, but for those that no number of it can hold.

import { classOf, DTYPES, dtypeOf } from './dtype.js';
import { LocalAttentionError, missing, wrongType, wrongValue } from './errors.js';

const MAX_INTEGER = 2 ** 31 - 1;

/** What may be given, by name; `null` and `undefined` leave the library's default. */
const OPTIONS = {
  windowSize: 'integer',
  causal: 'flag',
  lookBackward: 'integer',
  lookForward: 'integer',
  dropout: 'number',
  sharedQk: 'flag',
  relPosEmbConfig: 'integers',
  dim: 'integer',
  autopad: 'flag',
  exactWindowsize: 'flag',
  scale: 'number',
  useRotaryPosEmb: 'flag',
  useXpos: 'flag',
  xposScaleBase: 'number',
  quirks: 'quirks',
  backend: 'backend',
};

const QUIRKS = ['tailAlignedRotary', 'visibleAutopadKeys', 'uniformMaskedRows'];
const INPUTS = ['q', 'k', 'v', 'mask', 'attnBias', 'shape', 'windowSize'];
const SHAPES = ['q', 'k', 'v', 'mask', 'attnBias'];

/** The reference's name of an option. */
const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

const record = (name, value) => {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw wrongType(name, value, 'an object');
  return value;
};

/** An object without names that mean nothing. */
const known = (what, value, names) => {
  for (const name of Object.keys(record(what, value))) {
    if (names.includes(name)) continue;
    const meant = names.find((n) => n.toLowerCase() === name.replaceAll('_', '').toLowerCase());
    const hint = meant ? `did you mean ${meant}?` : `there are ${names.join(', ')}`;
    throw new LocalAttentionError('ArgumentError.Unknown', `${name} is unknown in ${what}: ${hint}`);
  }
  return value;
};

export const flag = (name, value) => {
  if (typeof value !== 'boolean') throw wrongType(name, value, 'true or false');
  return value;
};

const number = (name, value) => {
  if (typeof value !== 'number') throw wrongType(name, value, 'a number');
  return value;
};

export const integer = (name, value) => {
  // Beyond this range the library's counters end: no value there is right.
  if (!Number.isInteger(number(name, value)) || Math.abs(value) > MAX_INTEGER) {
    throw wrongValue(name, value, `an integer of at most ${MAX_INTEGER}`);
  }
  return value;
};

const length = (name, value) => {
  if (integer(name, value) < 0) throw wrongValue(name, value, 'at least 0');
  return value;
};

/** Sizes of dimensions. */
export const shapeOf = (name, value) => {
  if (!Array.isArray(value)) throw wrongType(name, value, 'an array of sizes');
  return Array.from(value, (size, i) => length(`${name}[${i}]`, size));
};

const elements = (shape) => shape.reduce((product, size) => product * size, 1);

/** Options as a list of what is to be set: the kind of each, the reference's name and the value. */
export const options = (given) => {
  known('options', given, Object.keys(OPTIONS));
  const settings = [];
  for (const [name, kind] of Object.entries(OPTIONS)) {
    const value = given[name];
    if (value === undefined || value === null || kind === 'backend') continue;
    if (kind === 'integer') settings.push(['number', snake(name), integer(name, value)]);
    else if (kind === 'number') settings.push(['number', snake(name), number(name, value)]);
    else if (kind === 'flag') settings.push(['flag', snake(name), flag(name, value)]);
    else if (kind === 'integers') {
      if (!Array.isArray(value)) throw wrongType(name, value, 'an array of integers');
      settings.push(['integers', snake(name), value.map((x, i) => integer(`${name}[${i}]`, x))]);
    } else settings.push(...quirks(value));
  }
  if (given.windowSize === undefined || given.windowSize === null) throw missing('windowSize', 'an integer');
  return settings;
};

const quirks = (value) => {
  if (value === 'all' || value === 'none') return QUIRKS.map((name) => ['flag', snake(name), value === 'all']);
  if (typeof value === 'string') throw wrongValue('quirks', value, '"all", "none" or an object');
  known('quirks', value, QUIRKS);
  const given = QUIRKS.filter((name) => value[name] !== undefined);
  return given.map((name) => ['flag', snake(name), flag(`quirks.${name}`, value[name])]);
};

export const backend = (value) => {
  if (value === undefined || value === null) return null;
  if (value !== 'webgpu' && value !== 'wasm') throw wrongValue('backend', value, '"webgpu" or "wasm"');
  return value;
};

/** The type of an array that is of one of some; `others` are not arrays and would do. */
const typed = (name, value, allowed, others = []) => {
  const dtype = dtypeOf(value);
  if (allowed.includes(dtype)) return dtype;
  throw wrongType(name, value, [...allowed.map((t) => `a ${classOf(t)}`), ...others].join(' or '));
};

/** An array as it is uploaded: its bytes, type and shape. */
const array = (name, value, dtype, shape) => {
  const { buffer, byteOffset, byteLength, length } = value;
  const dims = shapeOf(`shape of ${name}`, shape);
  if (elements(dims) !== length) {
    throw wrongValue(`the length of ${name}`, length, `${elements(dims)}, the product of its shape [${dims.join(', ')}]`);
  }
  // A mask's bytes are 0 or 1, on either backend.
  const bytes = dtype === 'u8' ? value.map((x) => Number(x !== 0)) : new Uint8Array(buffer, byteOffset, byteLength);
  return { bytes, dtype, shape: dims };
};

export const upload = (data, shape) => array('data', data, typed('data', data, DTYPES), shape);

/** The tensors and options of a call; `handle` takes tensors, and says undefined to what is none. */
export const call = (given, names, handle) => {
  known('the call', given, [...INPUTS, ...names]);
  const shapes = Array.isArray(given.shape) ? { q: given.shape } : known('shape', given.shape ?? {}, SHAPES);
  const sizes = {};
  const tensor = (name, allowed, shape, needed) => {
    const value = given[name];
    if (value === undefined || value === null) {
      if (needed) throw missing(name, 'an array or a Tensor');
      return undefined;
    }
    const own = handle(name, value);
    if (own) {
      if (shapes[name] && shapeOf(`shape of ${name}`, shapes[name]).join() !== own.shape.join()) {
        throw wrongValue(`shape of ${name}`, shapes[name], `[${own.shape.join(', ')}], the tensor's own, or left out`);
      }
      sizes[name] = own.shape;
      return { id: own.id };
    }
    // What it is matters more than that its shape is missing.
    const dtype = typed(name, value, allowed, ['a Tensor']);
    sizes[name] = shapes[name] ?? shape(value);
    return array(name, value, dtype, sizes[name]);
  };
  const numbers = ['f32', 'f16'];
  const noShape = (name, what) => () => {
    throw missing(name === 'q' && !given.shape ? 'shape' : `shape.${name}`, what);
  };
  const q = tensor('q', numbers, noShape('q', 'the sizes of q, [.., n, d]'), true);
  const k = tensor('k', numbers, () => sizes.q, true);
  const v = tensor('v', numbers, () => sizes.k, true);
  // A mask covers the keys, and as many rows as there are numbers for.
  const maskShape = (mask) => {
    // Without a length of its own the library refuses k.
    const keys = sizes.k.at(-2) ?? mask.length;
    if (!keys || mask.length % keys) {
      throw wrongValue('the length of mask', mask.length, `a multiple of ${keys}, the keys, or shape.mask must be given`);
    }
    return [mask.length / keys, keys];
  };
  const mask = tensor('mask', ['u8'], maskShape);
  const biasShape = noShape('attnBias', '[rows, 1 or windowSize, 1 or slots]');
  const attnBias = tensor('attnBias', numbers, biasShape);
  const window = given.windowSize ?? undefined;
  const result = { q, k, v, mask, attnBias, windowSize: window === undefined ? window : integer('windowSize', window) };
  const leading = () => sizes.q.slice(0, -1);
  if (names.includes('dout')) {
    const outShape = () => [...leading(), sizes.v.at(-1)];
    result.out = tensor('out', numbers, outShape, true);
    result.dout = tensor('dout', numbers, outShape, true);
    result.lse = tensor('lse', ['f32'], leading, true);
  }
  return result;
};

/** A seed and an offset, or nothing. */
export const dropout = ({ seed, offset = 0 }) => {
  if (!Number.isInteger(offset)) throw wrongType('offset', offset, 'an integer');
  if (offset < 0 || offset >= 2 ** 32) throw wrongValue('offset', offset, 'at least 0 and below 2^32');
  if (seed === undefined || seed === null) return undefined;
  if (typeof seed !== 'bigint' && !Number.isSafeInteger(seed)) throw wrongType('seed', seed, 'an integer below 2^53 or a BigInt');
  if (BigInt(seed) < 0n || BigInt(seed) >= 1n << 64n) throw wrongValue('seed', seed, 'at least 0 and below 2^64');
  return { seed: BigInt(seed), offset };
};

/** First and one past the last of some queries. */
export const range = (name, value) => {
  if (!Array.isArray(value) || value.length !== 2) throw wrongType(name, value, '[first, one past the last]');
  return shapeOf(name, value);
};

export const visible = (given) => {
  known('the call', given, ['n', 'keyLength', 'queries', 'windowSize']);
  if (given.n === undefined || given.n === null) throw missing('n', 'the length of the sequence');
  const n = length('n', given.n);
  const keys = length('keyLength', given.keyLength ?? n);
  const window = given.windowSize ?? undefined;
  return {
    n,
    keys,
    queries: range('queries', given.queries ?? [0, n]),
    windowSize: window === undefined ? window : integer('windowSize', window),
  };
};
