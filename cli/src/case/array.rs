//! A tensor of a case file, in the type it is stored in.

use std::borrow::Cow;

use half::f16;
use safetensors::tensor::TensorView;

/// Element types of q, k, v and what is computed from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 16-bit IEEE.
    F16,
    /// 32-bit IEEE.
    F32,
    /// 64-bit IEEE.
    F64,
}

impl Dtype {
    /// The name safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }
}

/// A row-major tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Data,
}

/// Elements, as stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// 16-bit IEEE.
    F16(Vec<f16>),
    /// 32-bit IEEE.
    F32(Vec<f32>),
    /// 64-bit IEEE.
    F64(Vec<f64>),
}

/// What an engine may want elements as.
pub trait Want: local_attention::Element {
    /// The elements in this type: borrowed where they are stored so, else converted.
    fn of(data: &Data) -> Cow<'_, [Self]>;
}

impl Want for f16 {
    fn of(data: &Data) -> Cow<'_, [f16]> {
        match data {
            Data::F16(x) => Cow::Borrowed(x),
            Data::F32(x) => x.iter().map(|&x| f16::from_f32(x)).collect(),
            Data::F64(x) => x.iter().map(|&x| round_once(x)).collect(),
        }
    }
}

/// f64 to f16 in one rounding. By way of f32 it would be two, so f32 is rounded to odd: what was cut
/// off shows in its last bit, and the second rounding sees it.
fn round_once(x: f64) -> f16 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || !near.is_finite() || near == 0.0 {
        return f16::from_f32(near);
    }
    let towards_zero = near.to_bits() - u32::from(back.abs() > x.abs());
    f16::from_f32(f32::from_bits(towards_zero | 1))
}

#[cfg(test)]
#[test]
fn f16_is_rounded_once() {
    let half_way = 1.0 + 2_f64.powi(-11);
    assert_eq!(round_once(half_way), f16::from_f32(1.0));
    assert_eq!(round_once(half_way + 2_f64.powi(-40)).to_f64(), 1.0 + 2_f64.powi(-10));
    assert_eq!(round_once(half_way - 2_f64.powi(-40)).to_f64(), 1.0);
    assert_eq!(round_once(-half_way - 2_f64.powi(-40)).to_f64(), -1.0 - 2_f64.powi(-10));
    assert_eq!(round_once(-0.0).to_bits(), f16::from_f32(-0.0).to_bits());
    assert!(round_once(f64::NAN).is_nan() && round_once(1e300).is_infinite());
}

impl Want for f32 {
    fn of(data: &Data) -> Cow<'_, [f32]> {
        match data {
            Data::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Data::F32(x) => Cow::Borrowed(x),
            Data::F64(x) => x.iter().map(|&x| x as f32).collect(),
        }
    }
}

impl Want for f64 {
    fn of(data: &Data) -> Cow<'_, [f64]> {
        match data {
            Data::F16(x) => x.iter().map(|x| x.to_f64()).collect(),
            Data::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Data::F64(x) => Cow::Borrowed(x),
        }
    }
}

impl Array {
    /// A tensor of a file; `None` where its type is none of [`Dtype`].
    pub(super) fn read(view: &TensorView<'_>) -> Option<Self> {
        use safetensors::Dtype as D;
        let bytes = view.data();
        // Bytes in a file need not be aligned: convert each element.
        let data = match view.dtype() {
            D::F16 => Data::F16(each(bytes, f16::from_le_bytes)),
            D::F32 => Data::F32(each(bytes, f32::from_le_bytes)),
            D::F64 => Data::F64(each(bytes, f64::from_le_bytes)),
            _ => return None,
        };
        Some(Self { shape: view.shape().to_vec(), data })
    }

    /// The type it is stored in.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            Data::F16(_) => Dtype::F16,
            Data::F32(_) => Dtype::F32,
            Data::F64(_) => Dtype::F64,
        }
    }

    /// The same numbers in another type, each rounded once.
    pub fn cast(self, dtype: Dtype) -> Self {
        if self.dtype() == dtype {
            return self;
        }
        let data = match dtype {
            Dtype::F16 => Data::F16(f16::of(&self.data).into_owned()),
            Dtype::F32 => Data::F32(f32::of(&self.data).into_owned()),
            Dtype::F64 => Data::F64(f64::of(&self.data).into_owned()),
        };
        Self { shape: self.shape, data }
    }

    /// Its bytes as a file holds them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.data {
            Data::F16(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F64(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

fn each<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| convert(b)).collect()
}
