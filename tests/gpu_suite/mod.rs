//! The tests of the GPU engine, by what they promise.

pub mod autotune;
pub mod bad_input;
pub mod buffers;
pub mod faults;
pub mod gradients;
pub mod large_window;
pub mod layouts;
pub mod long_window;
pub mod matrix;
pub mod one_buffer;
pub mod oracle;
pub mod own_device;
pub mod share;
pub mod split;
pub mod subgroups;
pub mod waiting;

use libtest_mimic::Failed;
use local_attention::gpu::{self, Features, Gpu, GpuOptions, Layouts, Storage, Tile, wgpu};

use self::share::Share;
use crate::common::Case;
pub use crate::common::list;

/// Any error, as a test's.
pub fn fail(error: impl std::fmt::Display) -> Failed {
    error.to_string().into()
}

/// The adapter of a device: to make others from.
pub fn adapter_of(gpu: &Gpu) -> Result<wgpu::Adapter, Failed> {
    let name = &gpu.caps().info.name;
    let mut all = gpu::adapters_blocking().into_iter();
    Ok(all.find(|adapter| &adapter.get_info().name == name).ok_or("no adapter")?)
}

/// Records into a pass of its own and submits it.
pub fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
    let mut encoder =
        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    gpu.queue().submit([encoder.finish()]);
}

/// Whether a share is all of the suite.
pub fn is_whole(share: Share) -> bool {
    share.has(0) && share.has(1)
}

/// The engine with one tile where a share of the suite is run, each with another, for what depends on kernels little: each
/// that is compiled takes software adapters seconds.
pub fn one_tile(gpu: &Gpu) -> Result<Gpu, Failed> {
    let share = Share::from_env()?;
    let mut options = gpu.options().clone();
    if !is_whole(share) {
        options.tile = Some(if share.has(0) { Tile::Small } else { Tile::Short });
    }
    Ok(gpu.with_options(options))
}

/// How a forward pass on host tensors has them lie: padded to whole vec4s.
pub fn padded(storage: Storage) -> Layouts {
    let mut layouts = Layouts::any(storage);
    layouts.vec4 = true;
    layouts
}

/// Chooses random cases for such tests: in a share of the suite those of few kernels, with all options or rotary embedding
/// alone.
#[derive(Debug, Default)]
pub struct Cases {
    seen: usize,
    rotary: usize,
}

impl Cases {
    /// Whether there were some of rotary embedding alone.
    pub fn enough(&self) -> bool {
        self.rotary >= 3
    }

    /// Makes every third case one that may have rotary embedding alone.
    pub fn vary(&mut self, case: &mut Case) {
        self.seen += 1;
        if self.seen.is_multiple_of(3) {
            case.strip();
        }
    }

    /// Whether a case is taken.
    pub fn take(&mut self, gpu: &Gpu, case: &Case, layouts: &Layouts) -> Result<bool, Failed> {
        let key = gpu.key(&case.problem(), layouts).map_err(fail)?;
        let rotary = key.features == Features::Rotary && key.vec4 && case.call.dropout.is_none();
        self.rotary += usize::from(rotary);
        Ok(is_whole(Share::from_env()?) || rotary || key.features == Features::All)
    }
}

/// Sets one of the limits that split work: two of bindings, in bytes, or those of workgroups and of operations.
pub fn limit(options: &mut GpuOptions, axis: usize, binding_bytes: [u64; 2], flops: f64) {
    match axis {
        0 | 1 => options.max_binding_bytes = Some(binding_bytes[axis]),
        2 => options.max_workgroups = Some(2),
        _ => options.max_chunk_flops = flops,
    }
}

/// The largest difference; any NaN counts as infinite.
pub fn worst(got: impl Iterator<Item = f32>, truth: &[f64]) -> f64 {
    got.zip(truth).fold(0.0, |worst, (a, &b)| {
        let error = (f64::from(a) - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
