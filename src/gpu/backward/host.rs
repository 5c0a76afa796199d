//! The backward pass on tensors of host memory: all of them on the device at once, the work part by part.

use super::{BackwardPlan, BackwardTensors};
use crate::engine::reserve;
use crate::gpu::device::Gpu;
use crate::gpu::error::{BindError, GpuError};
use crate::gpu::host::{GpuElement, Wait, gather, padded};
use crate::gpu::layout::check_fit;
use crate::gpu::owned::Owned;
use crate::gpu::plan::{Drops, Layouts};
use crate::gpu::scope::checked;
use crate::gpu::tensor::{Dtype, ForwardTensors, TensorView, row_major};
use crate::gpu::workspace::Workspace;
use crate::gradients::{Shapes, SharedRows};
use crate::tensor::elements;
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
    /// As [`Gpu::forward`], and tensors larger than a buffer of the device. A [`BindError::Rank`] where heads share k or v
    /// by strides of 0 in dimensions that q's do not have, or in every other one of five and more.
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
        let drops = Drops::of_call(problem, call);
        let plan = self.plan_gradients(problem, &layouts, drops, shapes.bias.is_some()).await?;
        let _plan = plan.owned();
        let uploaded = Uploaded::new(self, problem, inputs, saved, (&shapes, wait)).await?;
        uploaded.compute(&plan, self, (call, wait)).await?;
        Ok(Gradients {
            dq: self.gradient(&uploaded.dq, wait).await?,
            dk: self.gradient(&uploaded.dk, wait).await?,
            dv: self.gradient(&uploaded.dv, wait).await?,
            dattn_bias: match &uploaded.dattn_bias {
                Some(placed) => Some(self.gradient(placed, wait).await?),
                None => None,
            },
        })
    }

    /// A gradient, read back piece by piece.
    async fn gradient<T: GpuElement>(
        &self,
        Placed { buffer, shape, .. }: &Placed,
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
                encoder.copy_buffer_to_buffer(buffer, at, &back, 0, Some(bytes));
                self.queue().submit([encoder.finish()]);
                back
            })
            .await?;
            let _back = Owned::of([&back]);
            let read = self.read_back(&back, wait).await?;
            for row in read.chunks_exact(row) {
                data.extend(row.chunks_exact(size).take(features).map(T::take));
            }
        }
        Ok(Gradient { data, shape: shape.clone() })
    }
}

/// A buffer, and how its tensor lies in it.
struct Placed {
    buffer: wgpu::Buffer,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<i64>,
}

/// Frees it: in browsers dropping a buffer alone leaves that to the garbage collector.
impl Drop for Placed {
    fn drop(&mut self) {
        self.buffer.destroy();
    }
}

impl Placed {
    /// Room for so many bytes.
    async fn new(
        gpu: &Gpu,
        (name, bytes): (&'static str, u64),
        dtype: Dtype,
        (shape, strides): (Vec<usize>, Vec<i64>),
    ) -> Result<Self, GpuError> {
        // Kernels read whole words, and four numbers at a time.
        let size = bytes.saturating_add(16) / 16 * 16;
        check_fit([(name, size)], gpu.device().limits().max_buffer_size)?;
        let buffer = checked(gpu.both(), "placing the tensors of a call", || {
            let usage = wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC;
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(name),
                size,
                usage,
                mapped_at_creation: false,
            })
        })
        .await?;
        Ok(Self { buffer, dtype, shape, strides })
    }

    /// Room for a gradient.
    async fn result(
        gpu: &Gpu,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self, GpuError> {
        let (leading, last) = shape.split_at(shape.len() - 2);
        let row_bytes = last[0] as u64 * padded(last[1]) as u64 * dtype.bytes();
        let bytes = leading.iter().fold(row_bytes, |n, &size| n.saturating_mul(size as u64));
        let strides = strides(shape, leading);
        Self::new(gpu, (name, bytes), dtype, (shape.to_vec(), strides)).await
    }

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
    dq: Placed,
    dk: Placed,
    dv: Placed,
    /// Where it is wanted.
    dattn_bias: Option<Placed>,
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
        let dattn_bias = match &shapes.bias {
            Some(shape) => Some(Placed::result(gpu, "dattn_bias", dtype, shape).await?),
            None => None,
        };
        Ok(Self {
            q: upload("q", &inputs.q, None).place(gpu, wait).await?,
            k: upload("k", &inputs.k, Some(&shapes.k_rows)).place(gpu, wait).await?,
            v: upload("v", &inputs.v, Some(&shapes.v_rows)).place(gpu, wait).await?,
            out: upload("out", &saved.out, None).place(gpu, wait).await?,
            dout: upload("dout", &saved.dout, None).place(gpu, wait).await?,
            lse: lse.place(gpu, wait).await?,
            mask,
            bias,
            dq: Placed::result(gpu, "dq", dtype, &shapes.dq).await?,
            dk: Placed::result(gpu, "dk", dtype, &shapes.dk).await?,
            dv: Placed::result(gpu, "dv", dtype, &shapes.dv).await?,
            dattn_bias,
        })
    }

    /// Binds, records and submits part by part.
    async fn compute(
        &self,
        plan: &BackwardPlan,
        gpu: &Gpu,
        (call, wait): (&Call, Wait),
    ) -> Result<(), GpuError> {
        let mut forward =
            ForwardTensors::new(self.q.view(), self.k.view(), self.v.view(), self.out.view());
        forward.lse = Some(self.lse.view());
        forward.mask = self.mask.as_ref().map(Placed::view);
        forward.attn_bias = self.bias.as_ref().map(Placed::view);
        let [dq, dk, dv] = [&self.dq, &self.dk, &self.dv].map(Placed::view);
        let mut tensors = BackwardTensors::new(forward, self.dout.view(), dq, dk, dv);
        tensors.dattn_bias = self.dattn_bias.as_ref().map(Placed::view);
        let mut workspace = Workspace::new(gpu, 1).await?;
        let _workspace = workspace.owned();
        let bound = plan.bind(&tensors, &workspace).await?;
        let _bound = bound.owned();
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
        Ok(())
    }
}

/// A tensor to be uploaded.
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
        let Self { name, dtype, shape, strides, rows, row_bytes, row: bytes_of } = self;
        let bytes = (rows as u64).saturating_mul(row_bytes as u64);
        let placed = Placed::new(gpu, (name, bytes), dtype, (shape, strides)).await?;
        let mut waiting = 0;
        for i in 0..rows {
            let row = bytes_of(i)?;
            for (n, piece) in row.chunks(STAGING_BYTES).enumerate() {
                let at = (i * row_bytes + n * STAGING_BYTES) as u64;
                let write = || gpu.queue().write_buffer(&placed.buffer, at, piece);
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
        Ok(placed)
    }
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
        step = step.saturating_mul(if shared { 1 } else { shape[i].max(1) as i64 });
    }
    strides
}

/// A tensor of packed rows of positions and features.
fn upload<'u, T: GpuElement>(
    name: &'static str,
    tensor: &'u HostTensor<'_, T>,
    shared: Option<&'u SharedRows>,
) -> Upload<'u> {
    let shape = tensor.shape().to_vec();
    let (leading, last) = shape.split_at(shape.len() - 2);
    let (positions, features) = (last[0], last[1]);
    let stored = shared.map_or(leading, |s| s.leading());
    let row_bytes = positions * padded(features) * T::STORAGE.bytes() as usize;
    Upload {
        name,
        dtype: Dtype::from(T::STORAGE),
        strides: strides(&shape, stored),
        rows: elements(stored).unwrap_or(usize::MAX),
        row_bytes,
        row: Box::new(move |i| {
            // Of rows that are one, the first.
            let row = shared.map_or(i, |s| s.first_of(i));
            gather(name, tensor, row..row + 1, 0..positions, features)
        }),
        shape,
    }
}
