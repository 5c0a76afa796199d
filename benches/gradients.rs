//! The GPU's backward pass by its forward pass, in turn on one adapter: `cargo bench --bench gradients`.
//! `LOCAL_ATTENTION_ADAPTER`: a part of the adapter's name.

#[path = "../tests/gpu_suite/buffers.rs"]
mod buffers;

use std::time::Instant;

use buffers::{read, request, upload};
use local_attention::gpu::wgpu;
use local_attention::gpu::{
    BackwardTensors, Bound, Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace,
};
use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HEADS: usize = 8;
const D: usize = 64;
const PAIRS: usize = 7;

fn main() -> Result<()> {
    let gpu = Gpu::request_blocking(&request())?;
    println!("{} ({})", gpu.caps().info.name, gpu.caps().info.driver_info);
    println!("b1 h{HEADS} d{D}, causal, one window back, rotary; medians of {PAIRS} runs in turn");
    println!(
        "{:>7} {:>7} {:>6} {:>12} {:>12}   backward by forward; its dispatches, ms",
        "n", "window", "bias", "forward ms", "backward ms"
    );
    for (n, window) in [(1024, 64), (1024, 128), (1024, 512), (4096, 128)] {
        for bias in [false, true] {
            compare(&gpu, n, window, bias)?;
        }
    }
    Ok(())
}

fn compare(gpu: &Gpu, n: usize, window: usize, bias: bool) -> Result<()> {
    let config = LocalAttentionConfig::new(window as i64).causal(true).dim(D as i64);
    let bias_shape = [HEADS, window, 2 * window];
    let mut shape = AttentionShape::new([1, HEADS], n, D).with_lse();
    if bias {
        shape = shape.with_bias(HEADS, window, 2 * window);
    }
    let problem = LocalAttention::new(config)?.problem(&shape)?;
    let tensor = |seed: u32, len: usize| -> Vec<f32> {
        let mix = |i: u32| i.wrapping_mul(2_654_435_769).wrapping_add(seed) >> 8;
        (0..len as u32).map(|i| mix(i) as f32 / 8_388_608.0 - 1.0).collect()
    };
    let len = HEADS * n * D;
    let [q, k, v, dout] =
        [1, 1 << 30, 3 << 29, 7 << 28].map(|seed| upload(gpu, &tensor(seed, len)));
    let [out, dq, dk, dv] = [(); 4].map(|()| upload(gpu, &vec![0.0; len]));
    let lse = upload(gpu, &vec![0.0; HEADS * n]);
    let biases = tensor(5, bias_shape.iter().product());
    let [bias_data, dbias] = [(); 2].map(|()| upload(gpu, &biases));
    let view = |b| TensorView::contiguous(b, Dtype::F32, problem.out_shape());
    let bias_view = |b| TensorView::contiguous(b, Dtype::F32, bias_shape);
    let mut tensors = ForwardTensors::new(view(&q), view(&k), view(&v), view(&out))
        .with_lse(TensorView::contiguous(&lse, Dtype::F32, problem.lse_shape()));
    if bias {
        tensors = tensors.with_attn_bias(bias_view(&bias_data));
    }
    let mut saved =
        BackwardTensors::new(tensors.clone(), view(&dout), view(&dq), view(&dk), view(&dv));
    if bias {
        saved = saved.with_dattn_bias(bias_view(&dbias));
    }
    let layouts = Layouts::contiguous(Storage::F32, &problem);
    let workspace = Workspace::new_blocking(gpu, 1)?;
    let forward =
        gpu.plan_blocking(&problem, &layouts)?.bind_forward_blocking(&tensors, &workspace)?;
    let backward =
        gpu.plan_backward_blocking(&problem, &layouts)?.bind_blocking(&saved, &workspace)?;
    let mut timer = Timer { gpu, workspace };
    let (mut times, mut parts) = ([const { Vec::new() }; 2], vec![Vec::new(); backward.chunks()]);
    for run in 0..=PAIRS {
        let pair = [timer.call(&forward, None)?, timer.call(&backward, None)?];
        let each = (0..backward.chunks()).map(|i| timer.call(&backward, Some(i)));
        let each = each.collect::<Result<Vec<_>>>()?;
        // The first run compiles.
        if run > 0 {
            times.iter_mut().zip(pair).for_each(|(t, x)| t.push(x));
            parts.iter_mut().zip(each).for_each(|(t, x)| t.push(x));
        }
    }
    assert!(read(gpu, &dk).iter().any(|x| *x != 0.0), "nothing was computed");
    let [forward, backward] = times.map(median);
    let parts: Vec<_> = parts.into_iter().map(|t| format!("{:.1}", median(t))).collect();
    println!(
        "{n:>7} {window:>7} {bias:>6} {forward:>12.1} {backward:>12.1}   {:.2}; {}",
        backward / forward,
        parts.join(" ")
    );
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Timer<'a> {
    gpu: &'a Gpu,
    workspace: Workspace,
}

impl Timer<'_> {
    /// Milliseconds of a call, or of one of its dispatches.
    fn call(&mut self, bound: &Bound, part: Option<usize>) -> Result<f64> {
        let device = self.gpu.device();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let (workspace, call) = (&mut self.workspace, Call::default());
            match part {
                None => bound.encode(&mut pass, workspace, &call)?,
                Some(i) => bound.encode_chunk(i, &mut pass, workspace, &call)?,
            }
        }
        let start = Instant::now();
        self.gpu.queue().submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}
