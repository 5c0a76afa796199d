//! A plan: a problem's pipeline, tables and uniforms on a device, and how its work is cut.

use super::bindings::Slot;
use super::device::Gpu;
use super::error::PlanError;
use super::layout::check_fit;
use super::loops;
use super::owned::Owned;
use super::params::Params;
use super::scope::checked;
use super::shader::{Arena, Features, Kernel, MAX_HEAD_DIM, PipelineKey, Storage, Tile};
#[cfg(not(target_arch = "wasm32"))]
use super::tuning::Variant;
use super::uniforms;
use crate::shape::saturating_product;
use crate::{Call, Problem};

/// Keys of a window from which on large tiles pay: keys that only some of a tile's queries see cost
/// small windows more than larger tiles save (`Large` on llvmpipe: 0.9 times as fast with 64 slots, 1.13 with 128).
const LARGE_TILE_KEYS: usize = 96;

/// Products of a row and head from which on software adapters take tiles of many registers: they compute twice as fast,
/// and take 3 to 8 seconds more to compile (llvmpipe; a call of so many saves some hundredths of a second). Of one whole
/// row, so that bits depend neither on the range of queries asked for nor on how many rows a call has.
const SOFTWARE_TILE_PRODUCTS: u128 = 1 << 24;

/// Queries of a workgroup of `rows.wgsl`.
const ROWS_BLOCK: u32 = 64;

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
    /// Whether features lie side by side and every offset and every other stride of q, k, v,
    /// out and of their gradients is a multiple of four elements: such tensors are read four features at a time.
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
    drops: Drops,
    /// For tensors in buffers apart from the output's.
    pipelines: Pipelines,
    pub(super) tables: wgpu::Buffer,
    /// What is bound where there is no tensor: read, and written.
    pub(super) nothing: [wgpu::Buffer; 2],
    /// All uniforms that do not depend on the part that is computed.
    pub(super) base: Params,
}

/// Which of the calls that a plan is for drop weights: those have kernels of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drops {
    Never,
    Always,
    Sometimes,
}

impl Drops {
    /// Of any call.
    pub(super) fn of(problem: &Problem) -> Self {
        if problem.dropout > 0.0 { Self::Sometimes } else { Self::Never }
    }

    /// Of this one: no kernel is compiled that it does not need.
    pub(super) fn of_call(problem: &Problem, call: &Call) -> Self {
        if problem.dropout > 0.0 && call.dropout.is_some() { Self::Always } else { Self::Never }
    }
}

/// A kernel as calls need it.
#[derive(Debug, Clone)]
pub(super) enum Pipelines {
    /// The same for all calls: with code for dropout where all drop weights.
    One { pipeline: wgpu::ComputePipeline, drops: bool },
    /// For calls that do not, and for those that do.
    Each { plain: wgpu::ComputePipeline, dropping: wgpu::ComputePipeline },
}

impl Pipelines {
    pub(super) async fn new(gpu: &Gpu, key: PipelineKey, drops: Drops) -> Result<Self, PlanError> {
        let with_dropout = PipelineKey { dropout: true, ..key };
        Ok(match drops {
            Drops::Never => Self::One { pipeline: gpu.pipeline(key).await?, drops: false },
            Drops::Always => Self::One { pipeline: gpu.pipeline(with_dropout).await?, drops: true },
            Drops::Sometimes => Self::Each {
                plain: gpu.pipeline(key).await?,
                dropping: gpu.pipeline(with_dropout).await?,
            },
        })
    }

    /// Whether there is one that drops weights.
    pub(super) fn drop(&self) -> bool {
        matches!(self, Self::One { drops: true, .. } | Self::Each { .. })
    }

    /// The pipeline of a call.
    pub(super) fn of(&self, call: &Call) -> &wgpu::ComputePipeline {
        match self {
            Self::One { pipeline, drops } => {
                debug_assert!(!drops || call.dropout.is_some(), "planned for dropout");
                pipeline
            }
            Self::Each { dropping, .. } if call.dropout.is_some() => dropping,
            Self::Each { plain, .. } => plain,
        }
    }
}

impl Gpu {
    /// Chooses a kernel for a problem, compiles it and uploads the rotary tables.
    ///
    /// # Errors
    /// head_dim above [`MAX_HEAD_DIM`], a device below the smallest kernel's needs, windows whose loops the
    /// adapter would end ([`PlanError::LoopTurns`]), rotary tables larger than a binding, a device without memory for
    /// them, a failed compilation.
    pub async fn plan(&self, problem: &Problem, layouts: &Layouts) -> Result<Plan, PlanError> {
        self.plan_kernel(Kernel::Forward, problem, layouts, Drops::of(problem)).await
    }

    pub(super) async fn plan_kernel(
        &self,
        kernel: Kernel,
        problem: &Problem,
        layouts: &Layouts,
        drops: Drops,
    ) -> Result<Plan, PlanError> {
        let key = match kernel {
            Kernel::Forward => self.forward_key(problem, layouts)?,
            _ => self.tile_key(problem, layouts)?.with_kernel(kernel),
        };
        self.check_key(&key)?;
        let blocks = key.value_blocks(problem.shape.value_dim) as u64;
        let most = u64::from(self.device().limits().max_compute_workgroups_per_dimension);
        if blocks > most {
            let limit = "max_compute_workgroups_per_dimension";
            return Err(PlanError::Limit { limit, got: most, needed: blocks });
        }
        let mut base = base_of(problem, &key);
        let key = self.fit(problem, key, &base)?;
        let pipelines = Pipelines::new(self, key, drops).await?;
        let words = uniforms::tables(problem, &mut base)?;
        let mut own = Owned::default();
        let mut buffer = |label, bytes: u64| {
            own.add(self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes.max(16),
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }))
        };
        let needed = 4 * words.len() as u64;
        let limits = self.device().limits();
        let max = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        check_fit([(Slot::Tables.tensor(), needed)], max)?;
        let (tables, nothing) = checked(self.both(), "making the rotary tables", || {
            let tables = buffer("rotary tables", needed);
            if !words.is_empty() {
                self.queue().write_buffer(&tables, 0, bytemuck::cast_slice(&words));
            }
            (tables, [buffer("no tensor", 16), buffer("no result", 16)])
        })
        .await?;
        own.take();
        let (gpu, problem) = (self.clone(), problem.clone());
        Ok(Plan { gpu, problem, key, drops, pipelines, tables, nothing, base })
    }

    /// The kernel that would be chosen for a problem, dropout aside; a tall tile becomes a large one, and a short
    /// one small, where windows are too long for its few threads ([`PlanError::LoopTurns`]).
    ///
    /// # Errors
    /// head_dim above [`MAX_HEAD_DIM`], a device below the smallest kernel's needs, rotary tables that
    /// memory cannot hold.
    pub fn key(&self, problem: &Problem, layouts: &Layouts) -> Result<PipelineKey, PlanError> {
        self.forward_key(problem, layouts)
    }

    /// The kernel of a forward pass: with matrices where they pay and its loops are not too long.
    fn forward_key(&self, problem: &Problem, layouts: &Layouts) -> Result<PipelineKey, PlanError> {
        let key = self.tile_key(problem, layouts)?;
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(key) = self.matrix_key(problem, &key) {
            let base = base_of(problem, &key);
            let fits = loops::check(self, problem, &key, &base, problem.dropout > 0.0);
            if fits.is_ok() && self.check_key(&key).is_ok() {
                return Ok(key);
            }
        }
        Ok(key)
    }

    /// Whether the device's limits allow a kernel.
    fn check_key(&self, key: &PipelineKey) -> Result<(), PlanError> {
        key.check_limits(&self.device().limits())
    }

    /// The kernel without matrices.
    pub(super) fn tile_key(
        &self,
        problem: &Problem,
        layouts: &Layouts,
    ) -> Result<PipelineKey, PlanError> {
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
            matrix: None,
            broadcast: false,
            vec4: layouts.vec4 && rotary_quads,
            f16_out: false,
            dropout: false,
            features,
            arena: Arena::NONE,
        };
        let has_f16 = self.device().features().contains(wgpu::Features::SHADER_F16);
        let f16_out = has_f16 && key.storage == Storage::F16 && !key.vec4;
        let key = PipelineKey { f16_out, ..key };
        self.check_key(&key)?;
        // A window may gather more than there is.
        let keys = problem.geometry.slots().min(problem.geometry.key_len());
        let features = shape.head_dim.saturating_add(shape.value_dim);
        let products = saturating_product(&[problem.geometry.seq_len(), keys, features]);
        // Registers are memory there.
        let many = self.caps().is_software() && products >= SOFTWARE_TILE_PRODUCTS;
        let (little, much) =
            if many { (Tile::Short, Tile::Tall) } else { (Tile::Small, Tile::Large) };
        let pays = if keys < LARGE_TILE_KEYS { little } else { much };
        // Nothing is tuned in a browser, where every word counts.
        #[cfg(target_arch = "wasm32")]
        let tuned = || None;
        #[cfg(not(target_arch = "wasm32"))]
        let tuned = || match self.known(&self.tuning_of(&key, problem))? {
            Variant::Tile(tile) => Some(tile),
            Variant::Matrix => None,
        };
        let tile = self.options().tile.or_else(tuned).unwrap_or(pays);
        let better = PipelineKey { tile, ..key };
        let key = PipelineKey { tile: little, ..key };
        let key = if self.check_key(&better).is_ok() { better } else { key };
        Ok(key.with_broadcast(self.broadcasts()))
    }

    /// [`Gpu::plan`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan_blocking(&self, problem: &Problem, layouts: &Layouts) -> Result<Plan, PlanError> {
        pollster::block_on(self.plan(problem, layouts))
    }

    /// The key of a plan, with more threads a tile where those of the tall one would loop too long and none was asked for.
    fn fit(
        &self,
        problem: &Problem,
        key: PipelineKey,
        base: &Params,
    ) -> Result<PipelineKey, PlanError> {
        let mut key = key;
        // As large, so that blocks stay what they are.
        let more_threads = match key.tile {
            Tile::Short => Some(Tile::Small),
            Tile::Tall => Some(Tile::Large),
            _ => None,
        };
        if let Some(tile) = more_threads.filter(|_| self.options().tile.is_none()) {
            let other = PipelineKey { tile, broadcast: false, ..key };
            let drops = problem.dropout > 0.0;
            let refused = loops::check(self, problem, &key, base, drops).is_err();
            if refused && self.check_key(&other).is_ok() {
                key = other;
            }
        }
        // Once more when tensors are bound, and for calls that drop weights.
        loops::check(self, problem, &key, &least_keys(problem, base), false).map(|()| key)
    }
}

impl Plan {
    /// The same problem with another kernel.
    pub(super) async fn with_kernel(&self, kernel: Kernel) -> Result<Self, PlanError> {
        let key = self.key.with_kernel(kernel);
        self.gpu.check_key(&key)?;
        let mut plan = self.clone();
        if kernel == Kernel::Rows {
            plan.base.block_len = ROWS_BLOCK;
        } else {
            plan.base.block_len = key.queries().min(self.problem.query_block() as u32);
        }
        let key = self.gpu.fit(&self.problem, key, &plan.base)?;
        plan.key = key;
        let drops = if key.kernel.is_gradient() { self.drops } else { Drops::Never };
        plan.pipelines = Pipelines::new(&self.gpu, key, drops).await?;
        Ok(plan)
    }

    /// Frees its memory on the device, like [`Bound::destroy`](super::Bound::destroy): that of its clones and of what
    /// it was bound to, too.
    pub fn destroy(&self) {
        drop(self.owned());
    }

    /// Its memory, freed when this is dropped.
    pub(super) fn owned(&self) -> Owned {
        Owned::of([&self.tables].into_iter().chain(&self.nothing))
    }

    /// Its pipelines, for tensors in buffers apart from the output's.
    pub(super) fn own_pipelines(&self) -> &Pipelines {
        &self.pipelines
    }

    /// The kernel it runs, on tensors that share no buffer with the output.
    pub fn key(&self) -> PipelineKey {
        self.key
    }

    /// Whether the device writes single numbers of 16 bits.
    pub(super) fn writes_f16(&self) -> bool {
        self.gpu.device().features().contains(wgpu::Features::SHADER_F16)
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
        Pipelines::new(&self.gpu, key, self.drops).await
    }
}

/// All of a problem that decides what its kernels take.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn geometry(problem: &Problem) -> String {
    let shape = &problem.shape;
    let sizes = [problem.batch, problem.kv_batch, shape.head_dim, shape.value_dim];
    // One version of the crate reads what it has written: fields may change from one to the next.
    let text = format!(
        "{sizes:?} {:?} {:?} {:?} {:?} lse {}",
        shape.query, problem.geometry, shape.mask, shape.bias, shape.lse
    );
    text.replace(char::is_control, " ")
}

/// The uniforms of a problem with a kernel, whatever the part.
fn base_of(problem: &Problem, key: &PipelineKey) -> Params {
    let mut base = uniforms::of_problem(problem);
    base.block_len = (key.queries() as usize).min(problem.query_block()) as u32;
    if key.matrix.is_some() {
        (base.score_scale, base.scale) = (base.scale, 1.0);
    }
    base
}

/// Where at least so many keys are visited: binding a bias can show that there are more.
fn least_keys(problem: &Problem, base: &Params) -> Params {
    Params { key_end: uniforms::key_end(problem, false), ..*base }
}

/// Whether some row may see nothing, or nothing with a weight.
fn may_see_nothing(problem: &Problem) -> bool {
    let shape = &problem.shape;
    let fewer_keys = !problem.geometry.sees_padding() && shape.key_len < shape.seq_len;
    shape.mask.is_some() || shape.bias.is_some() || fewer_keys
}
