// protobufjs has no module for browsers: its script leaves a global.

import '../node_modules/protobufjs/dist/protobuf.min.js';

export default globalThis.protobuf;
