#![doc = include_str!("../README.md")]

mod attention;
#[cfg(test)]
mod bad_input;
mod budget;
mod call;
mod config;
pub mod cpu;
mod dropout;
mod engine;
mod error;
mod geometry;
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
pub use quirks::ReferenceQuirks;
pub use reference::Reference;
pub use scalar::{BIAS_FLOOR, Element, Scalar};
pub use shape::{AttentionShape, BiasShape, MAX_POSITIONS, MaskShape};
pub use tensor::HostTensor;
