//! Every pair of values of the kernels' factors, each key with at least ten random geometries.
//! `LOCAL_ATTENTION_KEYS=all`: every key. A share of the suite has its share of keys.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use libtest_mimic::Failed;
use local_attention::gpu::{
    self, Arena, Features, Gpu, GpuElement, GpuError, GpuOptions, Kernel, Layouts, PipelineKey,
    PlanError, Storage, Tile, wgpu,
};
use local_attention::{
    AttentionShape, Call, Engine, ErrorBudget, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, Reference, ReferenceQuirks, TileKind,
};

use super::bad_input::small_call;
use super::share::Share;
use super::{adapter_of, fail, list, one_tile, padded, worst};
use crate::common::coverage::Coverage;
use crate::common::{Case, DEGENERATE};

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
fn covering(gpu: &Gpu, kernels: Kernels) -> Vec<PipelineKey> {
    // Tensors in one buffer, and single features without rotary embedding, which forward passes on host
    // tensors never need, have tests of their own.
    let mut all = PipelineKey::all();
    let has_f16 = gpu.device().features().contains(wgpu::Features::SHADER_F16);
    let matrix = (kernels == Kernels::Matrices).then(|| gpu.matrix()).flatten();
    let broadcasts = gpu.caps().broadcasts();
    let twins = |key: &PipelineKey| {
        [false, true].map(|broadcast| {
            let mut twin = *key;
            twin.broadcast = broadcast;
            twin
        })
    };
    let with_broadcast: BTreeSet<_> =
        all.iter().filter(|key| key.broadcast).flat_map(twins).collect();
    all.retain(|key| {
        if key.matrix != matrix {
            return false;
        }
        // Taken wherever it can be.
        if key.broadcast != (broadcasts && with_broadcast.contains(key)) {
            return false;
        }
        if key.storage == Storage::F16 && !key.vec4 && key.f16_out != has_f16 {
            return false;
        }
        let reached = key.vec4 || key.features != Features::Plain || kernels == Kernels::Gradients;
        reached && key.arena == Arena::NONE && key.kernel == Kernel::Forward
    });
    if std::env::var("LOCAL_ATTENTION_KEYS").is_ok_and(|keys| keys == "all") {
        return all;
    }
    let mut open: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let gain = |key: &&PipelineKey| pairs(key).iter().filter(|p| open.contains(p)).count();
        let Some(best) = all.iter().max_by_key(gain).copied() else { break };
        pairs(&best).iter().for_each(|p| _ = open.remove(p));
        chosen.push(best);
    }
    assert!(chosen.len() <= 24, "{} keys", chosen.len());
    chosen
}

pub fn every_factor(gpu: &Gpu) -> Result<(), Failed> {
    every_factor_of(gpu, Kernels::Tiles)
}

/// The same of kernels with matrices: the factor's value that only some adapters have.
pub fn every_factor_of_matrices(gpu: &Gpu) -> Result<(), Failed> {
    every_factor_of(gpu, Kernels::Matrices)
}

fn every_factor_of(gpu: &Gpu, kernels: Kernels) -> Result<(), Failed> {
    each_geometry(gpu, kernels, &|gpu, key, case| {
        let result = match key.storage {
            Storage::F16 => compare::<f16>(gpu, case, &case.half()),
            _ => compare::<f32>(gpu, case, &case.inputs()),
        };
        Ok(result?.map(|degenerate| situations_of(case, key, degenerate)))
    })
}

/// Which kernels are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    Tiles,
    Matrices,
    /// Those of backward passes on host tensors, by the forward pass's keys: read as vec4s only where both sizes are whole
    /// ones.
    Gradients,
}

/// What a comparison on a case says: the situations met, unless the engine refused the case.
pub type Compared = Result<Option<[bool; 9]>, String>;

/// Compares on random cases until every key of few that have every pair of factors, every option and every
/// situation was met often enough.
pub fn each_geometry(
    gpu: &Gpu,
    kernels: Kernels,
    compare: &dyn Fn(&Gpu, &PipelineKey, &Case) -> Compared,
) -> Result<(), Failed> {
    let share = Share::from_env()?;
    let dealt = covering(gpu, kernels).into_iter().enumerate();
    // The other adapter has no kernels with broadcasts.
    let chosen = dealt.filter(|(n, key)| share.has(*n) || key.broadcast);
    let chosen: Vec<_> = chosen.map(|(_, key)| key).collect();
    assert!(!chosen.is_empty(), "no kernel");
    let mut hits: BTreeMap<PipelineKey, usize> = chosen.iter().map(|key| (*key, 0)).collect();
    let mut failures = Vec::new();
    let mut situations = SITUATIONS.map(|name| (name, 0));
    let mut coverage = Coverage::default();
    for seed in 0.. {
        let rare = situations.iter().any(|(_, n)| *n < LEAST);
        if !rare && hits.values().all(|&n| n >= LEAST) {
            break;
        }
        if seed == 40_000 {
            hits.retain(|_, n| *n < LEAST);
            return Err(format!("too few geometries of {hits:?}, {situations:?}").into());
        }
        // Every class of head sizes.
        let mut case = match seed % 3 {
            0 => Case::decode(&list(seed)),
            1 => Case::decode_sized(&list(seed), &[72, 80, 128, 100], &[65, 96, 128]),
            _ => Case::decode_sized(&list(seed), &[192, 132, 256], &[129, 200, 256]),
        };
        // What kernels of few features carry out is rare.
        if seed / 18 % 2 == 1 {
            case.strip();
        }
        let mut storage = if seed / 3 % 2 == 0 { Storage::F32 } else { Storage::F16 };
        let tile = Tile::ALL[seed as usize / 6 % Tile::ALL.len()];
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        if kernels == Kernels::Matrices {
            options.matrix = Some(true);
            storage = Storage::F16;
        }
        let gpu = gpu.with_options(options);
        let problem = case.problem();
        let layouts = match kernels {
            Kernels::Gradients => Layouts::contiguous(storage, &problem),
            _ => padded(storage),
        };
        let mut key = gpu.key(&problem, &layouts).map_err(fail)?;
        key.dropout = case.call.dropout.is_some();
        // Beyond that, cases with masks until rows that see nothing are not rare.
        let wanted = |n: &usize| *n < LEAST || rare && case.shape.mask.is_some();
        let Some(n) = hits.get_mut(&key).filter(|n| wanted(n)) else { continue };
        match compare(&gpu, &key, &case) {
            // Said by the engine: the adapter would end the kernel's loops.
            Ok(None) => {}
            Ok(Some(met)) => {
                *n += 1;
                coverage.add(&case, &[]);
                situations.iter_mut().zip(met).for_each(|((_, n), met)| *n += usize::from(met));
            }
            Err(e) => {
                let Case { config, quirks, shape, .. } = &case;
                failures
                    .push(format!("seed {seed}, {key}: {e}\n{config:?}\n{quirks:?}\n{shape:?}"));
            }
        }
    }
    let mut missing = coverage.missing_options(LEAST);
    // No kernel with matrices has xpos, and most calls with windows of their own have it.
    missing.retain(|option| kernels != Kernels::Matrices || !["xpos", "override"].contains(option));
    if !missing.is_empty() {
        failures.push(format!("fewer than {LEAST} cases of {missing:?}"));
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

/// What kernels must get right, beside options.
const SITUATIONS: [&str; 9] = [
    "a tile that no query sees: not visited",
    "a tile that every query sees wholly: no masks",
    "a tile on an edge",
    "several tiles a row",
    "a window below the tile",
    "a window above the block of queries",
    "a window no multiple of the tile",
    "rows that see nothing",
    "rows that see nothing beside others that do",
];

/// Which of them a case has for a kernel; `degenerate`: rows that see nothing, and rows.
pub fn situations_of(case: &Case, key: &PipelineKey, degenerate: (usize, usize)) -> [bool; 9] {
    let problem = case.problem();
    let g = problem.geometry();
    let (block, tile) = (key.queries() as usize, key.keys() as usize);
    let queries = case.shape.query.clone();
    let mut kinds = Vec::new();
    // Blocks and tiles lie at multiples of their sizes.
    for first in (queries.start / block * block..queries.end).step_by(block) {
        let some = first.max(queries.start)..queries.end.min(first + block);
        for u in (0..g.key_len()).step_by(tile) {
            let whole = some.len() == block && u + tile <= g.key_len();
            match g.tile_kind(some.clone(), u..g.key_len().min(u + tile)) {
                TileKind::Inside if !whole => {}
                kind => kinds.push(kind),
            }
        }
    }
    let several = queries.clone().any(|t| {
        let seen = g.visible_range(t);
        seen.end.min(g.key_len()).saturating_sub(1) / tile > seen.start / tile
    });
    [
        kinds.contains(&TileKind::Outside),
        kinds.contains(&TileKind::Inside),
        kinds.contains(&TileKind::Edge),
        several,
        g.window() < tile,
        g.window() > block,
        !g.window().is_multiple_of(tile),
        degenerate.0 > 0,
        degenerate.0 > 0 && degenerate.0 < degenerate.1,
    ]
}

/// Output and lse against the oracle: rows that see nothing, and rows; or that the engine refused.
pub fn compare<T: GpuElement>(
    gpu: &Gpu,
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> Result<Option<(usize, usize)>, String> {
    let problem = case.attention().problem(&case.shape.clone().with_lse()).unwrap();
    let matrix =
        gpu.key(&problem, &padded(T::STORAGE)).map_err(|e| e.to_string())?.matrix.is_some();
    let budget = match matrix {
        true => ErrorBudget::measure_f16_products(&problem, inputs, &case.call),
        false => ErrorBudget::measure_call(&problem, inputs, &case.call),
    };
    let budget = budget.unwrap();
    let got = match gpu.forward_blocking(&problem, inputs, &case.call) {
        Err(GpuError::Plan(PlanError::LoopTurns { .. })) => return Ok(None),
        got => got.map_err(|e| e.to_string())?,
    };
    let error = worst(got.out.iter().map(|x| x.load()), &budget.oracle);
    if error > budget.allowed() {
        return Err(format!("out is off by {error:e}, allowed {:e}", budget.allowed()));
    }
    let wide = inputs.map(|x| f64::from(x.load()));
    let narrow = inputs.map(|x| x.load());
    let truth = Reference::<f64>::new().forward(&problem, &wide, &case.call).unwrap().lse.unwrap();
    let plain = match matrix {
        true => ErrorBudget::turns(&problem)
            .iter()
            .map(|turn| Reference::<f32>::new().with_f16_products(*turn))
            .collect(),
        false => vec![Reference::<f32>::new()],
    };
    let lse = |plain: &Reference<f32>| plain.forward(&problem, &narrow, &case.call).unwrap().lse;
    let plain = plain.iter().map(|plain| worst(lse(plain).unwrap().into_iter(), &truth));
    let plain = plain.fold(0.0, f64::max);
    let roundings = 4.0 * 2_f64.powi(-24) * (1.0 + budget.max_logit);
    let empty = truth.iter().filter(|x| **x == f64::from(DEGENERATE)).count();
    let degenerate = (empty, truth.len());
    let allowed = 2.0 * plain + 2.0 * roundings;
    let error = worst(got.lse.unwrap().into_iter(), &truth);
    if error > allowed {
        return Err(format!("lse is off by {error:e}, allowed {allowed:e}"));
    }
    if matrix {
        // Attention weights are no matter of matrices.
        return Ok(Some(degenerate));
    }
    // Weights of some queries, from the middle of the range on.
    let all = problem.shape().query.clone();
    let some = all.start.midpoint(all.end)..all.end.min(all.start.midpoint(all.end) + 20);
    let truth = Reference::<f64>::new().weights(&problem, &wide, some.clone()).unwrap();
    let plain = Reference::<f32>::new().weights(&problem, &narrow, some.clone()).unwrap();
    let allowed = 2.0 * worst(plain.weights.into_iter(), &truth.weights) + roundings;
    let got = match gpu.weights_blocking(&problem, inputs, some) {
        Err(GpuError::Plan(PlanError::LoopTurns { .. })) => return Ok(None),
        got => got.map_err(|e| e.to_string())?,
    };
    if (got.shape, &got.keys) != (truth.shape, &truth.keys) {
        return Err("weights of other slots".to_owned());
    }
    let error = worst(got.weights.into_iter(), &truth.weights);
    if error > allowed {
        return Err(format!("a weight is off by {error:e}, allowed {allowed:e}"));
    }
    Ok(Some(degenerate))
}

/// Values of several blocks, with every option.
pub fn wide_values(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = one_tile(gpu)?;
    let (mut met, mut degenerate) = ([0; 3], false);
    for seed in 0..150 {
        let list = list(110_000 + seed);
        // Of each class of head sizes.
        let class = seed as usize % 3;
        let mut case = match class {
            0 => Case::decode(&list),
            1 => Case::decode_sized(&list, &[66, 128], &[65, 100]),
            _ => Case::decode_sized(&list, &[130, 256], &[129, 200]),
        };
        let width = [130, 200, 300][class];
        let rows = case.v.len() / case.shape.value_dim.max(1);
        // Some of each that are cheap for the oracle.
        if (met[class] >= 5 && degenerate) || rows > 2000 || case.shape.value_dim == 0 {
            continue;
        }
        case.shape = case.shape.with_value_dim(width);
        case.v = crate::common::Noise::new(seed as usize).normals(rows * width);
        let result = match seed % 2 {
            0 => compare::<f32>(&gpu, &case, &case.inputs()),
            _ => compare::<f16>(&gpu, &case, &case.half()),
        };
        match result {
            Ok(Some(rows)) => degenerate |= rows.0 > 0,
            Ok(None) => continue,
            Err(e) => return Err(format!("seed {seed}: {e}\n{case:?}").into()),
        }
        met[class] += 1;
    }
    assert!(met.iter().all(|&n| n >= 5) && degenerate, "{met:?}, degenerate rows: {degenerate}");
    Ok(())
}

/// A call without options.
fn plain_case(
    config: LocalAttentionConfig,
    shape: AttentionShape,
    [q, k, v]: [Vec<f32>; 3],
) -> Case {
    Case {
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
    }
}

/// A device as WebGPU promises it and no more: tiles within 16 KiB, no optional feature.
pub fn default_device(gpu: &Gpu) -> Result<(), Failed> {
    let adapter = &adapter_of(gpu)?;
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request).map_err(fail)?;
    let limits = device.limits();
    assert_eq!(limits.max_compute_workgroup_storage_size, 16 << 10, "{limits:?}");
    let options = GpuOptions::default();
    let own = Gpu::new_blocking(gpu::AdapterCaps::of(adapter), device, queue, options);
    let own = own.map_err(fail)?;
    for (d, n, window, half) in
        [(64, 700, 128, false), (256, 300, 100, false), (64, 700, 128, true)]
    {
        let config = LocalAttentionConfig::new(window).causal(true).autopad(true).dim(d as i64);
        let mut noise = crate::common::Noise::new(n);
        let [q, k, v] = [(); 3].map(|()| noise.normals(n * d));
        let shape = AttentionShape::new([], n, d).with_lse();
        let case = plain_case(config, shape, [q, k, v]);
        // One that would take a large tile where there is memory.
        let tile = own.key(&case.problem(), &padded(Storage::F32)).map_err(fail)?.tile;
        assert!(matches!(tile, Tile::Small | Tile::Short), "{tile:?}");
        let result = match half {
            false => compare::<f32>(&own, &case, &case.inputs()),
            true => compare::<f16>(&own, &case, &case.half()),
        };
        result.map_err(|e| format!("d {d}, n {n}: {e}"))?;
    }
    // The suite counts dispatches of its own device.
    match own.dispatches() > 0 {
        true => small_call(gpu).map_err(fail),
        false => Err("nothing was dispatched".into()),
    }
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
        let case = plain_case(config, shape, [q, k, v]);
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
    // A bias of NaN or plus infinity makes NaN of the rows that see it, and of no others.
    let config = LocalAttentionConfig::new(4).causal(true);
    for strange in [f32::NAN, f32::INFINITY] {
        let mut bias = vec![0.0_f32; 4 * 8];
        bias[2 * 8 + 5] = strange;
        let x = HostTensor::new(vec![0.5_f32; 32], [8, 4]).unwrap();
        let bias = HostTensor::new(bias, [1, 4, 8]).unwrap();
        let inputs = HostInputs::new(x.clone(), x.clone(), x).with_attn_bias(bias);
        let attention = LocalAttention::new(config.clone()).unwrap();
        let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
        let out = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?.out;
        let rows: Vec<_> = out.chunks(4).map(|row| row[0].is_nan()).collect();
        let truth = Reference::<f32>::new().forward(&problem, &inputs, &Call::default()).unwrap();
        let expected: Vec<_> = truth.out.chunks(4).map(|row| row[0].is_nan()).collect();
        assert_eq!(rows, expected, "a bias of {strange}");
        assert!(rows.contains(&true) && rows.contains(&false));
    }
    Ok(())
}
