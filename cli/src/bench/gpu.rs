//! Timing the GPU engine on tensors that stay on the device.

use std::time::Instant;

use half::f16;
use local_attention::gpu::{
    BackwardTensors, Bound, Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace,
    wgpu,
};
use local_attention::{Call, HostInputs, HostTensor, Problem};

use super::inputs::Tensors;
use super::shape::Pass;
use crate::error::BadInput;

/// Seconds that a run took: for who called, and by the clock of a GPU that tells.
pub struct Ran {
    pub seconds: f64,
    pub gpu_seconds: Option<f64>,
}

/// A call with its tensors on the device.
pub struct Resident {
    gpu: Gpu,
    /// What a run records, in its order.
    bound: Vec<Bound>,
    workspace: Workspace,
    timer: Option<Timer>,
    /// The kernel, by its key.
    pub variant: String,
}

impl Resident {
    pub fn new(
        gpu: &Gpu,
        problem: &Problem,
        tensors: &Tensors,
        pass: Pass,
    ) -> Result<Self, BadInput> {
        match tensors {
            Tensors::F32(x, _) => Self::of(gpu, (problem, pass), x, Storage::F32, f32::to_le_bytes),
            Tensors::F16(x, _) => Self::of(gpu, (problem, pass), x, Storage::F16, f16::to_le_bytes),
        }
    }

    fn of<T: Clone, const BYTES: usize>(
        gpu: &Gpu,
        (problem, pass): (&Problem, Pass),
        inputs: &HostInputs<'_, T>,
        storage: Storage,
        bytes: impl Fn(T) -> [u8; BYTES],
    ) -> Result<Self, BadInput> {
        let fail = |e: &dyn std::fmt::Display| BadInput::Usage(format!("--backend gpu: {e}"));
        let layouts = Layouts::contiguous(storage, problem);
        let plan = gpu.plan_blocking(problem, &layouts).map_err(|e| fail(&e))?;
        // Calls without dropout take no slots.
        let workspace = Workspace::new_blocking(gpu, 1).map_err(|e| fail(&e))?;
        let up = |t: &HostTensor<'_, T>| buffer(gpu, t.iter().flat_map(&bytes).collect());
        let (q, k, v) = (up(&inputs.q)?, up(&inputs.k)?, up(&inputs.v)?);
        let mask = inputs.mask.as_ref().map(|m| buffer(gpu, m.iter().map(u8::from).collect()));
        let mask = mask.transpose()?;
        let bias = inputs.attn_bias.as_ref().map(up).transpose()?;
        let dtype = Dtype::from(storage);
        let elements = problem.out_shape().iter().product::<usize>();
        let out = buffer(gpu, vec![0; elements * bytes_of(storage)])?;
        let view = |b, shape: &[usize]| TensorView::contiguous(b, dtype, shape);
        let mut tensors = ForwardTensors::new(
            view(&q, inputs.q.shape()),
            view(&k, inputs.k.shape()),
            view(&v, inputs.v.shape()),
            view(&out, &problem.out_shape()),
        );
        if let (Some(b), Some(m)) = (&mask, &inputs.mask) {
            tensors = tensors.with_mask(TensorView::contiguous(b, Dtype::U8, m.shape()));
        }
        if let (Some(b), Some(x)) = (&bias, &inputs.attn_bias) {
            tensors = tensors.with_attn_bias(view(b, x.shape()));
        }
        let lse_shape = problem.lse_shape();
        let lse = buffer(gpu, vec![0; lse_shape.iter().product::<usize>() * 4])?;
        if problem.shape().lse {
            tensors = tensors.with_lse(TensorView::contiguous(&lse, Dtype::F32, lse_shape));
        }
        let forward = plan.bind_forward_blocking(&tensors, &workspace).map_err(|e| fail(&e))?;
        let timer = tells_time(gpu).then(|| scoped(gpu, || Timer::new(gpu))).transpose()?;
        let variant = plan.key().to_string();
        let mut resident =
            Self { gpu: gpu.clone(), bound: vec![forward], workspace, timer, variant };
        if pass == Pass::Forward {
            return Ok(resident);
        }
        // What the backward pass needs.
        resident.run()?;
        let like = |x: &HostTensor<'_, T>| {
            buffer(gpu, vec![0; x.shape().iter().product::<usize>() * bytes_of(storage)])
        };
        let (dq, dk, dv) = (like(&inputs.q)?, like(&inputs.k)?, like(&inputs.v)?);
        let dout = up(&inputs.q)?;
        let dbias = inputs.attn_bias.as_ref().map(like).transpose()?;
        let mut saved = BackwardTensors::new(
            tensors,
            view(&dout, inputs.q.shape()),
            view(&dq, inputs.q.shape()),
            view(&dk, inputs.k.shape()),
            view(&dv, inputs.v.shape()),
        );
        if let (Some(b), Some(x)) = (&dbias, &inputs.attn_bias) {
            saved = saved.with_dattn_bias(view(b, x.shape()));
        }
        let plan = gpu.plan_backward_blocking(problem, &layouts).map_err(|e| fail(&e))?;
        let backward = plan.bind_blocking(&saved, &resident.workspace).map_err(|e| fail(&e))?;
        resident.variant =
            plan.keys().iter().map(|key| key.kernel.name()).collect::<Vec<_>>().join("+");
        match pass {
            Pass::Backward => resident.bound.clear(),
            _ => resident.variant = format!("forward+{}", resident.variant),
        }
        resident.bound.push(backward);
        Ok(resident)
    }

    /// One call, recorded, submitted and waited for. Each part is a submission, as watchdogs of drivers want. Reading
    /// timestamps, those of the first part's beginning and the last one's end, is no part of it.
    pub fn run(&mut self) -> Result<Ran, BadInput> {
        let start = Instant::now();
        let fail = |e: &dyn std::fmt::Display| BadInput::Usage(format!("--backend gpu: {e}"));
        self.workspace.recall();
        let parts =
            self.bound.iter().flat_map(|bound| (0..bound.chunks()).map(move |i| (bound, i)));
        let count = parts.clone().count();
        for (n, (bound, part)) in parts.enumerate() {
            let descriptor = wgpu::CommandEncoderDescriptor::default();
            let mut encoder = self.gpu.device().create_command_encoder(&descriptor);
            let timer = self.timer.as_ref().filter(|_| n == 0 || n + 1 == count);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: timer.map(|timer| timer.writes(n == 0, n + 1 == count)),
            });
            bound
                .encode_chunk(part, &mut pass, &mut self.workspace, &Call::default())
                .map_err(|e| fail(&e))?;
            drop(pass);
            self.gpu.queue().submit([encoder.finish()]);
        }
        wait(&self.gpu)?;
        let seconds = start.elapsed().as_secs_f64();
        let timer = self.timer.as_ref();
        let gpu_seconds = timer.map(|timer| timer.seconds(&self.gpu)).transpose()?;
        Ok(Ran { seconds, gpu_seconds })
    }
}

/// Waits for everything submitted.
pub fn wait(gpu: &Gpu) -> Result<(), BadInput> {
    let done = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    done.map(|_| ()).map_err(|e| BadInput::Usage(format!("--backend gpu: {e}")))
}

fn bytes_of(storage: Storage) -> usize {
    storage.bytes() as usize
}

fn buffer(gpu: &Gpu, mut data: Vec<u8>) -> Result<wgpu::Buffer, BadInput> {
    data.resize(data.len().next_multiple_of(16).max(16), 0);
    scoped(gpu, || {
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("bench"),
            size: data.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&buffer, 0, &data);
        buffer
    })
}

/// What `make` gives, unless the device has no memory for it, or no such size.
pub fn scoped<T>(gpu: &Gpu, make: impl FnOnce() -> T) -> Result<T, BadInput> {
    let memory = gpu.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    let error = (pollster::block_on(validation.pop()), pollster::block_on(memory.pop()));
    match error.0.or(error.1) {
        None => Ok(made),
        Some(e) => Err(BadInput::Usage(format!("--backend gpu: {e}"))),
    }
}

/// Whether it has a clock that passes can be timed by.
pub fn tells_time(gpu: &Gpu) -> bool {
    gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY)
}

/// Timestamps around a pass.
struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    back: wgpu::Buffer,
}

impl Timer {
    fn new(gpu: &Gpu) -> Self {
        let make = |usage| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: make(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            back: make(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        }
    }

    fn writes(&self, first: bool, last: bool) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: last.then_some(1),
        }
    }

    /// Between the timestamps of the last call.
    fn seconds(&self, gpu: &Gpu) -> Result<f64, BadInput> {
        let fail = |e: &dyn std::fmt::Display| BadInput::Usage(format!("timestamps: {e}"));
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        let mut encoder = gpu.device().create_command_encoder(&descriptor);
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.back, 0, Some(16));
        gpu.queue().submit([encoder.finish()]);
        // What went wrong shows when the range is read.
        self.back.map_async(wgpu::MapMode::Read, .., |_| ());
        wait(gpu)?;
        let data = self.back.get_mapped_range(..).map_err(|e| fail(&e))?.to_vec();
        self.back.unmap();
        let tick = |i: usize| {
            data.get(i * 8..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
        };
        let ticks = tick(1).saturating_sub(tick(0)) as f64;
        Ok(ticks * f64::from(gpu.queue().get_timestamp_period()) * 1e-9)
    }
}
