//! The GPU engine in a browser: random calls against the f64 oracle, and tensors in one buffer.

#![cfg(target_arch = "wasm32")]

use half::f16;
use local_attention::gpu::wgpu::{self, util::DeviceExt};
use local_attention::gpu::{
    Dtype, ForwardTensors, Gpu, GpuElement, GpuOptions, Layouts, RequestOptions, Storage,
    TensorView, Tile, Workspace,
};
use local_attention::{
    AttentionShape, BackwardInputs, Call, Dropout, Engine, ErrorBudget, Forward, HostInputs,
    HostTensor, LocalAttention, LocalAttentionConfig, Problem, Reference,
};
use wasm_bindgen::prelude::*;

/// What was run, a line each; an error where something is wrong.
#[wasm_bindgen]
pub async fn smoke() -> Result<String, JsError> {
    let gpu = Gpu::request(&RequestOptions::default()).await?;
    let info = &gpu.caps().info;
    let mut lines = vec![format!("adapter: {} ({:?})", info.name, info.backend)];
    let window = LocalAttentionConfig::new;
    let cases = [
        ("causal", window(16).causal(true), 96, 64),
        ("rotary, look_forward", window(8).look_forward(1).dim(32), 40, 32),
        ("xpos, shared_qk", window(8).causal(true).shared_qk(true).use_xpos(true).dim(16), 40, 16),
        ("exact, autopad, odd features", window(7).exact_windowsize(true).autopad(true), 33, 30),
        ("window beyond the sequence", window(4096).autopad(true), 20, 8),
        ("large windows", window(128).causal(true).dim(64), 256, 64),
        ("head_dim 128", window(32).causal(true), 64, 128),
        ("head_dim 256", window(32), 64, 256),
    ];
    // Every tile and storage with every case and every extra, not with all pairs of them: each pipeline is
    // compiled here.
    let extras = [Extra::None, Extra::Mask, Extra::Bias, Extra::Dropout];
    for (i, (name, config, n, d)) in cases.into_iter().enumerate() {
        for (j, extra) in extras.into_iter().enumerate() {
            let mut options = GpuOptions::default();
            options.tile = Some(Tile::ALL[(i + j) % 3]);
            // Gradients have five kernels each: one extra a case.
            let gradients = (i + j) % 4 == 0;
            let case = Case { config: config.clone(), n, d, extra, gradients };
            let gpu = gpu.with_options(options);
            lines.push(format!("{name}, {extra:?}: {}", case.run(&gpu, |x| x).await?));
            if (i + j / 2) % 2 == 0 {
                lines.push(format!("{name}, {extra:?}: {}", case.run(&gpu, f16::from_f32).await?));
            }
        }
    }
    lines.push(in_one_buffer(&gpu).await?);
    let dispatches = gpu.dispatches();
    if dispatches == 0 {
        return Err(JsError::new("the GPU was never asked"));
    }
    lines.push(format!("{dispatches} dispatches"));
    Ok(lines.join("\n"))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Extra {
    None,
    /// Some rows see nothing.
    Mask,
    Bias,
    Dropout,
}

struct Case {
    config: LocalAttentionConfig,
    n: usize,
    d: usize,
    extra: Extra,
    gradients: bool,
}

/// The largest difference; a NaN is infinitely far away.
fn worst(got: impl Iterator<Item = f64>, truth: &[f64]) -> f64 {
    let errors = got.zip(truth).map(|(x, y)| (x - y).abs());
    errors.fold(0.0, |a, e| if e.is_nan() { f64::INFINITY } else { a.max(e) })
}

/// Numbers between -1 and 1 that look random.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mix =
        |i: u32| (i ^ seed).wrapping_mul(2_654_435_769).rotate_left(13).wrapping_mul(3_266_489_917);
    (0..len as u32).map(|i| (mix(i) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

impl Case {
    /// The kernel and its error as a share of what is allowed.
    async fn run<T: GpuElement>(
        &self,
        gpu: &Gpu,
        of: impl Fn(f32) -> T,
    ) -> Result<String, JsError> {
        let (n, d) = (self.n, self.d);
        let numbers = |len, seed| noise(len, seed).into_iter().map(&of).collect::<Vec<T>>();
        let tensor = |seed| HostTensor::new(numbers(2 * n * d, seed), [2, n, d]);
        let mut inputs = HostInputs::new(tensor(1)?, tensor(2)?, tensor(3)?);
        if self.extra == Extra::Mask {
            let mask: Vec<bool> = (0..n).map(|u| u % 3 != 0 && u > n / 2).collect();
            inputs = inputs.with_mask(HostTensor::new(mask, [1, n])?);
        }
        let config = match self.extra {
            Extra::Dropout => self.config.clone().dropout(0.25),
            _ => self.config.clone(),
        };
        let attention = LocalAttention::new(config)?;
        if self.extra == Extra::Bias {
            let shape = AttentionShape::from_inputs(&inputs)?;
            let slots = attention.problem(&shape)?.geometry().slots();
            let bias = HostTensor::new(numbers(slots, 4), [1, 1, slots])?;
            inputs = inputs.with_attn_bias(bias);
        }
        let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?.with_lse())?;
        let call = match self.extra {
            Extra::Dropout => Call::with_dropout(Dropout { seed: 5, offset: 0 }),
            _ => Call::default(),
        };
        let budget = ErrorBudget::measure_call(&problem, &inputs, &call)?;
        let got = gpu.forward(&problem, &inputs, &call).await?;
        let error = worst(got.out.iter().map(|x| f64::from(x.load())), &budget.oracle);
        let wide = inputs.map(|x| f64::from(x.load()));
        let whole = Reference::<f64>::new().forward(&problem, &wide, &call)?;
        let gradients = match self.gradients {
            true => {
                let (inputs, wide) = ((&inputs, &got), (&wide, &whole));
                let share = self.gradients(gpu, (&problem, &call), inputs, wide).await?;
                format!(", gradients {share:.2}")
            }
            false => String::new(),
        };
        let truth = whole.lse.unwrap_or_default();
        let lse_error = worst(got.lse.unwrap_or_default().into_iter().map(f64::from), &truth);
        let lse_allowed = 16.0 * f64::from(f32::EPSILON) * (1.0 + budget.max_logit);
        if truth.len() != 2 * n || lse_error > lse_allowed {
            let message = format!("lse is off by {lse_error:e}, allowed {lse_allowed:e}");
            return Err(JsError::new(&message));
        }
        let share = error / budget.allowed();
        match share <= 1.0 {
            true => {
                let layouts = Layouts::contiguous(T::STORAGE, &problem);
                let key = gpu.key(&problem, &layouts)?;
                Ok(format!("{key}, {share:.2} of the error budget{gradients}"))
            }
            false => Err(JsError::new(&format!(
                "{:?}, {:?}: off by {error:e}, allowed {:e}",
                self.config,
                self.extra,
                budget.allowed()
            ))),
        }
    }
}

impl Case {
    /// The largest error of a gradient as a share of what is allowed.
    async fn gradients<T: GpuElement>(
        &self,
        gpu: &Gpu,
        (problem, call): (&Problem, &Call),
        (inputs, forward): (&HostInputs<'_, T>, &Forward<T>),
        (wide, whole): (&HostInputs<'_, f64>, &Forward<f64>),
    ) -> Result<f64, JsError> {
        let saved = BackwardInputs::new(problem, forward, inputs.q.clone())?;
        let got = gpu.backward(problem, inputs, &saved, call).await?;
        let saved = BackwardInputs::new(problem, whole, wide.q.clone())?;
        let truth = Reference::<f64>::new().backward(problem, wide, &saved, call)?;
        let each = [(&got.dq, &truth.dq), (&got.dk, &truth.dk), (&got.dv, &truth.dv)];
        let mut share = 0.0_f64;
        for (got, truth) in each.into_iter().chain(got.dattn_bias.iter().zip(&truth.dattn_bias)) {
            if got.shape != truth.shape || got.data.len() != truth.data.len() {
                return Err(JsError::new("a gradient of another shape"));
            }
            let largest = truth.data.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
            let error = worst(got.data.iter().map(|x| f64::from(x.load())), &truth.data);
            let epsilon = if T::STORAGE == Storage::F32 { 1e-5 } else { 4e-3 };
            share = share.max(error / (epsilon * largest));
        }
        match share <= 1.0 {
            true => Ok(share),
            false => Err(JsError::new(&format!(
                "{:?}, {:?}: a gradient is off by {share} times what is allowed",
                self.config, self.extra
            ))),
        }
    }
}

/// q, k, v and out in one buffer, q and k the same tensor: browsers check what may alias.
async fn in_one_buffer(gpu: &Gpu) -> Result<String, JsError> {
    const SHAPE: [usize; 3] = [2, 64, 32];
    let len = SHAPE.iter().product::<usize>();
    let (x, v) = (noise(len, 1), noise(len, 2));
    let attention = LocalAttention::new(LocalAttentionConfig::new(16).causal(true))?;
    let tensor = |data: &[f32]| HostTensor::new(data.to_vec(), SHAPE);
    let inputs = HostInputs::new(tensor(&x)?, tensor(&x)?, tensor(&v)?);
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
    let apart = gpu.forward(&problem, &inputs, &Call::default()).await?.out;

    let device = gpu.device();
    let contents: Vec<u8> =
        [&x[..], &v, &vec![0.0; len]].concat().iter().flat_map(|x| x.to_le_bytes()).collect();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let pool = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: &contents,
        usage,
    });
    let view = |i: usize| {
        TensorView::contiguous(&pool, Dtype::F32, SHAPE).with_offset_bytes((i * len * 4) as u64)
    };
    let plan = gpu.plan(&problem, &Layouts::contiguous(Storage::F32, &problem)).await?;
    let mut workspace = Workspace::new(gpu, 1).await?;
    let tensors = ForwardTensors::new(view(0), view(0), view(1), view(2));
    let bound = plan.bind_forward(&tensors, &workspace).await?;
    let back = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: (len * 4) as u64,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    bound.encode(
        &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
        &mut workspace,
        &Call::default(),
    )?;
    encoder.copy_buffer_to_buffer(&pool, (2 * len * 4) as u64, &back, 0, Some(back.size()));
    gpu.queue().submit([encoder.finish()]);
    let mapped = wasm_bindgen_futures::js_sys::Promise::new(&mut |resolve, reject| {
        back.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = match result {
                Ok(()) => resolve.call0(&JsValue::NULL),
                Err(e) => reject.call1(&JsValue::NULL, &JsValue::from_str(&e.to_string())),
            };
        });
    });
    wasm_bindgen_futures::JsFuture::from(mapped)
        .await
        .map_err(|e| JsError::new(&format!("{e:?}")))?;
    let bytes = back.get_mapped_range(..)?.to_vec();
    let same = bytes.chunks_exact(4).zip(&apart).all(|(b, x)| b == x.to_le_bytes());
    match same {
        true => Ok("all tensors in one buffer: the same bits".to_owned()),
        false => Err(JsError::new("tensors in one buffer: other bits")),
    }
}
