//! Gradients in f32, copied to where and how the caller wants them.

use super::bind::{Binder, THREADS};
use crate::gpu::bindings::{self, Slot};
use crate::gpu::bound::Dispatch;
use crate::gpu::chunk::halves;
use crate::gpu::error::BindError;
use crate::gpu::layout::{Laid, check_fit, merge_leading, normalise};
use crate::gpu::params::Params;
use crate::gpu::plan::{Drops, Pipelines};
use crate::gpu::shader::{Kernel, PipelineKey, Storage};
use crate::gpu::tensor::{Dtype, TensorView};

impl<'b: 'a, 'a> Binder<'b, 'a> {
    /// Copies a gradient in f32 to where the caller wants it.
    pub(super) async fn copy(
        &self,
        (name, to): (&'static str, &TensorView<'a>),
        from: &'a wgpu::Buffer,
        shape: &[usize],
        vec4: bool,
    ) -> Result<Vec<Dispatch<'a>>, BindError> {
        let plan = &self.plan.dq;
        let gpu = &plan.gpu;
        let storage = match to.dtype {
            Dtype::F16 => Storage::F16,
            _ => Storage::F32,
        };
        let f16_out = storage == Storage::F16 && !vec4 && plan.writes_f16();
        let key = PipelineKey { storage, vec4, f16_out, ..plan.key() };
        let key = key.with_kernel(Kernel::Copy);
        let pipelines = Pipelines::new(gpu, key, Drops::Never).await?;
        let mut to = to.clone();
        normalise(&mut to, true);
        let ([.., positions, features], leading) =
            (&shape[shape.len() - 2..], &shape[..shape.len() - 2])
        else {
            return Ok(Vec::new());
        };
        let (positions, features) = (*positions, *features);
        if shape.contains(&0) {
            return Ok(Vec::new());
        }
        let (dims, strides) = merge_leading(leading, &[&to.strides_elems[..leading.len()]])?;
        let last_two = [to.strides_elems[leading.len()], to.strides_elems[leading.len() + 1]];
        let laid = Laid::new(&to, strides[0], last_two, 0);
        let rows: usize = leading.iter().product();
        let quads = features.div_ceil(4);
        let limits = gpu.device().limits();
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        let limit = gpu.max_binding_bytes();
        let mut all = Vec::new();
        let mut open = vec![(0..rows, 0..positions)];
        while let Some((rows, range)) = open.pop() {
            let at =
                |row: usize, position: usize| 16 * ((row * positions + position) * quads) as u64;
            let last = at(rows.end - 1, range.end);
            let read = at(rows.start, range.start) / alignment * alignment..last;
            let written = laid.extent(dims, rows.clone(), range.clone(), features, alignment);
            let sizes =
                [(name, written.end - written.start), ("a gradient in f32", read.end - read.start)];
            let fit = check_fit(sizes, limit);
            let blocks = (range.len() * quads).div_ceil(THREADS);
            let most = gpu.max_workgroups() as usize;
            let halves = halves(&rows, &range, 1);
            if fit.is_ok() && (blocks <= most && rows.len() <= most || halves.is_none()) {
                let params = Params {
                    query_start: range.start as u32,
                    query_end: range.end as u32,
                    seq_len: positions as u32,
                    value_dim: features as u32,
                    first_row: rows.start as u32,
                    stats: (read.start / 16) as u32,
                    leading: dims,
                    out: laid.view(written.start),
                    ..Params::default()
                };
                let both = [
                    (Slot::From, bindings::range(from, read)),
                    (Slot::Out, bindings::range(to.buffer, written)),
                ];
                let bindings = bindings::numbered(Kernel::Copy, both);
                // More than one where a single position has more features than a grid.
                for first in (0..blocks).step_by(most) {
                    let params = Params { first_block: first as u32, ..params };
                    let workgroups = [most.min(blocks - first) as u32, rows.len() as u32, 1];
                    let (pipelines, bindings) = (pipelines.clone(), bindings.clone());
                    all.push(Dispatch { key, pipelines, params, bindings, workgroups });
                }
            } else if let Some(halves) = halves {
                open.extend(halves);
            } else {
                fit?;
            }
        }
        Ok(all)
    }
}
