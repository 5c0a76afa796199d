//! The GPU engine: the whole forward pass in one fused dispatch, on any adapter, on the caller's own
//! device.
//!
//! [`Gpu`] is a device with its compiled pipelines, [`Plan`] a problem made ready for it, [`Workspace`]
//! memory that calls share, [`Bound`] a plan with its tensors. The first two are expensive and kept;
//! [`Bound::encode`] is cheap: it records into the caller's pass, submits nothing and allocates
//! nothing. [`BackwardPlan`] is the same for gradients. [`Gpu::forward`] and [`Gpu::backward`] do all of it for tensors in host
//! memory.

#[cfg(not(target_arch = "wasm32"))]
mod autotune;
mod backward;
mod bindings;
mod bound;
mod check;
mod chunk;
mod device;
mod error;
mod forward;
mod host;
mod layout;
mod loops;
#[cfg(not(target_arch = "wasm32"))]
mod matrix;
mod owned;
mod params;
mod plan;
mod scope;
mod shader;
mod tensor;
#[cfg(not(target_arch = "wasm32"))]
mod tuning;
mod uniforms;
mod weights;
mod workspace;

#[cfg(not(target_arch = "wasm32"))]
pub use autotune::Tuned;
pub use backward::{BackwardPlan, BackwardTensors};
pub use bound::Bound;
#[cfg(not(target_arch = "wasm32"))]
pub use device::adapters_blocking;
pub use device::{AdapterCaps, Gpu, GpuOptions, RequestOptions, adapters};
pub use error::{BindError, DeviceError, GpuError, PlanError};
pub use host::GpuElement;
pub use plan::{Layouts, Plan};
pub use shader::{Arena, Features, Kernel, MAX_HEAD_DIM, Matrix, PipelineKey, Storage, Tile};
pub use tensor::{Dtype, ForwardTensors, TensorView};
#[cfg(not(target_arch = "wasm32"))]
pub use tuning::TuningCache;
/// The version of wgpu whose devices and buffers the engine takes.
pub use wgpu;
pub use workspace::Workspace;
