//! What recording a call costs the host, against a dispatch of a kernel that does nothing with as many
//! bindings: `cargo bench --bench encode`.

#[allow(dead_code, reason = "this benchmark reads nothing back")]
#[path = "../tests/gpu_suite/buffers.rs"]
mod buffers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use local_attention::gpu::{
    Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace, wgpu,
};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};

use buffers::{request, upload};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALLS: usize = 2000;
const ROUNDS: usize = 15;
/// Of a call.
const UNIFORM_BYTES: usize = 24;

fn main() -> Result<()> {
    let gpu = &Gpu::request_blocking(&request())?;
    println!("{} ({})", gpu.caps().info.name, gpu.caps().info.driver_info);
    measure(gpu, 0.0)?;
    measure(gpu, 0.1)
}

/// With a probability of dropout, which gives each call numbers of its own: the bare dispatch writes as many then.
fn measure(gpu: &Gpu, dropout: f64) -> Result<()> {
    let (n, d) = (256, 64);
    let config = LocalAttentionConfig::new(64).causal(true).dropout(dropout);
    let attention = LocalAttention::new(config)?;
    let call = if dropout > 0.0 { Call::with_seed(1) } else { Call::default() };
    let problem = attention.problem(&AttentionShape::new([1], n, d))?;
    let buffers = [(); 4].map(|()| upload(gpu, &vec![0.5; n * d]));
    let view = |b| TensorView::contiguous(b, Dtype::F32, [1, n, d]);
    let [q, k, v, out] = buffers.each_ref().map(view);
    let tensors = ForwardTensors::new(q, k, v, out);
    let plan = gpu.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))?;
    let mut workspace = Workspace::new_blocking(gpu, CALLS)?;
    let start = Instant::now();
    let bound = plan.bind_forward_blocking(&tensors, &workspace)?;
    let bind = start.elapsed();
    let (pipeline, group, uniform) = bare(gpu, &buffers);
    let numbers = [0_u8; UNIFORM_BYTES];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        workspace.recall();
        ours.push(record(gpu, |pass| Ok(bound.encode(pass, &mut workspace, &call)?))?);
        theirs.push(record(gpu, |pass| {
            if dropout > 0.0 {
                gpu.queue().write_buffer(&uniform, 0, &numbers);
            }
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[0, 0]);
            pass.dispatch_workgroups(1, 1, 1);
            Ok(())
        })?);
    }
    let median = |all: &mut Vec<(f64, u64)>| {
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all[all.len() / 2]
    };
    let ((ours, ours_allocated), (theirs, theirs_allocated)) =
        (median(&mut ours), median(&mut theirs));
    println!(
        "dropout {dropout}: bind {:.0} us; medians of {ROUNDS} passes of {CALLS} calls in turn",
        bind.as_secs_f64() * 1e6
    );
    println!(
        "encode {:.0} ns, a bare dispatch {:.0} ns: {:.2} times; {ours_allocated} and {theirs_allocated} allocations a pass",
        ours * 1e9,
        theirs * 1e9,
        ours / theirs
    );
    Ok(())
}

/// Seconds a call, and allocations of the pass: recording it and finishing its encoder.
fn record(
    gpu: &Gpu,
    mut call: impl FnMut(&mut wgpu::ComputePass<'_>) -> Result<()>,
) -> Result<(f64, u64)> {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut encoder =
        gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for _ in 0..CALLS {
            call(&mut pass)?;
        }
    }
    drop(encoder.finish());
    let seconds = start.elapsed().as_secs_f64() / CALLS as f64;
    Ok((seconds, ALLOCATIONS.load(Ordering::Relaxed) - before))
}

/// A kernel that does nothing, with two uniforms at dynamic offsets and eight storage buffers.
fn bare(
    gpu: &Gpu,
    buffers: &[wgpu::Buffer; 4],
) -> (wgpu::ComputePipeline, wgpu::BindGroup, wgpu::Buffer) {
    let device = gpu.device();
    let written = [4_u32, 8];
    let entries = std::array::from_fn::<_, 10, _>(|i| wgpu::BindGroupLayoutEntry {
        binding: i as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match i {
                0 | 9 => wgpu::BufferBindingType::Uniform,
                _ => wgpu::BufferBindingType::Storage { read_only: !written.contains(&(i as u32)) },
            },
            has_dynamic_offset: i == 0 || i == 9,
            min_binding_size: None,
        },
        count: None,
    });
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: None,
        entries: &entries,
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl("@compute @workgroup_size(64) fn nothing() {}".into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let make = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 1024,
            usage,
            mapped_at_creation: false,
        })
    };
    let uniform = make(wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
    let lse = make(wgpu::BufferUsages::STORAGE);
    let spare = make(wgpu::BufferUsages::STORAGE);
    let [q, k, v, out] = buffers;
    let all = [&uniform, q, k, v, out, &spare, &spare, &spare, &lse, &uniform];
    let entries = std::array::from_fn::<_, 10, _>(|i| wgpu::BindGroupEntry {
        binding: i as u32,
        resource: all[i].as_entire_binding(),
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &layout,
        entries: &entries,
    });
    (pipeline, group, uniform)
}
