//! JavaScript's arrays, made so that an error says where there is no room: their constructors throw then, and what is
//! thrown inside a future settles nothing.

use js_sys::{Array, Function, Reflect, Uint8Array};
use local_attention::RunError;
use wasm_bindgen::JsCast;

use crate::error::Failure;

/// An array of so many bytes.
pub(crate) fn new_array(len: usize) -> Result<Uint8Array, Failure> {
    let fail = || RunError::OutOfMemory { what: "results", elements: len as u128 };
    let class = Reflect::get(&js_sys::global(), &"Uint8Array".into());
    let class = class.ok().and_then(|class| class.dyn_into::<Function>().ok());
    let class = class.ok_or_else(fail)?;
    let made = Reflect::construct(&class, &Array::of1(&(len as f64).into()));
    Ok(made.ok().and_then(|made| made.dyn_into().ok()).ok_or_else(fail)?)
}

/// An array of these numbers' bytes.
pub(crate) fn bytes_of<T: bytemuck::NoUninit>(numbers: &[T]) -> Result<Uint8Array, Failure> {
    let bytes: &[u8] = bytemuck::cast_slice(numbers);
    let array = new_array(bytes.len())?;
    array.copy_from(bytes);
    Ok(array)
}
