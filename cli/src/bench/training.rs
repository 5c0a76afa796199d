//! Backward passes, and steps of training: what they take, and one run.

use half::f16;
use local_attention::cpu::{Cpu, GradientsMut};
use local_attention::{
    BackwardInputs, Call, Element, Engine, Forward, HostInputs, HostTensor, Problem, Reference,
};

use super::inputs::{Tensors, result};
use super::runner::Runner;
use super::shape::Pass;
use crate::backend::Chosen;
use crate::error::BadInput;

/// What a backward pass takes.
pub enum Trained {
    Cpu32(Box<Own<f32>>),
    Cpu16(Box<Own<f16>>),
    F32(Forward<f32>),
    /// With the inputs in f64.
    F64(Forward<f64>, Box<HostInputs<'static, f64>>),
}

/// Memory of a program that trains: results of the forward pass, and gradients.
pub struct Own<T> {
    out: Vec<T>,
    lse: Vec<f32>,
    dout: Vec<T>,
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    dattn_bias: Option<Vec<T>>,
}

impl<T: Element<Accumulator = f32>> Own<T> {
    /// After a forward pass.
    fn new(cpu: &Cpu, problem: &Problem, inputs: &HostInputs<'_, T>) -> Result<Self, BadInput> {
        let out = result(&problem.out_shape())?;
        let like = |x: &HostTensor<'_, T>| result(x.shape());
        let mut own = Self {
            out,
            lse: result(&problem.lse_shape())?,
            dout: inputs.q.iter().collect(),
            dq: like(&inputs.q)?,
            dk: like(&inputs.k)?,
            dv: like(&inputs.v)?,
            dattn_bias: inputs.attn_bias.as_ref().map(like).transpose()?,
        };
        own.forward(cpu, problem, inputs)?;
        Ok(own)
    }

    fn forward(
        &mut self,
        cpu: &Cpu,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
    ) -> Result<(), BadInput> {
        let (out, lse) = (&mut self.out, &mut self.lse);
        Ok(cpu.forward_into(problem, inputs, &Call::default(), out, lse)?)
    }

    /// A backward pass, after a forward pass or alone.
    fn step(
        &mut self,
        cpu: &Cpu,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        both: bool,
    ) -> Result<(), BadInput> {
        if both {
            self.forward(cpu, problem, inputs)?;
        }
        let out = HostTensor::new(&self.out[..], problem.out_shape())?;
        let lse = HostTensor::new(&self.lse[..], problem.lse_shape())?;
        let dout = HostTensor::new(&self.dout[..], problem.out_shape())?;
        let saved = BackwardInputs::from_tensors(out, lse, dout);
        let to = GradientsMut {
            dq: &mut self.dq,
            dk: &mut self.dk,
            dv: &mut self.dv,
            dattn_bias: self.dattn_bias.as_deref_mut(),
        };
        cpu.backward_into(problem, inputs, &saved, &Call::default(), to)?;
        std::hint::black_box(self);
        Ok(())
    }
}

impl Runner {
    /// Runs the forward pass whose results a backward pass needs.
    pub fn trained(
        &self,
        problem: &Problem,
        inputs: &Tensors,
        pass: Pass,
    ) -> Result<Option<Trained>, BadInput> {
        let call = Call::default();
        // On a GPU tensors stay there.
        if pass == Pass::Forward || matches!(self.chosen, Chosen::Gpu(_)) {
            return Ok(None);
        }
        Ok(Some(match (&self.chosen, inputs) {
            (Chosen::Cpu, Tensors::F32(x, _)) => {
                Trained::Cpu32(Box::new(Own::new(&self.cpu, problem, x)?))
            }
            (Chosen::Cpu, Tensors::F16(x, _)) => {
                Trained::Cpu16(Box::new(Own::new(&self.cpu, problem, x)?))
            }
            (Chosen::Reference, Tensors::F32(x, _)) => {
                let x = x.map(f64::from);
                let forward = Reference::<f64>::new().forward(problem, &x, &call)?;
                Trained::F64(forward, Box::new(x))
            }
            (_, Tensors::F32(x, _)) => {
                Trained::F32(Reference::<f32>::new().forward(problem, x, &call)?)
            }
            (_, Tensors::F16(..)) => return Err(oracle_on_f16()),
        }))
    }

    /// A pass of training.
    pub fn train(
        &self,
        problem: &Problem,
        inputs: &Tensors,
        trained: &mut Trained,
        pass: Pass,
    ) -> Result<(), BadInput> {
        let both = pass == Pass::Both;
        match (inputs, trained) {
            (Tensors::F32(x, _), Trained::Cpu32(own)) => own.step(&self.cpu, problem, x, both),
            (Tensors::F16(x, _), Trained::Cpu16(own)) => own.step(&self.cpu, problem, x, both),
            (Tensors::F32(x, _), Trained::F32(forward)) => {
                oracle_step(&Reference::<f32>::new(), problem, x, forward, both)
            }
            (_, Trained::F64(forward, x)) => {
                oracle_step(&Reference::<f64>::new(), problem, x, forward, both)
            }
            _ => Err(oracle_on_f16()),
        }
    }
}

pub fn oracle_on_f16() -> BadInput {
    BadInput::Usage("the oracle is timed on f32 alone".to_owned())
}

fn oracle_step<T: Element, E: Engine<T>>(
    engine: &E,
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    forward: &Forward<T>,
    both: bool,
) -> Result<(), BadInput> {
    let call = Call::default();
    if both {
        std::hint::black_box(engine.forward(problem, inputs, &call)?);
    }
    let saved = BackwardInputs::new(problem, forward, inputs.q.clone())?;
    std::hint::black_box(engine.backward(problem, inputs, &saved, &call)?);
    Ok(())
}
