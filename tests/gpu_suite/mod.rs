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
pub mod waiting;

use libtest_mimic::Failed;
use local_attention::gpu::{Gpu, GpuOptions, wgpu};

pub use crate::common::list;

/// Any error, as a test's.
pub fn fail(error: impl std::fmt::Display) -> Failed {
    error.to_string().into()
}

/// Records into a pass of its own and submits it.
pub fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
    let mut encoder =
        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    gpu.queue().submit([encoder.finish()]);
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
