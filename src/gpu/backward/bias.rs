//! The gradient by the bias: parts of some windows of a packed row each, which depend on shapes alone, added up in
//! their order.

use std::ops::Range;

use super::bind::{Binder, THREADS, grid};
use crate::gpu::bindings::{self, Slot};
use crate::gpu::bound::Dispatch;
use crate::gpu::chunk::Chunk;
use crate::gpu::error::{BindError, PlanError};
use crate::gpu::layout::check_fit;
use crate::gpu::owned::Owned;
use crate::gpu::params::{self, Params};
use crate::gpu::plan::{Drops, Pipelines, Plan};
use crate::gpu::scope::checked;
use crate::gpu::shader::Kernel;
use crate::shape::BiasShape;

/// Bytes of the parts that are added up at once, unless one alone has more.
const PARTS_BYTES: u64 = 32 << 20;
/// Workgroups that there should be.
const WORKGROUPS: usize = 512;
/// Windows of a part, at most, the bytes of their queries, and the turns of its loops: adapters that end loops do
/// so at 65,535.
const PART_WINDOWS: usize = 64;
const PART_BYTES: usize = 16 << 20;
const PART_TURNS: usize = 32 << 10;
/// Numbers that a thread adds up in one dispatch.
const FOLD_NUMBERS: usize = 12 << 10;

/// How the work is cut.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    bias: BiasShape,
    windows: Range<usize>,
    /// Of a window, those there are.
    queries: Range<usize>,
    slots: Range<usize>,
    row_parts: usize,
    part_windows: usize,
    /// Queries whose parts are computed at once, a whole number of blocks.
    section_queries: usize,
    section_parts: usize,
    /// Keys of a tile, queries of a block.
    tile: usize,
    block: usize,
}

impl Cut {
    fn new(plan: &Plan, bias: BiasShape) -> Self {
        let (problem, key) = (&plan.problem, plan.key());
        let geometry = &problem.geometry;
        let (window, query) = (geometry.window(), &problem.shape.query);
        let windows = query.start / window..query.end.saturating_sub(1) / window + 1;
        let queries = match windows.len() {
            1 => query.start - windows.start * window..query.end - windows.start * window,
            _ => 0..window,
        };
        // Later windows begin at earlier slots, and end so.
        let slot = |w: usize, position: usize| geometry.slot_of(w, position);
        let (first, last) = (windows.start, windows.end - 1);
        let slots =
            slot(last, geometry.gathered(last).start)..slot(first, geometry.gathered(first).end);
        let (tile, block) = (key.keys() as usize, plan.base.block_len as usize);
        let tiles = slots.len().div_ceil(tile);
        let blocks = queries.len().div_ceil(block);
        let wanted =
            WORKGROUPS.div_ceil(tiles.saturating_mul(blocks).saturating_mul(problem.batch.max(1)));
        let shape = &problem.shape;
        let width_bytes = 4 * shape.head_dim.max(shape.value_dim).max(1);
        let turns = key.tile_turns(shape.head_dim);
        let turns =
            turns.scores + turns.values * plan.value_blocks() as u64 + 2 * turns.own + turns.rows;
        let part_windows = windows
            .len()
            .div_ceil(wanted.min(windows.len()))
            .min(PART_WINDOWS)
            .min(PART_BYTES / window.saturating_mul(width_bytes).max(1))
            .min(PART_TURNS / turns as usize)
            .max(1);
        let row_parts = windows.len().div_ceil(part_windows);
        let width = if bias.slots > 1 { slots.len() } else { tiles };
        let of_block = if bias.queries > 1 { block } else { 1 };
        let limit = PARTS_BYTES.min(plan.gpu.max_binding_bytes());
        let bytes = (4 * width * of_block) as u64;
        let numbers = if bias.slots > 1 { 1 } else { tiles };
        let (section_blocks, numbers) = match bias.queries {
            // By constants alone, so that a sum over them has one order whatever the limits of the device are.
            1 => {
                let some = (FOLD_NUMBERS / numbers).min((PARTS_BYTES / bytes) as usize);
                let some = some.clamp(1, blocks);
                (some, numbers * some)
            }
            _ => (((limit / bytes) as usize).clamp(1, blocks), numbers),
        };
        let room = (limit / (bytes * section_blocks as u64)) as usize;
        let section_parts = room.min(FOLD_NUMBERS / numbers).clamp(1, 1 << 15);
        let section_queries = section_blocks * block;
        Self {
            bias,
            windows,
            queries,
            slots,
            row_parts,
            part_windows,
            section_queries,
            section_parts,
            tile,
            block,
        }
    }

    /// Uniforms of the parts from one on, of some queries.
    fn set(&self, params: &mut Params, queries: &Range<usize>, parts: &Range<usize>) {
        for (one, flag) in [
            (self.bias.queries == 1, params::SUM_QUERIES),
            (self.bias.slots == 1, params::SUM_SLOTS),
        ] {
            params.flags |= if one { flag } else { 0 };
        }
        let [part_queries, part_slots] = self.part(queries);
        params.first_window = self.windows.start as u32;
        params.end_window = self.windows.end as u32;
        params.part_windows = self.part_windows as u32;
        params.row_parts = self.row_parts as u32;
        params.first_query = queries.start as u32;
        params.first_slot = self.slots.start as u32;
        (params.part_queries, params.part_slots) = (part_queries as u32, part_slots as u32);
        params.first_row = parts.start as u32;
    }

    /// The sizes of a part of some queries: blocks of them, and tiles of slots, where those are summed.
    fn part(&self, queries: &Range<usize>) -> [usize; 2] {
        [
            if self.bias.queries > 1 { queries.len() } else { queries.len().div_ceil(self.block) },
            if self.bias.slots > 1 {
                self.slots.len()
            } else {
                self.slots.len().div_ceil(self.tile)
            },
        ]
    }

    fn part_bytes(&self, queries: &Range<usize>) -> u64 {
        4 * self.part(queries).iter().product::<usize>() as u64
    }
}

/// Elements of the sum, rows of slots padded to whole vec4s.
fn elements(bias: BiasShape) -> u64 {
    let each = [bias.queries, bias.slots.next_multiple_of(4)];
    each.iter().fold(bias.rows as u64, |n, &size| n.saturating_mul(size as u64))
}

impl<'b: 'a, 'a> Binder<'b, 'a> {
    /// How the work is cut, where there is some.
    fn bias_plan(&self) -> Option<(&'b Plan, Cut)> {
        let (plan, problem) = (self.plan.bias.as_ref()?, self.problem());
        let some = problem.batch > 0 && !problem.shape.query.is_empty();
        some.then_some(problem.shape.bias).flatten().map(|bias| (plan, Cut::new(plan, bias)))
    }

    /// Memory for the sum and for parts, and the pipeline that adds.
    pub(super) async fn bias_buffers(
        &self,
        own: &mut Owned,
    ) -> Result<([wgpu::Buffer; 2], Pipelines), BindError> {
        let gpu = &self.plan.dq.gpu;
        let (sums, mut parts) = (4 * self.problem().shape.bias.map_or(0, elements), 16);
        if let Some((_, cut)) = self.bias_plan() {
            let queries =
                cut.queries.start..cut.queries.end.min(cut.queries.start + cut.section_queries);
            let all = self.problem().batch * cut.row_parts;
            parts = cut.part_bytes(&queries).saturating_mul(cut.section_parts.min(all) as u64);
        }
        let max = gpu.device().limits().max_buffer_size;
        // Elements are counted in 32 bits.
        check_fit([("dattn_bias in f32", sums)], max.min(4 * u64::from(u32::MAX)))?;
        check_fit([("parts of dattn_bias", parts)], max.min(gpu.max_binding_bytes()))?;
        let buffers = checked(gpu.both(), "making memory of a backward pass", || {
            [("dattn_bias", sums), ("parts of dattn_bias", parts)].map(|(label, size)| {
                own.add(gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: size.next_multiple_of(16).max(16),
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                }))
            })
        })
        .await?;
        let key = self.plan.dq.key().with_kernel(Kernel::Fold);
        Ok((buffers, Pipelines::new(gpu, key, Drops::Never).await?))
    }

    /// The sum over windows and rows, in f32.
    pub(super) async fn bias(
        &self,
        [sums, parts]: &'a [wgpu::Buffer; 2],
        fold: &Pipelines,
    ) -> Result<Vec<Dispatch<'a>>, BindError> {
        let problem = self.problem();
        let mut all = Vec::new();
        let Some(bias) = problem.shape.bias else { return Ok(all) };
        // Begins as zeros.
        self.fold(bias, [sums, parts], fold, |_| {}, &mut all)?;
        let Some((plan, cut)) = self.bias_plan() else { return Ok(all) };
        let most = plan.gpu.max_workgroups() as usize;
        let tiles = cut.slots.len().div_ceil(cut.tile);
        let max_flops = plan.gpu.options().max_chunk_flops;
        let part_flops = plan.flops_of_row() * (cut.part_windows * cut.section_queries) as f64;
        for start in cut.queries.clone().step_by(cut.section_queries) {
            let queries = start..cut.queries.end.min(start + cut.section_queries);
            let blocks = queries.len().div_ceil(cut.block);
            let count = problem.batch * cut.row_parts;
            for first in (0..count).step_by(cut.section_parts) {
                let section = first..count.min(first + cut.section_parts);
                let mut open = vec![section.clone()];
                while let Some(some) = open.pop() {
                    let chunk = self.chunk_of(&cut, &some, plan);
                    let fit = self.fits(Kernel::Bias, &chunk);
                    let small = some.len() <= most && some.len() as f64 * part_flops <= max_flops;
                    if some.len() > 1 && (fit.is_err() || !small) {
                        let middle = some.start.midpoint(some.end);
                        open.push(middle..some.end);
                        open.push(some.start..middle);
                        continue;
                    }
                    fit?;
                    // Of one part, tiles and blocks are apart from each other.
                    let cell = part_flops * some.len() as f64 / (tiles * blocks) as f64;
                    let cells = ((max_flops / cell) as usize).max(1);
                    for (tiles, blocks) in grid(tiles, blocks, most, cells) {
                        let workgroups =
                            [blocks.len() as u32, tiles.len() as u32, some.len() as u32];
                        let mut dispatch = self.dispatch(plan, &chunk, workgroups, |params| {
                            cut.set(params, &queries, &some);
                            let query = &problem.shape.query;
                            (params.query_start, params.query_end) =
                                (query.start as u32, query.end as u32);
                            params.first_block = blocks.start as u32;
                            params.first_tile = tiles.start as u32;
                            params.parts = (some.start - section.start) as u32;
                        });
                        let parts = [(Slot::Parts, bindings::whole(parts))];
                        dispatch.bindings.extend(bindings::numbered(Kernel::Bias, parts));
                        all.push(dispatch);
                    }
                }
                let set = |params: &mut Params| {
                    cut.set(params, &queries, &section);
                    params.flags |= params::ADD;
                    params.parts = section.len() as u32;
                };
                self.fold(bias, [sums, parts], fold, set, &mut all)?;
            }
        }
        Ok(all)
    }

    /// What some parts read: of one packed row its own windows, of several all.
    fn chunk_of(&self, cut: &Cut, parts: &Range<usize>, plan: &Plan) -> Chunk {
        let problem = self.problem();
        let window = problem.geometry.window();
        let (first, last) = (parts.start, parts.end - 1);
        let rows = first / cut.row_parts..last / cut.row_parts + 1;
        let query = &problem.shape.query;
        let mut queries = query.clone();
        if rows.len() == 1 {
            let at = |part: usize| cut.windows.start + part % cut.row_parts * cut.part_windows;
            queries.start = query.start.max(at(first) * window);
            queries.end = query.end.min((at(last) + cut.part_windows).saturating_mul(window));
        }
        Chunk { rows, keys: plan.keys_of(&queries), queries }
    }

    /// Adds parts to the sum, as `set` says; without any makes it 0.
    fn fold(
        &self,
        bias: BiasShape,
        [sums, parts]: [&'a wgpu::Buffer; 2],
        pipelines: &Pipelines,
        set: impl Fn(&mut Params),
        all: &mut Vec<Dispatch<'a>>,
    ) -> Result<(), PlanError> {
        let gpu = &self.plan.dq.gpu;
        let key = self.plan.dq.key().with_kernel(Kernel::Fold);
        // Whatever a binding's offset has to be a multiple of.
        let step = (gpu.max_workgroups() as usize * THREADS)
            .min((gpu.max_binding_bytes() / 4) as usize / THREADS * THREADS)
            .max(THREADS);
        let elements = elements(bias) as usize;
        for start in (0..elements).step_by(step) {
            let end = elements.min(start + step);
            let mut params = Params {
                bias_rows: bias.rows as u32,
                bias_queries: bias.queries as u32,
                bias_width: bias.slots.next_multiple_of(4) as u32,
                first_block: (start / THREADS) as u32,
                stats: start as u32,
                stats_len: end as u32,
                row_parts: 1,
                ..Params::default()
            };
            set(&mut params);
            let bytes = 4 * start as u64..4 * end as u64;
            check_fit([("dattn_bias in f32", bytes.end - bytes.start)], gpu.max_binding_bytes())?;
            let bindings = bindings::numbered(
                Kernel::Fold,
                [(Slot::Parts, bindings::whole(parts)), (Slot::Sums, bindings::range(sums, bytes))],
            );
            let workgroups = [(end - start).div_ceil(THREADS) as u32, 1, 1];
            let pipelines = pipelines.clone();
            all.push(Dispatch { key, pipelines, params, bindings, workgroups });
        }
        Ok(())
    }
}
