// The peer's model: causal attention in windows of w that also look at the window before, as ONNX.
//
// k and v are gathered into [window before, own window], and one MultiHeadAttention runs all windows as a batch. Its
// work grows linearly with n, as ours does.

import protobuf from './protobuf.js';

// The fields of ONNX's onnx.proto3 that the model has.
const SCHEMA = `
  syntax = "proto3";
  message Attribute { string name = 1; int64 i = 3; int32 type = 20; }
  message Node {
    repeated string input = 1; repeated string output = 2; string op_type = 4; repeated Attribute attribute = 5;
    string domain = 7;
  }
  message Tensor { repeated int64 dims = 1; int32 data_type = 2; string name = 8; bytes raw_data = 9; }
  message Dimension { int64 dim_value = 1; }
  message Shape { repeated Dimension dim = 1; }
  message TensorType { int32 elem_type = 1; Shape shape = 2; }
  message Type { TensorType tensor_type = 1; }
  message Value { string name = 1; Type type = 2; }
  message Graph {
    repeated Node node = 1; string name = 2; repeated Tensor initializer = 5; repeated Value input = 11;
    repeated Value output = 12;
  }
  message OperatorSet { string domain = 1; int64 version = 2; }
  message Model { int64 ir_version = 1; Graph graph = 7; repeated OperatorSet opset_import = 8; }
`;
const Model = protobuf.parse(SCHEMA, { keepCase: true }).root.lookupType('Model');
const [FLOAT, INT64, INT] = [1, 7, 2];

const HIDDEN = -1e30;

/** What is added to logits, [windows, 1, w, 2 w]: the first window has none before it. */
const mask = (windows, w) => {
  const values = new Float32Array(windows * w * 2 * w).fill(HIDDEN);
  for (let row = 0; row < windows * w; row++) {
    const first = row < w ? w : 0;
    values.fill(0, row * 2 * w + first, row * 2 * w + w + (row % w) + 1);
  }
  return values;
};

/** The model's bytes; q, k, v and out are [1, n, heads * d]. */
export const model = ({ n, w, heads, d }) => {
  const [windows, features] = [n / w, heads * d];
  const tensor = (name, data_type, array, dims) => ({ name, data_type, dims, raw_data: new Uint8Array(array.buffer) });
  const integers = (name, numbers, dims = [numbers.length]) =>
    tensor(name, INT64, BigInt64Array.from(numbers, BigInt), dims);
  const node = (op_type, input, output, rest) => ({ op_type, input, output: [output], ...rest });
  const value = (name) => ({
    name,
    type: { tensor_type: { elem_type: FLOAT, shape: { dim: [1, n, features].map((dim_value) => ({ dim_value })) } } },
  });
  // The first window takes itself for the one before it, which the mask hides.
  const pairs = Array.from({ length: windows }, (_, i) => [Math.max(i - 1, 0), i]).flat();
  const bucketed = (name) => [
    node('Reshape', [name, 'windows'], `${name}_windows`),
    node('Gather', [`${name}_windows`, 'pairs'], `${name}_pairs`),
    node('Reshape', [`${name}_pairs`, 'seen'], `${name}_seen`),
  ];
  return Model.encode({
    ir_version: 8,
    opset_import: [{ domain: '', version: 17 }, { domain: 'com.microsoft', version: 1 }],
    graph: {
      name: 'local attention',
      input: ['q', 'k', 'v'].map(value),
      output: [value('out')],
      initializer: [
        integers('windows', [windows, w, features]),
        integers('seen', [windows, 2 * w, features]),
        integers('whole', [1, n, features]),
        integers('pairs', pairs, [windows, 2]),
        tensor('mask', FLOAT, mask(windows, w), [windows, 1, w, 2 * w]),
      ],
      node: [
        node('Reshape', ['q', 'windows'], 'q_windows'),
        ...bucketed('k'),
        ...bucketed('v'),
        // Without biases and padding of keys; the scale is d ** -0.5 by default.
        node('MultiHeadAttention', ['q_windows', 'k_seen', 'v_seen', '', '', 'mask'], 'attended', {
          domain: 'com.microsoft',
          attribute: [{ name: 'num_heads', i: heads, type: INT }],
        }),
        node('Reshape', ['attended', 'whole'], 'out'),
      ],
    },
  }).finish();
};
