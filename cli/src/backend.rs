//! Which engine computes, and why.

use clap::ValueEnum;
use half::f16;
use local_attention::cpu::Cpu;
use local_attention::gpu::{DeviceError, Gpu, GpuElement, Layouts, RequestOptions, Storage};
use local_attention::{
    BackwardInputs, Call, Engine, Forward, Gradients, HostInputs, LocalAttention, Problem,
    Reference,
};

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
#[derive(Debug, Clone)]
pub enum Chosen {
    Gpu(Gpu),
    Cpu,
    Reference,
    ReferenceF32,
}

/// The engines of this machine, and which one is wanted.
pub struct Engines {
    wanted: Backend,
    gpu: Result<Gpu, DeviceError>,
}

impl Backend {
    /// Opens the adapter, if this choice may need one.
    pub fn open(self, adapter: Option<&str>) -> Result<Engines, BadInput> {
        let request = adapter.map_or_else(RequestOptions::default, RequestOptions::adapter);
        if let (Self::Cpu | Self::Reference | Self::ReferenceF32, Some(adapter)) = (self, adapter) {
            return Err(BadInput::Usage(format!(
                "--adapter {adapter}: this backend runs on no adapter"
            )));
        }
        let gpu = match self {
            Self::Auto | Self::Gpu => Gpu::request_blocking(&request),
            // Never asked for.
            _ => {
                Err(DeviceError::NoAdapter { asked: "of any kind".to_owned(), present: Vec::new() })
            }
        };
        match (self, adapter, gpu) {
            (Self::Gpu, _, Err(e)) => Err(BadInput::Usage(format!("--backend gpu: {e}"))),
            (Self::Auto, Some(_), Err(e)) => Err(BadInput::Usage(format!("--adapter: {e}"))),
            // An adapter asked for by name is asked for.
            (Self::Auto, Some(_), gpu) => Ok(Engines { wanted: Self::Gpu, gpu }),
            (wanted, _, gpu) => Ok(Engines { wanted, gpu }),
        }
    }
}

impl Engines {
    /// Every engine that is there, software adapters included; the adapter, where one is asked for.
    pub fn all(adapter: Option<&str>) -> Result<Self, BadInput> {
        let request = adapter.map_or_else(RequestOptions::default, RequestOptions::adapter);
        match (adapter, Gpu::request_blocking(&request)) {
            (Some(_), Err(e)) => Err(BadInput::Usage(format!("--adapter: {e}"))),
            (_, gpu) => Ok(Self { wanted: Backend::Auto, gpu }),
        }
    }

    /// Those that compute on inputs of this type.
    pub fn present(&self, dtype: Dtype) -> Vec<Chosen> {
        let mut all = vec![Chosen::Reference, Chosen::ReferenceF32, Chosen::Cpu];
        all.extend(self.gpu.iter().cloned().map(Chosen::Gpu));
        all.retain(|engine| engine.takes(dtype));
        all
    }

    /// Why the GPU engine is not there, if it is not.
    pub fn absent_gpu(&self) -> Option<String> {
        self.gpu.as_ref().err().map(ToString::to_string)
    }

    /// The engine for inputs of this type and a problem, if it is known, and why it is the one.
    pub fn choose(
        &self,
        dtype: Dtype,
        problem: Option<&Problem>,
    ) -> Result<(Chosen, String), BadInput> {
        let asked = |engine| (engine, "asked for".to_owned());
        let cpu =
            |why: String| (Chosen::Cpu, format!("{why}, so the CPU engine is the fastest here"));
        let (chosen, why) = match (self.wanted, &self.gpu) {
            (Backend::Auto, _) if dtype == Dtype::F64 => {
                (Chosen::Reference, "F64 is computed by the reference alone".to_owned())
            }
            (Backend::Gpu, Ok(gpu)) => asked(Chosen::Gpu(gpu.clone())),
            (Backend::Auto, Ok(gpu)) if !gpu.caps().is_software() => {
                // The plan of the call itself, whose kernel is kept.
                let storage = if dtype == Dtype::F16 { Storage::F16 } else { Storage::F32 };
                let mut layouts = Layouts::any(storage);
                layouts.vec4 = true;
                match problem.map(|p| gpu.plan_blocking(p, &layouts)) {
                    Some(Err(e)) => cpu(e.to_string()),
                    _ => (Chosen::Gpu(gpu.clone()), "the best adapter of this machine".to_owned()),
                }
            }
            (Backend::Auto, Ok(gpu)) => {
                cpu(format!("{} is software on the CPU", gpu.caps().info.name))
            }
            (Backend::Auto | Backend::Gpu, Err(DeviceError::NoAdapter { .. })) => {
                cpu("there is no GPU adapter".to_owned())
            }
            (Backend::Auto | Backend::Gpu, Err(e)) => cpu(e.to_string()),
            (Backend::Cpu, _) => asked(Chosen::Cpu),
            (Backend::Reference, _) => asked(Chosen::Reference),
            (Backend::ReferenceF32, _) => asked(Chosen::ReferenceF32),
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

impl Chosen {
    /// Whether a forward pass on f16 tensors runs on matrix units.
    pub fn uses_matrices(&self, problem: &Problem) -> Result<bool, BadInput> {
        let Self::Gpu(gpu) = self else { return Ok(false) };
        let key = gpu.key(problem, &Layouts::any(Storage::F16));
        let key = key.map_err(|e| BadInput::Usage(format!("--backend gpu: {e}")))?;
        Ok(key.matrix.is_some())
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpu(_) => "gpu",
            Self::Cpu => "cpu",
            Self::Reference => "reference",
            Self::ReferenceF32 => "reference-f32",
        }
    }

    /// The adapter that it computes on.
    pub fn adapter(&self) -> Option<&str> {
        let Self::Gpu(gpu) = self else { return None };
        Some(&gpu.caps().info.name)
    }

    /// Whether it computes on inputs of this type: F64 is the oracle's alone.
    fn takes(&self, dtype: Dtype) -> bool {
        dtype != Dtype::F64 || matches!(self, Self::Reference)
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Gpu(gpu) => {
                let info = &gpu.caps().info;
                format!("gpu, {} ({:?})", info.name, info.backend)
            }
            Self::Cpu => {
                let cpu = Cpu::new();
                format!("cpu, {} threads, {}", cpu.threads(), cpu.isa())
            }
            Self::Reference => "reference, plain loops in f64".to_owned(),
            Self::ReferenceF32 => "reference-f32, plain loops in f32".to_owned(),
        }
    }

    /// The output of a case, rounded once to `out`; and the gradients, where the case holds `dout`.
    pub fn compute(
        &self,
        case: &Case,
        attention: &LocalAttention,
        call: &Call,
        out: Dtype,
    ) -> Result<Computed, BadInput> {
        let f16s = case.dtype() == Dtype::F16 && out == Dtype::F16;
        let computed = match self {
            Self::Gpu(gpu) if f16s => on_gpu::<f16>(gpu, case, attention, call, Data::F16),
            Self::Gpu(gpu) => on_gpu(gpu, case, attention, call, Data::F32),
            Self::Cpu if f16s => on_host::<f16>(&Cpu::new(), case, attention, call, Data::F16),
            Self::Cpu => on_host(&Cpu::new(), case, attention, call, Data::F32),
            Self::Reference => on_host(&Reference::<f64>::new(), case, attention, call, Data::F64),
            Self::ReferenceF32 => {
                on_host(&Reference::<f32>::new(), case, attention, call, Data::F32)
            }
        }?;
        let gradients = computed.gradients.into_iter().map(|(name, x)| (name, x.cast(out)));
        Ok(Computed { out: computed.out.cast(out), gradients: gradients.collect() })
    }
}

/// What a case gives.
pub struct Computed {
    pub out: Array,
    /// `dq`, `dk`, `dv` and, with a bias, `dattn_bias`; none where they were not asked for.
    pub gradients: Vec<(&'static str, Array)>,
}

fn on_host<T: Want>(
    engine: &impl Engine<T>,
    case: &Case,
    attention: &LocalAttention,
    call: &Call,
    wrap: fn(Vec<T>) -> Data,
) -> Result<Computed, BadInput> {
    computed(
        case,
        attention,
        wrap,
        |problem, inputs| Ok(engine.forward(problem, inputs, call)?),
        |problem, inputs, saved| Ok(engine.backward(problem, inputs, saved, call)?),
    )
}

fn on_gpu<T: Want + GpuElement>(
    gpu: &Gpu,
    case: &Case,
    attention: &LocalAttention,
    call: &Call,
    wrap: fn(Vec<T>) -> Data,
) -> Result<Computed, BadInput> {
    computed(
        case,
        attention,
        wrap,
        |problem, inputs| Ok(gpu.forward_blocking(problem, inputs, call)?),
        |problem, inputs, saved| Ok(gpu.backward_blocking(problem, inputs, saved, call)?),
    )
}

/// What an engine gives for a case.
fn computed<T: Want>(
    case: &Case,
    attention: &LocalAttention,
    wrap: fn(Vec<T>) -> Data,
    forward: impl FnOnce(&Problem, &HostInputs<'_, T>) -> Result<Forward<T>, BadInput>,
    backward: impl FnOnce(
        &Problem,
        &HostInputs<'_, T>,
        &BackwardInputs<'_, T>,
    ) -> Result<Gradients<T>, BadInput>,
) -> Result<Computed, BadInput> {
    let (mut problem, inputs) = case.prepare(attention)?;
    let dout = case.dout::<T>(&problem)?;
    if dout.is_some() {
        problem = attention.problem(&problem.shape().clone().with_lse())?;
    }
    let result = forward(&problem, &inputs)?;
    let mut gradients = Vec::new();
    if let Some(dout) = dout {
        let saved = BackwardInputs::new(&problem, &result, dout)?;
        gradients = case.unpacked(backward(&problem, &inputs, &saved)?, wrap);
    }
    Ok(Computed { out: shaped(case, problem.shape().value_dim, wrap(result.out))?, gradients })
}

/// Leading dimensions as q has them, though k and v may have been packed.
fn shaped(case: &Case, value_dim: usize, data: Data) -> Result<Array, BadInput> {
    let [leading @ .., queries, _] = &case.q.shape[..] else {
        return Err(BadInput::Usage("q has fewer than 2 dimensions".to_owned()));
    };
    Ok(Array { shape: [leading, &[*queries, value_dim]].concat(), data })
}
