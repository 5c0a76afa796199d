//! Which engine computes, and why.

use clap::ValueEnum;
use half::f16;
use local_attention::cpu::Cpu;
use local_attention::{Call, Engine, LocalAttention, Reference};

use crate::case::{Array, Case, Data, Dtype, Want};
use crate::error::BadInput;

/// What `--backend` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The best engine for this machine.
    Auto,
    /// The wgpu engine.
    Gpu,
    /// The CPU engine.
    Cpu,
    /// The oracle in f64, rounded once.
    Reference,
    /// The oracle in f32.
    ReferenceF32,
}

/// An engine that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    Cpu,
    Reference,
    ReferenceF32,
}

/// Said wherever the GPU engine would have been the choice.
pub const NO_GPU: &str = "this build has no GPU engine";

impl Chosen {
    /// Every engine that is there.
    pub const ALL: [Self; 3] = [Self::Reference, Self::ReferenceF32, Self::Cpu];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Reference => "reference",
            Self::ReferenceF32 => "reference-f32",
        }
    }

    /// Whether it computes on inputs of this type: F64 is the oracle's alone.
    pub fn takes(self, dtype: Dtype) -> bool {
        dtype != Dtype::F64 || self == Self::Reference
    }

    /// What it is, for people.
    pub fn describe(self) -> String {
        match self {
            Self::Cpu => {
                let cpu = Cpu::new();
                format!("cpu, {} threads, {}", cpu.threads(), cpu.isa())
            }
            Self::Reference => "reference, plain loops in f64".to_owned(),
            Self::ReferenceF32 => "reference-f32, plain loops in f32".to_owned(),
        }
    }

    /// The output of a case, rounded once to `out`.
    pub fn compute(
        self,
        case: &Case,
        attention: &LocalAttention,
        call: &Call,
        out: Dtype,
    ) -> Result<Array, BadInput> {
        match (self, case.dtype(), out) {
            (Self::Cpu, Dtype::F16, Dtype::F16) => {
                forward::<f16>(&Cpu::new(), case, attention, call, Data::F16)
            }
            (Self::Cpu, ..) => forward(&Cpu::new(), case, attention, call, Data::F32),
            (Self::Reference, ..) => {
                forward(&Reference::<f64>::new(), case, attention, call, Data::F64)
            }
            (Self::ReferenceF32, ..) => {
                forward(&Reference::<f32>::new(), case, attention, call, Data::F32)
            }
        }
        .map(|result| result.cast(out))
    }
}

fn forward<T: Want>(
    engine: &impl Engine<T>,
    case: &Case,
    attention: &LocalAttention,
    call: &Call,
    wrap: impl Fn(Vec<T>) -> Data,
) -> Result<Array, BadInput> {
    let (problem, inputs) = case.prepare(attention)?;
    let result = engine.forward(&problem, &inputs, call)?;
    // Leading dimensions as q has them, though k and v may have been packed.
    let [leading @ .., queries, _] = &case.q.shape[..] else {
        return Err(BadInput::Usage("q has fewer than 2 dimensions".to_owned()));
    };
    let shape = [leading, &[*queries, problem.shape().value_dim]].concat();
    Ok(Array { shape, data: wrap(result.out) })
}

impl Backend {
    /// An error where it is absent.
    pub fn check_present(self) -> Result<(), BadInput> {
        match self {
            Self::Gpu => Err(BadInput::Usage(format!("--backend gpu: {NO_GPU}"))),
            _ => Ok(()),
        }
    }

    /// The engine for inputs of this type, and why it is the one.
    pub fn choose(self, dtype: Dtype) -> Result<(Chosen, String), BadInput> {
        self.check_present()?;
        let (chosen, why) = match self {
            Self::Auto if dtype == Dtype::F64 => {
                (Chosen::Reference, "F64 is computed by the reference alone".to_owned())
            }
            Self::Auto | Self::Gpu => {
                (Chosen::Cpu, format!("{NO_GPU}, so the CPU engine is the fastest here"))
            }
            Self::Cpu => (Chosen::Cpu, "asked for".to_owned()),
            Self::Reference => (Chosen::Reference, "asked for".to_owned()),
            Self::ReferenceF32 => (Chosen::ReferenceF32, "asked for".to_owned()),
        };
        if !chosen.takes(dtype) {
            return Err(BadInput::Usage(format!(
                "--backend {}: q, k and v are {}, which the backend reference alone computes",
                chosen.name(),
                dtype.name()
            )));
        }
        Ok((chosen, why))
    }
}
