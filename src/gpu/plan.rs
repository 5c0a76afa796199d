//! A plan: a problem's pipeline, tables and uniforms on a device, and how its work is cut.

use std::ops::Range;

use super::bindings::Slot;
use super::device::{Gpu, checked};
use super::error::PlanError;
use super::layout::check_fit;
use super::loops;
use super::params::Params;
use super::shader::{Arena, Features, Kernel, MAX_HEAD_DIM, PipelineKey, Storage, Tile};
use super::uniforms;
use crate::{Call, Problem};

/// Slots of a window from which on large tiles pay: keys that only some of a tile's queries see cost
/// small windows more than larger tiles save (measured: 0.9 times as fast with 64 slots, 1.13 with 128).
const LARGE_TILE_SLOTS: usize = 96;

/// How a plan's tensors are stored.
///
/// ```
/// use local_attention::gpu::{Layouts, Storage};
/// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(4))?;
/// let problem = attention.problem(&AttentionShape::new([2], 8, 64))?;
/// assert!(Layouts::contiguous(Storage::F32, &problem).vec4);
/// assert!(!Layouts::any(Storage::F16).vec4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layouts {
    /// Type of q, k, v, the bias and the output.
    pub storage: Storage,
    /// Whether features lie side by side and every offset and every other stride of q, k, v and
    /// out is a multiple of four elements: such tensors are read four features at a time.
    pub vec4: bool,
}

impl Layouts {
    /// Row-major tensors from offsets that are multiples of 16 bytes on.
    pub fn contiguous(storage: Storage, problem: &Problem) -> Self {
        let shape = problem.shape();
        let sizes = [shape.head_dim, shape.value_dim];
        Self { storage, vec4: sizes.iter().all(|s| s.is_multiple_of(4)) }
    }

    /// Tensors with any offsets and strides.
    pub fn any(storage: Storage) -> Self {
        Self { storage, vec4: false }
    }
}

/// A problem made ready for a device: expensive to make, to be used for every call.
///
/// ```no_run
/// use local_attention::gpu::{
///     Bound, Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace, wgpu,
/// };
/// use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};
///
/// /// Self-attention of `x` into `out`, both `[4, 1024, 64]`, recorded into the caller's pass.
/// fn record(
///     gpu: &Gpu,
///     pass: &mut wgpu::ComputePass<'_>,
///     [x, out]: [&wgpu::Buffer; 2],
/// ) -> Result<(), Box<dyn std::error::Error>> {
///     // Once.
///     let attention = LocalAttention::new(LocalAttentionConfig::new(128).causal(true).dim(64))?;
///     let problem = attention.problem(&AttentionShape::new([4], 1024, 64))?;
///     let plan = gpu.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))?;
///     let mut workspace = Workspace::new_blocking(gpu, 16)?;
///     let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [4, 1024, 64]);
///     let tensors = ForwardTensors::new(view(x), view(x), view(x), view(out));
///     let bound: Bound = plan.bind_forward_blocking(&tensors, &workspace)?;
///     // Every step; `workspace.recall()` follows the caller's submit.
///     bound.encode(pass, &mut workspace, &Call::default())?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) gpu: Gpu,
    pub(super) problem: Problem,
    key: PipelineKey,
    /// For tensors in buffers apart from the output's.
    pipelines: Pipelines,
    pub(super) tables: wgpu::Buffer,
    /// What is bound where there is no tensor: read, and written.
    pub(super) nothing: [wgpu::Buffer; 2],
    /// All uniforms that do not depend on the part that is computed.
    pub(super) base: Params,
}

/// A kernel as calls need it.
#[derive(Debug, Clone)]
pub(super) struct Pipelines {
    plain: wgpu::ComputePipeline,
    /// With the same key but for dropout, where the problem has any.
    dropping: Option<wgpu::ComputePipeline>,
}

impl Pipelines {
    async fn new(gpu: &Gpu, key: PipelineKey, drops: bool) -> Result<Self, PlanError> {
        let dropping = match drops {
            true => Some(gpu.pipeline(PipelineKey { dropout: true, ..key }).await?),
            false => None,
        };
        Ok(Self { plain: gpu.pipeline(key).await?, dropping })
    }

    /// The pipeline of a call.
    pub(super) fn of(&self, call: &Call) -> &wgpu::ComputePipeline {
        self.dropping.as_ref().filter(|_| call.dropout.is_some()).unwrap_or(&self.plain)
    }
}

/// A part of a problem that one dispatch computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    pub(super) queries: Range<usize>,
    /// The real keys it reads, one at least.
    pub(super) keys: Range<usize>,
}

impl Chunk {
    /// Rows of a mask that it reads.
    pub(super) fn mask_rows(&self, problem: &Problem, rows: usize) -> Range<usize> {
        let share = (problem.batch / rows).max(1);
        self.rows.start / share..(self.rows.end - 1) / share + 1
    }

    /// Rows of a bias that it reads.
    pub(super) fn bias_rows(&self, rows: usize) -> Range<usize> {
        let (first, last) = (self.rows.start, self.rows.end - 1);
        match first / rows == last / rows {
            true => first % rows..last % rows + 1,
            false => 0..rows,
        }
    }

    /// Queries of a bias that it reads: they repeat after so many.
    pub(super) fn bias_queries(&self, queries: usize) -> Range<usize> {
        let (first, last) = (self.queries.start, self.queries.end - 1);
        match first / queries == last / queries {
            true => first % queries..last % queries + 1,
            false => 0..queries,
        }
    }
}

impl Gpu {
    /// Chooses a kernel for a problem, compiles it and uploads the rotary tables.
    ///
    /// # Errors
    /// head_dim above [`MAX_HEAD_DIM`], a device below the smallest kernel's needs, windows whose loops the
    /// adapter would end ([`PlanError::LoopTurns`]), a failed compilation.
    pub async fn plan(&self, problem: &Problem, layouts: &Layouts) -> Result<Plan, PlanError> {
        self.plan_kernel(Kernel::Forward, problem, layouts).await
    }

    pub(super) async fn plan_kernel(
        &self,
        kernel: Kernel,
        problem: &Problem,
        layouts: &Layouts,
    ) -> Result<Plan, PlanError> {
        let key = self.key(problem, layouts)?;
        // Weights are f32.
        let f16_out = key.f16_out && kernel == Kernel::Forward;
        let key = PipelineKey { kernel, f16_out, ..key };
        let blocks = key.value_blocks(problem.shape.value_dim) as u64;
        let most = u64::from(self.device().limits().max_compute_workgroups_per_dimension);
        if blocks > most {
            let limit = "max_compute_workgroups_per_dimension";
            return Err(PlanError::Limit { limit, got: most, needed: blocks });
        }
        let mut base = uniforms::of_problem(problem);
        let block = (key.queries() as usize).min(problem.query_block());
        base.block_len = block as u32;
        // At least so many keys are visited; binding a bias can show that there are more.
        let key_end = uniforms::key_end(problem, false);
        loops::check(self, problem, &key, &Params { key_end, ..base }, false)?;
        let pipelines = Pipelines::new(self, key, problem.dropout > 0.0).await?;
        let words = uniforms::tables(problem, &mut base)?;
        let buffer = |label, bytes: u64| {
            self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes.max(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let needed = 4 * words.len() as u64;
        let max = self.device().limits().max_storage_buffer_binding_size;
        check_fit([(Slot::Tables.tensor(), needed)], max)?;
        let (tables, nothing) = checked(self.both(), "the rotary tables", || {
            let tables = buffer("rotary tables", needed);
            if !words.is_empty() {
                self.queue().write_buffer(&tables, 0, bytemuck::cast_slice(&words));
            }
            (tables, [buffer("no tensor", 16), buffer("no result", 16)])
        })
        .await?;
        let (gpu, problem) = (self.clone(), problem.clone());
        Ok(Plan { gpu, problem, key, pipelines, tables, nothing, base })
    }

    /// The kernel that would be chosen for a problem, dropout aside.
    ///
    /// # Errors
    /// head_dim above [`MAX_HEAD_DIM`], a device below the smallest kernel's needs, rotary tables that
    /// memory cannot hold.
    pub fn key(&self, problem: &Problem, layouts: &Layouts) -> Result<PipelineKey, PlanError> {
        let shape = problem.shape();
        if shape.head_dim > MAX_HEAD_DIM {
            return Err(PlanError::HeadDim { got: shape.head_dim, max: MAX_HEAD_DIM });
        }
        let rotary_quads = problem.rotary.is_none() || shape.head_dim.is_multiple_of(8);
        let features = match problem.rotary_tables()? {
            _ if problem.shared_qk || may_see_nothing(problem) => Features::All,
            None => Features::Plain,
            Some(tables) if tables.is_plain() => Features::Rotary,
            Some(_) => Features::All,
        };
        let key = PipelineKey {
            kernel: Kernel::Forward,
            storage: layouts.storage,
            head_dim: shape.head_dim.next_power_of_two().max(64) as u32,
            tile: Tile::Small,
            vec4: layouts.vec4 && rotary_quads,
            f16_out: false,
            dropout: false,
            features,
            arena: Arena::NONE,
        };
        let has_f16 = self.device().features().contains(wgpu::Features::SHADER_F16);
        let f16_out = has_f16 && key.storage == Storage::F16 && !key.vec4;
        let key = PipelineKey { f16_out, ..key };
        self.check_limits(&key)?;
        let large = PipelineKey { tile: Tile::Large, ..key };
        let pays = match self.options().tile {
            Some(tile) => tile == Tile::Large,
            None => problem.geometry.slots() >= LARGE_TILE_SLOTS,
        };
        Ok(if pays && self.check_limits(&large).is_ok() { large } else { key })
    }

    /// [`Gpu::plan`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan_blocking(&self, problem: &Problem, layouts: &Layouts) -> Result<Plan, PlanError> {
        pollster::block_on(self.plan(problem, layouts))
    }

    fn check_limits(&self, key: &PipelineKey) -> Result<(), PlanError> {
        let limits = self.device().limits();
        for (limit, got, needed) in [
            (
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size,
                key.workgroup_bytes(),
            ),
            (
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup,
                key.threads(),
            ),
            ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, key.threads()),
        ] {
            if got < needed {
                let (got, needed) = (u64::from(got), u64::from(needed));
                return Err(PlanError::Limit { limit, got, needed });
            }
        }
        Ok(())
    }
}

impl Plan {
    /// The kernel it runs, on tensors that share no buffer with the output.
    pub fn key(&self) -> PipelineKey {
        self.key
    }

    /// The problem it carries out.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The kernel for tensors of which some share a buffer with the output.
    pub(super) async fn pipelines(&self, arena: Arena) -> Result<Pipelines, PlanError> {
        if arena == self.key.arena {
            return Ok(self.pipelines.clone());
        }
        // Other tensors of the buffer are read as words.
        let key = PipelineKey { arena, f16_out: false, ..self.key };
        Pipelines::new(&self.gpu, key, self.problem.dropout > 0.0).await
    }

    /// Workgroups of a part.
    pub(super) fn workgroups(&self, chunk: &Chunk) -> [u32; 3] {
        let block = self.base.block_len as usize;
        let blocks = chunk.queries.end.div_ceil(block) - chunk.queries.start / block;
        let features = self.problem.shape.value_dim;
        let values = self.key.value_blocks(features).max(1);
        [blocks as u32, chunk.rows.len() as u32, values as u32]
    }

    /// Cuts the work into parts that `fits` accepts, by rows and then by queries. Parts begin at
    /// blocks of queries; which bits come out does not depend on them.
    pub(super) fn chunks(
        &self,
        fits: &dyn Fn(&Chunk) -> Result<(), PlanError>,
    ) -> Result<Vec<Chunk>, PlanError> {
        let shape = &self.problem.shape;
        let mut done = Vec::new();
        let no_result = self.key.kernel == Kernel::Forward && shape.value_dim == 0 && !shape.lse;
        if shape.query.is_empty() || self.problem.batch == 0 || no_result {
            return Ok(done);
        }
        // In the order of the output: halves are put back last first.
        let mut open = vec![(0..self.problem.batch, shape.query.clone())];
        while let Some((rows, queries)) = open.pop() {
            let keys = self.keys_of(&queries);
            let chunk = Chunk { rows: rows.clone(), queries: queries.clone(), keys };
            let fit = fits(&chunk);
            if fit.is_ok() && self.small_enough(&chunk) {
                done.push(chunk);
                continue;
            }
            let block = self.base.block_len as usize;
            let mut middle = queries.start.midpoint(queries.end).next_multiple_of(block);
            if middle >= queries.end {
                middle = (queries.end - 1) / block * block;
            }
            if rows.len() > 1 {
                let cut = rows.start.midpoint(rows.end);
                open.push((cut..rows.end, queries.clone()));
                open.push((rows.start..cut, queries));
            } else if middle > queries.start && middle < queries.end {
                open.push((rows.clone(), middle..queries.end));
                open.push((rows, queries.start..middle));
            } else if let (Err(_), Some(cut)) = (&fit, self.bias_cut(&queries)) {
                open.push((rows.clone(), cut..queries.end));
                open.push((rows, queries.start..cut));
            } else {
                // One block of queries of one row: as small as it gets.
                fit?;
                done.push(chunk);
            }
        }
        Ok(done)
    }

    /// Where the queries of a block begin with those of a bias again: together they read all of it.
    fn bias_cut(&self, queries: &Range<usize>) -> Option<usize> {
        let period = self.problem.shape.bias?.queries;
        Some((queries.start / period + 1) * period).filter(|cut| *cut < queries.end)
    }

    /// Whether a part stays within a dispatch, and within the patience of a driver's watchdog.
    fn small_enough(&self, chunk: &Chunk) -> bool {
        let most = self.gpu.max_workgroups();
        let shape = &self.problem.shape;
        // Visited zeros of autopad too, and scores again for every block of values.
        let within = |end: u32| self.problem.geometry.slots().min(end as usize) as f64;
        let keys = match self.key.kernel {
            Kernel::Forward => within(self.base.key_end),
            // Twice, and then the zeros that were counted too.
            Kernel::Weights => within(self.base.key_end) + within(self.base.padded_len),
        };
        let [_, _, values] = self.workgroups(chunk);
        let products = chunk.rows.len() as f64 * chunk.queries.len() as f64 * keys;
        let features = f64::from(values) * shape.head_dim as f64 + shape.value_dim as f64;
        let flops = 2.0 * products * features;
        // Blocks of values are as many as they are, and checked when the plan is made.
        self.workgroups(chunk)[..2].iter().all(|&n| n <= most)
            && flops <= self.gpu.options().max_chunk_flops
    }

    /// The real keys that some of these queries read.
    fn keys_of(&self, queries: &Range<usize>) -> Range<usize> {
        let geometry = &self.problem.geometry;
        let last = queries.end - 1;
        // What a row that turns out to see nothing may read, whether one is expected or not.
        let keys = if self.key.features == Features::All {
            let end = geometry.gathered(geometry.window_of(last)).end;
            geometry.gathered(geometry.window_of(queries.start)).start..end
        } else {
            geometry.visible_range(queries.start).start..geometry.visible_range(last).end
        };
        // At least one: no binding may be empty.
        let start = keys.start.min(geometry.key_len() - 1);
        start..keys.end.min(geometry.key_len()).max(start + 1)
    }

    /// The uniforms of a part and a call; views are the caller's to fill in.
    pub(super) fn params(&self, chunk: &Chunk) -> Params {
        Params {
            query_start: chunk.queries.start as u32,
            query_end: chunk.queries.end as u32,
            first_block: chunk.queries.start as u32 / self.base.block_len,
            first_row: chunk.rows.start as u32,
            ..self.base
        }
    }
}

/// Whether some row may see nothing, or nothing with a weight.
fn may_see_nothing(problem: &Problem) -> bool {
    let shape = &problem.shape;
    let fewer_keys = !problem.geometry.sees_padding() && shape.key_len < shape.seq_len;
    shape.mask.is_some() || shape.bias.is_some() || fewer_keys
}
