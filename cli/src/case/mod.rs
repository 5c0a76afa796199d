//! Case files: one call of the module as a safetensors file.
//!
//! Tensors `q`, `k`, `v`, optionally `mask` or `input_mask` (BOOL, or U8 with each byte 0 or 1) and
//! `attn_bias`; metadata `config` (JSON with the reference's constructor arguments) and `forward`
//! (JSON, `{"window_size": null | int}`). A file may also hold what a call should give: `out`,
//! `lse`, and, for gradients, `dout`, `dq`, `dk`, `dv`, `dattn_bias`.

mod array;
mod pack;
mod read;

pub(crate) use array::Want;
pub use array::{Array, Data, Dtype};
pub use read::{Case, CaseError, Forward};
pub(crate) use read::{GRADIENTS, Replace};
