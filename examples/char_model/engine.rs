//! Who computes attention: the CPU engine, or the GPU engine on the best adapter.

use std::error::Error;

use local_attention::cpu::Cpu;
#[cfg(feature = "gpu")]
use local_attention::gpu::{Gpu, RequestOptions};
use local_attention::{
    BackwardInputs, Call, Engine as _, Forward, Gradients, HostInputs, HostTensor, Problem,
};

pub enum Engine {
    Cpu(Cpu),
    #[cfg(feature = "gpu")]
    Gpu(Gpu),
}

impl Engine {
    pub fn named(name: &str) -> Result<Self, Box<dyn Error>> {
        match name {
            "cpu" => Ok(Self::Cpu(Cpu::new())),
            #[cfg(feature = "gpu")]
            "gpu" => Ok(Self::Gpu(Gpu::request_blocking(&RequestOptions::default())?)),
            other => Err(format!("the engine is {other}: it must be cpu or gpu").into()),
        }
    }

    /// Output and `lse`.
    pub fn forward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, f32>,
    ) -> Result<Forward<f32>, Box<dyn Error>> {
        let call = Call::default();
        Ok(match self {
            Self::Cpu(cpu) => cpu.forward(problem, inputs, &call)?,
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu.forward_blocking(problem, inputs, &call)?,
        })
    }

    /// The gradients by q, k and v.
    pub fn backward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, f32>,
        forward: &Forward<f32>,
        dout: HostTensor<'_, f32>,
    ) -> Result<Gradients<f32>, Box<dyn Error>> {
        let (call, saved) = (Call::default(), BackwardInputs::new(problem, forward, dout)?);
        Ok(match self {
            Self::Cpu(cpu) => cpu.backward(problem, inputs, &saved, &call)?,
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => gpu.backward_blocking(problem, inputs, &saved, &call)?,
        })
    }
}
