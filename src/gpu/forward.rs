//! The convenience path: tensors of host memory in and out.

use std::ops::Range;

use half::f16;

use super::Storage;
use super::device::{Gpu, checked};
use super::error::{DeviceError, GpuError};
use super::layout::check_fit;
use super::plan::{Chunk, Layouts, Plan};
use super::tensor::{Dtype, ForwardTensors, TensorView};
use super::workspace::Workspace;
use crate::engine::{reserve, zeros};
use crate::{Call, Element, Forward, HostInputs, HostTensor, Problem, RunError};

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

impl Gpu {
    /// `softmax(q k^T * scale + bias, over what each query sees) v`, as
    /// [`Engine::forward`](crate::Engine::forward) says, part by part: uploaded, computed, read back.
    /// Natively it waits for the device inside; in a browser it yields, and dropping the future ends the
    /// work after the part at hand.
    ///
    /// # Errors
    /// Tensors that are not what the problem describes, problems no kernel carries out, devices
    /// that fail.
    pub async fn forward<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, GpuError> {
        problem.check_inputs(inputs)?;
        let shape = &problem.shape;
        let (rows, queries, dv) = (problem.batch, shape.query.len(), shape.value_dim);
        let mut out: Vec<T> = zeros("out", &[rows, queries, dv])?;
        let mut lse: Vec<f32> = zeros("lse", &[rows, if shape.lse { queries } else { 0 }])?;
        if !out.is_empty() || !lse.is_empty() {
            // Rows are padded to whole vec4s on the way.
            let layouts = Layouts { storage: T::STORAGE, vec4: true };
            let plan = self.plan(problem, &layouts).await?;
            let mut workspace = Workspace::new(self, 1).await.map_err(GpuError::Device)?;
            let limit = self.max_binding_bytes();
            let fits = |chunk: &Chunk| check_fit(part_bytes::<T>(problem, chunk), limit);
            for chunk in plan.chunks(&fits)? {
                let (part, part_lse) =
                    self.forward_part(&plan, inputs, call, &chunk, &mut workspace).await?;
                for (i, row) in chunk.rows.clone().enumerate() {
                    let n = chunk.queries.len();
                    let at = row * queries + chunk.queries.start - shape.query.start;
                    out[at * dv..][..n * dv].copy_from_slice(&part[i * n * dv..][..n * dv]);
                    if shape.lse {
                        lse[at..][..n].copy_from_slice(&part_lse[i * n..][..n]);
                    }
                }
            }
        }
        Ok(Forward { out, shape: problem.out_shape(), lse: shape.lse.then_some(lse) })
    }

    /// [`Gpu::forward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn forward_blocking<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, GpuError> {
        pollster::block_on(self.forward(problem, inputs, call))
    }

    /// One part: its tensors in buffers of their own.
    async fn forward_part<T: GpuElement>(
        &self,
        plan: &Plan,
        inputs: &HostInputs<'_, T>,
        call: &Call,
        chunk: &Chunk,
        workspace: &mut Workspace,
    ) -> Result<(Vec<T>, Vec<f32>), GpuError> {
        let problem = plan.problem();
        let shape = &problem.shape;
        let Chunk { rows, queries, keys } = chunk;
        let (d, dv) = (padded(shape.head_dim), padded(shape.value_dim));
        let kv_rows: Vec<usize> = match problem.kv_batch {
            1 => vec![0],
            _ => rows.clone().collect(),
        };
        let q_rows: Vec<usize> = rows.clone().collect();
        let first = shape.query.start;
        let local = queries.start - first..queries.end - first;
        let q = gather("q", &inputs.q, &q_rows, local, shape.head_dim)?;
        let k = gather("k", &inputs.k, &kv_rows, keys.clone(), shape.head_dim)?;
        let v = gather("v", &inputs.v, &kv_rows, keys.clone(), shape.value_dim)?;
        let mask = inputs.effective_mask().zip(shape.mask).map(|(mask, m)| {
            let rows = chunk.mask_rows(problem, m.rows);
            let mut bytes = Vec::with_capacity(rows.len() * m.len);
            for row in rows {
                let view = mask.packed_row(row, 1);
                bytes.extend((0..m.len).map(|u| u8::from(view.at1(u))));
            }
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        });
        let bias = match inputs.attn_bias.as_ref().zip(shape.bias) {
            None => None,
            Some((bias, b)) => {
                let rows = chunk.bias_rows(b.rows);
                let (mut bytes, _) = reserve("attn_bias", &[rows.len(), b.queries, b.slots, 4])?;
                for row in rows {
                    let view = bias.packed_row(row, 2);
                    for i in 0..b.queries {
                        (0..b.slots).for_each(|j| view.at(i, j).put(&mut bytes));
                    }
                }
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                Some(bytes)
            }
        };
        let bytes = T::STORAGE.bytes() as usize;
        let out_bytes = (q_rows.len() * queries.len() * dv * bytes).max(16);
        let lse_bytes = (q_rows.len() * queries.len() * 4).max(16);
        let device = self.device();
        let buffers = checked(self.both(), "the tensors of a call", || {
            let make = |label, size: usize, usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: size.next_multiple_of(16) as u64,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let up = |label, data: &[u8]| {
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
                let buffer = make(label, data.len().max(16), usage);
                self.queue().write_buffer(&buffer, 0, data);
                buffer
            };
            let down = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let back = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            Buffers {
                q: up("q", &q),
                k: up("k", &k),
                v: up("v", &v),
                mask: mask.as_ref().map(|m| up("mask", m)),
                bias: bias.as_ref().map(|b| up("attn_bias", b)),
                out: make("out", out_bytes, down),
                lse: shape.lse.then(|| make("lse", lse_bytes, down)),
                back: make("results", out_bytes.next_multiple_of(16) + lse_bytes, back),
            }
        })
        .await?;
        let dtype = Dtype::from(T::STORAGE);
        let piece = |buffer, rows: usize, n: usize, d: usize| {
            TensorView::contiguous(buffer, dtype, [rows, n, d])
        };
        let tensors = ForwardTensors {
            q: piece(&buffers.q, q_rows.len(), queries.len(), d),
            k: piece(&buffers.k, kv_rows.len(), keys.len(), d),
            v: piece(&buffers.v, kv_rows.len(), keys.len(), dv),
            out: piece(&buffers.out, q_rows.len(), queries.len(), dv),
            mask: buffers
                .mask
                .as_ref()
                .zip(shape.mask)
                .map(|(b, m)| TensorView::contiguous(b, Dtype::U8, [m.rows, m.len])),
            attn_bias: buffers.bias.as_ref().zip(shape.bias).map(|(buffer, b)| {
                TensorView::contiguous(buffer, dtype, [b.rows, b.queries, b.slots])
            }),
            lse: buffers
                .lse
                .as_ref()
                .map(|b| TensorView::contiguous(b, Dtype::F32, [q_rows.len(), queries.len()])),
        };
        let bound = plan.bind_piece(&tensors, chunk, workspace).await?;
        workspace.recall();
        let out_copy = (out_bytes.next_multiple_of(16)) as u64;
        let recorded = checked(self.both(), "a forward pass", || {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("local-attention"),
            });
            let recorded = {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                bound.encode(&mut pass, workspace, call)
            };
            encoder.copy_buffer_to_buffer(&buffers.out, 0, &buffers.back, 0, Some(out_copy));
            if let Some(lse) = &buffers.lse {
                encoder.copy_buffer_to_buffer(lse, 0, &buffers.back, out_copy, Some(lse.size()));
            }
            self.queue().submit([encoder.finish()]);
            recorded
        })
        .await?;
        recorded?;
        let data = self.read_back(&buffers.back).await?;
        let mut out = Vec::with_capacity(q_rows.len() * queries.len() * shape.value_dim);
        for row in data[..out_bytes].chunks_exact((dv * bytes).max(1)) {
            out.extend(row.chunks_exact(bytes).take(shape.value_dim).map(T::take));
        }
        let lse = match shape.lse {
            true => data[out_copy as usize..][..lse_bytes].chunks_exact(4).map(f32::take).collect(),
            false => Vec::new(),
        };
        Ok((out, lse))
    }

    /// What a mapped buffer holds.
    async fn read_back(&self, buffer: &wgpu::Buffer) -> Result<Vec<u8>, DeviceError> {
        const DOING: &str = "reading results back";
        let lost = |reason: String| DeviceError::Lost { doing: DOING, reason };
        let (done, mapped) = futures_intrusive::channel::shared::oneshot_channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // Nobody waits any more: the call was cancelled.
            let _ = done.send(result);
        });
        // In a browser the event loop does this.
        #[cfg(not(target_arch = "wasm32"))]
        self.device().poll(wgpu::PollType::wait_indefinitely()).map_err(|e| lost(e.to_string()))?;
        match mapped.receive().await {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(lost(e.to_string())),
            None => return Err(lost("the device said nothing".to_owned())),
        }
        let data = buffer.get_mapped_range(..).map_err(|e| lost(e.to_string()))?.to_vec();
        buffer.unmap();
        Ok(data)
    }
}

struct Buffers {
    q: wgpu::Buffer,
    k: wgpu::Buffer,
    v: wgpu::Buffer,
    mask: Option<wgpu::Buffer>,
    bias: Option<wgpu::Buffer>,
    out: wgpu::Buffer,
    lse: Option<wgpu::Buffer>,
    back: wgpu::Buffer,
}

/// Features of a row on the device.
fn padded(features: usize) -> usize {
    features.next_multiple_of(4).max(4)
}

/// Bytes of a part's tensors.
fn part_bytes<T: GpuElement>(problem: &Problem, chunk: &Chunk) -> Vec<(&'static str, u64)> {
    let shape = &problem.shape;
    let kv_rows = if problem.kv_batch == 1 { 1 } else { chunk.rows.len() };
    let bytes =
        |sizes: &[usize], size: u64| sizes.iter().fold(size, |n, &s| n.saturating_mul(s as u64));
    let element = T::STORAGE.bytes();
    let (d, dv) = (padded(shape.head_dim), padded(shape.value_dim));
    let (queries, keys) = (chunk.queries.len(), chunk.keys.len().max(1));
    let mut all = vec![
        ("q", bytes(&[chunk.rows.len(), queries, d], element)),
        ("k", bytes(&[kv_rows, keys, d], element)),
        ("v", bytes(&[kv_rows, keys, dv], element)),
        ("out", bytes(&[chunk.rows.len(), queries, dv], element)),
    ];
    all.extend(
        shape.mask.map(|m| ("mask", bytes(&[chunk.mask_rows(problem, m.rows).len(), m.len], 1))),
    );
    all.extend(shape.bias.map(|b| {
        ("attn_bias", bytes(&[chunk.bias_rows(b.rows).len(), b.queries, b.slots], element))
    }));
    all
}

/// The bytes of some positions of some packed rows, features padded with zeros.
fn gather<T: GpuElement>(
    what: &'static str,
    tensor: &HostTensor<'_, T>,
    rows: &[usize],
    positions: Range<usize>,
    features: usize,
) -> Result<Vec<u8>, RunError> {
    let width = padded(features);
    let size = T::STORAGE.bytes() as usize;
    let (mut bytes, _) = reserve(what, &[rows.len(), positions.len(), width, size])?;
    for &row in rows {
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
