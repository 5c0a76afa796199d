//! Timing: warm-up, then runs until the median is worth quoting; peers in turn with ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use local_attention::cpu::{Cpu, GradientsMut, Isa};
use local_attention::{
    BackwardInputs, Call, Element, Engine, Forward, HostInputs, HostTensor, Problem, Reference,
};

use super::floor::Floor;
use super::gpu::Resident;
use super::gpu_floor;
use super::machine::{Machine, peak_rss_bytes, reset_peak};
use super::peer::{Peer, PeerProcess};
use super::shape::{BenchShape, BenchType, Pass};
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
    cpu: Cpu,
}

impl Runner {
    pub fn new(chosen: Chosen, threads: Option<usize>, isa: Option<Isa>) -> Result<Self, BadInput> {
        let mut cpu = match threads {
            Some(threads) => Cpu::with_threads(threads)?,
            None => Cpu::new(),
        };
        if let Some(isa) = isa {
            cpu = cpu.with_isa(isa)?;
        }
        Ok(Self { chosen, cpu })
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

/// What a backward pass takes.
enum Trained {
    Cpu32(Box<Own<f32>>),
    Cpu16(Box<Own<f16>>),
    F32(Forward<f32>),
    /// With the inputs in f64.
    F64(Forward<f64>, Box<HostInputs<'static, f64>>),
}

/// Memory of a program that trains: results of the forward pass, and gradients.
struct Own<T> {
    out: Vec<T>,
    lse: Vec<f32>,
    dout: Vec<T>,
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    dattn_bias: Option<Vec<T>>,
}

impl<T: Element<Accumulator = f32>> Own<T> {
    fn new(problem: &Problem, inputs: &HostInputs<'_, T>) -> Result<Self, BadInput> {
        let out = result(&problem.out_shape())?;
        let like = |x: &HostTensor<'_, T>| result(x.shape());
        Ok(Self {
            out,
            lse: result(&problem.lse_shape())?,
            dout: inputs.q.iter().collect(),
            dq: like(&inputs.q)?,
            dk: like(&inputs.k)?,
            dv: like(&inputs.v)?,
            dattn_bias: inputs.attn_bias.as_ref().map(like).transpose()?,
        })
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

    /// A backward pass.
    fn backward(
        &mut self,
        cpu: &Cpu,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
    ) -> Result<(), BadInput> {
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
    fn trained(
        &self,
        problem: &Problem,
        inputs: &Tensors,
        pass: Pass,
    ) -> Result<Option<Trained>, BadInput> {
        let call = Call::default();
        if pass == Pass::Forward {
            return Ok(None);
        }
        Ok(Some(match (&self.chosen, inputs) {
            (Chosen::Gpu(_), _) => {
                return Err(BadInput::Usage(
                    "--backend gpu: the GPU engine has no backward pass".to_owned(),
                ));
            }
            (Chosen::Cpu, Tensors::F32(x, _)) => {
                let mut own = Own::new(problem, x)?;
                own.forward(&self.cpu, problem, x)?;
                Trained::Cpu32(Box::new(own))
            }
            (Chosen::Cpu, Tensors::F16(x, _)) => {
                let mut own = Own::new(problem, x)?;
                own.forward(&self.cpu, problem, x)?;
                Trained::Cpu16(Box::new(own))
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
    fn train(
        &self,
        problem: &Problem,
        inputs: &Tensors,
        trained: &mut Trained,
        pass: Pass,
    ) -> Result<(), BadInput> {
        let both = pass == Pass::Both;
        match (inputs, trained) {
            (Tensors::F32(x, _), Trained::Cpu32(own)) => {
                if both {
                    own.forward(&self.cpu, problem, x)?;
                }
                own.backward(&self.cpu, problem, x)
            }
            (Tensors::F16(x, _), Trained::Cpu16(own)) => {
                if both {
                    own.forward(&self.cpu, problem, x)?;
                }
                own.backward(&self.cpu, problem, x)
            }
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

fn oracle_on_f16() -> BadInput {
    BadInput::Usage("--dtype f16: the oracle is timed on f32".to_owned())
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

fn result<T: Copy + Default>(dims: &[usize]) -> Result<Vec<T>, BadInput> {
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

/// Times of one engine on one shape.
pub struct Times {
    /// In seconds, in the order they were measured.
    pub seconds: Vec<f64>,
    /// On a GPU, by its own timestamps.
    pub gpu_seconds: Vec<f64>,
    pub peak_rss_bytes: Option<u64>,
}

impl Times {
    /// The value below which this share of the runs lies.
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.seconds, share)
    }
}

pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
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
        Chosen::Gpu(gpu) => Some(Resident::new(gpu, &problem, &tensors.inputs)?),
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
