//! Attention between two passes of your own, on your device and buffers, in one encoder, without a copy:
//! one shader doubles x, attention reads it as q, k and v, another adds 1 to the result.

use local_attention::gpu::{self, Dtype, ForwardTensors, Layouts, Storage, TensorView, Workspace};
use local_attention::gpu::{wgpu, wgpu::util::DeviceExt};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};

const SHADER: &str = "
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(64) fn double(@builtin(global_invocation_id) i: vec3u) { x[i.x] *= 2.0; }
@compute @workgroup_size(64) fn add_one(@builtin(global_invocation_id) i: vec3u) { x[i.x] += 1.0; }
";
const SHAPE: [usize; 3] = [4, 64, 32]; // [heads, n, head_dim]
const ELEMENTS: usize = SHAPE[0] * SHAPE[1] * SHAPE[2];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Your device, with your limits and features, and your buffers.
    let adapter = gpu::adapters_blocking().into_iter().next().ok_or("no adapter")?;
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request)?;
    let buffer = |value: f32| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &value.to_le_bytes().repeat(ELEMENTS),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let (x, out) = (buffer(0.25), buffer(0.0));

    // Once: the engine on that device, a plan for the shape, tensors bound to it.
    let (caps, options) = (gpu::AdapterCaps::of(&adapter), gpu::GpuOptions::default());
    let engine = gpu::Gpu::new_blocking(caps, device.clone(), queue.clone(), options)?;
    let attention = LocalAttention::new(LocalAttentionConfig::new(16).causal(true).dim(32))?;
    let problem = attention.problem(&AttentionShape::new([SHAPE[0]], SHAPE[1], SHAPE[2]))?;
    let plan = engine.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))?;
    let mut workspace = Workspace::new_blocking(&engine, 8)?;
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, SHAPE);
    let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out));
    let bound = plan.bind_forward_blocking(&tensors, &workspace)?;

    // Every step: your pass, attention, your pass.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    your_step(&device, &mut pass, "double", &x);
    bound.encode(&mut pass, &mut workspace, &Call::default())?;
    your_step(&device, &mut pass, "add_one", &out);
    drop(pass);
    queue.submit([encoder.finish()]);
    workspace.recall();

    // Every value is 0.5, so every mean of values is, but for rounding: 1.5 after the last pass.
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &out.slice(..), |bytes| {
        let bytes = bytes.expect("mapped");
        let right =
            bytes.as_chunks::<4>().0.iter().all(|x| (f32::from_le_bytes(*x) - 1.5).abs() < 1e-6);
        println!("every value is 1.5: {right}");
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(())
}

fn your_step(gpu: &wgpu::Device, pass: &mut wgpu::ComputePass<'_>, entry: &str, x: &wgpu::Buffer) {
    let source = wgpu::ShaderSource::Wgsl(SHADER.into());
    let pipeline = gpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &gpu.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source }),
        entry_point: Some(entry),
        compilation_options: Default::default(),
        cache: None,
    });
    let entries = &[wgpu::BindGroupEntry { binding: 0, resource: x.as_entire_binding() }];
    let layout = &pipeline.get_bind_group_layout(0);
    let group = wgpu::BindGroupDescriptor { label: None, layout, entries };
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &gpu.create_bind_group(&group), &[]);
    pass.dispatch_workgroups(ELEMENTS as u32 / 64, 1, 1);
}
