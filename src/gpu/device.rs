//! The device: the caller's own, or one that is asked for.

use std::collections::HashMap;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::bindings;
use super::error::{DeviceError, PlanError};
use super::scope::checked;
#[cfg(not(target_arch = "wasm32"))]
use super::shader::LANES;
use super::shader::{Matrix, PipelineKey, Tile};
#[cfg(not(target_arch = "wasm32"))]
use super::tuning::Variant;

/// What the adapter of a device is.
///
/// ```no_run
/// use local_attention::gpu::{AdapterCaps, adapters_blocking};
///
/// for adapter in adapters_blocking() {
///     println!("{}", AdapterCaps::of(&adapter).info.name);
/// }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterCaps {
    /// Name, driver, backend and kind.
    pub info: wgpu::AdapterInfo,
    /// The matrices that it multiplies and there are kernels for; none: no matrix units, or such whose driver is known
    /// not to work.
    pub matrix: Option<Matrix>,
}

impl AdapterCaps {
    /// Asks the adapter a device was made from.
    pub fn of(adapter: &wgpu::Adapter) -> Self {
        #[cfg(not(target_arch = "wasm32"))]
        let matrix = super::matrix::of_adapter(adapter);
        #[cfg(target_arch = "wasm32")]
        let matrix = None;
        Self { info: adapter.get_info(), matrix }
    }

    /// Whether it is software on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Whether kernels with [`PipelineKey::broadcast`] are for it: software whose subgroups are all of 8 threads. Loads are what
    /// costs there, and broadcasts are none. Devices need the feature `SUBGROUP` for them too.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn broadcasts(&self) -> bool {
        let info = &self.info;
        self.is_software() && [info.subgroup_min_size, info.subgroup_max_size] == [LANES; 2]
    }
}

/// How kernels are chosen and work is cut.
///
/// ```
/// use local_attention::gpu::{GpuOptions, RequestOptions};
///
/// // Smaller submissions, for a desktop that has to stay responsive.
/// let mut options = GpuOptions::default();
/// options.max_chunk_flops = 1e10;
/// let mut request = RequestOptions::adapter("NVIDIA");
/// request.options = options;
/// assert_eq!(request.adapter.as_deref(), Some("NVIDIA"));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GpuOptions {
    /// The tile of kernels; unset: what pays. Devices without the memory for large ones get small ones.
    pub tile: Option<Tile>,
    /// Whether forward passes on f16 tensors use matrix units; unset: where the adapter has them in hardware, and no
    /// [`tile`](Self::tile) is asked for. `Some(true)` takes them wherever they work. With `Some(false)` a device that is
    /// made does not ask for them, nor tests them, and then never has them.
    ///
    /// Rotated queries, rotated keys and weights are rounded to f16 then, and sums are in f32.
    pub matrix: Option<bool>,
    /// Whether kernels may use subgroup operations, where the device has the feature `SUBGROUP`: see
    /// [`PipelineKey::broadcast`]. A device that is made has it where that is for its adapter, and not with `false`.
    pub subgroups: bool,
    /// The largest binding, in bytes, below the device's own limit: for tests of splitting.
    pub max_binding_bytes: Option<u64>,
    /// Workgroups of a dispatch in one dimension, below the device's own limit.
    pub max_workgroups: Option<u32>,
    /// Compile kernels with the checks that wgpu puts around every access: slower, and never needed.
    pub checked_shaders: bool,
    /// Floating-point operations of one submission: drivers reset devices that take too long. Anything not above 0
    /// cuts as finely as it goes.
    pub max_chunk_flops: f64,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            tile: None,
            matrix: None,
            subgroups: true,
            max_binding_bytes: None,
            max_workgroups: None,
            checked_shaders: false,
            // A second at 100 GFLOP/s.
            max_chunk_flops: 1e11,
        }
    }
}

/// Which adapter to ask for.
///
/// ```
/// use local_attention::gpu::RequestOptions;
///
/// // By a part of its name, by its number, or the best one.
/// let [named, first] = ["llvmpipe", "0"].map(RequestOptions::adapter);
/// assert_eq!((named.adapter.unwrap(), first.adapter.unwrap()), ("llvmpipe".into(), "0".into()));
/// assert_eq!(RequestOptions::default().adapter, None);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RequestOptions {
    /// A part of its name, or its number in the list of all; unset: the best one.
    pub adapter: Option<String>,
    /// How kernels are chosen.
    pub options: GpuOptions,
}

impl RequestOptions {
    /// The adapter with this in its name, or with this number.
    pub fn adapter(name: impl Into<String>) -> Self {
        Self { adapter: Some(name.into()), ..Self::default() }
    }
}

/// A device with its queue and its compiled pipelines. Clones share all of them.
///
/// ```no_run
/// use local_attention::gpu::{Gpu, RequestOptions};
///
/// let gpu = Gpu::request_blocking(&RequestOptions::default())?;
/// println!("{}", gpu.caps().info.name);
/// # Ok::<(), local_attention::gpu::DeviceError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    options: GpuOptions,
}

#[derive(Debug)]
struct Shared {
    caps: AdapterCaps,
    device: wgpu::Device,
    queue: wgpu::Queue,
    group_layout: wgpu::BindGroupLayout,
    pipeline_layout: wgpu::PipelineLayout,
    /// By key, and whether accesses are checked.
    pipelines: Mutex<HashMap<(PipelineKey, bool), wgpu::ComputePipeline>>,
    dispatches: AtomicU64,
    /// Whether matrix units were found to work.
    #[cfg(not(target_arch = "wasm32"))]
    matrix_works: AtomicBool,
    /// What was found fastest, by kernel and geometry.
    #[cfg(not(target_arch = "wasm32"))]
    tuned: Mutex<HashMap<(String, String), Variant>>,
}

/// All adapters of this machine that compute, best first: discrete, integrated, other, software. Browsers name one: the
/// one that they have for high performance.
pub async fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    #[cfg(target_arch = "wasm32")]
    let mut all: Vec<_> = {
        let power_preference = wgpu::PowerPreference::HighPerformance;
        let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
        instance.request_adapter(&options).await.into_iter().collect()
    };
    #[cfg(not(target_arch = "wasm32"))]
    let mut all = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    all.sort_by_key(rank);
    all
}

/// [`adapters`], waiting for them.
#[cfg(not(target_arch = "wasm32"))]
pub fn adapters_blocking() -> Vec<wgpu::Adapter> {
    pollster::block_on(adapters())
}

impl Gpu {
    /// Whether another one is a clone of this.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// On the caller's device. Its callbacks for errors and loss are left alone. Where it has the feature
    /// `EXPERIMENTAL_COOPERATIVE_MATRIX` and `caps` say so, a small product is computed on it first: without the right result
    /// no kernel uses matrix units ([`Gpu::matrix`]). Where it has the feature `SUBGROUP`, software adapters are faster
    /// ([`AdapterCaps::broadcasts`]). Natively what `caps` say of the adapter's name and kind is read from
    /// the device once more. Device, queue and all buffers must be of one
    /// device: wgpu takes what belongs to another instance for something else, or panics.
    ///
    /// # Errors
    /// Where the device refuses the layout of the kernels' bindings: it needs 8 storage buffers a stage.
    pub async fn new(
        caps: AdapterCaps,
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: GpuOptions,
    ) -> Result<Self, DeviceError> {
        // Some adapters end loops, and are known by their names: whatever the caller took these from.
        #[cfg(not(target_arch = "wasm32"))]
        let caps = AdapterCaps { info: device.adapter_info(), ..caps };
        let (group_layout, pipeline_layout) =
            checked((&device, &queue), "laying out bindings", || {
                let group_layout = bindings::layout(&device);
                let pipeline_layout =
                    device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                        label: Some("local-attention"),
                        bind_group_layouts: &[Some(&group_layout)],
                        immediate_size: 0,
                    });
                (group_layout, pipeline_layout)
            })
            .await?;
        let shared = Shared {
            caps,
            device,
            queue,
            group_layout,
            pipeline_layout,
            pipelines: Mutex::default(),
            dispatches: AtomicU64::new(0),
            #[cfg(not(target_arch = "wasm32"))]
            matrix_works: AtomicBool::new(false),
            #[cfg(not(target_arch = "wasm32"))]
            tuned: Mutex::default(),
        };
        #[cfg_attr(
            target_arch = "wasm32",
            expect(
                clippy::arc_with_non_send_sync,
                reason = "wgpu's types stay on their thread in browsers"
            )
        )]
        let shared = Arc::new(shared);
        let gpu = Self { shared, options };
        #[cfg(not(target_arch = "wasm32"))]
        gpu.test_matrix().await;
        Ok(gpu)
    }

    /// [`Gpu::new`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new_blocking(
        caps: AdapterCaps,
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: GpuOptions,
    ) -> Result<Self, DeviceError> {
        pollster::block_on(Self::new(caps, device, queue, options))
    }

    /// On a device of its own.
    ///
    /// # Errors
    /// No such adapter, or one that gives no device.
    pub async fn request(request: &RequestOptions) -> Result<Self, DeviceError> {
        let adapters = adapters().await;
        let names: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
        let index = match &request.adapter {
            None => (!adapters.is_empty()).then_some(0),
            // One or two digits are an index; more are a model's.
            Some(asked) if asked.len() <= 2 && asked.bytes().all(|b| b.is_ascii_digit()) => {
                asked.parse().ok().filter(|&i: &usize| i < adapters.len())
            }
            Some(asked) => {
                let asked = asked.to_lowercase();
                names.iter().position(|n| n.to_lowercase().contains(&asked))
            }
        };
        let Some(adapter) = index.map(|i| &adapters[i]) else {
            let asked = request.adapter.clone().unwrap_or_else(|| "of any kind".to_owned());
            return Err(DeviceError::NoAdapter { asked, present: names });
        };
        let caps = AdapterCaps::of(adapter);
        #[cfg_attr(
            target_arch = "wasm32",
            expect(unused_mut, reason = "nothing is broadcast in browsers")
        )]
        let mut features = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SHADER_F16;
        // For no other: with it wgpu asks drivers to let subgroups vary in size.
        #[cfg(not(target_arch = "wasm32"))]
        features.set(wgpu::Features::SUBGROUP, request.options.subgroups && caps.broadcasts());
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("local-attention"),
            required_features: adapter.features() & features,
            // All that there is: plans use what pays.
            required_limits: adapter.limits(),
            ..wgpu::DeviceDescriptor::default()
        };
        #[cfg(not(target_arch = "wasm32"))]
        let with_matrix =
            super::matrix::request(adapter, &caps, &request.options, &descriptor).await;
        #[cfg(target_arch = "wasm32")]
        let with_matrix = None;
        let (device, queue) = match with_matrix {
            Some(made) => made,
            None => adapter.request_device(&descriptor).await.map_err(|e| {
                DeviceError::Request { adapter: adapter.get_info().name, reason: e.to_string() }
            })?,
        };
        Self::new(caps, device, queue, request.options.clone()).await
    }

    /// [`Gpu::request`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn request_blocking(request: &RequestOptions) -> Result<Self, DeviceError> {
        pollster::block_on(Self::request(request))
    }

    /// The same device and pipelines with other options.
    #[must_use]
    pub fn with_options(&self, options: GpuOptions) -> Self {
        Self { shared: self.shared.clone(), options }
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.shared.queue
    }

    /// What errors are caught on.
    pub(super) fn both(&self) -> (&wgpu::Device, &wgpu::Queue) {
        (&self.shared.device, &self.shared.queue)
    }

    /// Its adapter.
    pub fn caps(&self) -> &AdapterCaps {
        &self.shared.caps
    }

    /// How kernels are chosen.
    pub fn options(&self) -> &GpuOptions {
        &self.options
    }

    /// The matrices of its kernels: those of its adapter, where the device has the feature and has passed a test.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn matrix(&self) -> Option<Matrix> {
        self.caps().matrix.filter(|_| self.shared.matrix_works.load(Ordering::Relaxed))
    }

    /// Whether they work.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn set_matrix_works(&self, works: bool) {
        self.shared.matrix_works.store(works, Ordering::Relaxed);
    }

    /// Whether its kernels may broadcast. No browser says how many threads its subgroups have.
    pub(super) fn broadcasts(&self) -> bool {
        #[cfg(target_arch = "wasm32")]
        return false;
        #[cfg(not(target_arch = "wasm32"))]
        return self.options.subgroups
            && self.caps().broadcasts()
            && self.device().features().contains(wgpu::Features::SUBGROUP);
    }

    /// Dispatches recorded so far: proof that the GPU was asked.
    pub fn dispatches(&self) -> u64 {
        self.shared.dispatches.load(Ordering::Relaxed)
    }

    pub(super) fn count_dispatch(&self) {
        self.shared.dispatches.fetch_add(1, Ordering::Relaxed);
    }

    /// Remembers what is fastest for a kernel and a geometry.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn know(&self, kernel: String, geometry: String, variant: Variant) {
        let mut tuned = self.shared.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        tuned.insert((kernel, geometry), variant);
    }

    /// The one that is remembered.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn known(&self, of: &(String, String)) -> Option<Variant> {
        let tuned = self.shared.tuned.lock().unwrap_or_else(PoisonError::into_inner);
        tuned.get(of).copied()
    }

    pub(super) fn group_layout(&self) -> &wgpu::BindGroupLayout {
        &self.shared.group_layout
    }

    /// The largest binding, in bytes.
    pub(super) fn max_binding_bytes(&self) -> u64 {
        let limits = self.device().limits();
        let own = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        // Elements are counted in 32 bits.
        let own = own.min(u64::from(u32::MAX));
        self.options.max_binding_bytes.map_or(own, |asked| asked.min(own))
    }

    /// Workgroups in one dimension, at most.
    pub(super) fn max_workgroups(&self) -> u32 {
        let own = self.device().limits().max_compute_workgroups_per_dimension;
        self.options.max_workgroups.map_or(own, |asked| asked.min(own)).max(1)
    }

    /// The pipeline of a key, compiled at its first use.
    pub(super) async fn pipeline(
        &self,
        key: PipelineKey,
    ) -> Result<wgpu::ComputePipeline, PlanError> {
        let id = (key, self.options.checked_shaders);
        let known = |m: &Mutex<HashMap<_, wgpu::ComputePipeline>>| {
            m.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
        };
        if let Some(pipeline) = known(&self.shared.pipelines) {
            return Ok(pipeline);
        }
        let label = key.to_string();
        let pipeline = checked(self.both(), "compiling a pipeline", || {
            let source = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(key.wgsl().into()),
            };
            let checks = match self.options.checked_shaders {
                true => wgpu::ShaderRuntimeChecks::checked(),
                false => wgpu::ShaderRuntimeChecks::unchecked(),
            };
            // SAFETY: every access is in bounds by construction, and every loop ends. Tensors:
            // rows, queries and features are below the sizes that `LaidTensors` has found to lie in
            // their bindings, or, of host tensors, that `Piece` has made them for, keys below `key_len` and in the range that a part is bound
            // with, positions of masks in the tiles of that range, slots of a bias below its width because `load_biases` asks for no others. Rotary
            // tables: positions of visible keys and of queries of one block, which is what they
            // are made for. Uniforms of a part are written once, when it is bound, and what calls write are numbers of
            // dropout alone. Gradients: what `LaidBackward` has found to lie in its bindings; `Scratch` sizes the table of what
            // is known of queries and the copy of the mask by the shapes that index them, and `Cut` the parts of a bias's. Tiles: constants of the key, `tile.rs` sizes them. Loops count up to
            // these ends. A test holds checked kernels to the same bits.
            let module = unsafe { self.device().create_shader_module_trusted(source, checks) };
            self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&self.shared.pipeline_layout),
                module: &module,
                entry_point: Some(key.kernel.name()),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..wgpu::PipelineCompilationOptions::default()
                },
                cache: None,
            })
        })
        .await?;
        let mut all = self.shared.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(all.entry(id).or_insert(pipeline).clone())
    }
}
