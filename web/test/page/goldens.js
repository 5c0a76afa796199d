// One golden case through the package, in the page.

import { LocalAttention } from '/js/index.js';

const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

/** The tensors and metadata of a safetensors file. */
const parse = (buffer) => {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(entries)) {
    const bytes = buffer.slice(8 + size + start, 8 + size + end);
    const Class = { F32: Float32Array, U8: Uint8Array, BOOL: Uint8Array }[dtype];
    // How far f16 may be off, the Rust library's check knows.
    if (!Class) throw new Error(`${name} is ${dtype}: cases of F32 are compared here`);
    tensors[name] = { data: new Class(bytes), shape };
  }
  for (const name of ['q', 'k', 'v', 'out']) if (!tensors[name]) throw new Error(`there is no ${name} in it`);
  if (!metadata.config) throw new Error('there is no config in its metadata');
  return { metadata, tensors };
};

/** The largest error as a share of what is allowed; infinite for another length or a NaN. */
const share = (got, { data }, tolerance) => {
  if (got?.length !== data.length) return Infinity;
  const magnitude = data.reduce((m, x) => (Number.isFinite(x) ? Math.max(m, Math.abs(x)) : m), 1);
  let worst = 0;
  for (let i = 0; i < data.length; i++) {
    const error = Math.abs(got[i] - data[i]);
    worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
  }
  return worst / (tolerance * magnitude);
};

/** What was compared of a case, and the largest share of the tolerance. */
export const checkCase = async (name, backend, tolerance) => {
  const response = await fetch(`/goldens/${name}`);
  const { metadata, tensors } = parse(await response.arrayBuffer());
  const options = Object.entries(JSON.parse(metadata.config)).map(([key, value]) => [camel(key), value]);
  const attention = await LocalAttention.create({ ...Object.fromEntries(options), backend });
  if (attention.backend !== backend) throw new Error(`it computes on ${attention.backend}`);
  const forward = JSON.parse(metadata.forward ?? '{}');
  const call = { shape: {}, windowSize: forward.window_size };
  for (const name of ['q', 'k', 'v', 'mask', 'attn_bias']) {
    if (!tensors[name]) continue;
    call[camel(name)] = tensors[name].data;
    call.shape[camel(name)] = tensors[name].shape;
  }
  const { out, lse } = await attention.forward({ ...call, returnLse: true });
  const shares = { out: share(out, tensors.out, tolerance) };
  if (tensors.dout) {
    const gradients = await attention.backward({ ...call, out, lse, dout: tensors.dout.data });
    for (const key of ['dq', 'dk', 'dv', 'dattn_bias']) {
      if (tensors[key]) shares[key] = share(gradients[camel(key)], tensors[key], tolerance);
    }
  }
  attention.dispose();
  return shares;
};
