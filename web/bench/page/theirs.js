// onnxruntime-web: [1, n, heads * d].

import { model } from './model.js';

const DIST = '../node_modules/onnxruntime-web/dist/';

/** [heads, n, d] to [n, heads, d]. */
const turned = (x, rows, columns, d) => {
  const to = new Float32Array(x.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const from = (i * columns + j) * d;
      to.set(x.subarray(from, from + d), (j * rows + i) * d);
    }
  }
  return to;
};

/** A device as they make it, but without subgroups: those of 4, as SwiftShader's are, make their results wrong. */
const requestDevice = async () => {
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  const requiredFeatures = [...adapter.features].filter((name) => name === 'shader-f16' || name === 'timestamp-query');
  const limits = [
    'maxBufferSize',
    'maxStorageBufferBindingSize',
    'maxComputeWorkgroupStorageSize',
    'maxComputeInvocationsPerWorkgroup',
    'maxComputeWorkgroupSizeX',
    'maxComputeWorkgroupSizeY',
    'maxComputeWorkgroupSizeZ',
    'maxComputeWorkgroupsPerDimension',
    'maxStorageBuffersPerShaderStage',
  ];
  const requiredLimits = Object.fromEntries(limits.map((name) => [name, adapter.limits[name]]));
  return adapter.requestDevice({ requiredFeatures, requiredLimits });
};

/** One for the page, until it is lost. */
let shared;

const engine = async (backend) => {
  if (backend === 'wasm') {
    const ort = await import(`${DIST}ort.wasm.bundle.min.mjs`);
    ort.env.wasm.numThreads = 1;
    return { ort, provider: 'wasm' };
  }
  const ort = await import(`${DIST}ort.webgpu.bundle.min.mjs`);
  if (!shared) {
    shared = await requestDevice();
    shared.lost.then(() => (shared = undefined));
  }
  return { ort, provider: { name: 'webgpu', device: shared }, device: shared };
};

export const theirs = async (backend, sizes, inputs) => {
  const { n, heads, d } = sizes;
  const { ort, provider, device } = await engine(backend);
  const dims = [1, n, heads * d];
  const session = await ort.InferenceSession.create(model(sizes), { executionProviders: [provider] });
  const each = (of, make) => Object.fromEntries(Object.entries(of).map(([name, x]) => [name, make(x)]));
  const feeds = each(inputs, (x) => new ort.Tensor('float32', turned(x, heads, n, d), dims));
  const arrays = async () => {
    const { out } = await session.run(feeds);
    return out.getData();
  };
  const whole = (out) => turned(out, n, heads, d);
  if (backend === 'wasm') {
    // There is no other place for its tensors: they are copied in and out.
    let last;
    return {
      arrays: async () => (last = await arrays()),
      read: async () => whole(last),
      whole,
      end: () => session.release(),
    };
  }
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = () => device.createBuffer({ size: n * heads * d * 4, usage });
  const buffers = [];
  const onDevice = (data) => {
    const made = buffer();
    buffers.push(made);
    if (data) device.queue.writeBuffer(made, 0, data);
    return ort.Tensor.fromGpuBuffer(made, { dataType: 'float32', dims });
  };
  const held = each(feeds, (tensor) => onDevice(tensor.data));
  const out = onDevice();
  const { vendor, architecture, description } = device.adapterInfo;
  return {
    device: [vendor, architecture, description].filter(Boolean).join(' '),
    arrays,
    tensors: async () => {
      await session.run(held, { out });
      await device.queue.onSubmittedWorkDone();
    },
    read: async () => {
      const to = device.createBuffer({ size: out.size * 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffers.at(-1), 0, to, 0, to.size);
      device.queue.submit([encoder.finish()]);
      await to.mapAsync(GPUMapMode.READ);
      const copy = new Float32Array(to.getMappedRange().slice());
      to.destroy();
      return whole(copy);
    },
    whole,
    end: async () => {
      await session.release();
      buffers.forEach((one) => one.destroy());
    },
  };
};
