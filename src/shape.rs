//! The shapes of one call.

mod check;

use std::ops::Range;

pub(crate) use check::saturating_product;

use crate::{HostInputs, ShapeError};

/// The largest position, length and number of slots: every engine counts positions in 32 bits.
/// Longer sequences are a [`ShapeError::TooLarge`](crate::ShapeError::TooLarge).
pub const MAX_POSITIONS: usize = i32::MAX as usize;

/// Shape of a key mask: `[rows, len]`.
///
/// ```
/// use local_attention::AttentionShape;
///
/// // [batch 2, heads 8]: one mask a sequence serves its 8 heads.
/// let shape = AttentionShape::new([2, 8], 1024, 64).with_mask(2, 1024);
/// assert_eq!(shape.mask.map(|m| m.rows), Some(2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaskShape {
    /// Rows; must divide the packed batch. Packed batch row `b` of `B` reads row `b / (B / rows)`.
    pub rows: usize,
    /// Keys covered. With autopad any length that pads to the sequence's; keys past it are masked.
    pub len: usize,
}

/// Shape of a bias: `[rows, queries, slots]`.
///
/// ```
/// use local_attention::AttentionShape;
///
/// // [batch 2, heads 8], window 128, looking one window back: a bias for each head, of every
/// // query of a window on every slot it gathers.
/// let shape = AttentionShape::new([2, 8], 1024, 64).with_bias(8, 128, 256);
/// assert_eq!(shape.bias.map(|b| b.slots), Some(256));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BiasShape {
    /// Rows; must divide the packed batch. Packed batch row `b` reads row `b % rows`.
    pub rows: usize,
    /// 1, or the window: a query reads row `query % window`.
    pub queries: usize,
    /// 1, or the slots of a window.
    pub slots: usize,
}

/// The shapes of a call: everything but the numbers.
///
/// ```
/// use local_attention::AttentionShape;
///
/// // q, k, v: [batch 2, heads 8, n 1024, d 64], k and v shared by all of them.
/// let shape = AttentionShape::new([2, 8], 1024, 64).with_kv_leading([1, 1]);
/// assert_eq!(shape.key_len, 1024);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionShape {
    /// Leading dimensions of q and of the output, packed into one batch `B` (their product).
    pub leading: Vec<usize>,
    /// Leading dimensions of k and v; their product is `B` or 1.
    pub kv_leading: Vec<usize>,
    /// Length of the whole query axis: it decides windows, divisibility and padding.
    pub seq_len: usize,
    /// The queries to compute, a part of `0..seq_len`; q holds only these.
    pub query: Range<usize>,
    /// Length of k and v.
    pub key_len: usize,
    /// Feature size of q and k.
    pub head_dim: usize,
    /// Feature size of v and of the output.
    pub value_dim: usize,
    /// The key mask, if there is one.
    pub mask: Option<MaskShape>,
    /// The bias, if there is one.
    pub bias: Option<BiasShape>,
    /// The call's `window_size`, which overrides the constructor's; needs `use_xpos`.
    pub window: Option<i64>,
    /// Whether `lse` is wanted.
    pub lse: bool,
}

impl AttentionShape {
    /// q, k and v all of shape `[leading.., seq_len, head_dim]`, all queries, nothing else.
    pub fn new(leading: impl Into<Vec<usize>>, seq_len: usize, head_dim: usize) -> Self {
        let leading = leading.into();
        Self {
            kv_leading: leading.clone(),
            leading,
            seq_len,
            query: 0..seq_len,
            key_len: seq_len,
            head_dim,
            value_dim: head_dim,
            mask: None,
            bias: None,
            window: None,
            lse: false,
        }
    }

    /// The shape of these tensors, q holding all queries.
    ///
    /// # Errors
    /// Where tensors have too few dimensions or k and v do not go together.
    pub fn from_inputs<T: Clone>(inputs: &HostInputs<'_, T>) -> Result<Self, ShapeError> {
        let split = |tensor, shape: &[usize]| match *shape {
            [ref leading @ .., n, d] => Ok((leading.to_vec(), n, d)),
            _ => Err(ShapeError::Rank {
                tensor,
                got: shape.to_vec(),
                allowed: "[.., length, features], at least 2 dimensions",
            }),
        };
        let (leading, seq_len, head_dim) = split("q", inputs.q.shape())?;
        let (kv_leading, key_len, key_dim) = split("k", inputs.k.shape())?;
        let (v_leading, v_len, value_dim) = split("v", inputs.v.shape())?;
        if key_dim != head_dim {
            return Err(ShapeError::Mismatch {
                tensor: "k",
                got: inputs.k.shape().to_vec(),
                allowed: format!("its last dimension must be q's, {head_dim}"),
            });
        }
        if v_leading != kv_leading || v_len != key_len {
            return Err(ShapeError::Mismatch {
                tensor: "v",
                got: inputs.v.shape().to_vec(),
                allowed: format!(
                    "all but its last dimension must be k's, {:?}",
                    &inputs.k.shape()[..inputs.k.shape().len() - 1]
                ),
            });
        }
        let mut shape = Self::new(leading, seq_len, head_dim)
            .with_kv_leading(kv_leading)
            .with_key_len(key_len)
            .with_value_dim(value_dim);
        if let Some(mask) = inputs.effective_mask() {
            shape.mask = Some(mask_shape(inputs.mask_name(), mask.shape())?);
        }
        if let Some(bias) = &inputs.attn_bias {
            shape.bias = Some(bias_shape("attn_bias", bias.shape())?);
        }
        Ok(shape)
    }

    /// Sets the leading dimensions of k and v.
    #[must_use]
    pub fn with_kv_leading(mut self, kv_leading: impl Into<Vec<usize>>) -> Self {
        self.kv_leading = kv_leading.into();
        self
    }

    /// Sets the queries to compute.
    #[must_use]
    pub fn with_query(mut self, query: Range<usize>) -> Self {
        self.query = query;
        self
    }

    /// Sets the length of k and v.
    #[must_use]
    pub fn with_key_len(mut self, key_len: usize) -> Self {
        self.key_len = key_len;
        self
    }

    /// Sets the feature size of v and of the output.
    #[must_use]
    pub fn with_value_dim(mut self, value_dim: usize) -> Self {
        self.value_dim = value_dim;
        self
    }

    /// Announces a mask of shape `[rows, len]`.
    #[must_use]
    pub fn with_mask(mut self, rows: usize, len: usize) -> Self {
        self.mask = Some(MaskShape { rows, len });
        self
    }

    /// Announces a bias of shape `[rows, queries, slots]`.
    #[must_use]
    pub fn with_bias(mut self, rows: usize, queries: usize, slots: usize) -> Self {
        self.bias = Some(BiasShape { rows, queries, slots });
        self
    }

    /// Overrides the window for this call; needs `use_xpos`.
    #[must_use]
    pub fn with_window(mut self, window: i64) -> Self {
        self.window = Some(window);
        self
    }

    /// Asks for `lse`.
    #[must_use]
    pub fn with_lse(mut self) -> Self {
        self.lse = true;
        self
    }
}

/// The shape of a mask tensor: `[rows, 1, .., len]`. One dimension is rejected even where the
/// reference happens to accept it, by taking the length for the batch.
pub(crate) fn mask_shape(tensor: &'static str, shape: &[usize]) -> Result<MaskShape, ShapeError> {
    match *shape {
        [rows, ref middle @ .., len] if middle.iter().all(|&d| d == 1) => {
            Ok(MaskShape { rows, len })
        }
        _ => Err(ShapeError::Rank {
            tensor,
            got: shape.to_vec(),
            allowed: "[rows, length], with nothing but 1 between them",
        }),
    }
}

pub(crate) fn bias_shape(tensor: &'static str, shape: &[usize]) -> Result<BiasShape, ShapeError> {
    match *shape {
        [rows, queries, slots] => Ok(BiasShape { rows, queries, slots }),
        _ => Err(ShapeError::Rank {
            tensor,
            got: shape.to_vec(),
            allowed: "[rows, 1 or window, 1 or slots], exactly 3 dimensions",
        }),
    }
}
