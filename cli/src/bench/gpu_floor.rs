//! What an adapter can do at best, measured on it in the same run.

use std::time::Instant;

use local_attention::gpu::{Gpu, wgpu};

use super::floor::Floor;
use super::gpu::{scoped, wait};
use crate::error::BadInput;

/// Operations of one thread of `multiply_add`: 256 times 8 vec4s, a product and a sum each.
const THREAD_FLOPS: f64 = 256.0 * 8.0 * 4.0 * 2.0;
const THREADS: f64 = 64.0;
/// Bytes copied.
const BYTES: u64 = 64 << 20;

/// The rates of an adapter.
pub fn measure(gpu: &Gpu) -> Result<Floor, BadInput> {
    let device = gpu.device();
    let bytes = BYTES.min(device.limits().max_storage_buffer_binding_size);
    let make = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("floor"),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (from, to) = (scoped(gpu, make)?, scoped(gpu, make)?);
    let source = wgpu::ShaderSource::Wgsl(include_str!("gpu_floor.wgsl").into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some("floor"), source };
    let module = scoped(gpu, || device.create_shader_module(descriptor))?;
    let time = |entry_point: &str, groups: u32, dispatches: u32| -> Result<f64, BadInput> {
        let (pipeline, group) = scoped(gpu, || {
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: None,
                module: &module,
                entry_point: Some(entry_point),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("floor"),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[
                    wgpu::BindGroupEntry { binding: 0, resource: from.as_entire_binding() },
                    wgpu::BindGroupEntry { binding: 1, resource: to.as_entire_binding() },
                ],
            });
            (pipeline, group)
        })?;
        let run = |dispatches: u32| -> Result<f64, BadInput> {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                (0..dispatches).for_each(|_| pass.dispatch_workgroups(groups, 1, 1));
            }
            let start = Instant::now();
            gpu.queue().submit([encoder.finish()]);
            wait(gpu)?;
            Ok(start.elapsed().as_secs_f64())
        };
        run(1)?;
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(run(dispatches)?);
        }
        Ok(best)
    };
    // Enough work that submitting it does not count, on a slow adapter and a fast one.
    let rate = |entry_point: &str, groups: u32, work: f64| -> Result<f64, BadInput> {
        let mut dispatches = 1;
        loop {
            let seconds = time(entry_point, groups, dispatches)?;
            if seconds > 0.02 || dispatches >= 1024 {
                return Ok(work * f64::from(dispatches) / seconds);
            }
            dispatches *= 4;
        }
    };
    let most = device.limits().max_compute_workgroups_per_dimension;
    let groups = 4096.min(most);
    let gemm_flops = rate("multiply_add", groups, THREAD_FLOPS * THREADS * f64::from(groups))?;
    let copy_bytes = rate("copy", 1024.min(most), 2.0 * bytes as f64)?;
    Ok(Floor {
        gemm_flops,
        copy_bytes,
        what: format!("fused multiply-add on {}", gpu.caps().info.name),
    })
}
