// What a comparison needs, and what to run where it is missing.

const stored = async (path) => {
  const answer = await fetch(new URL(path, import.meta.url)).catch(() => null);
  return answer?.ok ? answer.text() : null;
};

/** The version of an installed package, or null. */
const version = async (name) => {
  const text = await stored(`../node_modules/${name}/package.json`);
  return text && JSON.parse(text).version;
};

const hasWebgpu = async () => Boolean(await navigator.gpu?.requestAdapter().catch(() => null));

/** The peer's version, whether there is WebGPU and the rest, and of what is missing [what, command, what then]. */
export const needs = async () => {
  const [built, peer, protobuf, webgpu] = await Promise.all([
    stored('../../dist/local_attention_web.js'),
    version('onnxruntime-web'),
    version('protobufjs'),
    hasWebgpu(),
  ]);
  const installed = peer && protobuf;
  const lines = [];
  if (!built) lines.push(['local-attention is not built: run', 'cargo xtask web', 'and load this page again.']);
  if (!installed) {
    const which = peer ? 'protobufjs' : 'onnxruntime-web';
    lines.push([`${which} is not installed: run`, 'npm ci', 'in web/bench and load this page again.']);
  }
  if (!webgpu) {
    lines.push(
      isSecureContext
        ? ['This browser has no WebGPU here; Chromium on Linux may need', '--enable-unsafe-webgpu', 'to have it.']
        : ['Pages have WebGPU from this machine only:', 'cargo xtask serve', 'and open it at 127.0.0.1.'],
    );
  }
  return { peer, webgpu, ready: Boolean(built && installed), lines };
};
