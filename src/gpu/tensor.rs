//! Tensors in the caller's buffers.

use super::Storage;

/// The type of a tensor's elements on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Bytes of a mask: 0 hides a key.
    U8,
    /// Words of a mask: 0 hides a key.
    U32,
}

impl Dtype {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U8 => "u8",
            Self::U32 => "u32",
        }
    }
}

impl From<Storage> for Dtype {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::F32,
            Storage::F16 => Self::F16,
        }
    }
}

/// A tensor in a buffer of the caller's: element `[i, j, ..]` lies `offset_bytes` and
/// `i * strides_elems[0] + j * strides_elems[1] + ..` elements into it.
///
/// ```
/// use local_attention::gpu::{Dtype, TensorView, wgpu};
///
/// /// `[b, n, h, d]` in memory, read as `[b, h, n, d]`.
/// fn heads_first(buffer: &wgpu::Buffer, [b, n, h, d]: [usize; 4]) -> TensorView<'_> {
///     let strides = [n * h * d, d, h * d, 1].map(|s| s as i64);
///     TensorView::contiguous(buffer, Dtype::F32, [b, h, n, d]).with_strides_elems(strides)
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorView<'a> {
    /// The buffer; its usages hold `STORAGE`.
    pub buffer: &'a wgpu::Buffer,
    /// Where the first element lies, a multiple of the element's size.
    pub offset_bytes: u64,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Size of each dimension.
    pub shape: Vec<usize>,
    /// Distance of neighbours in each dimension; 0 repeats one element.
    pub strides_elems: Vec<i64>,
}

impl<'a> TensorView<'a> {
    /// A row-major tensor from the start of a buffer on.
    pub fn contiguous(
        buffer: &'a wgpu::Buffer,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
    ) -> Self {
        let shape = shape.into();
        let strides_elems = row_major(&shape);
        Self { buffer, offset_bytes: 0, dtype, shape, strides_elems }
    }

    /// The same tensor further into its buffer.
    #[must_use]
    pub fn with_offset_bytes(mut self, offset_bytes: u64) -> Self {
        self.offset_bytes = offset_bytes;
        self
    }

    /// The same elements with other distances: `[b, n, h, d]` read as `[b, h, n, d]`, say.
    #[must_use]
    pub fn with_strides_elems(mut self, strides_elems: impl Into<Vec<i64>>) -> Self {
        self.strides_elems = strides_elems.into();
        self
    }
}

/// Strides of a row-major tensor.
pub(super) fn row_major(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![0; shape.len()];
    let mut stride = 1_i64;
    for (s, &size) in strides.iter_mut().zip(shape).rev() {
        *s = stride;
        stride = stride.saturating_mul(i64::try_from(size).unwrap_or(i64::MAX));
    }
    strides
}

/// The tensors of a forward pass.
///
/// ```
/// use local_attention::gpu::{Dtype, ForwardTensors, TensorView};
///
/// /// Shared queries and keys, and a mask of one byte a key.
/// fn with_mask<'a>(qk: TensorView<'a>, v: TensorView<'a>, out: TensorView<'a>) -> ForwardTensors<'a> {
///     let n = qk.shape[1];
///     let mask = TensorView::contiguous(v.buffer, Dtype::U8, [1, n]).with_offset_bytes(1 << 16);
///     ForwardTensors::new(qk.clone(), qk, v, out).with_mask(mask)
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ForwardTensors<'a> {
    /// `[.., query, d]`.
    pub q: TensorView<'a>,
    /// `[.., key_len, d]`.
    pub k: TensorView<'a>,
    /// `[.., key_len, dv]`.
    pub v: TensorView<'a>,
    /// `[.., query, dv]`; written.
    pub out: TensorView<'a>,
    /// `[rows, len]`, `u8` or `u32`.
    pub mask: Option<TensorView<'a>>,
    /// `[rows, 1 or W, 1 or J]`.
    pub attn_bias: Option<TensorView<'a>>,
    /// `[.., query]` in f32; written.
    pub lse: Option<TensorView<'a>>,
}

impl<'a> ForwardTensors<'a> {
    /// Queries, keys, values and the output.
    pub fn new(
        q: TensorView<'a>,
        k: TensorView<'a>,
        v: TensorView<'a>,
        out: TensorView<'a>,
    ) -> Self {
        Self { q, k, v, out, mask: None, attn_bias: None, lse: None }
    }

    /// Adds a key mask.
    #[must_use]
    pub fn with_mask(mut self, mask: TensorView<'a>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Adds a bias.
    #[must_use]
    pub fn with_attn_bias(mut self, attn_bias: TensorView<'a>) -> Self {
        self.attn_bias = Some(attn_bias);
        self
    }

    /// Asks for `lse`.
    #[must_use]
    pub fn with_lse(mut self, lse: TensorView<'a>) -> Self {
        self.lse = Some(lse);
        self
    }
}
