//! The element types of tensors and the arithmetic done on them.

use half::f16;
use half::slice::HalfFloatSliceExt;

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A type that logits, softmax and sums can be computed in: `f32` or `f64`.
///
/// ```
/// use local_attention::Scalar;
///
/// assert_eq!(f32::of(0.1).wide(), f64::from(0.1_f32));
/// ```
pub trait Scalar:
    sealed::Sealed
    + num_traits::Float
    + std::iter::Sum
    + std::ops::AddAssign
    + std::fmt::Debug
    + Default
    + Send
    + Sync
    + 'static
{
    /// Rounds a 64-bit number to this type.
    fn of(x: f64) -> Self;
    /// This number in 64 bits; exact.
    fn wide(self) -> f64;
}

impl Scalar for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Scalar for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

/// A type that tensors are stored in: `f16`, `f32` or `f64`.
///
/// ```
/// use local_attention::Element;
///
/// // f16 is computed in f32.
/// let x = half::f16::store(0.1_f32);
/// assert_eq!(x.load(), half::f16::from_f32(0.1).to_f32());
/// ```
pub trait Element:
    sealed::Sealed + Copy + Default + std::fmt::Debug + Send + Sync + 'static
{
    /// What is computed in, and what `lse` and attention weights are given in.
    type Accumulator: Scalar;
    /// The element in the accumulator's precision; exact.
    fn load(self) -> Self::Accumulator;
    /// The accumulator rounded to this type.
    fn store(x: Self::Accumulator) -> Self;
    /// The elements themselves, where they are f32.
    #[doc(hidden)]
    #[inline(always)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// The same, to be written.
    #[doc(hidden)]
    #[inline(always)]
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    /// Loads elements one by one; as many as both slices have.
    #[inline(always)]
    fn load_all(from: &[Self], to: &mut [Self::Accumulator]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load());
    }
}

impl Element for f16 {
    type Accumulator = f32;
    fn load(self) -> f32 {
        self.to_f32()
    }
    fn store(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn load_all(from: &[Self], to: &mut [f32]) {
        let len = from.len().min(to.len());
        // With the processor's own conversion where it has one.
        from[..len].convert_to_f32_slice(&mut to[..len]);
    }
}

impl Element for f32 {
    type Accumulator = f32;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn as_f32(from: &[Self]) -> Option<&[f32]> {
        Some(from)
    }
    #[inline(always)]
    fn as_f32_mut(from: &mut [Self]) -> Option<&mut [f32]> {
        Some(from)
    }
}

impl Element for f64 {
    type Accumulator = f64;
    fn load(self) -> f64 {
        self
    }
    fn store(x: f64) -> Self {
        x
    }
}

/// A bias below this counts as minus infinity, on every engine. GPU compilers that assume finite
/// arithmetic need a finite bound, and all engines must agree on it: it is the f32 nearest -1e30.
pub const BIAS_FLOOR: f64 = -1e30_f32 as f64;

/// A bias as every engine reads it: minus infinity below [`BIAS_FLOOR`].
#[inline(always)]
pub(crate) fn clamp_bias<T: Scalar>(bias: T) -> T {
    if bias < T::of(BIAS_FLOOR) { T::neg_infinity() } else { bias }
}
