//! Which adapter; floats into buffers and back.

use local_attention::gpu::{Gpu, RequestOptions, wgpu};

const USES: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

/// The adapter with `LOCAL_ATTENTION_ADAPTER` in its name, or the best one.
pub fn request() -> RequestOptions {
    match std::env::var("LOCAL_ATTENTION_ADAPTER") {
        Ok(name) => RequestOptions::adapter(name),
        Err(_) => RequestOptions::default(),
    }
}

pub fn upload_bytes(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.len().next_multiple_of(4).max(4) as u64,
        usage: USES,
        mapped_at_creation: false,
    });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

pub fn upload(gpu: &Gpu, data: &[f32]) -> wgpu::Buffer {
    upload_bytes(gpu, &data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

pub fn read_bytes(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<u8> {
    let back = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder =
        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &back, 0, Some(buffer.size()));
    gpu.queue().submit([encoder.finish()]);
    back.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    back.get_mapped_range(..).unwrap().to_vec()
}

pub fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Vec<f32> {
    let bytes = read_bytes(gpu, buffer);
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
