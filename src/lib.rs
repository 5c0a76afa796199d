//! Windowed ("local") attention with all the semantics of the PyTorch module `LocalAttention`
//! (local-attention 1.11.2).
//!
//! [`LocalAttention`] is a checked configuration, [`Problem`] a checked shape: who sees whom, as data,
//! without a device. Engines carry problems out: [`cpu::Cpu`] with threads and SIMD, the module `gpu` in
//! one fused dispatch on wgpu (feature `gpu`, on by default), and [`Reference`], the definition in plain
//! loops, in f64 or f32. The engines of host memory implement [`Engine`].
//!
//! ```
//! use local_attention::cpu::Cpu;
//! use local_attention::{
//!     AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
//! };
//!
//! // q, k, v: [batch 1, n 100, head_dim 32]
//! let data = vec![0.1_f32; 100 * 32];
//! let x = || HostTensor::new(&data[..], [1, 100, 32]);
//! let inputs = HostInputs::new(x()?, x()?, x()?);
//! // LocalAttention(window_size = 5, causal = True, dim = 32)
//! let attention = LocalAttention::new(LocalAttentionConfig::new(5).causal(true).dim(32))?;
//! let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
//! let result = Cpu::new().forward(&problem, &inputs, &Call::default())?;
//! assert_eq!(result.shape, [1, 100, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! By default three artefacts of the PyTorch module are reproduced; see [`ReferenceQuirks`]. Results are
//! held to an [`ErrorBudget`] against the f64 oracle.

mod attention;
#[cfg(test)]
mod bad_input;
mod broadcast;
mod budget;
mod call;
mod config;
pub mod cpu;
mod dropout;
mod engine;
mod error;
mod geometry;
#[cfg(feature = "gpu")]
pub mod gpu;
mod gradients;
mod pattern;
mod quirks;
mod reference;
mod rotary;
mod scalar;
mod shape;
mod tensor;

pub use attention::{LocalAttention, Problem};
pub use budget::ErrorBudget;
pub use call::{Forward, HostInputs, Weights};
pub use config::LocalAttentionConfig;
pub use dropout::{Call, Dropout};
pub use engine::Engine;
pub use error::{ConfigError, RunError, ShapeError};
pub use geometry::{TileKind, WindowGeometry};
pub use gradients::{BackwardInputs, Gradient, Gradients};
pub use quirks::ReferenceQuirks;
pub use reference::Reference;
pub use scalar::{BIAS_FLOOR, Element, Scalar};
pub use shape::{AttentionShape, BiasShape, MAX_POSITIONS, MaskShape};
pub use tensor::HostTensor;

/// The README's snippet, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Problems and engines go wherever the caller's threads go.
const _: () = {
    const fn threads<T: Send + Sync>() {}
    threads::<LocalAttention>();
    threads::<Problem>();
    threads::<cpu::Cpu>();
    threads::<Reference<f32>>();
    threads::<HostInputs<'static, f32>>();
    threads::<Forward<half::f16>>();
    threads::<Weights<f64>>();
    threads::<RunError>();
    #[cfg(all(feature = "gpu", not(target_arch = "wasm32")))]
    {
        threads::<gpu::Gpu>();
        threads::<gpu::Plan>();
        threads::<gpu::Bound>();
        threads::<gpu::Workspace>();
    }
};

/// Nor do futures keep to one thread.
#[cfg(all(feature = "gpu", not(target_arch = "wasm32")))]
#[expect(dead_code, reason = "it is enough that it compiles")]
fn futures_can_be_sent(
    (gpu, plan, backward): (&gpu::Gpu, &gpu::Plan, &gpu::BackwardPlan),
    (problem, inputs): (&Problem, &HostInputs<'_, f32>),
    (saved, workspace): (&BackwardInputs<'_, f32>, &gpu::Workspace),
    (tensors, gradients): (&gpu::ForwardTensors<'_>, &gpu::BackwardTensors<'_>),
) {
    fn sent(_: impl Send) {}
    let (call, layouts) = (&Call::default(), &gpu::Layouts::any(gpu::Storage::F32));
    sent(gpu::Gpu::request(&gpu::RequestOptions::default()));
    sent(gpu::Workspace::new(gpu, 1));
    sent(gpu.plan(problem, layouts));
    sent(gpu.plan_backward(problem, layouts));
    sent(gpu.forward(problem, inputs, call));
    sent(gpu.backward(problem, inputs, saved, call));
    sent(gpu.weights(problem, inputs, 0..1));
    sent(plan.bind_forward(tensors, workspace));
    sent(backward.bind(gradients, workspace));
}
