//! Calls on the CPU engine: on the thread that this module runs in.

use std::ops::Range;
use std::rc::Rc;

use local_attention::cpu::Cpu;
use local_attention::gpu::BindError;
use local_attention::{
    BackwardInputs, Engine, Gradient, HostInputs, HostTensor, Problem, RunError, Weights,
};

use crate::error::Failure;
use crate::request::Request;
use crate::tensor::{Dtype, Place, Tensor, round};

/// One thread: the caller's.
pub(crate) fn engine() -> Result<Cpu, Failure> {
    Ok(Cpu::with_threads(1)?)
}

/// Runs something on the tensors of a call.
fn with_inputs<R>(
    request: &Request,
    run: impl FnOnce(&HostInputs<'_, f32>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let (q, k, v) = (request.q.numbers("q")?, request.k.numbers("k")?, request.v.numbers("v")?);
    let bias = request.attn_bias.as_ref().map(|b| b.numbers("attn_bias")).transpose()?;
    let mut inputs = HostInputs::new(
        HostTensor::new(&q[..], request.q.0.shape.clone())?,
        HostTensor::new(&k[..], request.k.0.shape.clone())?,
        HostTensor::new(&v[..], request.v.0.shape.clone())?,
    );
    if let Some(mask) = &request.mask {
        inputs = inputs.with_mask(mask.mask()?);
    }
    if let Some((tensor, data)) = request.attn_bias.as_ref().zip(bias.as_ref()) {
        inputs = inputs.with_attn_bias(HostTensor::new(&data[..], tensor.0.shape.clone())?);
    }
    run(&inputs)
}

/// The output: in a tensor of the caller's, or in a new one.
fn output(
    given: Option<&Tensor>,
    dtype: Dtype,
    shape: Vec<usize>,
    mut data: Vec<f32>,
) -> Result<Tensor, Failure> {
    let Some(tensor) = given else { return Ok(Tensor::of_numbers(dtype, shape, data)) };
    let Place::Numbers(place) = &tensor.0.place else {
        return Err(Failure::backend("out", "is no tensor of numbers of this backend"));
    };
    round(dtype, &mut data);
    place.replace(data);
    Ok(tensor.clone())
}

/// A forward pass: `out`, and `lse` where it is wanted.
pub(crate) fn forward(
    problem: &Problem,
    request: &Request,
) -> Result<(Tensor, Option<Tensor>), Failure> {
    let all = with_inputs(request, |inputs| {
        // The GPU could not: one backend takes what the other does.
        let read =
            [Some(&request.q), Some(&request.k), Some(&request.v), request.attn_bias.as_ref()];
        let names = ["q", "k", "v", "attn_bias"];
        for (input, read) in names.into_iter().zip(read) {
            if let Some((out, read)) = request.out.as_ref().zip(read)
                && Rc::ptr_eq(&out.0, &read.0)
            {
                return Err(BindError::Overlap { output: "out", input }.into());
            }
        }
        // Not `forward_into`: it is generic, and would be compiled with this crate, for size.
        Ok(engine()?.forward(problem, inputs, &request.call)?)
    })?;
    let out = output(request.out.as_ref(), request.q.0.dtype, problem.out_shape(), all.out)?;
    let lse = all.lse.map(|lse| Tensor::of_numbers(Dtype::F32, problem.lse_shape(), lse));
    Ok((out, lse))
}

/// A backward pass: `dq`, `dk`, `dv` and, where it is wanted, `dattn_bias`.
pub(crate) fn backward(problem: &Problem, request: &Request) -> Result<Vec<Tensor>, Failure> {
    let missing = |tensor| RunError::MissingTensor { tensor };
    let out = request.out.as_ref().ok_or(missing("out"))?;
    let lse = request.lse.as_ref().ok_or(missing("lse"))?;
    let dout = request.dout.as_ref().ok_or(missing("dout"))?;
    let dtype = request.q.0.dtype;
    with_inputs(request, |inputs| {
        let (o, l, d) = (out.numbers("out")?, lse.numbers("lse")?, dout.numbers("dout")?);
        let saved = BackwardInputs::from_tensors(
            HostTensor::new(&o[..], out.0.shape.clone())?,
            HostTensor::new(&l[..], lse.0.shape.clone())?,
            HostTensor::new(&d[..], dout.0.shape.clone())?,
        )
        .with_bias_gradient(request.bias_gradient);
        let all = engine()?.backward(problem, inputs, &saved, &request.call)?;
        let tensor = |g: Gradient<f32>| Tensor::of_numbers(dtype, g.shape, g.data);
        Ok([Some(all.dq), Some(all.dk), Some(all.dv), all.dattn_bias]
            .into_iter()
            .flatten()
            .map(tensor)
            .collect())
    })
}

/// The attention weights of some queries.
pub(crate) fn weights(
    problem: &Problem,
    request: &Request,
    queries: Range<usize>,
) -> Result<Weights<f32>, Failure> {
    with_inputs(request, |inputs| Ok(engine()?.weights(problem, inputs, queries)?))
}
