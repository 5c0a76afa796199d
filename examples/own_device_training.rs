//! A step of training on your device and buffers: q, k and v are views of one projection `[n, 3, heads, head_dim]`, and so
//! are their gradients (which share a buffer: each is computed in one of its own, and copied there); the forward pass in one
//! encoder, the backward pass in another.

use local_attention::gpu::{self, BackwardTensors, Dtype, ForwardTensors, Layouts, Storage};
use local_attention::gpu::{TensorView, Workspace, wgpu, wgpu::util::DeviceExt};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};

const N: usize = 64;
const HEADS: usize = 4;
const D: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Your device and your buffers.
    let adapter = gpu::adapters_blocking().into_iter().next().ok_or("no adapter")?;
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request)?;
    let buffer = |data: Vec<f32>| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let projected = (0..N * 3 * HEADS * D).map(|i| (i as f32).sin()).collect();
    let (qkv, dqkv) = (buffer(projected), buffer(vec![0.0; N * 3 * HEADS * D]));
    let (out, lse) = (buffer(vec![0.0; HEADS * N * D]), buffer(vec![0.0; HEADS * N]));
    // The loss is the sum of the output, so its gradient is 1 everywhere; yours comes from the layers above.
    let dout = buffer(vec![1.0; HEADS * N * D]);

    // Once: the engine on that device, plans for the shape (it asks for lse), tensors bound to them.
    let (caps, options) = (gpu::AdapterCaps::of(&adapter), gpu::GpuOptions::default());
    let engine = gpu::Gpu::new_blocking(caps, device.clone(), queue.clone(), options)?;
    let attention = LocalAttention::new(LocalAttentionConfig::new(16).causal(true).dim(D as i64))?;
    let problem = attention.problem(&AttentionShape::new([HEADS], N, D).with_lse())?;
    let layouts = Layouts::contiguous(Storage::F32, &problem);
    let mut workspace = Workspace::new_blocking(&engine, 1)?;
    let third = |buffer, i: usize| {
        TensorView::contiguous(buffer, Dtype::F32, [HEADS, N, D])
            .with_strides_elems([D as i64, (3 * HEADS * D) as i64, 1])
            .with_offset_bytes((4 * i * HEADS * D) as u64)
    };
    let whole = |buffer| TensorView::contiguous(buffer, Dtype::F32, [HEADS, N, D]);
    let [q, k, v] = [0, 1, 2].map(|i| third(&qkv, i));
    let saved = ForwardTensors::new(q, k, v, whole(&out)).with_lse(TensorView::contiguous(
        &lse,
        Dtype::F32,
        [HEADS, N],
    ));
    let [dq, dk, dv] = [0, 1, 2].map(|i| third(&dqkv, i));
    let gradients = BackwardTensors::new(saved.clone(), whole(&dout), dq, dk, dv);
    let plan = engine.plan_blocking(&problem, &layouts)?;
    let forward = plan.bind_forward_blocking(&saved, &workspace)?;
    let plan = engine.plan_backward_blocking(&problem, &layouts)?;
    let backward = plan.bind_blocking(&gradients, &workspace)?;

    // Every step: the forward pass, what you compute of it, the backward pass.
    for bound in [&forward, &backward] {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        bound.encode(&mut pass, &mut workspace, &Call::default())?;
        drop(pass);
        queue.submit([encoder.finish()]);
        workspace.recall();
    }

    // Each query shares a weight of 1 among its keys: over all keys a feature of dv adds up to N.
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &dqkv.slice(..), |bytes| {
        let bytes = bytes.expect("mapped");
        let x: Vec<_> = bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let sum = |c: usize| -> f32 { (0..N).map(|t| x[(3 * t + 2) * HEADS * D + c]).sum() };
        let right = (0..HEADS * D).all(|c| (sum(c) - N as f32).abs() < 1e-3);
        println!("every feature of dv adds up to {N}: {right}");
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(())
}
