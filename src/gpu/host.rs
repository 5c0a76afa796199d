//! Tensors of host memory in buffers of their own, for one part of a problem.

use std::ops::Range;
#[cfg(not(target_arch = "wasm32"))]
use std::panic::AssertUnwindSafe;

use half::f16;

use super::Storage;
use super::chunk::Chunk;
use super::device::Gpu;
use super::error::{BindError, DeviceError, GpuError, PlanError};
use super::layout::check_fit;
use super::plan::Plan;
use super::scope::{checked, refusal};
use super::tensor::{Dtype, ForwardTensors, TensorView};
use super::workspace::Workspace;
use crate::engine::reserve;
use crate::{BiasShape, Call, Element, HostInputs, HostTensor, RunError};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
}

/// A type that the GPU engine takes and gives: `f32` or `f16`.
pub trait GpuElement: sealed::Sealed + Element<Accumulator = f32> {
    /// How it is stored.
    const STORAGE: Storage;
    #[doc(hidden)]
    fn put(self, bytes: &mut Vec<u8>);
    #[doc(hidden)]
    fn take(bytes: &[u8]) -> Self;
}

impl GpuElement for f32 {
    const STORAGE: Storage = Storage::F32;
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_le_bytes());
    }
    fn take(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(0.0, |b| Self::from_le_bytes(*b))
    }
}

impl GpuElement for f16 {
    const STORAGE: Storage = Storage::F16;
    fn put(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_le_bytes());
    }
    fn take(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(f16::ZERO, |b| Self::from_le_bytes(*b))
    }
}

/// What is computed of a problem: of each query of a part so many elements.
#[derive(Clone, Copy)]
pub(super) struct Outcome {
    pub(super) elements: usize,
    pub(super) dtype: Dtype,
}

/// How results are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// On the calling thread.
    #[cfg(not(target_arch = "wasm32"))]
    Here,
    /// On a thread of its own, or by the browser: the future yields.
    Elsewhere,
}

impl Plan {
    /// Computes the one call that this plan was made for, part by part, and frees it: `take` gets each part, the bytes of its outcome, and its `lse`.
    /// `first_query` is that of the queries in `inputs`.
    pub(super) async fn each_part<T: GpuElement>(
        &self,
        inputs: &HostInputs<'_, T>,
        first_query: usize,
        outcome: Outcome,
        (call, wait): (&Call, Wait),
        mut take: impl FnMut(&Chunk, &[u8], &[f32]),
    ) -> Result<(), GpuError> {
        let _plan = self.owned();
        let mut workspace = Workspace::new(&self.gpu, 1).await?;
        let _workspace = workspace.owned();
        for chunk in self.host_chunks(inputs, outcome)? {
            let piece = Piece::new(self, inputs, first_query, &chunk, outcome).await?;
            let (data, lse) = piece.run(call, wait, &mut workspace).await?;
            take(&chunk, &data, &lse);
        }
        Ok(())
    }

    /// The parts that tensors of host memory are computed in.
    pub(super) fn host_chunks<T: GpuElement>(
        &self,
        inputs: &HostInputs<'_, T>,
        outcome: Outcome,
    ) -> Result<Vec<Chunk>, PlanError> {
        let limit = self.gpu.max_binding_bytes();
        self.chunks(&|chunk| check_fit(self.part_bytes(inputs, chunk, outcome), limit))
    }

    /// Bytes of a part's tensors, by name.
    fn part_bytes<T: GpuElement>(
        &self,
        inputs: &HostInputs<'_, T>,
        chunk: &Chunk,
        outcome: Outcome,
    ) -> Vec<(&'static str, u64)> {
        let (problem, shape) = (&self.problem, &self.problem.shape);
        let kv_rows = if problem.kv_batch == 1 { 1 } else { chunk.rows.len() };
        let bytes = |sizes: &[usize], size: u64| {
            sizes.iter().fold(size, |n, &s| n.saturating_mul(s as u64))
        };
        let element = self.key().storage.bytes();
        let (d, dv) = (padded(shape.head_dim), padded(shape.value_dim));
        let (rows, queries, keys) =
            (chunk.rows.len(), chunk.queries.len(), chunk.keys.len().max(1));
        let mut all = vec![
            ("q", bytes(&[rows, queries, d], element)),
            ("k", bytes(&[kv_rows, keys, d], element)),
            ("v", bytes(&[kv_rows, keys, dv], element)),
        ];
        all.extend(shape.mask.map(|m| {
            let rows = chunk.mask_rows(problem, m.rows).len();
            ("mask", bytes(&[rows, chunk.mask_positions(self, m.len).len()], 1))
        }));
        all.extend(shape.bias.map(|b| {
            let (queries, slots) = bias_part(inputs, b, chunk);
            ("attn_bias", bytes(&[chunk.bias_rows(b.rows).len(), queries.len(), slots], element))
        }));
        // What is read back is one buffer.
        let out = bytes(&[rows, queries, outcome.elements], outcome.dtype.bytes());
        let lse = if shape.lse { bytes(&[rows, queries], 4) } else { 0 };
        all.push(("out", out.saturating_add(lse).saturating_add(16)));
        all
    }
}

/// The tensors of a part, in buffers of their own.
pub(super) struct Piece<'a> {
    plan: &'a Plan,
    chunk: &'a Chunk,
    outcome: Outcome,
    q: wgpu::Buffer,
    k: wgpu::Buffer,
    v: wgpu::Buffer,
    mask: Option<wgpu::Buffer>,
    bias: Option<wgpu::Buffer>,
    bias_size: [usize; 2],
    out: wgpu::Buffer,
    lse: Option<wgpu::Buffer>,
    /// `out`, and then `lse`.
    back: wgpu::Buffer,
}

/// Frees them: in browsers dropping them alone leaves that to the garbage collector.
impl Drop for Piece<'_> {
    fn drop(&mut self) {
        let some = [&self.mask, &self.bias, &self.lse].into_iter().flatten();
        let all = [&self.q, &self.k, &self.v, &self.out, &self.back].into_iter().chain(some);
        all.for_each(wgpu::Buffer::destroy);
    }
}

impl<'a> Piece<'a> {
    /// Uploads what a part reads. `first_query` is that of the queries in `inputs`.
    pub(super) async fn new<T: GpuElement>(
        plan: &'a Plan,
        inputs: &HostInputs<'_, T>,
        first_query: usize,
        chunk: &'a Chunk,
        outcome: Outcome,
    ) -> Result<Self, GpuError> {
        let (gpu, problem, shape) = (&plan.gpu, &plan.problem, &plan.problem.shape);
        let Chunk { rows, queries, keys } = chunk;
        let kv_rows = if problem.kv_batch == 1 { 0..1 } else { rows.clone() };
        let local = queries.start - first_query..queries.end - first_query;
        let q = gather("q", &inputs.q, rows.clone(), local, shape.head_dim)?;
        let k = gather("k", &inputs.k, kv_rows.clone(), keys.clone(), shape.head_dim)?;
        let v = gather("v", &inputs.v, kv_rows, keys.clone(), shape.value_dim)?;
        let mask = match inputs.effective_mask().zip(shape.mask) {
            None => None,
            Some((mask, m)) => {
                let rows = chunk.mask_rows(problem, m.rows);
                let positions = chunk.mask_positions(plan, m.len);
                let (mut bytes, _) = reserve("mask", &[rows.len(), positions.len() + 4])?;
                for row in rows {
                    let view = mask.packed_row(row, 1);
                    bytes.extend(positions.clone().map(|u| u8::from(view.at1(u))));
                }
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                Some(bytes)
            }
        };
        let bias = match inputs.attn_bias.as_ref().zip(shape.bias) {
            None => None,
            Some((bias, b)) => {
                let rows = chunk.bias_rows(b.rows);
                let (queries, slots) = bias_part(inputs, b, chunk);
                let (mut bytes, _) = reserve("attn_bias", &[rows.len(), queries.len(), slots, 4])?;
                for row in rows {
                    let view = bias.packed_row(row, 2);
                    for i in queries.clone() {
                        (0..slots).for_each(|j| view.at(i, j).put(&mut bytes));
                    }
                }
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                Some(bytes)
            }
        };
        let results = rows.len() * queries.len();
        let out_bytes = results * outcome.elements * outcome.dtype.bytes() as usize;
        let lse_bytes = if shape.lse { results * 4 } else { 0 };
        checked(gpu.both(), "placing the tensors of a call", || {
            let make = |label, size: usize, usage| {
                gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: size.next_multiple_of(16).max(16) as u64,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let up = |label, data: &[u8]| {
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
                let buffer = make(label, data.len(), usage);
                gpu.queue().write_buffer(&buffer, 0, data);
                buffer
            };
            let down = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let back = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let out = make("out", out_bytes, down);
            let lse = shape.lse.then(|| make("lse", lse_bytes, down));
            let read = out.size() + lse.as_ref().map_or(0, wgpu::Buffer::size);
            Self {
                plan,
                chunk,
                outcome,
                q: up("q", &q),
                k: up("k", &k),
                v: up("v", &v),
                mask: mask.as_ref().map(|m| up("mask", m)),
                bias: bias.as_ref().map(|b| up("attn_bias", b)),
                bias_size: shape.bias.map_or([1, 1], |b| {
                    let (queries, slots) = bias_part(inputs, b, chunk);
                    [queries.len(), slots]
                }),
                out,
                lse,
                back: make("results", read as usize, back),
            }
        })
        .await
        .map_err(GpuError::Device)
    }

    pub(super) fn tensors(&self) -> ForwardTensors<'_> {
        let (problem, shape) = (&self.plan.problem, &self.plan.problem.shape);
        let dtype = Dtype::from(self.plan.key().storage);
        let (rows, queries) = (self.chunk.rows.len(), self.chunk.queries.len());
        let kv_rows = if problem.kv_batch == 1 { 1 } else { rows };
        let (d, dv) = (padded(shape.head_dim), padded(shape.value_dim));
        let keys = self.chunk.keys.len();
        let of = |buffer, shape: &[usize]| TensorView::contiguous(buffer, dtype, shape);
        let Outcome { elements, dtype: result } = self.outcome;
        ForwardTensors {
            q: of(&self.q, &[rows, queries, d]),
            k: of(&self.k, &[kv_rows, keys, d]),
            v: of(&self.v, &[kv_rows, keys, dv]),
            out: TensorView::contiguous(&self.out, result, [rows, queries, elements]),
            mask: self.mask.as_ref().zip(shape.mask).map(|(b, m)| {
                let row = self.chunk.mask_positions(self.plan, m.len).len() as i64;
                let whole = TensorView::contiguous(b, Dtype::U8, [m.rows, m.len]);
                whole.with_strides_elems([row, 1])
            }),
            attn_bias: self.bias.as_ref().zip(shape.bias).map(|(buffer, b)| {
                let [queries, slots] = self.bias_size;
                let stride = |n: usize, elements: usize| if n > 1 { elements as i64 } else { 0 };
                of(buffer, &[b.rows, b.queries, b.slots]).with_strides_elems([
                    (queries * slots) as i64,
                    stride(queries, slots),
                    stride(slots, 1),
                ])
            }),
            lse: self.lse.as_ref().map(|b| TensorView::contiguous(b, Dtype::F32, [rows, queries])),
        }
    }

    /// Binds, records, submits and reads back: the bytes of the outcome, and `lse`.
    async fn run(
        &self,
        call: &Call,
        wait: Wait,
        workspace: &mut Workspace,
    ) -> Result<(Vec<u8>, Vec<f32>), GpuError> {
        let bound = self.plan.bind_piece(&self.tensors(), self.chunk, workspace).await?;
        let _bound = bound.owned();
        workspace.recall();
        let gpu = &self.plan.gpu;
        checked(gpu.both(), "recording a call", || {
            let mut encoder =
                gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor {
                    label: Some("local-attention"),
                });
            bound.encode(
                &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
                workspace,
                call,
            )?;
            let size = self.out.size();
            encoder.copy_buffer_to_buffer(&self.out, 0, &self.back, 0, Some(size));
            if let Some(lse) = &self.lse {
                encoder.copy_buffer_to_buffer(lse, 0, &self.back, size, Some(lse.size()));
            }
            gpu.queue().submit([encoder.finish()]);
            Ok::<_, BindError>(())
        })
        .await??;
        let mut data = gpu.read_back(&self.back, wait).await?;
        let lse = data.split_off(self.out.size() as usize);
        let results = self.chunk.rows.len() * self.chunk.queries.len();
        data.truncate(results * self.outcome.elements * self.outcome.dtype.bytes() as usize);
        let lse = match self.lse {
            Some(_) => lse.chunks_exact(4).take(results).map(f32::take).collect(),
            None => Vec::new(),
        };
        Ok((data, lse))
    }
}

impl Gpu {
    /// What a mapped buffer holds.
    pub(super) async fn read_back(
        &self,
        buffer: &wgpu::Buffer,
        wait: Wait,
    ) -> Result<Vec<u8>, DeviceError> {
        let mapped = self
            .told(wait, |tell| {
                let done = |done: Result<(), wgpu::BufferAsyncError>| {
                    tell(done.map_err(|e| e.to_string()))
                };
                buffer.map_async(wgpu::MapMode::Read, .., done);
            })
            .await;
        let data = mapped.and_then(|()| {
            buffer.get_mapped_range(..).map(|data| data.to_vec()).map_err(|e| e.to_string())
        });
        match data {
            Ok(data) => {
                buffer.unmap();
                Ok(data)
            }
            Err(reason) => Err(refusal(self.both(), "reading results back", reason).await),
        }
    }

    /// Waits for what was submitted.
    pub(super) async fn finished(&self, wait: Wait) -> Result<(), DeviceError> {
        let ask = |tell: Tell| self.queue().on_submitted_work_done(move || tell(Ok(())));
        let lost = |reason| DeviceError::Lost { doing: "computing", reason };
        self.told(wait, ask).await.map_err(lost)
    }

    /// Waits for what the device says when it is asked.
    async fn told(&self, wait: Wait, ask: impl FnOnce(Tell)) -> Result<(), String> {
        let (done, said) = futures_intrusive::channel::shared::channel(2);
        let tell = done.clone();
        ask(Box::new(move |result| {
            // Nobody waits any more: the call was cancelled.
            let _ = tell.try_send(result);
        }));
        #[cfg(not(target_arch = "wasm32"))]
        {
            let device = self.device().clone();
            let poll = move || {
                // A device that is gone may never answer, and wgpu panics where one goes while it is waited for.
                let polled = || device.poll(wgpu::PollType::wait_indefinitely());
                let lost = match std::panic::catch_unwind(AssertUnwindSafe(polled)) {
                    Ok(Ok(_)) => return,
                    Ok(Err(e)) => e.to_string(),
                    Err(_) => "the device was lost".to_owned(),
                };
                let _ = done.try_send(Err(lost));
            };
            match wait {
                Wait::Here => poll(),
                Wait::Elsewhere => {
                    let waiting = std::thread::Builder::new().spawn(poll.clone());
                    if waiting.is_err() {
                        // No thread can be had.
                        poll();
                    }
                }
            }
        }
        // In a browser the event loop polls.
        #[cfg(target_arch = "wasm32")]
        {
            let Wait::Elsewhere = wait;
            drop(done);
        }
        said.receive().await.unwrap_or_else(|| Err("the device said nothing".to_owned()))
    }
}

/// How a device answers.
type Tell = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Queries and slots of a bias that a part reads and that have numbers of their own: a stride of 0
/// repeats one.
fn bias_part<T: GpuElement>(
    inputs: &HostInputs<'_, T>,
    b: BiasShape,
    chunk: &Chunk,
) -> (Range<usize>, usize) {
    let repeats = |axis: usize| match &inputs.attn_bias {
        Some(bias) => bias.packed_row(0, 2).strides().get(axis) == Some(&0),
        None => false,
    };
    let queries = if repeats(0) { 0..1 } else { chunk.bias_queries(b.queries) };
    (queries, if repeats(1) { 1 } else { b.slots })
}

/// Features of a row on the device.
pub(super) fn padded(features: usize) -> usize {
    features.next_multiple_of(4).max(4)
}

/// The bytes of some positions of some packed rows, features padded with zeros.
pub(super) fn gather<T: GpuElement>(
    what: &'static str,
    tensor: &HostTensor<'_, T>,
    rows: Range<usize>,
    positions: Range<usize>,
    features: usize,
) -> Result<Vec<u8>, RunError> {
    let width = padded(features);
    let size = T::STORAGE.bytes() as usize;
    let (mut bytes, _) = reserve(what, &[rows.len(), positions.len(), width, size])?;
    for row in rows {
        let view = tensor.packed_row(row, 2);
        for position in positions.clone() {
            match view.slice(position, features) {
                Some(slice) => slice.iter().for_each(|x| x.put(&mut bytes)),
                None => (0..features).for_each(|c| view.at(position, c).put(&mut bytes)),
            }
            bytes.resize(bytes.len() + (width - features) * size, 0);
        }
    }
    Ok(bytes)
}
