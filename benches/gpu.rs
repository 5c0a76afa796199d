//! The fused kernel against three dispatches with scores in memory (`benches/unfused`), in turn on one
//! adapter: `cargo bench --bench gpu`. `LOCAL_ATTENTION_ADAPTER`: a part of the adapter's name.

#[path = "../tests/gpu_suite/buffers.rs"]
mod buffers;

#[allow(dead_code, reason = "its own tests")]
#[path = "../src/gpu/shader/preprocess.rs"]
mod preprocess;

use std::time::Instant;

use buffers::{read, request, upload};
use local_attention::gpu::wgpu::{self, util::DeviceExt};
use local_attention::gpu::{
    Bound, Dtype, ForwardTensors, Gpu, GpuOptions, Layouts, Storage, TensorView, Tile, Workspace,
};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig, Problem};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HEADS: usize = 8;
const D: usize = 64;
const PAIRS: usize = 7;
/// Slots a thread of the unfused versions: what a GPU's registers hold, and what software adapters are fastest with.
const COLUMNS: [u32; 2] = [4, 16];
const RUNS: usize = COLUMNS.len() + Tile::ALL.len();

fn main() -> Result<()> {
    let gpu = Gpu::request_blocking(&request())?;
    println!("{} ({})", gpu.caps().info.name, gpu.caps().info.driver_info);
    println!(
        "b1 h{HEADS} d{D}, causal, one window back, no rotary; medians of {PAIRS} runs in turn"
    );
    println!("unfused: 16 queries by so many slots a thread");
    print!("{:>7} {:>7}", "n", "window");
    COLUMNS.iter().for_each(|columns| print!(" {:>9}", format!("16x{columns} ms")));
    Tile::ALL.iter().for_each(|tile| print!(" {:>9}", format!("{} ms", tile.name())));
    println!("   unfused by fused, of each unfused one");
    for (n, window) in [(1024, 64), (1024, 128), (1024, 512), (4096, 128)] {
        compare(&gpu, n, window)?;
    }
    Ok(())
}

fn compare(gpu: &Gpu, n: usize, window: usize) -> Result<()> {
    let config = LocalAttentionConfig::new(window as i64).causal(true);
    let shape = AttentionShape::new([1, HEADS], n, D);
    let problem = LocalAttention::new(config)?.problem(&shape)?;
    let tensor = |seed: u32| -> Vec<f32> {
        let mix = |i: u32| i.wrapping_mul(2_654_435_769).wrapping_add(seed) >> 8;
        (0..(HEADS * n * D) as u32).map(|i| mix(i) as f32 / 8_388_608.0 - 1.0).collect()
    };
    let inputs = [1, 1 << 30, 3 << 29].map(|seed| upload(gpu, &tensor(seed)));
    let zeros = vec![0.0; HEADS * n * D];
    let outs = [(); RUNS].map(|()| upload(gpu, &zeros));
    let mut fused = Vec::new();
    for (tile, out) in Tile::ALL.into_iter().zip(&outs[COLUMNS.len()..]) {
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        fused.push(Fused::new(&gpu.with_options(options), &problem, &inputs, out)?);
    }
    let unfused = COLUMNS.into_iter().zip(&outs);
    let unfused = unfused.map(|(c, out)| Unfused::new(gpu, n, window, c, &inputs, out));
    let unfused: Vec<_> = unfused.collect();
    let mut times = [const { Vec::new() }; RUNS];
    for run in 0..=PAIRS {
        let mut all = Vec::new();
        for unfused in &unfused {
            let start = Instant::now();
            unfused.run(gpu)?;
            all.push(start.elapsed());
        }
        for fused in &mut fused {
            let start = Instant::now();
            fused.run(gpu)?;
            all.push(start.elapsed());
        }
        // The first run compiles.
        if run > 0 {
            times.iter_mut().zip(all).for_each(|(t, x)| t.push(x.as_secs_f64() * 1e3));
        }
    }
    let results = outs.each_ref().map(|out| read(gpu, out));
    for result in &results[1..] {
        let worst = result.iter().zip(&results[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "fused and unfused differ by {worst}");
    }
    let median = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    });
    print!("{n:>7} {window:>7}");
    median.iter().for_each(|ms| print!(" {ms:>9.1}"));
    let (unfused, fused) = median.split_at(COLUMNS.len());
    let ratios =
        |of: &f64| fused.iter().map(|ms| format!("{:.2}", of / ms)).collect::<Vec<_>>().join(", ");
    println!("   {}", unfused.iter().map(ratios).collect::<Vec<_>>().join("; "));
    Ok(())
}

/// Our kernel.
struct Fused {
    bound: Bound,
    workspace: Workspace,
}

impl Fused {
    fn new(
        gpu: &Gpu,
        problem: &Problem,
        inputs: &[wgpu::Buffer; 3],
        out: &wgpu::Buffer,
    ) -> Result<Self> {
        let plan = gpu.plan_blocking(problem, &Layouts::contiguous(Storage::F32, problem))?;
        let workspace = Workspace::new_blocking(gpu, 64)?;
        let view = |b| TensorView::contiguous(b, Dtype::F32, problem.out_shape());
        let [q, k, v] = inputs.each_ref().map(view);
        let bound =
            plan.bind_forward_blocking(&ForwardTensors::new(q, k, v, view(out)), &workspace)?;
        Ok(Self { bound, workspace })
    }

    fn run(&mut self, gpu: &Gpu) -> Result<()> {
        self.workspace.recall();
        let mut encoder =
            gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.bound.encode(&mut pass, &mut self.workspace, &Call::default())?;
        }
        submit(gpu, encoder)
    }
}

/// The three dispatches.
struct Unfused {
    pipelines: [wgpu::ComputePipeline; 3],
    group: wgpu::BindGroup,
    workgroups: [[u32; 3]; 3],
}

impl Unfused {
    fn new(
        gpu: &Gpu,
        n: usize,
        window: usize,
        columns: u32,
        inputs: &[wgpu::Buffer; 3],
        out: &wgpu::Buffer,
    ) -> Self {
        let device = gpu.device();
        let scores = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: (HEADS * n * 2 * window * 4) as u64,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let scale = (D as f32).powf(-0.5) * std::f32::consts::LOG2_E;
        let words = [n as u32, window as u32, HEADS as u32, scale.to_bits()];
        let uniforms = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: &words.map(u32::to_le_bytes).concat(),
            usage: wgpu::BufferUsages::UNIFORM,
        });
        let text = preprocess::expand(
            "unfused",
            &|_| Some(include_str!("unfused/unfused.wgsl")),
            &[],
            &[("ROWS", 16), ("COLUMNS", columns), ("QUADS", columns / 2)],
        );
        let text = text.unwrap_or_else(|e| panic!("{e}"));
        let source =
            wgpu::ShaderSource::Wgsl(format!("const COLUMNS = {columns}u;\n{text}").into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: None, source };
        // SAFETY: for these shapes every index is in bounds and every loop ends; the fused kernel is
        // compiled without checks too.
        let module = unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let kinds = [
            wgpu::BufferBindingType::Uniform,
            storage(true),
            storage(true),
            storage(true),
            storage(false),
            storage(false),
        ];
        let entries: Vec<_> = (0..)
            .zip(kinds)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let buffers = [&uniforms, &inputs[0], &inputs[1], &inputs[2], &scores, out];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &entries,
        });
        let pipelines = ["products", "softmax", "values"].map(|entry_point| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry_point),
                // As the fused kernels are compiled.
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..wgpu::PipelineCompilationOptions::default()
                },
                cache: None,
            })
        });
        let (n, slots, rows) = (n as u32, 2 * window as u32, HEADS as u32);
        let workgroups = [[n / 64, slots / 32, rows], [n / 64, rows, 1], [n / 64, 1, rows]];
        Self { pipelines, group, workgroups }
    }

    fn run(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder =
            gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_bind_group(0, &self.group, &[]);
            for (pipeline, [x, y, z]) in self.pipelines.iter().zip(self.workgroups) {
                pass.set_pipeline(pipeline);
                pass.dispatch_workgroups(x, y, z);
            }
        }
        submit(gpu, encoder)
    }
}

fn submit(gpu: &Gpu, encoder: wgpu::CommandEncoder) -> Result<()> {
    gpu.queue().submit([encoder.finish()]);
    gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
    Ok(())
}
