//! Every pair of values of the kernels' factors, each key with at least ten random geometries.

use std::collections::BTreeMap;

use half::f16;
use libtest_mimic::Failed;
use local_attention::gpu::{
    Arena, Features, Gpu, GpuElement, GpuOptions, Kernel, Layouts, PipelineKey, Storage, Tile, wgpu,
};
use local_attention::{
    AttentionShape, Call, Engine, ErrorBudget, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, Reference, ReferenceQuirks,
};

use super::{fail, list, worst};
use crate::common::Case;

/// Geometries for each key.
const LEAST: usize = 10;

/// Values of a key's factors.
fn factors(key: &PipelineKey) -> [u32; 6] {
    [
        key.storage as u32,
        key.head_dim,
        key.tile as u32,
        u32::from(key.vec4),
        u32::from(key.dropout),
        key.features as u32,
    ]
}

/// Pairs of values of two factors that a key has.
fn pairs(key: &PipelineKey) -> Vec<(usize, u32, usize, u32)> {
    let values = factors(key);
    let both = (0..6).flat_map(|i| (i + 1..6).map(move |j| (i, j)));
    both.map(|(i, j)| (i, values[i], j, values[j])).collect()
}

/// Few keys that have every pair of values, chosen greedily.
fn covering(gpu: &Gpu) -> Vec<PipelineKey> {
    // Tensors in one buffer, and single features without rotary embedding, which calls on host
    // tensors never need, have tests of their own.
    let mut all = PipelineKey::all();
    let has_f16 = gpu.device().features().contains(wgpu::Features::SHADER_F16);
    all.retain(|key| {
        // Taken wherever it can be.
        if key.storage == Storage::F16 && !key.vec4 && key.f16_out != has_f16 {
            return false;
        }
        let reached = key.vec4 || key.features != Features::Plain;
        reached && key.arena == Arena::NONE && key.kernel == Kernel::Forward
    });
    let mut open: std::collections::BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let gain = |key: &&PipelineKey| pairs(key).iter().filter(|p| open.contains(p)).count();
        let Some(best) = all.iter().max_by_key(gain).copied() else { break };
        pairs(&best).iter().for_each(|p| _ = open.remove(p));
        chosen.push(best);
    }
    chosen
}

pub fn every_factor(gpu: &Gpu) -> Result<(), Failed> {
    let chosen = covering(gpu);
    assert!(chosen.len() <= 24, "{} keys", chosen.len());
    let mut hits: BTreeMap<PipelineKey, usize> = chosen.iter().map(|key| (*key, 0)).collect();
    let mut failures = Vec::new();
    for seed in 0.. {
        if hits.values().all(|&n| n >= LEAST) {
            break;
        }
        if seed == 20_000 {
            hits.retain(|_, n| *n < LEAST);
            return Err(format!("too few geometries of {hits:?}").into());
        }
        // Every class of head sizes.
        let mut case = match seed % 3 {
            0 => Case::decode(&list(seed)),
            1 => Case::decode_sized(&list(seed), &[72, 80, 128, 100], &[65, 96, 128]),
            _ => Case::decode_sized(&list(seed), &[192, 132, 256], &[129, 200, 256]),
        };
        // What kernels of few features carry out is rare.
        if seed / 12 % 2 == 1 && case.shape.window.is_none() {
            case.config = case.config.shared_qk(false).use_xpos(false);
            (case.shape.mask, case.shape.bias) = (None, None);
            (case.mask, case.bias) = (Vec::new(), Vec::new());
        }
        let storage = if seed / 3 % 2 == 0 { Storage::F32 } else { Storage::F16 };
        let tile = if seed / 6 % 2 == 0 { Tile::Small } else { Tile::Large };
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        let gpu = gpu.with_options(options);
        let mut layouts = Layouts::any(storage);
        layouts.vec4 = true;
        let mut key = gpu.key(&case.problem(), &layouts).map_err(fail)?;
        key.dropout = case.call.dropout.is_some();
        let Some(n) = hits.get_mut(&key).filter(|n| **n < LEAST) else { continue };
        *n += 1;
        let result = match storage {
            Storage::F16 => compare::<f16>(&gpu, &case, &case.half()),
            _ => compare::<f32>(&gpu, &case, &case.inputs()),
        };
        if let Err(e) = result {
            let Case { config, quirks, shape, .. } = &case;
            failures.push(format!("seed {seed}, {key}: {e}\n{config:?}\n{quirks:?}\n{shape:?}"));
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

/// Output and lse against the oracle.
fn compare<T: GpuElement>(
    gpu: &Gpu,
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> Result<(), String> {
    let problem = case.attention().problem(&case.shape.clone().with_lse()).unwrap();
    let budget = ErrorBudget::measure_call(&problem, inputs, &case.call).unwrap();
    let got = gpu.forward_blocking(&problem, inputs, &case.call).map_err(|e| e.to_string())?;
    let error = worst(got.out.iter().map(|x| x.load()), &budget.oracle);
    if error > budget.allowed() {
        return Err(format!("out is off by {error:e}, allowed {:e}", budget.allowed()));
    }
    let wide = inputs.map(|x| f64::from(x.load()));
    let narrow = inputs.map(|x| x.load());
    let truth = Reference::<f64>::new().forward(&problem, &wide, &case.call).unwrap().lse.unwrap();
    let plain =
        Reference::<f32>::new().forward(&problem, &narrow, &case.call).unwrap().lse.unwrap();
    let roundings = 4.0 * 2_f64.powi(-24) * (1.0 + budget.max_logit);
    let allowed = 2.0 * worst(plain.into_iter(), &truth) + 2.0 * roundings;
    let error = worst(got.lse.unwrap().into_iter(), &truth);
    if error > allowed {
        return Err(format!("lse is off by {error:e}, allowed {allowed:e}"));
    }
    // Weights of some queries, from the middle of the range on.
    let all = problem.shape().query.clone();
    let some = all.start.midpoint(all.end)..all.end.min(all.start.midpoint(all.end) + 20);
    let truth = Reference::<f64>::new().weights(&problem, &wide, some.clone()).unwrap();
    let plain = Reference::<f32>::new().weights(&problem, &narrow, some.clone()).unwrap();
    let allowed = 2.0 * worst(plain.weights.into_iter(), &truth.weights) + roundings;
    let got = gpu.weights_blocking(&problem, inputs, some).map_err(|e| e.to_string())?;
    if (got.shape, &got.keys) != (truth.shape, &truth.keys) {
        return Err("weights of other slots".to_owned());
    }
    let error = worst(got.weights.into_iter(), &truth.weights);
    if error > allowed {
        return Err(format!("a weight is off by {error:e}, allowed {allowed:e}"));
    }
    Ok(())
}

/// Blocks of queries that cross from one window into the next, windows larger than a table of two blocks,
/// xpos that leaves few queries to a block, values of several blocks, and NaN that every query sees.
pub fn hard_geometries(gpu: &Gpu) -> Result<(), Failed> {
    let wide = LocalAttentionConfig::new(1000).look_backward(1).look_forward(0).dim(8);
    let steep = LocalAttentionConfig::new(64).dim(8).use_xpos(true).xpos_scale_base(1.0);
    let steep = steep.look_forward(0);
    let odd = LocalAttentionConfig::new(17).causal(true);
    for (config, n, value_dim, query) in [
        (wide.clone(), 3000, 8, 1980..2030),
        (wide.exact_windowsize(true), 3000, 8, 990..1020),
        (steep, 256, 8, 0..256),
        (odd, 170, 200, 0..170),
    ] {
        let d = 8;
        let mut noise = crate::common::Noise::new(n);
        let q = noise.normals(query.len() * d);
        let (k, v) = (noise.normals(n * d), noise.normals(n * value_dim));
        let shape = AttentionShape::new([], n, d).with_value_dim(value_dim);
        let shape = shape.with_query(query.clone()).with_lse();
        let name = format!("{config:?}");
        let case = Case {
            config,
            quirks: ReferenceQuirks::ALL,
            shape,
            call: Call::default(),
            strided: false,
            q,
            k,
            v,
            mask: Vec::new(),
            bias: Vec::new(),
        };
        for checked in [false, true] {
            let mut options = GpuOptions::default();
            options.checked_shaders = checked;
            let result = compare::<f32>(&gpu.with_options(options), &case, &case.inputs());
            result.map_err(|e| format!("{name}, checked {checked}: {e}"))?;
        }
    }
    let x = HostTensor::new(vec![0.5_f32; 32], [8, 4]).unwrap();
    let mut data = vec![0.5_f32; 32];
    data[1] = f32::NAN;
    let k = HostTensor::new(data, [8, 4]).unwrap();
    let inputs = HostInputs::new(x.clone(), k, x);
    let attention = LocalAttention::new(LocalAttentionConfig::new(8)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let out = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?.out;
    assert!(out.iter().all(|x| x.is_nan()), "a NaN key that all see: {out:?}");
    Ok(())
}
