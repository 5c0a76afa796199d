//! Timing: warm-up, then runs until the median is worth quoting; peers in turn with ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use local_attention::cpu::{Cpu, Isa};
use local_attention::{Call, Engine, HostInputs, HostTensor, Problem, Reference};

use super::floor::Floor;
use super::gpu::Resident;
use super::gpu_floor;
use super::machine::{Machine, peak_rss_bytes, reset_peak};
use super::peer::{Peer, PeerProcess};
use super::shape::{BenchShape, BenchType, Pass};
use super::tile;
use super::times::Times;
use super::training::{Trained, oracle_on_f16};
use crate::backend::Chosen;
use crate::error::BadInput;

/// Runs, or pairs of runs, at least.
const LEAST: usize = 7;
/// Runs at most.
const MOST: usize = 400;

/// A thread pool of this size.
pub fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>, BadInput> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map(Arc::new).map_err(|e| BadInput::Usage(format!("--threads {threads}: {e}")))
}

pub fn parse_isa(text: &str) -> Result<Isa, String> {
    let names: Vec<_> = Isa::ALL.iter().map(|i| i.name()).collect();
    Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == text)
        .ok_or_else(|| format!("it must be one of {}", names.join(", ")))
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

    /// One run on these tensors; the seconds it took on a GPU, where that tells.
    fn run(
        &self,
        problem: &Problem,
        tensors: &mut Prepared,
        resident: &mut Option<Resident>,
    ) -> Result<Option<f64>, BadInput> {
        if let Some(resident) = resident {
            return resident.run();
        }
        let call = Call::default();
        if let Some((trained, pass)) = &mut tensors.trained {
            return self.train(problem, &tensors.inputs, trained, *pass).map(|()| None);
        }
        match (&self.chosen, &mut tensors.inputs) {
            (Chosen::Cpu, Tensors::F32(x, out)) => {
                self.cpu.forward_into(problem, x, &call, out, &mut [])?;
                std::hint::black_box(out);
            }
            (Chosen::Cpu, Tensors::F16(x, out)) => {
                self.cpu.forward_into(problem, x, &call, out, &mut [])?;
                std::hint::black_box(out);
            }
            (Chosen::Reference, Tensors::F32(x, _)) => {
                let wide = x.map(f64::from);
                std::hint::black_box(Reference::<f64>::new().forward(problem, &wide, &call)?);
            }
            (_, Tensors::F32(x, _)) => {
                std::hint::black_box(Reference::<f32>::new().forward(problem, x, &call)?);
            }
            (_, Tensors::F16(..)) => {
                return Err(oracle_on_f16());
            }
        }
        Ok(None)
    }
}

/// What runs need.
struct Prepared {
    inputs: Tensors,
    /// For passes of training.
    trained: Option<(Trained, Pass)>,
}

/// Tensors of a call, in host memory, and where the CPU engine puts its result: a program that calls
/// it again and again has that memory already.
pub enum Tensors {
    F32(HostInputs<'static, f32>, Vec<f32>),
    F16(HostInputs<'static, f16>, Vec<f16>),
}

fn tensors(shape: &BenchShape, chosen: &Chosen) -> Result<Tensors, BadInput> {
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
        mask.extend((0..shape.batch * shape.n).map(|u| u % 8 != 3));
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

/// Ours, and each peer's or why it could not run.
pub struct Measured {
    pub ours: Times,
    /// The variant of our engine.
    pub variant: String,
    pub peers: Vec<(Peer, Result<Times, String>)>,
}

pub fn measure(
    runner: &Runner,
    shape: &BenchShape,
    peers: &mut [PeerProcess],
    seconds: f64,
) -> Result<Measured, BadInput> {
    let problem = shape.problem()?;
    let inputs = tensors(shape, &runner.chosen)?;
    let trained = runner.trained(&problem, &inputs, shape.pass)?;
    let trained = trained.map(|trained| (trained, shape.pass));
    let mut tensors = Prepared { inputs, trained };
    let mut ready: Vec<Result<(), String>> = peers.iter_mut().map(|p| p.prepare(shape)).collect();
    reset_peak();
    // Warm-up: pages, tables, clock.
    let start = Instant::now();
    let mut resident = match &runner.chosen {
        Chosen::Gpu(gpu) => {
            if runner.tunes {
                tile::tune(gpu, &problem, &tensors.inputs)?;
            }
            Some(Resident::new(gpu, &problem, &tensors.inputs, shape.pass)?)
        }
        _ => None,
    };
    runner.run(&problem, &mut tensors, &mut resident)?;
    while start.elapsed() < Duration::from_millis(100) {
        runner.run(&problem, &mut tensors, &mut resident)?;
    }
    let (mut ours, mut gpu_seconds) = (Vec::new(), Vec::new());
    let mut theirs: Vec<Vec<f64>> = peers.iter().map(|_| Vec::new()).collect();
    let start = Instant::now();
    while ours.len() < LEAST || (start.elapsed().as_secs_f64() < seconds && ours.len() < MOST) {
        if !peers.is_empty() {
            // A turn is a run that is not timed and one that is: the engine before has left its
            // data in the caches and its threads spinning.
            runner.run(&problem, &mut tensors, &mut resident)?;
        }
        let before = Instant::now();
        gpu_seconds.extend(runner.run(&problem, &mut tensors, &mut resident)?);
        ours.push(before.elapsed().as_secs_f64());
        for ((peer, ready), times) in peers.iter_mut().zip(&mut ready).zip(&mut theirs) {
            if ready.is_ok() {
                match peer.run() {
                    Ok(seconds) => times.push(seconds),
                    Err(why) => *ready = Err(why),
                }
            }
        }
    }
    let peers = peers.iter().zip(ready).zip(theirs).map(|((peer, ready), seconds)| {
        let peak_rss_bytes = peer.peak_rss_bytes();
        let times = ready.map(|()| Times { seconds, gpu_seconds: Vec::new(), peak_rss_bytes });
        (peer.peer, times)
    });
    Ok(Measured {
        peers: peers.collect(),
        ours: Times { seconds: ours, gpu_seconds, peak_rss_bytes: peak_rss_bytes() },
        variant: match (&runner.chosen, resident) {
            (_, Some(resident)) => resident.variant,
            (Chosen::Cpu, _) => runner.cpu.isa().name().to_owned(),
            _ => "plain".to_owned(),
        },
    })
}
