//! Tensors in the caller's buffers.

use std::ops::Range;

use super::Storage;
use super::error::{BindError, PlanError};
use super::params::View;

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
        let mut strides_elems = vec![0; shape.len()];
        let mut stride = 1_i64;
        for (s, &size) in strides_elems.iter_mut().zip(&shape).rev() {
            *s = stride;
            stride = stride.saturating_mul(i64::try_from(size).unwrap_or(i64::MAX));
        }
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

/// The tensors of a forward pass.
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

/// A tensor as kernels address it: at most four leading dimensions.
#[derive(Debug, Clone)]
pub(super) struct Laid<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    /// In elements from the start of the buffer: of packed row 0, position 0 of the *sequence*.
    pub(super) first: i64,
    pub(super) leading: [i64; 4],
    pub(super) position: i64,
    pub(super) feature: i64,
    pub(super) element_bytes: u64,
}

impl Laid<'_> {
    /// The bytes of the buffer that these rows, positions and features take, from a multiple of
    /// the device's alignment on; and where elements lie in them.
    pub(super) fn bind(
        &self,
        dims: [u32; 4],
        rows: Range<usize>,
        positions: Range<usize>,
        features: usize,
        alignment: u64,
    ) -> Result<(Range<u64>, View), PlanError> {
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for row in rows {
            let at = self.first + self.leading_offset(dims, row);
            let reach = |n: usize, stride: i64| (n.max(1) as i64 - 1) * stride;
            let start = at + positions.start as i64 * self.position;
            let ends = [reach(positions.len(), self.position), reach(features, self.feature)];
            low = low.min(start + ends.iter().filter(|e| **e < 0).sum::<i64>());
            high = high.max(start + ends.iter().filter(|e| **e > 0).sum::<i64>());
        }
        let bytes = self.element_bytes;
        let start = low.max(0) as u64 * bytes / alignment * alignment;
        let end = ((high + 1).max(0) as u64 * bytes).next_multiple_of(16);
        // Bindings are whole words.
        let end = end.min(self.buffer.size() / 4 * 4);
        // Addresses are computed modulo 2^32: what is folded in may lie before the binding.
        let wrap = |x: i64| x as u32;
        let view = View {
            offset: wrap(self.first - (start / bytes) as i64),
            position: wrap(self.position),
            feature: wrap(self.feature),
            unused: 0,
            leading: self.leading.map(wrap),
        };
        Ok((start..end, view))
    }

    fn leading_offset(&self, dims: [u32; 4], row: usize) -> i64 {
        let mut rest = row;
        let mut offset = 0;
        for (&size, &stride) in dims.iter().zip(&self.leading).rev() {
            let size = size.max(1) as usize;
            offset += (rest % size) as i64 * stride;
            rest /= size;
        }
        offset
    }
}

/// Leading dimensions of several tensors merged into at most four: `sizes` with the strides of each.
pub(super) fn merge_leading(
    sizes: &[usize],
    strides: &[&[i64]],
) -> Result<([u32; 4], Vec<[i64; 4]>), BindError> {
    // From the last on: a dimension joins the next one where that continues it in every tensor.
    let mut merged: Vec<(usize, Vec<i64>)> = Vec::new();
    for (i, &size) in sizes.iter().enumerate().rev().filter(|(_, s)| **s != 1) {
        let own: Vec<i64> = strides.iter().map(|s| s[i]).collect();
        match merged.last_mut() {
            Some((inner, inner_strides))
                if own.iter().zip(&*inner_strides).all(|(a, b)| *a == b * *inner as i64) =>
            {
                *inner *= size;
            }
            _ => merged.push((size, own)),
        }
    }
    if merged.len() > 4 {
        return Err(BindError::Rank { got: merged.len() });
    }
    let mut dims = [1; 4];
    let mut all = vec![[0; 4]; strides.len()];
    for (at, (size, own)) in (0..4).rev().zip(merged) {
        dims[at] = size as u32;
        all.iter_mut().zip(own).for_each(|(all, own)| all[at] = own);
    }
    Ok((dims, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_dimensions_merge_where_all_tensors_let_them() {
        // Row-major everywhere: one dimension.
        let (dims, strides) = merge_leading(&[2, 3, 4], &[&[60, 20, 5], &[0, 0, 0]]).unwrap();
        assert_eq!((dims, strides), ([1, 1, 1, 24], vec![[0, 0, 0, 5], [0; 4]]));
        // [b, n, h, d] read as [b, h, n, d] beside a row-major one.
        let (dims, strides) = merge_leading(&[2, 3], &[&[300, 10], &[30, 10]]).unwrap();
        assert_eq!((dims, strides), ([1, 1, 2, 3], vec![[0, 0, 300, 10], [0, 0, 30, 10]]));
        assert_eq!(merge_leading(&[], &[&[]]).unwrap().0, [1; 4]);
        assert_eq!(merge_leading(&[1, 5, 1], &[&[9, 7, 3]]).unwrap().1, [[0, 0, 0, 7]]);
        let error = merge_leading(&[2; 5], &[&[1, 10, 2, 30, 5]]).unwrap_err();
        assert_eq!(error, BindError::Rank { got: 5 });
    }
}
