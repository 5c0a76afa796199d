//! What a call takes, set one by one.

use local_attention::gpu::Storage;
use local_attention::{AttentionShape, Call, Dropout, HostInputs, HostTensor, Problem, RunError};
use wasm_bindgen::prelude::*;

use crate::error::Failure;
use crate::tensor::{Dtype, Tensor};

/// The tensors and options of one call.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Request {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) mask: Option<Tensor>,
    pub(crate) attn_bias: Option<Tensor>,
    /// Of a forward pass, where results go; of a backward pass, what the forward pass gave.
    pub(crate) out: Option<Tensor>,
    pub(crate) lse: Option<Tensor>,
    pub(crate) dout: Option<Tensor>,
    pub(crate) with_lse: bool,
    pub(crate) bias_gradient: bool,
    pub(crate) call: Call,
    window: Option<i64>,
}

#[wasm_bindgen]
impl Request {
    #[wasm_bindgen(constructor)]
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Self {
        Self {
            q: q.clone(),
            k: k.clone(),
            v: v.clone(),
            mask: None,
            attn_bias: None,
            out: None,
            lse: None,
            dout: None,
            with_lse: false,
            bias_gradient: true,
            call: Call::default(),
            window: None,
        }
    }

    /// Adds a tensor. False where there is none of that name.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor) -> bool {
        let place = match name {
            "mask" => &mut self.mask,
            "attnBias" => &mut self.attn_bias,
            "out" => &mut self.out,
            "lse" => &mut self.lse,
            "dout" => &mut self.dout,
            _ => return false,
        };
        *place = Some(tensor.clone());
        true
    }

    /// Asks for `lse`.
    pub fn want_lse(&mut self) {
        self.with_lse = true;
    }

    /// Leaves out the gradient of the bias.
    pub fn without_bias_gradient(&mut self) {
        self.bias_gradient = false;
    }

    /// Overrides the window.
    pub fn window_size(&mut self, window: f64) {
        self.window = Some(window as i64);
    }

    /// Drops weights.
    pub fn dropout(&mut self, seed: u64, offset: u32) {
        self.call = Call::with_dropout(Dropout { seed, offset });
    }
}

impl Request {
    /// The shape of the call. What is no shape, and tensors of different types, are errors.
    pub(crate) fn shape(&self) -> Result<AttentionShape, Failure> {
        let dtype = self.q.0.dtype;
        if dtype == Dtype::U8 {
            return Err(Failure::dtype("q", "u8", "f32 or f16"));
        }
        let all = [
            ("k", Some(&self.k)),
            ("v", Some(&self.v)),
            ("attn_bias", self.attn_bias.as_ref()),
            ("out", self.out.as_ref()),
            ("dout", self.dout.as_ref()),
        ];
        for (name, tensor) in all {
            if let Some(tensor) = tensor.filter(|t| t.0.dtype != dtype) {
                let needed = format!("{}, like q", dtype.name());
                return Err(Failure::dtype(name, tensor.0.dtype.name(), &needed));
            }
        }
        if let Some(lse) = self.lse.as_ref().filter(|t| t.0.dtype != Dtype::F32) {
            return Err(Failure::dtype("lse", lse.0.dtype.name(), "f32"));
        }
        if let Some(mask) = self.mask.as_ref().filter(|t| t.0.dtype != Dtype::U8) {
            return Err(Failure::dtype("mask", mask.0.dtype.name(), "u8"));
        }
        // The library takes shapes from tensors: from ones that repeat a single element.
        let (number, bit) = ([0.0_f32], [false]);
        let of = |t: &Tensor| {
            let shape = t.0.shape.clone();
            HostTensor::strided(&number[..], 0, shape, vec![0; t.0.shape.len()])
        };
        let mut inputs = HostInputs::new(of(&self.q)?, of(&self.k)?, of(&self.v)?);
        if let Some(mask) = &self.mask {
            let (shape, strides) = (mask.0.shape.clone(), vec![0; mask.0.shape.len()]);
            inputs = inputs.with_mask(HostTensor::strided(&bit[..], 0, shape, strides)?);
        }
        if let Some(bias) = &self.attn_bias {
            inputs = inputs.with_attn_bias(of(bias)?);
        }
        let mut shape = AttentionShape::from_inputs(&inputs)?;
        (shape.window, shape.lse) = (self.window, self.with_lse);
        Ok(shape)
    }

    /// An error unless results, or what a backward pass takes, have the problem's shapes.
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), Failure> {
        for (name, tensor, expected) in [
            ("out", &self.out, problem.out_shape()),
            ("dout", &self.dout, problem.out_shape()),
            ("lse", &self.lse, problem.lse_shape()),
        ] {
            if let Some(tensor) = tensor.as_ref().filter(|t| t.0.shape != expected) {
                let got = tensor.0.shape.clone();
                return Err(RunError::TensorShape { tensor: name, got, expected }.into());
            }
        }
        Ok(())
    }

    /// How its numbers are stored.
    pub(crate) fn storage(&self) -> Storage {
        if self.q.0.dtype == Dtype::F16 { Storage::F16 } else { Storage::F32 }
    }
}
