//! The backward pass on tensors of host memory: all of them on the device at once, the work part by part.

use super::{BackwardPlan, BackwardTensors};
use crate::engine::reserve;
use crate::gpu::device::Gpu;
use crate::gpu::error::{BindError, GpuError};
use crate::gpu::host::{GpuElement, Wait, gather, padded};
use crate::gpu::layout::check_fit;
use crate::gpu::plan::Layouts;
use crate::gpu::scope::checked;
use crate::gpu::tensor::{Dtype, ForwardTensors, TensorView, row_major};
use crate::gpu::workspace::Workspace;
use crate::gradients::{Shapes, SharedRows};
use crate::{BackwardInputs, Call, Gradient, Gradients, HostInputs, HostTensor, Problem, RunError};

/// Bytes that are read back at a time.
const BACK_BYTES: u64 = 32 << 20;
/// Bytes that are uploaded at a time.
const STAGING_BYTES: usize = 32 << 20;

impl Gpu {
    /// The gradients of a loss by q, k, v and the bias, as [`Engine::backward`](crate::Engine::backward) says: all
    /// tensors are uploaded, then computed with part by part, and the gradients read back. While the device works the
    /// future yields, as that of [`Gpu::forward`] does, and dropping it ends the work after the part at hand.
    ///
    /// # Errors
    /// As [`Gpu::forward`], and tensors larger than a buffer of the device.
    pub async fn backward<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, GpuError> {
        self.backward_waiting(problem, inputs, saved, (call, Wait::Elsewhere)).await
    }

    /// [`Gpu::backward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn backward_blocking<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, GpuError> {
        pollster::block_on(self.backward_waiting(problem, inputs, saved, (call, Wait::Here)))
    }

    async fn backward_waiting<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        (call, wait): (&Call, Wait),
    ) -> Result<Gradients<T>, GpuError> {
        problem.check_backward(inputs, saved)?;
        let shapes = Shapes::new(problem, inputs, saved);
        let layouts = Layouts::contiguous(T::STORAGE, problem);
        let plan = self.plan_backward(problem, &layouts).await?;
        let uploaded = Uploaded::new(self, problem, inputs, saved, (&shapes, wait)).await?;
        let results = uploaded.compute(&plan, self, (call, wait)).await?;
        let mut gradients = Vec::new();
        for (buffer, shape) in results.into_iter().zip(shapes.all()) {
            gradients.push(self.gradient(buffer, shape, wait).await?);
        }
        let mut gradients = gradients.into_iter();
        let mut next = || gradients.next();
        let all = (next(), next(), next());
        let (Some(dq), Some(dk), Some(dv)) = all else {
            return Err(RunError::MissingTensor { tensor: "dq" }.into());
        };
        Ok(Gradients { dq, dk, dv, dattn_bias: next() })
    }

    /// A gradient, read back piece by piece.
    async fn gradient<T: GpuElement>(
        &self,
        from: &wgpu::Buffer,
        shape: &[usize],
        wait: Wait,
    ) -> Result<Gradient<T>, GpuError> {
        let features = shape.last().copied().unwrap_or(1);
        let size = T::STORAGE.bytes() as usize;
        let row = padded(features) * size;
        let (mut data, len) = reserve::<T>("a gradient", shape)?;
        let rows = len.checked_div(features).unwrap_or(0);
        // A row is more than nothing, and a whole number of words.
        let step = (BACK_BYTES as usize / row).max(1);
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let bytes = (count * row) as u64;
            let back = checked(self.both(), "reading results back", || {
                let back = self.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("results"),
                    size: bytes,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                let mut encoder = self
                    .device()
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                let at = (first * row) as u64;
                encoder.copy_buffer_to_buffer(from, at, &back, 0, Some(bytes));
                self.queue().submit([encoder.finish()]);
                back
            })
            .await?;
            let read = self.read_back(&back, wait).await?;
            for row in read.chunks_exact(row) {
                data.extend(row.chunks_exact(size).take(features).map(T::take));
            }
        }
        Ok(Gradient { data, shape: shape.to_vec() })
    }
}

/// A buffer, and how its tensor lies in it.
struct Placed {
    buffer: wgpu::Buffer,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<i64>,
}

impl Placed {
    fn view(&self) -> TensorView<'_> {
        let view = TensorView::contiguous(&self.buffer, self.dtype, self.shape.clone());
        view.with_strides_elems(self.strides.clone())
    }
}

/// The tensors of a call on the device.
struct Uploaded {
    q: Placed,
    k: Placed,
    v: Placed,
    out: Placed,
    dout: Placed,
    lse: Placed,
    mask: Option<Placed>,
    bias: Option<Placed>,
    /// dq, dk, dv, and dattn_bias where it is wanted.
    results: Vec<Placed>,
}

impl Uploaded {
    async fn new<T: GpuElement>(
        gpu: &Gpu,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        (shapes, wait): (&Shapes, Wait),
    ) -> Result<Self, GpuError> {
        let mask = match inputs.effective_mask().zip(problem.shape.mask) {
            Some((mask, m)) => {
                // Rows of whole words.
                let row_bytes = m.len.next_multiple_of(4);
                let row = move |i: usize| -> Result<Vec<u8>, RunError> {
                    let (mut bytes, _) = reserve("mask", &[row_bytes])?;
                    let view = mask.packed_row(i, 1);
                    bytes.extend((0..m.len).map(|u| u8::from(view.at1(u))));
                    bytes.resize(row_bytes, 0);
                    Ok(bytes)
                };
                let strides = vec![row_bytes as i64, 1];
                let (name, dtype, shape) = ("mask", Dtype::U8, vec![m.rows, m.len]);
                let row = Box::new(row);
                let mask = Upload { name, dtype, shape, strides, rows: m.rows, row_bytes, row };
                Some(mask.place(gpu, wait).await?)
            }
            None => None,
        };
        let bias = match &inputs.attn_bias {
            Some(bias) => Some(upload("attn_bias", bias, None).place(gpu, wait).await?),
            None => None,
        };
        let queries = problem.shape.query.len();
        let lse = Upload {
            name: "lse",
            dtype: Dtype::F32,
            shape: problem.lse_shape(),
            strides: row_major(&problem.lse_shape()),
            rows: problem.batch,
            row_bytes: 4 * queries,
            row: Box::new(|i| {
                let (mut bytes, _) = reserve("lse", &[queries, 4])?;
                let view = saved.lse.packed_row(i, 1);
                (0..queries).for_each(|t| view.at1(t).put(&mut bytes));
                Ok(bytes)
            }),
        };
        let dtype = Dtype::from(T::STORAGE);
        let mut results = Vec::new();
        for (name, shape) in ["dq", "dk", "dv", "dattn_bias"].into_iter().zip(shapes.all()) {
            results.push(result(gpu, name, dtype, shape, wait).await?);
        }
        Ok(Self {
            q: upload("q", &inputs.q, None).place(gpu, wait).await?,
            k: upload("k", &inputs.k, Some(&shapes.k_rows)).place(gpu, wait).await?,
            v: upload("v", &inputs.v, Some(&shapes.v_rows)).place(gpu, wait).await?,
            out: upload("out", &saved.out, None).place(gpu, wait).await?,
            dout: upload("dout", &saved.dout, None).place(gpu, wait).await?,
            lse: lse.place(gpu, wait).await?,
            mask,
            bias,
            results,
        })
    }

    /// Binds, records and submits part by part; the gradients' buffers.
    async fn compute(
        &self,
        plan: &BackwardPlan,
        gpu: &Gpu,
        (call, wait): (&Call, Wait),
    ) -> Result<Vec<&wgpu::Buffer>, GpuError> {
        let mut forward =
            ForwardTensors::new(self.q.view(), self.k.view(), self.v.view(), self.out.view());
        forward.lse = Some(self.lse.view());
        forward.mask = self.mask.as_ref().map(Placed::view);
        forward.attn_bias = self.bias.as_ref().map(Placed::view);
        let [dq, dk, dv, rest @ ..] = &self.results[..] else { return Ok(Vec::new()) };
        let mut tensors =
            BackwardTensors::new(forward, self.dout.view(), dq.view(), dk.view(), dv.view());
        tensors.dattn_bias = rest.first().map(Placed::view);
        let mut workspace = Workspace::new(gpu, 1).await?;
        let bound = plan.bind(&tensors, &workspace).await?;
        for part in 0..bound.chunks() {
            checked(gpu.both(), "recording a call", || {
                let mut encoder =
                    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor {
                        label: Some("local-attention"),
                    });
                bound.encode_chunk(
                    part,
                    &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
                    &mut workspace,
                    call,
                )?;
                gpu.queue().submit([encoder.finish()]);
                Ok::<_, BindError>(())
            })
            .await??;
            workspace.recall();
            gpu.finished(wait).await?;
        }
        Ok(self.results.iter().map(|result| &result.buffer).collect())
    }
}

/// A tensor to be uploaded, or, without rows, to be written.
struct Upload<'u> {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<i64>,
    /// Rows that are stored, their bytes, and what those are.
    rows: usize,
    row_bytes: usize,
    row: Box<dyn Fn(usize) -> Result<Vec<u8>, RunError> + Send + 'u>,
}

impl Upload<'_> {
    /// A buffer with all of it.
    async fn place(self, gpu: &Gpu, wait: Wait) -> Result<Placed, GpuError> {
        let bytes = (self.rows as u64).saturating_mul(self.row_bytes as u64);
        // Kernels read whole words, and four numbers at a time.
        let size = bytes.saturating_add(16) / 16 * 16;
        check_fit([(self.name, size)], gpu.device().limits().max_buffer_size)?;
        let buffer = checked(gpu.both(), "placing the tensors of a call", || {
            let usage = wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC;
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(self.name),
                size,
                usage,
                mapped_at_creation: false,
            })
        })
        .await?;
        let mut waiting = 0;
        for i in 0..self.rows {
            let row = (self.row)(i)?;
            for (n, piece) in row.chunks(STAGING_BYTES).enumerate() {
                let at = (i * self.row_bytes + n * STAGING_BYTES) as u64;
                let write = || gpu.queue().write_buffer(&buffer, at, piece);
                checked(gpu.both(), "placing the tensors of a call", write).await?;
                waiting += piece.len();
                // What is written waits in memory of its own until it is submitted.
                if waiting >= STAGING_BYTES {
                    gpu.queue().submit([]);
                    gpu.finished(wait).await?;
                    waiting = 0;
                }
            }
        }
        let Self { dtype, shape, strides, .. } = self;
        Ok(Placed { buffer, dtype, shape, strides })
    }
}

/// A gradient, to be written.
async fn result(
    gpu: &Gpu,
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
    wait: Wait,
) -> Result<Placed, GpuError> {
    let (leading, last) = shape.split_at(shape.len() - 2);
    let strides = strides(shape, leading);
    let row_bytes = last[0] * padded(last[1]) * dtype.bytes() as usize;
    let rows = leading.iter().product();
    let row = Box::new(|_| Ok(Vec::new()));
    let shape = shape.to_vec();
    Upload { name, dtype, shape, strides, rows, row_bytes, row }.place(gpu, wait).await
}

/// Strides of rows of padded features, one after the other; 0 along dimensions that `stored` has as 1 though the
/// tensor has more.
fn strides(shape: &[usize], stored: &[usize]) -> Vec<i64> {
    let (features, leading) = (shape.last().copied().unwrap_or(1), shape.len() - 1);
    let mut strides = vec![1; shape.len()];
    let mut step = padded(features) as i64;
    for i in (0..leading).rev() {
        let shared = stored.get(i) == Some(&1) && shape[i] > 1;
        strides[i] = if shared { 0 } else { step };
        step *= if shared { 1 } else { shape[i].max(1) as i64 };
    }
    strides
}

/// A tensor of packed rows of positions and features.
fn upload<'u, T: GpuElement>(
    name: &'static str,
    tensor: &'u HostTensor<'_, T>,
    shared: Option<&SharedRows>,
) -> Upload<'u> {
    let shape = tensor.shape().to_vec();
    let (leading, last) = shape.split_at(shape.len() - 2);
    let (positions, features) = (last[0], last[1]);
    let packed: usize = leading.iter().product();
    // Of rows that are one, the first.
    let mut firsts = Vec::new();
    for row in 0..packed {
        if shared.is_none_or(|s| s.of(row) == firsts.len()) {
            firsts.push(row);
        }
    }
    let stored = shared.map_or(leading, |s| s.leading()).to_vec();
    let row_bytes = positions * padded(features) * T::STORAGE.bytes() as usize;
    Upload {
        name,
        dtype: Dtype::from(T::STORAGE),
        strides: strides(&shape, &stored),
        rows: firsts.len(),
        row_bytes,
        row: Box::new(move |i| {
            gather(name, tensor, firsts[i]..firsts[i] + 1, 0..positions, features)
        }),
        shape,
    }
}
