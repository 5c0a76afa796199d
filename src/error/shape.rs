//! Shapes that are rejected.

use thiserror::Error;

/// Shapes that do not fit each other or the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A tensor with the wrong number of dimensions.
    #[error("{tensor} has shape {got:?}: it must be {allowed}")]
    Rank {
        /// `q`, `k`, `v`, `mask`, `input_mask` or `attn_bias`.
        tensor: &'static str,
        /// The shape given.
        got: Vec<usize>,
        /// The shapes allowed, in words.
        allowed: &'static str,
    },
    /// Data of another length than its shape says.
    #[error("a tensor of shape {shape:?} was given {got} elements: it needs {}", expected.map_or("more than this machine can address".to_owned(), |e| format!("exactly {e}")))]
    DataLength {
        /// The shape given.
        shape: Vec<usize>,
        /// Elements given.
        got: usize,
        /// Elements needed; `None` where the product overflows.
        expected: Option<usize>,
    },
    /// Strides that do not match the shape or leave the data.
    #[error(
        "strides {strides:?} with offset {offset} do not fit a tensor of shape {shape:?} in {len} elements: one stride a dimension, every element inside the data"
    )]
    Strides {
        /// The shape given.
        shape: Vec<usize>,
        /// The strides given, in elements.
        strides: Vec<isize>,
        /// The offset given, in elements.
        offset: usize,
        /// Elements in the data.
        len: usize,
    },
    /// A length or size of 0 where at least 1 is needed.
    #[error("{argument} is 0: it must be at least 1")]
    Zero {
        /// `seq_len` or `head_dim`.
        argument: &'static str,
    },
    /// A length, batch or size above what positions are counted with.
    #[error("{argument} is {got}: it must be at most {max}")]
    TooLarge {
        /// The quantity.
        argument: &'static str,
        /// Its value, saturated.
        got: u128,
        /// The largest one allowed.
        max: u128,
    },
    /// A query range outside the sequence.
    #[error("query is {start}..{end}: it must lie within 0..{seq_len}")]
    QueryRange {
        /// First query.
        start: usize,
        /// One past the last query.
        end: usize,
        /// Length of the query axis.
        seq_len: usize,
    },
    /// The window override below 1.
    #[error("window_size (of the call) is {got}: it must be at least 1")]
    Window {
        /// The value given.
        got: i64,
    },
    /// The window override without `use_xpos`.
    #[error(
        "window_size (of the call) is {got} with use_xpos = false: cannot perform window size extrapolation if xpos is not turned on"
    )]
    WindowNeedsXpos {
        /// The value given.
        got: i64,
    },
    /// A sequence that windows do not divide.
    #[error("sequence length {len} must be divisible by window size {window} for local attention{}", if *.overridden { " (autopad pads to the constructor's window_size only)" } else { " (or set autopad)" })]
    Indivisible {
        /// The length, after autopad.
        len: usize,
        /// The window in effect.
        window: usize,
        /// Whether the call overrides the window.
        overridden: bool,
    },
    /// A head_dim other than the rotary dimension.
    #[error(
        "head_dim is {head_dim} with a rotary dim of {dim}: they must be equal (partial rotary is not supported)"
    )]
    RotaryDim {
        /// Feature size of q and k.
        head_dim: usize,
        /// The rotary dimension of the configuration.
        dim: i64,
    },
    /// Keys whose length does not pad to that of the queries.
    #[error("{tensor} has length {got}: {}", if *.multiple == 1 { format!("it must be {padded}, like the queries") } else { format!("{} to {padded} is allowed, which pads to the queries' {padded}", padded.saturating_sub(multiple.saturating_sub(1))) })]
    KeyLength {
        /// `k` or `v`.
        tensor: &'static str,
        /// The length given.
        got: usize,
        /// What lengths are padded to: `window_size` with autopad, else 1.
        multiple: usize,
        /// The padded length of the queries.
        padded: usize,
    },
    /// k and v of different lengths or batches, or other feature sizes than q.
    #[error("{tensor} has shape {got:?}: {allowed}")]
    Mismatch {
        /// `k` or `v`.
        tensor: &'static str,
        /// The shape given.
        got: Vec<usize>,
        /// What is allowed, in words.
        allowed: String,
    },
    /// A K/V batch that is neither 1 nor the queries'.
    #[error(
        "k and v have a packed batch of {got}: it must be {batch}, like that of the queries, or 1"
    )]
    KvBatch {
        /// Product of the leading dimensions of k and v.
        got: usize,
        /// Product of the leading dimensions of q.
        batch: usize,
    },
    /// Mask or bias rows that do not divide the batch.
    #[error("{tensor} has {got} rows: their number must divide the packed batch of {batch}")]
    Rows {
        /// `mask` or `attn_bias`.
        tensor: &'static str,
        /// Rows given.
        got: usize,
        /// Product of the leading dimensions of q.
        batch: usize,
    },
    /// A mask of the wrong length.
    #[error("mask (or input_mask) has length {got}: {}", if *.autopad && *.window > 1 { format!("{} to {padded} is allowed", padded.saturating_sub(window - 1).max(1)) } else { format!("it must be {padded}") })]
    MaskLength {
        /// The length given.
        got: usize,
        /// The padded length of the queries.
        padded: usize,
        /// The window in effect, which masks are padded to.
        window: usize,
        /// Whether `autopad` was on.
        autopad: bool,
    },
    /// A bias of the wrong size on one axis.
    #[error("attn_bias has size {got} on its {axis} axis: it must be 1 or {expected}")]
    BiasSize {
        /// `query` or `slot`.
        axis: &'static str,
        /// The size given.
        got: usize,
        /// Window size, or slots a window.
        expected: usize,
    },
}
