// Types of elements, by the arrays they come in and go out in.

const CLASSES = { f32: 'Float32Array', f16: 'Float16Array', u8: 'Uint8Array' };

export const DTYPES = Object.keys(CLASSES);

/** The array class of a type. */
export const classOf = (dtype) => CLASSES[dtype];

/** The type of an array's elements; undefined for what is no array of numbers. */
export const dtypeOf = (value) => {
  if (!ArrayBuffer.isView(value)) return undefined;
  const name = Object.prototype.toString.call(value).slice(8, -1);
  return DTYPES.find((dtype) => CLASSES[dtype] === name);
};

/** An array of a type from its bytes. */
export const fromBytes = ({ buffer, byteOffset, byteLength }, dtype) => {
  // By name, because some browsers have no Float16Array.
  const Class = globalThis[CLASSES[dtype]];
  return new Class(buffer, byteOffset, byteLength / Class.BYTES_PER_ELEMENT);
};
