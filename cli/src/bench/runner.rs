//! The engine that is measured, and one run of it.

use std::time::Instant;

use local_attention::cpu::{Cpu, Isa};
use local_attention::gpu::MAX_HEAD_DIM;
use local_attention::{Call, Engine, HostInputs, Problem, Reference};

use super::floor::Floor;
use super::gpu::{Ran, Resident, tells_time};
use super::gpu_floor;
use super::inputs::{Tensors, tensors};
use super::machine::Machine;
use super::shape::{BenchShape, BenchType, Pass};
use super::tile;
use super::training::{Trained, oracle_on_f16};
use crate::backend::Chosen;
use crate::error::BadInput;

pub fn parse_isa(text: &str) -> Result<Isa, String> {
    let names: Vec<_> = Isa::ALL.iter().map(|i| i.name()).collect();
    Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == text)
        .ok_or_else(|| format!("it must be one of {}", names.join(", ")))
}

/// Refuses what an engine is not measured on.
pub fn check_shape(chosen: &Chosen, shape: &BenchShape) -> Result<(), BadInput> {
    let oracle = matches!(chosen, Chosen::Reference | Chosen::ReferenceF32);
    if oracle && shape.dtype == BenchType::F16 {
        return Err(BadInput::Usage(format!("{shape}: {}", oracle_on_f16())));
    }
    let features = shape.head_dim;
    if matches!(chosen, Chosen::Gpu(_)) && features > MAX_HEAD_DIM {
        let why = format!("{shape}: the GPU engine takes a head_dim of {MAX_HEAD_DIM} at most");
        return Err(BadInput::Usage(why));
    }
    Ok(())
}

/// The engine that is measured.
pub struct Runner {
    pub chosen: Chosen,
    pub cpu: Cpu,
    /// Whether the GPU engine measures its kernels first.
    tunes: bool,
}

impl Runner {
    pub fn new(
        (chosen, tunes): (Chosen, bool),
        threads: Option<usize>,
        isa: Option<Isa>,
    ) -> Result<Self, BadInput> {
        let mut cpu = match threads {
            Some(threads) => Cpu::with_threads(threads)?,
            None => Cpu::new(),
        };
        if let Some(isa) = isa {
            cpu = cpu.with_isa(isa)?;
        }
        Ok(Self { chosen, cpu, tunes })
    }

    /// Threads that compute: the oracle has one.
    pub fn threads(&self) -> usize {
        if matches!(self.chosen, Chosen::Cpu) { self.cpu.threads() } else { 1 }
    }

    /// Threads of a peer: those asked for, else one a core.
    pub fn peer_threads(&self) -> usize {
        self.cpu.threads()
    }

    /// Where it runs.
    pub fn adapter(&self, machine: &Machine) -> String {
        match &self.chosen {
            Chosen::Gpu(gpu) => gpu.caps().info.name.clone(),
            _ => machine.cpu.clone(),
        }
    }

    /// What it runs on can do at best.
    pub fn floor(&self) -> Result<Floor, BadInput> {
        match &self.chosen {
            Chosen::Gpu(gpu) => gpu_floor::measure(gpu),
            _ => Floor::measure(self.threads()),
        }
    }

    /// Whether it tells the time on its own clock too.
    pub fn has_timestamps(&self) -> bool {
        matches!(&self.chosen, Chosen::Gpu(gpu) if tells_time(gpu))
    }

    /// Makes what runs need, the results of a forward pass that a backward pass takes included.
    pub fn prepare(&self, shape: &BenchShape) -> Result<Prepared, BadInput> {
        let problem = shape.problem()?;
        let inputs = tensors(shape, &self.chosen)?;
        let trained = self.trained(&problem, &inputs, shape.pass)?;
        let wide = match (&self.chosen, &inputs, &trained) {
            (Chosen::Reference, Tensors::F32(x, _), None) => Some(x.map(f64::from)),
            _ => None,
        };
        let trained = trained.map(|trained| (trained, shape.pass));
        Ok(Prepared { problem, inputs, wide, trained, resident: None })
    }

    /// Puts the tensors where the engine computes.
    pub fn upload(&self, tensors: &mut Prepared, pass: Pass) -> Result<(), BadInput> {
        let Chosen::Gpu(gpu) = &self.chosen else { return Ok(()) };
        if self.tunes {
            tile::tune(gpu, &tensors.problem, &tensors.inputs)?;
        }
        tensors.resident = Some(Resident::new(gpu, &tensors.problem, &tensors.inputs, pass)?);
        Ok(())
    }

    /// One run on these tensors.
    pub fn run(&self, tensors: &mut Prepared) -> Result<Ran, BadInput> {
        if let Some(resident) = &mut tensors.resident {
            return resident.run();
        }
        let start = Instant::now();
        self.run_on_host(tensors)?;
        Ok(Ran { seconds: start.elapsed().as_secs_f64(), gpu_seconds: None })
    }

    fn run_on_host(&self, tensors: &mut Prepared) -> Result<(), BadInput> {
        let Prepared { problem, inputs, wide, trained, .. } = tensors;
        let call = Call::default();
        if let Some((trained, pass)) = trained {
            return self.train(problem, inputs, trained, *pass);
        }
        match (&self.chosen, inputs) {
            (Chosen::Cpu, Tensors::F32(x, out)) => {
                self.cpu.forward_into(problem, x, &call, out, &mut [])?;
                std::hint::black_box(out);
            }
            (Chosen::Cpu, Tensors::F16(x, out)) => {
                self.cpu.forward_into(problem, x, &call, out, &mut [])?;
                std::hint::black_box(out);
            }
            (_, Tensors::F32(x, _)) => match wide {
                Some(x) => {
                    std::hint::black_box(Reference::<f64>::new().forward(problem, x, &call)?);
                }
                None => {
                    std::hint::black_box(Reference::<f32>::new().forward(problem, x, &call)?);
                }
            },
            (_, Tensors::F16(..)) => return Err(oracle_on_f16()),
        }
        Ok(())
    }

    /// The variant of the engine that ran.
    pub fn variant(&self, tensors: &Prepared) -> String {
        match (&self.chosen, &tensors.resident) {
            (_, Some(resident)) => resident.variant.clone(),
            (Chosen::Cpu, _) => self.cpu.isa().name().to_owned(),
            _ => "plain".to_owned(),
        }
    }
}

/// What runs need.
pub struct Prepared {
    problem: Problem,
    inputs: Tensors,
    /// For the oracle in f64.
    wide: Option<HostInputs<'static, f64>>,
    /// For passes of training.
    trained: Option<(Trained, Pass)>,
    /// On a GPU.
    resident: Option<Resident>,
}
