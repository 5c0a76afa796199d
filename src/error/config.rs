//! Configurations that are rejected.

use thiserror::Error;

/// A [`LocalAttentionConfig`](crate::LocalAttentionConfig) that the module cannot be built from.
///
/// Only what is in effect is rejected: an odd `dim` is fine while rotary embeddings are off.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `window_size` below 1.
    #[error("window_size is {got}: it must be at least 1")]
    WindowSize {
        /// The value given.
        got: i64,
    },
    /// `look_backward` below 0.
    #[error("look_backward is {got}: it counts windows and must be at least 0")]
    LookBackward {
        /// The value given.
        got: i64,
    },
    /// `look_forward` below 0.
    #[error("look_forward is {got}: it counts windows and must be at least 0")]
    LookForward {
        /// The value given.
        got: i64,
    },
    /// `look_forward` above 0 together with `causal`.
    #[error(
        "look_forward is {got} with causal = true: you cannot look forward if causal, it must be 0 or unset"
    )]
    CausalLookForward {
        /// The value given.
        got: i64,
    },
    /// `dropout` outside `[0, 1)`.
    #[error("dropout is {got}: it is a probability and must be at least 0 and below 1")]
    Dropout {
        /// The value given.
        got: f64,
    },
    /// A rotary dimension that is odd or below 2, with rotary embeddings on.
    #[error(
        "{argument} is {got}: with rotary embeddings on, the rotary dimension must be even and at least 2"
    )]
    RotaryDim {
        /// `dim`, or `rel_pos_emb_config[0]` which overrides it.
        argument: &'static str,
        /// The value given.
        got: i64,
    },
    /// An empty `rel_pos_emb_config`, with rotary embeddings on.
    #[error(
        "rel_pos_emb_config is []: its first element is the rotary dimension and must be there"
    )]
    RelPosEmbConfigEmpty,
    /// `scale` that is not a finite number of f32.
    #[error(
        "scale is {got}: it must be a finite number that f32 can hold, or unset for head_dim^-0.5"
    )]
    Scale {
        /// The value given.
        got: f64,
    },
    /// `xpos_scale_base` that is 0 or not finite, where xpos factors are computed.
    #[error("xpos_scale_base is {got}{}: xpos factors divide by it, so it must be a finite number other than 0", if *.defaulted { " (the default, window_size // 2)" } else { "" })]
    XposScaleBase {
        /// The value in effect.
        got: f64,
        /// Whether it is the default, `window_size // 2`.
        defaulted: bool,
    },
}
