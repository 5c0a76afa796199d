//! Attention between two passes of your own, on your device and buffers, in one encoder, without a copy:
//! one shader doubles x, attention reads it as q, k and v, another adds 1 to the result.
//!
//! `cargo run --release --example own_device`

use local_attention::gpu::wgpu;
use local_attention::gpu::{
    AdapterCaps, Dtype, ForwardTensors, Gpu, GpuOptions, Layouts, Storage, TensorView, Workspace,
};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};

const SHADER: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(64) fn double(@builtin(global_invocation_id) i: vec3<u32>) { x[i.x] *= 2.0; }
@compute @workgroup_size(64) fn add_one(@builtin(global_invocation_id) i: vec3<u32>) { x[i.x] += 1.0; }
";
const SHAPE: [usize; 3] = [4, 64, 32]; // [heads, n, head_dim]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Your device, with your limits and features.
    let adapter =
        local_attention::gpu::adapters_blocking().into_iter().next().ok_or("no adapter")?;
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request)?;
    let make = |usage| wgpu::BufferDescriptor {
        label: None,
        size: 4 * SHAPE.iter().product::<usize>() as u64,
        usage: usage | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    };
    let x = device.create_buffer(&make(wgpu::BufferUsages::STORAGE));
    let out =
        device.create_buffer(&make(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC));
    let back = device.create_buffer(&make(wgpu::BufferUsages::MAP_READ));
    queue.write_buffer(&x, 0, &0.25_f32.to_le_bytes().repeat(SHAPE.iter().product()));

    // Once: the engine on that device, a plan for the shape, tensors bound to it.
    let caps = AdapterCaps::of(&adapter);
    let gpu =
        pollster::block_on(Gpu::new(caps, device.clone(), queue.clone(), GpuOptions::default()))?;
    let attention = LocalAttention::new(LocalAttentionConfig::new(16).causal(true).dim(32))?;
    let problem = attention.problem(&AttentionShape::new([SHAPE[0]], SHAPE[1], SHAPE[2]))?;
    let plan = gpu.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))?;
    let mut workspace = Workspace::new_blocking(&gpu, 8)?;
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, SHAPE);
    let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out));
    let bound = plan.bind_forward_blocking(&tensors, &workspace)?;

    // Every step: your pass, attention, your pass.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let yours = |pass: &mut wgpu::ComputePass<'_>, entry, buffer| {
            let (pipeline, group) = your_pass(&device, entry, buffer);
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(SHAPE.iter().product::<usize>() as u32 / 64, 1, 1);
        };
        yours(&mut pass, "double", &x);
        bound.encode(&mut pass, &mut workspace, &Call::default())?;
        yours(&mut pass, "add_one", &out);
    }
    encoder.copy_buffer_to_buffer(&out, 0, &back, 0, None);
    queue.submit([encoder.finish()]);
    workspace.recall();

    back.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let bytes = back.get_mapped_range(..)?.to_vec();
    let out: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    // Every value is 0.5, so every mean of values is: 1.5 after the last pass.
    println!("out {:?} .. {:?}", &out[..2], &out[out.len() - 2..]);
    Ok(())
}

fn your_pass(
    device: &wgpu::Device,
    entry: &str,
    buffer: &wgpu::Buffer,
) -> (wgpu::ComputePipeline, wgpu::BindGroup) {
    let source = wgpu::ShaderSource::Wgsl(SHADER.into());
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source }),
        entry_point: Some(entry),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
    });
    (pipeline, group)
}
