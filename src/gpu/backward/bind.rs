//! Tensors bound to the kernels of a backward pass.

use std::ops::Range;

use super::BackwardPlan;
use super::scratch::Scratch;
use super::tensors::{BackwardTensors, LaidBackward};
use crate::Problem;
use crate::gpu::bindings::{self, Slot};
use crate::gpu::bound::{Bound, Dispatch};
use crate::gpu::chunk::Chunk;
use crate::gpu::error::{BindError, PlanError};
use crate::gpu::layout::check_fit;
use crate::gpu::owned::Owned;
use crate::gpu::params::{self, Params, View};
use crate::gpu::plan::Plan;
use crate::gpu::shader::Kernel;
use crate::gpu::tensor::Dtype;
use crate::gpu::uniforms;
use crate::gpu::workspace::Workspace;

/// Threads of the kernels that copy and add.
pub(super) const THREADS: usize = 64;

impl BackwardPlan {
    /// Binds tensors: shapes, types, usages, sizes and limits are checked here, once.
    ///
    /// Takes memory of the device, which the result holds: 16 bytes a query and packed row, 4 a key of a mask, the rotary tables
    /// once more, and, for each gradient that is stored as f16 or shares a buffer with another tensor, as many bytes as it has in
    /// f32; for `dattn_bias` its size in f32, and parts of it of up to 32 MiB. The first of these three have to fit one binding, and the
    /// others a buffer. Compiles kernels where tensors need them, and submits a copy of the tables.
    ///
    /// Gradients may be interleaved with each other and with what is read (`dq`, `dk` and `dv` as views of one `[b, n, 3, h, d]`);
    /// where they have no element in common and the same strides.
    ///
    /// # Errors
    /// Tensors that do not fit the plan, and parts that do not fit the device; see [`BindError`].
    pub async fn bind(
        &self,
        tensors: &BackwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let plan = &self.dq;
        workspace.check_gpu(&plan.gpu)?;
        LaidBackward::check(plan, tensors)?;
        let mut own = Owned::default();
        let scratch = self.scratch(tensors, &mut own).await?;
        let wide = scratch.wide(tensors);
        let laid = LaidBackward::new(plan, &wide)?;
        let binder = Binder { plan: self, laid, scratch: &scratch };
        let mut dispatches = binder.known(tensors).await?;
        dispatches.extend(binder.queries()?);
        dispatches.extend(binder.keys()?);
        let copied: Vec<_> = tensors.results().zip(wide.results()).zip(&scratch.results).collect();
        let mut sums = None;
        if let Some(to) = &tensors.dattn_bias {
            let (buffers, all) = binder.bias_buffers(&mut own).await?;
            let sums = sums.insert(buffers);
            dispatches.extend(binder.bias(sums, &all).await?);
            let b = plan.problem.shape.bias.map_or([1; 3], |b| [b.rows, b.queries, b.slots]);
            dispatches.extend(binder.copy(("dattn_bias", to), &sums[0], &b, false).await?);
        }
        for (((name, to), (_, from)), buffer) in copied {
            if let Some(buffer) = buffer {
                dispatches
                    .extend(binder.copy((name, to), buffer, &from.shape, plan.key().vec4).await?);
            }
        }
        Bound::new(plan, dispatches, workspace, own).await
    }

    /// [`BackwardPlan::bind`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn bind_blocking(
        &self,
        tensors: &BackwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        pollster::block_on(self.bind(tensors, workspace))
    }
}

/// What dispatches are made from.
pub(super) struct Binder<'b, 'a> {
    pub(super) plan: &'b BackwardPlan,
    pub(super) laid: LaidBackward<'a>,
    pub(super) scratch: &'b Scratch,
}

impl<'b: 'a, 'a> Binder<'b, 'a> {
    pub(super) fn problem(&self) -> &'b Problem {
        &self.plan.dq.problem
    }

    /// An error unless what a part binds fits.
    pub(super) fn fits(&self, kernel: Kernel, chunk: &Chunk) -> Result<(), PlanError> {
        let ranges = self.laid.ranges(&self.plan.dq, kernel, chunk);
        let sizes = ranges.into_iter().map(|(place, _, b)| (place.slot.tensor(), b.end - b.start));
        check_fit(sizes, self.plan.dq.gpu.max_binding_bytes())
    }

    /// A dispatch on a part, with what uniforms need beyond that.
    pub(super) fn dispatch(
        &self,
        plan: &Plan,
        chunk: &Chunk,
        workgroups: [u32; 3],
        set: impl FnOnce(&mut Params),
    ) -> Dispatch<'a> {
        let (shape, key) = (&self.problem().shape, plan.key());
        let mut params = plan.params(chunk);
        if self.laid.repeats_bias() {
            params.flags &= !params::BIAS_VARIES;
            params.key_end = uniforms::key_end(self.problem(), false);
        }
        let mut bindings = self.laid.bind(plan, key.kernel, chunk, &mut params);
        let tables = [(Slot::Tables, bindings::whole(&self.scratch.aux))];
        bindings.extend(bindings::numbered(key.kernel, tables));
        params.stats = (self.scratch.stats as u32).wrapping_sub(shape.query.start as u32);
        params.stats_len = shape.query.len() as u32;
        if shape.mask.is_some() && key.kernel != Kernel::Mask {
            // Words beside the tables.
            params.flags |= params::MASK_WORDS;
            let row = 4 * self.scratch.mask_quads as u32;
            let offset = 4 * self.scratch.mask as u32;
            params.mask = View { offset, position: 1, leading: [0, 0, 0, row], ..View::default() };
        }
        set(&mut params);
        let pipelines = plan.own_pipelines().clone();
        Dispatch { key, pipelines, params, bindings, workgroups }
    }

    /// What is known of queries, and the mask.
    async fn known(&self, tensors: &BackwardTensors<'a>) -> Result<Vec<Dispatch<'a>>, BindError> {
        let mut all = Vec::new();
        if self.problem().batch == 0 {
            return Ok(all);
        }
        if let Some(m) = self.problem().shape.mask {
            let gpu = &self.plan.dq.gpu;
            let plan = self.plan.dq.with_kernel(Kernel::Mask).await?;
            let most = gpu.max_workgroups() as usize;
            let whole = Chunk { rows: 0..self.problem().batch, queries: 0..1, keys: 0..1 };
            self.fits(Kernel::Mask, &whole)?;
            let words = tensors.forward.mask.as_ref().is_some_and(|m| m.dtype == Dtype::U32);
            let blocks = self.scratch.mask_quads.div_ceil(THREADS);
            for (rows, blocks) in grid(m.rows, blocks, most, usize::MAX) {
                let workgroups = [blocks.len() as u32, rows.len() as u32, 1];
                all.push(self.dispatch(&plan, &whole, workgroups, |params| {
                    params.flags |= if words { params::MASK_WORDS } else { 0 };
                    (params.first_row, params.first_block) =
                        (rows.start as u32, blocks.start as u32);
                    params.stats = self.scratch.mask as u32;
                    params.stats_len = self.scratch.mask_quads as u32;
                }));
            }
        }
        for plan in [&self.plan.rows, &self.plan.again] {
            for chunk in plan.chunks(&|chunk| self.fits(plan.key().kernel, chunk))? {
                all.push(self.dispatch(plan, &chunk, plan.workgroups(&chunk), |_| {}));
            }
        }
        Ok(all)
    }

    /// The gradient by queries.
    fn queries(&self) -> Result<Vec<Dispatch<'a>>, BindError> {
        let plan = &self.plan.dq;
        let chunks = plan.chunks(&|chunk| self.fits(Kernel::Dq, chunk))?;
        let dispatch = |chunk: &Chunk| self.dispatch(plan, chunk, plan.workgroups(chunk), |_| {});
        Ok(chunks.iter().map(dispatch).collect())
    }
}

/// Rows and blocks of a grid in parts of at most so many, and of at most so many cells.
pub(super) fn grid(
    rows: usize,
    blocks: usize,
    most: usize,
    cells: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let part = |n: usize, most: usize| (0..n).step_by(most).map(move |i| i..n.min(i + most));
    let most_rows = most.min(cells).max(1);
    let most_blocks = most.min(cells / most_rows.min(rows.max(1))).max(1);
    part(rows, most_rows).flat_map(move |r| part(blocks, most_blocks).map(move |b| (r.clone(), b)))
}
