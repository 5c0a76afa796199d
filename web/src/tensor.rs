//! A tensor where attention is computed: in this module's memory, or in a buffer of the device.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use js_sys::Uint8Array;
use local_attention::gpu::{self, TensorView, wgpu};
use local_attention::{HostTensor, RunError};
use wasm_bindgen::prelude::*;

use crate::arrays::bytes_of;
use crate::error::Failure;

/// The type of a tensor's elements.
#[wasm_bindgen]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    U8,
}

impl Dtype {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U8 => "u8",
        }
    }
}

/// A handle: its memory is freed with the last of them, those of calls that run included.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Tensor(pub(crate) Rc<Stored>);

pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) place: Place,
}

pub(crate) enum Place {
    /// f16 too: the CPU engine computes in f32, and what it gives is rounded.
    Numbers(RefCell<Vec<f32>>),
    Mask(Vec<bool>),
    /// Rows are padded to whole vec4s, as the kernels like them.
    Buffer(wgpu::Buffer),
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Place::Buffer(buffer) = &self.place {
            // What was submitted is still carried out.
            buffer.destroy();
        }
    }
}

impl Tensor {
    pub(crate) fn new(dtype: Dtype, shape: Vec<usize>, place: Place) -> Self {
        Self(Rc::new(Stored { dtype, shape, place }))
    }

    /// Numbers of the CPU engine, rounded to the type.
    pub(crate) fn of_numbers(dtype: Dtype, shape: Vec<usize>, mut data: Vec<f32>) -> Self {
        round(dtype, &mut data);
        Self::new(dtype, shape, Place::Numbers(RefCell::new(data)))
    }

    /// From an array's bytes, into this module's memory.
    pub(crate) fn upload(
        bytes: &Uint8Array,
        dtype: Dtype,
        shape: Vec<usize>,
    ) -> Result<Self, Failure> {
        let elements = bytes.length() as usize / dtype.bytes();
        let place = match dtype {
            Dtype::F32 => {
                let mut data = zeros("a tensor", elements)?;
                bytes.copy_to(bytemuck::cast_slice_mut(&mut data));
                Place::Numbers(RefCell::new(data))
            }
            Dtype::F16 => {
                let mut halves: Vec<u16> = zeros("a tensor", elements)?;
                bytes.copy_to(bytemuck::cast_slice_mut(&mut halves));
                let mut data = zeros("a tensor", elements)?;
                let halves: &[f16] = half::slice::HalfBitsSliceExt::reinterpret_cast(&halves[..]);
                halves.convert_to_f32_slice(&mut data);
                Place::Numbers(RefCell::new(data))
            }
            Dtype::U8 => {
                let mut mask: Vec<u8> = zeros("a mask", elements)?;
                bytes.copy_to(&mut mask);
                let mut lets = zeros("a mask", elements)?;
                lets.iter_mut().zip(mask).for_each(|(to, x)| *to = x != 0);
                Place::Mask(lets)
            }
        };
        Ok(Self::new(dtype, shape, place))
    }

    /// The bytes of an array, from this module's memory.
    pub(crate) fn bytes(&self) -> Result<Uint8Array, Failure> {
        match (&self.0.place, self.0.dtype) {
            (Place::Mask(mask), _) => bytes_of(mask),
            (Place::Numbers(data), Dtype::F16) => {
                let data = data.borrow();
                let mut halves: Vec<u16> = zeros("a tensor", data.len())?;
                for (to, &x) in halves.iter_mut().zip(data.iter()) {
                    *to = f16::from_f32(x).to_bits();
                }
                bytes_of(&halves)
            }
            (Place::Numbers(data), _) => bytes_of(&data.borrow()[..]),
            (Place::Buffer(_), _) => Err(Failure::backend("a tensor", "lies on the GPU")),
        }
    }

    /// The numbers of a tensor in this module's memory.
    pub(crate) fn numbers(&self, name: &'static str) -> Result<Ref<'_, Vec<f32>>, Failure> {
        match &self.0.place {
            Place::Numbers(data) => Ok(data.borrow()),
            _ => Err(Failure::backend(name, "is no tensor of numbers of this backend")),
        }
    }

    /// The same as a mask.
    pub(crate) fn mask(&self) -> Result<HostTensor<'_, bool>, Failure> {
        match &self.0.place {
            Place::Mask(mask) => Ok(HostTensor::new(&mask[..], self.0.shape.clone())?),
            _ => Err(Failure::backend("mask", "is no mask of this backend")),
        }
    }

    /// As the GPU engine takes it.
    pub(crate) fn view(&self, name: &'static str) -> Result<TensorView<'_>, Failure> {
        let Place::Buffer(buffer) = &self.0.place else {
            return Err(Failure::backend(name, "does not lie on the GPU"));
        };
        let dtype = match self.0.dtype {
            Dtype::F32 => gpu::Dtype::F32,
            Dtype::F16 => gpu::Dtype::F16,
            Dtype::U8 => gpu::Dtype::U8,
        };
        let (shape, mut step) = (&self.0.shape, self.0.row() as i64);
        let mut strides = vec![1; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            strides[i] = step;
            step = step.saturating_mul(shape[i] as i64);
        }
        let view = TensorView::contiguous(buffer, dtype, shape.clone());
        Ok(view.with_strides_elems(strides))
    }
}

impl Stored {
    /// Elements of a row in memory of the device.
    pub(crate) fn row(&self) -> usize {
        row_elements(self.dtype, &self.shape)
    }
}

/// Elements of a row in memory of the device: of numbers, whole vec4s.
pub(crate) fn row_elements(dtype: Dtype, shape: &[usize]) -> usize {
    match (dtype, shape) {
        (Dtype::F32 | Dtype::F16, [_, .., features]) => features.next_multiple_of(4),
        (_, [.., features]) => *features,
        (_, []) => 1,
    }
}

/// Rounds to what a type holds.
pub(crate) fn round(dtype: Dtype, data: &mut [f32]) {
    if dtype == Dtype::F16 {
        data.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
    }
}

/// Memory that may not be there.
pub(crate) fn zeros<T: Clone + Default>(what: &'static str, len: usize) -> Result<Vec<T>, Failure> {
    let mut data = Vec::new();
    let fail = |_| RunError::OutOfMemory { what, elements: len as u128 };
    data.try_reserve_exact(len).map_err(fail)?;
    data.resize(len, T::default());
    Ok(data)
}
