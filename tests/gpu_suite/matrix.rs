//! Kernels with matrices, on adapters that have such: beside what `oracle` compares.

use half::f16;
use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{
    AdapterCaps, Gpu, GpuError, GpuOptions, Layouts, PlanError, Storage, wgpu,
};
use local_attention::{
    AttentionShape, BackwardInputs, Call, Engine, ErrorBudget, Forward, Gradients, HostInputs,
    HostTensor, LocalAttention, LocalAttentionConfig, Problem, Reference, ReferenceQuirks,
};

use super::oracle::compare;
use super::{adapter_of, bits, fail, limit, list};
use crate::common::gradients::{backward, largest, parts, sizes, worst};
use crate::common::{Case, Noise};

/// The same device, with or without matrices.
fn with_matrix(gpu: &Gpu, matrix: bool) -> Gpu {
    let mut options = GpuOptions::default();
    options.matrix = Some(matrix);
    gpu.with_options(options)
}

fn layouts() -> Layouts {
    let mut layouts = Layouts::any(Storage::F16);
    layouts.vec4 = true;
    layouts
}

/// An error unless a problem runs on matrices.
fn insist(gpu: &Gpu, problem: &Problem) -> Result<(), Failed> {
    match gpu.key(problem, &layouts()).map_err(fail)?.matrix {
        Some(_) => Ok(()),
        None => Err("not on matrices".into()),
    }
}

pub fn case(config: LocalAttentionConfig, shape: AttentionShape, seed: usize) -> Case {
    let mut noise = Noise::new(seed);
    let (d, dv) = (shape.head_dim, shape.value_dim);
    let batch: usize = shape.leading.iter().product();
    let q = noise.normals(batch * shape.query.len() * d);
    let (k, v) = (shape.key_len * d, shape.key_len * dv);
    let (k, v) = (noise.normals(batch * k), noise.normals(batch * v));
    let (quirks, call) = (ReferenceQuirks::ALL, Call::default());
    let (mask, bias) = (Vec::new(), Vec::new());
    Case { config, quirks, shape: shape.with_lse(), call, strided: false, q, k, v, mask, bias }
}

/// Windows of 1, no multiple of a tile, larger than the sequence, longer than the tables' direct part; values of several
/// blocks; logits that grow from tile to tile, so that outputs are scaled again and again.
pub fn hard_geometries(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = with_matrix(gpu, true);
    let config = LocalAttentionConfig::new;
    let wide = config(1000).look_forward(0).dim(8);
    let mut cases = Vec::new();
    for (config, n, d, value_dim, query) in [
        (config(1), 70, 16, 16, 0..70),
        (config(1).causal(true).dim(64), 40, 64, 64, 0..40),
        (config(17).causal(true), 170, 20, 200, 0..170),
        (config(33).look_backward(2).dim(126), 330, 126, 3, 0..330),
        (config(5000).autopad(true).dim(32), 90, 32, 32, 0..90),
        (wide.clone(), 3000, 8, 8, 1980..2030),
        (wide.exact_windowsize(true), 3000, 8, 8, 990..1020),
        (config(128).causal(true).dim(128), 256, 128, 128, 0..256),
    ] {
        let shape = AttentionShape::new([], n, d).with_value_dim(value_dim).with_query(query);
        cases.push(case(config, shape, n));
    }
    // Later keys are longer: each tile has larger logits than the last.
    let mut growing = case(config(256).causal(true), AttentionShape::new([2], 512, 64), 9);
    for (i, x) in growing.k.iter_mut().enumerate() {
        *x *= (i / 64 % 512) as f32 / 64.0;
    }
    cases.push(growing);
    for case in &cases {
        insist(&gpu, &case.problem())?;
        compare::<f16>(&gpu, case, &case.half())
            .map_err(|e| format!("{:?}, {:?}: {e}", case.config, case.shape))?
            .ok_or("refused")?;
    }
    long_window(&gpu)?;
    // NaN that every query sees.
    let mut data = vec![f16::from_f32(0.5); 32];
    let x = HostTensor::new(data.clone(), [8, 4]).unwrap();
    data[1] = f16::NAN;
    let inputs = HostInputs::new(x.clone(), HostTensor::new(data, [8, 4]).unwrap(), x);
    let attention = LocalAttention::new(config(8)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    insist(&gpu, &problem)?;
    let out = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?.out;
    assert!(out.iter().all(|x| x.is_nan()), "a NaN key that all see: {out:?}");
    Ok(())
}

/// The longest window that a kernel with matrices takes (adapters end loops), up to 16,384 keys, each with a larger logit than
/// the last: outputs are scaled in every tile, and a key that is missing is the one that counts.
fn long_window(gpu: &Gpu) -> Result<(), Failed> {
    for d in [64, 128] {
        let long = |tiles: usize| {
            let w = tiles * 32;
            let config = LocalAttentionConfig::new(w as i64).causal(true).look_backward(0);
            let shape = AttentionShape::new([], w, d).with_value_dim(8).with_query(w - 32..w);
            case(config.scale(0.25), shape, d)
        };
        let takes = |tiles: usize| insist(gpu, &long(tiles).problem()).is_ok();
        let most = (1..=512).rev().find(|tiles| takes(*tiles)).ok_or("no window is taken")?;
        assert!(most >= 64, "d {d}: only {most} tiles");
        let mut case = long(most);
        case.q.iter_mut().chain(&mut case.k).for_each(|x| *x = 0.0);
        case.q.chunks_mut(d).for_each(|q| q[0] = 1.0);
        for (i, k) in case.k.chunks_mut(d).enumerate() {
            k[0] = i as f32;
        }
        compare::<f16>(gpu, &case, &case.half())
            .map_err(|e| format!("d {d}, {most} tiles: {e}"))?
            .ok_or("refused")?;
    }
    Ok(())
}

/// A result as bits.
fn all_bits(forward: &Forward<f16>) -> (Vec<u16>, Option<Vec<u32>>) {
    (forward.out.iter().map(|x| x.to_bits()).collect(), forward.lse.as_deref().map(bits))
}

/// Which bits come out depends on no limit, no range of queries and no chance.
pub fn same_bits(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = with_matrix(gpu, true);
    let (mut by_limit, mut ranges) = ([0; 4], 0);
    for seed in 0..400 {
        if by_limit.iter().all(|&n| n >= 30) && ranges >= 30 {
            break;
        }
        let case = Case::decode(&list(50_000 + seed));
        let (problem, inputs) = (case.problem(), case.half());
        if gpu.key(&problem, &layouts()).map_err(fail)?.matrix.is_none() {
            continue;
        }
        let run = |gpu: &Gpu| gpu.forward_blocking(&problem, &inputs, &case.call);
        let whole = all_bits(&run(&gpu).map_err(fail)?);
        for _ in 0..if seed < 5 { 9 } else { 0 } {
            assert_eq!(all_bits(&run(&gpu).map_err(fail)?), whole, "seed {seed}, again");
        }
        for (axis, hits) in by_limit.iter_mut().enumerate() {
            let mut options = gpu.options().clone();
            limit(&mut options, axis, [8 << 10, 2 << 10], 1e4);
            let before = gpu.dispatches();
            let got = match run(&gpu.with_options(options)) {
                Ok(got) => got,
                // What one block of queries sees does not fit.
                Err(GpuError::Plan(PlanError::LayoutExceedsBinding { .. })) => continue,
                Err(e) => return Err(fail(e)),
            };
            *hits += usize::from(gpu.dispatches() > before + 1);
            if all_bits(&got) != whole {
                return Err(format!("seed {seed}, limit {axis}: other bits\n{case:?}").into());
            }
        }
        ranges += usize::from(range_has_the_bits(&gpu, &case, &whole.0)?);
    }
    match by_limit.iter().all(|&n| n >= 30) && ranges >= 30 {
        true => Ok(()),
        false => Err(format!("split {by_limit:?} times, {ranges} ranges, 30 wanted").into()),
    }
}

/// Whether a part of the queries was asked for on its own, and gave the bits that it has among all.
fn range_has_the_bits(gpu: &Gpu, case: &Case, whole: &[u16]) -> Result<bool, Failed> {
    let all = case.shape.query.clone();
    if all.len() < 3 {
        return Ok(false);
    }
    let part = all.start + all.len() / 3..all.end - all.len() / 4;
    let (d, dv) = (case.shape.head_dim, case.shape.value_dim);
    let mut some = case.clone();
    some.strided = false;
    some.shape = some.shape.with_query(part.clone());
    let local = part.start - all.start..part.end - all.start;
    let q = case.inputs().q.iter().collect::<Vec<_>>();
    let rows = q.chunks(all.len() * d).flat_map(|row| &row[local.start * d..local.end * d]);
    some.q = rows.copied().collect();
    // Keys and values as they lie in memory otherwise.
    some.k = case.inputs().k.iter().collect();
    some.v = case.inputs().v.iter().collect();
    let got = gpu.forward_blocking(&some.problem(), &some.half(), &case.call).map_err(fail)?;
    let expected: Vec<u16> = whole
        .chunks(all.len() * dv)
        .flat_map(|row| &row[local.start * dv..local.end * dv])
        .copied()
        .collect();
    match all_bits(&got).0 == expected {
        true => Ok(true),
        false => Err(format!("queries {part:?}: other bits\n{case:?}").into()),
    }
}

/// Kernels without checks around accesses give the bits of those with them.
pub fn checked_shaders(gpu: &Gpu) -> Result<(), Failed> {
    let plain = with_matrix(gpu, true);
    let mut options = plain.options().clone();
    options.checked_shaders = true;
    let checked = gpu.with_options(options);
    let mut compared = 0;
    for seed in 0..40 {
        let list = list(90_000 + seed);
        let case = match seed % 4 {
            3 => Case::decode_sized(&list, &[128, 100], &[65, 96, 128]),
            _ => Case::decode(&list),
        };
        let (problem, inputs) = (case.problem(), case.half());
        if compared < 8 && plain.key(&problem, &layouts()).map_err(fail)?.matrix.is_some() {
            compared += 1;
            let run = |gpu: &Gpu| gpu.forward_blocking(&problem, &inputs, &case.call);
            let [one, other] = [run(&plain).map_err(fail)?, run(&checked).map_err(fail)?];
            if all_bits(&one) != all_bits(&other) {
                return Err(format!("seed {seed}: other bits\n{case:?}").into());
            }
        }
    }
    if compared == 8 { Ok(()) } else { Err(format!("{compared} compared").into()) }
}

/// Gradients from what a kernel with matrices leaves: as good as those from the host's results that are rounded as its.
pub fn gradients(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = with_matrix(gpu, true);
    let mut compared = 0;
    for seed in 0..200 {
        let mut case = Case::decode(&list(60_000 + seed));
        case.shape = case.shape.with_lse();
        let problem = case.problem();
        if gpu.key(&problem, &layouts()).map_err(fail)?.matrix.is_none() {
            continue;
        }
        let inputs = case.half();
        let grad: Vec<f16> = Noise::new(7)
            .normals(problem.out_shape().iter().product())
            .into_iter()
            .map(f16::from_f32)
            .collect();
        let wide = inputs.map(|x| x.to_f64());
        let truth = Reference::<f64>::new();
        let wide_grad: Vec<f64> = grad.iter().map(|x| x.to_f64()).collect();
        let forward = truth.forward(&problem, &wide, &case.call).unwrap();
        let truth = parts(&backward(&truth, &case, &wide, &forward, &wide_grad));
        let (output, logits) = (forward.out, ErrorBudget::measure(&problem, &inputs).unwrap());
        let forward = gpu.forward_blocking(&problem, &inputs, &case.call).map_err(fail)?;
        // From what plain evaluations leave.
        let plain = ErrorBudget::turns(&problem).iter().map(|turn| {
            let host = Reference::<f32>::new().with_f16_products(*turn);
            let host = host.forward(&problem, &inputs.map(f16::to_f32), &case.call).unwrap();
            let mut rounded = forward.clone();
            rounded.out = host.out.iter().map(|&x| f16::from_f32(x)).collect();
            rounded.lse = host.lse;
            let plain: Gradients<f16> = backward(&Cpu::new(), &case, &inputs, &rounded, &grad);
            parts(&plain)
        });
        let plain: Vec<_> = plain.collect();
        let dout = HostTensor::new(&grad[..], problem.out_shape()).unwrap();
        let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
        let got = gpu.backward_blocking(&problem, &inputs, &saved, &case.call).map_err(fail)?;
        for (i, ((name, _, got), (_, _, truth))) in parts(&got).iter().zip(&truth).enumerate() {
            let plain = plain.iter().map(|plain| worst(&plain[i].2, truth)).fold(0.0, f64::max);
            // And roundings of the gradient, and of what it is a sum of.
            let size = largest(truth).max(sizes(&case, name, &wide, &wide_grad, &output));
            let roundings = 16.0 * 2_f64.powi(-24) * size * (1.0 + logits.max_logit);
            let allowed = 2.0 * plain + roundings + 2_f64.powi(-10) * largest(truth);
            let error = worst(got, truth);
            if error > allowed {
                let e = format!("seed {seed}: {name} is off by {error:e}, allowed {allowed:e}");
                return Err(format!("{e}\n{case:?}").into());
            }
        }
        compared += 1;
        if compared == 10 {
            return Ok(());
        }
    }
    Err(format!("{compared} compared").into())
}

/// Where kernels with matrices are taken, and where not.
pub fn choice(gpu: &Gpu) -> Result<(), Failed> {
    let attention = |config: LocalAttentionConfig| LocalAttention::new(config).unwrap();
    let plain = attention(LocalAttentionConfig::new(8).causal(true));
    let problem = |d: usize| plain.problem(&AttentionShape::new([2], 40, d)).unwrap();
    let xpos = attention(LocalAttentionConfig::new(8).dim(16).use_xpos(true));
    let xpos = xpos.problem(&AttentionShape::new([2], 40, 16)).unwrap();
    let (on, off) = (with_matrix(gpu, true), with_matrix(gpu, false));
    let default = gpu.with_options(GpuOptions::default());
    let of = |gpu: &Gpu, problem: &Problem, storage: Storage| {
        let mut layouts = layouts();
        layouts.storage = storage;
        gpu.key(problem, &layouts).map(|key| key.matrix).map_err(fail)
    };
    let hardware = !gpu.caps().is_software();
    assert_eq!(of(&on, &problem(64), Storage::F16)?, gpu.matrix());
    assert_eq!(of(&on, &problem(128), Storage::F16)?, gpu.matrix());
    assert_eq!(of(&default, &problem(64), Storage::F16)?, gpu.matrix().filter(|_| hardware));
    for (gpu, problem, storage) in [
        (&on, &problem(64), Storage::F32),
        (&on, &problem(130), Storage::F16),
        (&on, &xpos, Storage::F16),
        (&off, &problem(64), Storage::F16),
    ] {
        assert_eq!(of(gpu, problem, storage)?, None, "{problem:?}, {storage:?}");
    }
    // And those that are taken run.
    small_call(&on)
}

/// What a caller's device cannot do is found out, and the kernels of tiles give what they always do.
pub fn failing(gpu: &Gpu) -> Result<(), Failed> {
    let adapter = &adapter_of(gpu)?;
    let cooperative = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let half = wgpu::Features::SHADER_F16;
    let expected = forward(&with_matrix(gpu, false))?;
    for (features, works) in [
        (cooperative | half, true),
        // Its test's pipeline is refused.
        (cooperative, false),
        (half, false),
    ] {
        let descriptor = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: adapter.limits(),
            // SAFETY: kernels with matrices alone use it, as their specification asks.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let request = adapter.request_device(&descriptor);
        let (device, queue) = pollster::block_on(request).map_err(fail)?;
        let mut options = GpuOptions::default();
        options.matrix = Some(true);
        let own = Gpu::new_blocking(AdapterCaps::of(adapter), device, queue, options);
        let own = own.map_err(fail)?;
        assert_eq!(own.matrix(), gpu.matrix().filter(|_| works), "{features:?}");
        if !works {
            // Bit for bit: no other kernel.
            assert!(forward(&own)? == expected, "{features:?}: other bits");
        }
    }
    small_call(gpu)
}

/// A small problem's result, as bits.
fn forward(gpu: &Gpu) -> Result<(Vec<u16>, Option<Vec<u32>>), Failed> {
    let config = LocalAttentionConfig::new(16).causal(true).dim(32);
    let case = case(config, AttentionShape::new([2], 96, 32), 4);
    let got = gpu.forward_blocking(&case.problem(), &case.half(), &case.call);
    Ok(all_bits(&got.map_err(fail)?))
}

fn small_call(gpu: &Gpu) -> Result<(), Failed> {
    forward(gpu).map(|_| ())
}
