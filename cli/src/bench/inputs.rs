//! Tensors that are measured on.

use half::f16;
use local_attention::{HostInputs, HostTensor};

use super::shape::{BenchShape, BenchType, Pass, lets};
use crate::backend::Chosen;
use crate::error::BadInput;

/// Tensors of a call, in host memory, and where the CPU engine puts its result: a program that calls
/// it again and again has that memory already.
pub enum Tensors {
    F32(HostInputs<'static, f32>, Vec<f32>),
    F16(HostInputs<'static, f16>, Vec<f16>),
}

pub fn tensors(shape: &BenchShape, chosen: &Chosen) -> Result<Tensors, BadInput> {
    let mut state = 0x2545_F491_u32;
    let mut noise = |dims: &[usize]| {
        let mut data: Vec<f32> = room(dims)?;
        data.extend((0..dims.iter().product()).map(|_| {
            // xorshift32: cheap, and even enough for timing.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / 2_147_483_648.0 - 1.0
        }));
        Ok::<_, BadInput>(HostTensor::new(data, dims)?)
    };
    let dims = [shape.batch, shape.heads, shape.n, shape.head_dim];
    let mut inputs = HostInputs::new(noise(&dims)?, noise(&dims)?, noise(&dims)?);
    if shape.bias {
        let bias = noise(&[shape.heads, shape.window_size, shape.slots()])?;
        inputs = inputs.with_attn_bias(bias);
    }
    if shape.mask {
        let mut mask = room(&[shape.batch, shape.n])?;
        mask.extend((0..shape.batch * shape.n).map(|at| lets(at % shape.n)));
        inputs = inputs.with_mask(HostTensor::new(mask, [shape.batch, shape.n])?);
    }
    // The other engines make their own.
    let own = matches!(chosen, Chosen::Cpu) && shape.pass == Pass::Forward;
    let out = if own { &dims[..] } else { &[0] };
    Ok(match shape.dtype {
        BenchType::F32 => Tensors::F32(inputs, result(out)?),
        BenchType::F16 => Tensors::F16(inputs.map(f16::from_f32), result(out)?),
    })
}

pub fn result<T: Copy + Default>(dims: &[usize]) -> Result<Vec<T>, BadInput> {
    let mut data = room(dims)?;
    data.resize(dims.iter().product(), T::default());
    Ok(data)
}

/// An empty vector with room for a tensor of this shape.
fn room<T>(dims: &[usize]) -> Result<Vec<T>, BadInput> {
    let mut data = Vec::new();
    let elements = dims.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    match elements {
        Some(n) if data.try_reserve_exact(n).is_ok() => Ok(data),
        _ => Err(BadInput::Usage(format!("a tensor of shape {dims:?} does not fit into memory"))),
    }
}
