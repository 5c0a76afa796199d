//! Host tensors: a slice with a shape and strides.

use std::borrow::Cow;

use crate::ShapeError;

/// A tensor in host memory: data, shape and strides, checked to fit each other.
///
/// The data is borrowed where possible. A stride of 0 repeats one element along a dimension, which
/// is how one K/V serves several heads.
///
/// ```
/// use local_attention::HostTensor;
///
/// let data = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let t = HostTensor::new(&data, [2, 3])?;
/// assert_eq!(t.shape(), [2, 3]);
/// // The transpose, without a copy: shape [3, 2].
/// let transposed = HostTensor::strided(&data, 0, [3, 2], [1, 3])?;
/// assert!(transposed.iter().eq([1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
/// # Ok::<(), local_attention::ShapeError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor<'a, T: Clone> {
    data: Cow<'a, [T]>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

impl<'a, T: Clone> HostTensor<'a, T> {
    /// A contiguous row-major tensor.
    ///
    /// # Errors
    /// [`ShapeError::DataLength`] unless `data` holds exactly the elements of `shape`.
    pub fn new(
        data: impl Into<Cow<'a, [T]>>,
        shape: impl Into<Vec<usize>>,
    ) -> Result<Self, ShapeError> {
        let (data, shape) = (data.into(), shape.into());
        let expected = elements(&shape);
        if expected != Some(data.len()) {
            return Err(ShapeError::DataLength { got: data.len(), shape, expected });
        }
        let strides = contiguous_strides(&shape);
        Ok(Self { data, offset: 0, shape, strides })
    }

    /// A tensor whose element `[i, j, ..]` is `data[offset + i * strides[0] + j * strides[1] ..]`;
    /// strides are in elements and may be 0 or negative.
    ///
    /// # Errors
    /// [`ShapeError::Strides`] where an element would lie outside the data.
    pub fn strided(
        data: impl Into<Cow<'a, [T]>>,
        offset: usize,
        shape: impl Into<Vec<usize>>,
        strides: impl Into<Vec<isize>>,
    ) -> Result<Self, ShapeError> {
        let (data, shape, strides) = (data.into(), shape.into(), strides.into());
        if !fits(data.len(), offset, &shape, &strides) {
            return Err(ShapeError::Strides { shape, strides, offset, len: data.len() });
        }
        if shape.contains(&0) {
            // No element is ever read: strides that could lead anywhere lead nowhere.
            return Ok(Self { data, offset: 0, strides: vec![0; shape.len()], shape });
        }
        Ok(Self { data, offset, shape, strides })
    }

    /// A tensor of so many rows that are all `data`, of this shape.
    #[cfg(all(feature = "gpu", not(target_arch = "wasm32")))]
    pub(crate) fn repeated(data: Vec<T>, rows: usize, row: &[usize]) -> Self {
        debug_assert_eq!(Some(data.len()), elements(row));
        let shape = [&[rows], row].concat();
        let mut strides = contiguous_strides(&shape);
        strides[0] = 0;
        Self { data: Cow::Owned(data), offset: 0, shape, strides }
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The distance between neighbours in each dimension, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Whether the data is the caller's own, not a copy.
    pub fn borrows(&self) -> bool {
        matches!(self.data, Cow::Borrowed(_))
    }

    /// The elements in row-major order, copied one by one. With strides of 0 there may be more of
    /// them than memory holds: collect what you know.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        let count = if self.is_empty() { 0 } else { self.shape.iter().product() };
        (0..count).map(|i| self.data[self.offset_of_packed(i, 0)].clone())
    }

    /// The same tensor with every element converted; shape and strides stay.
    pub fn map<U: Clone + 'static>(&self, convert: impl Fn(T) -> U) -> HostTensor<'static, U> {
        HostTensor {
            data: self.data.iter().cloned().map(convert).collect(),
            offset: self.offset,
            shape: self.shape.clone(),
            strides: self.strides.clone(),
        }
    }

    /// One packed row: all but the last `trailing` dimensions resolved.
    pub(crate) fn packed_row(&self, row: usize, trailing: usize) -> RowView<'_, T> {
        RowView {
            data: &self.data,
            offset: self.offset_of_packed(row, trailing),
            strides: &self.strides[self.strides.len() - trailing..],
        }
    }

    /// The offset of packed index `index`, over all but the last `trailing` dimensions.
    fn offset_of_packed(&self, mut index: usize, trailing: usize) -> usize {
        let leading = self.shape.len() - trailing;
        let mut offset = self.offset as isize;
        for (&size, &stride) in self.shape[..leading].iter().zip(&self.strides).rev() {
            offset += (index % size) as isize * stride;
            index /= size;
        }
        offset as usize
    }
}

/// One packed row of a tensor: the dimensions that are left have these strides.
#[derive(Clone, Copy)]
pub(crate) struct RowView<'a, T> {
    data: &'a [T],
    offset: usize,
    strides: &'a [isize],
}

impl<'a, T: Clone> RowView<'a, T> {
    /// Element `[i, j]`.
    pub(crate) fn at(&self, i: usize, j: usize) -> T {
        let offset =
            self.offset as isize + i as isize * self.strides[0] + j as isize * self.strides[1];
        self.data[offset as usize].clone()
    }

    /// The distance of neighbours in the last of two dimensions; 0 where they are one element.
    pub(crate) fn column_stride(&self) -> isize {
        self.strides[1]
    }

    /// Element `[i]` of a view with one dimension.
    pub(crate) fn at1(&self, i: usize) -> T {
        self.data[(self.offset as isize + i as isize * self.strides[0]) as usize].clone()
    }

    /// Elements from one row to the next, and then from one element to the next.
    #[cfg(feature = "gpu")]
    pub(crate) fn strides(&self) -> &[isize] {
        self.strides
    }

    /// All elements from row 0 on, and how many there are from one row to the next, where rows are slices that do
    /// not run backwards.
    pub(crate) fn rows(&self) -> Option<(&'a [T], usize)> {
        let row = usize::try_from(self.strides[0]).ok()?;
        (self.strides[1] == 1).then(|| (&self.data[self.offset..], row))
    }

    /// Row `i`, `len` elements, as a slice where its elements are neighbours.
    pub(crate) fn slice(&self, i: usize, len: usize) -> Option<&'a [T]> {
        let start = (self.offset as isize + i as isize * self.strides[0]) as usize;
        (self.strides[1] == 1 || len == 1).then(|| &self.data[start..start + len])
    }
}

/// The number of elements, `None` where it does not fit.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))
}

fn contiguous_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut stride = 1_isize;
    for (s, &size) in strides.iter_mut().zip(shape).rev() {
        *s = stride;
        // Only a tensor without elements can overflow here; its strides are never used.
        stride = stride.wrapping_mul(size as isize);
    }
    strides
}

fn fits(len: usize, offset: usize, shape: &[usize], strides: &[isize]) -> bool {
    if shape.len() != strides.len() {
        return false;
    }
    if shape.contains(&0) {
        return true;
    }
    let (mut low, mut high) = (offset as i128, offset as i128);
    for (&size, &stride) in shape.iter().zip(strides) {
        // |stride| < 2^63 and size < 2^64, so the product fits; sums are bounded by the rank.
        let reach = (size as i128 - 1).saturating_mul(stride as i128);
        low = low.saturating_add(reach.min(0));
        high = high.saturating_add(reach.max(0));
    }
    low >= 0 && high < len as i128 && elements(shape).is_some()
}

#[cfg(feature = "ndarray")]
impl<'a, T: Clone, D: ndarray::Dimension> From<ndarray::ArrayView<'a, T, D>> for HostTensor<'a, T> {
    /// Borrows the view where its elements fill one piece of memory, in any order of dimensions and however often
    /// dimensions repeat them; copies it otherwise.
    fn from(view: ndarray::ArrayView<'a, T, D>) -> Self {
        let view = view.into_dyn();
        let shape = view.shape().to_vec();
        let strides = view.strides().to_vec();
        // Each element once: of what is repeated, the first.
        let mut once = view.clone();
        for (axis, &stride) in strides.iter().enumerate() {
            if stride == 0 && shape[axis] > 1 {
                once.collapse_axis(ndarray::Axis(axis), 0);
            }
        }
        // Row-major from the lowest address on: only non-negative strides index it from 0.
        if strides.iter().all(|&s| s >= 0)
            && let Some(data) = once.to_slice_memory_order()
        {
            return Self { data: Cow::Borrowed(data), offset: 0, shape, strides };
        }
        let data: Vec<T> = view.iter().cloned().collect();
        Self { strides: contiguous_strides(&shape), data: Cow::Owned(data), offset: 0, shape }
    }
}
