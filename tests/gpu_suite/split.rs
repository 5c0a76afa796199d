//! Work is cut into parts by limits; which bits come out does not depend on them.

use libtest_mimic::Failed;
use local_attention::gpu::{
    Dtype, Features, ForwardTensors, Gpu, GpuElement, GpuError, GpuOptions, Layouts, PlanError,
    Storage, TensorView, Tile, Workspace,
};
use local_attention::{
    AttentionShape, BackwardInputs, Call, Forward, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig,
};

use super::buffers::{read, upload, upload_bytes};
use super::share::Share;
use super::{Cases, bits, fail, is_whole, limit, list, one_tile, padded, submit};
use crate::common::{Case, Noise};

pub fn same_bits(gpu: &Gpu) -> Result<(), Failed> {
    let plain = one_tile(gpu)?;
    let (mut by_limit, mut cases) = ([0; 4], Cases::default());
    let mut weights_split = 0;
    let (mut taken, mut refused) = (0, 0);
    let mut enough = false;
    for seed in 0..800 {
        enough = by_limit.iter().all(|&n| n >= 50) && cases.enough();
        if enough {
            break;
        }
        let mut case = Case::decode(&list(50_000 + seed));
        cases.vary(&mut case);
        if !cases.take(&plain, &case, &padded(Storage::F32))? {
            continue;
        }
        taken += 1;
        let (problem, inputs) = (case.problem(), case.inputs());
        let whole = match plain.forward_blocking(&problem, &inputs, &case.call) {
            // Dropout on windows far beyond the sequence, on an adapter that ends loops.
            Err(GpuError::Plan(PlanError::LoopTurns { .. })) => {
                refused += 1;
                continue;
            }
            whole => whole.map_err(fail)?,
        };
        let queries = problem.shape().query.clone();
        let weights = |gpu: &Gpu| gpu.weights_blocking(&problem, &inputs, queries.clone());
        // Of some cases, and of those only the ones that have few.
        let few = taken % 4 == 0 && problem.geometry().slots() * queries.len() < 20_000;
        let all_weights = if few { Some(weights(&plain).map_err(fail)?.weights) } else { None };
        for (axis, hits) in by_limit.iter_mut().enumerate() {
            let split = limited(&plain, axis);
            let Some((got, cut)) = forward(&split, &case)? else { continue };
            *hits += usize::from(cut);
            if bits(&got.out) != bits(&whole.out)
                || got.lse.as_deref().map(bits) != whole.lse.as_deref().map(bits)
            {
                return Err(format!("seed {seed}, limit {axis}: other bits\n{case:?}").into());
            }
            if let Some(all) = &all_weights {
                let before = gpu.dispatches();
                match weights(&split) {
                    Ok(part) if bits(&part.weights) == bits(all) => {
                        weights_split += usize::from(gpu.dispatches() > before + 1);
                    }
                    Ok(_) => return Err(format!("seed {seed}, limit {axis}: other weights").into()),
                    Err(GpuError::Plan(PlanError::LayoutExceedsBinding { .. })) => {}
                    Err(e) => return Err(fail(e)),
                }
            }
        }
    }
    assert!(refused <= 5, "{refused} refused");
    assert!(weights_split >= 20, "weights were split {weights_split} times");
    match enough {
        true => Ok(()),
        false => {
            Err(format!("split by each limit {by_limit:?} times, 50 wanted; {cases:?}").into())
        }
    }
}

/// The engine with one of the limits that split work.
fn limited(gpu: &Gpu, axis: usize) -> Gpu {
    let mut options = gpu.options().clone();
    limit(&mut options, axis, [8 << 10, 2 << 10], 1e4);
    gpu.with_options(options)
}

/// A forward pass and whether it was cut; nothing where what one block of queries sees does not fit.
fn forward(gpu: &Gpu, case: &Case) -> Result<Option<(Forward<f32>, bool)>, Failed> {
    let before = gpu.dispatches();
    match gpu.forward_blocking(&case.problem(), &case.inputs(), &case.call) {
        Err(GpuError::Plan(PlanError::LayoutExceedsBinding { .. })) => Ok(None),
        got => Ok(Some((got.map_err(fail)?, gpu.dispatches() > before + 1))),
    }
}

/// The same of the tile whose threads share queries by two or not at all, in a kernel of its own: `same_bits` has few tiles in a share.
pub fn same_bits_of_tall(gpu: &Gpu) -> Result<(), Failed> {
    let mut options = gpu.options().clone();
    options.tile = Some(Tile::Tall);
    let tall = gpu.with_options(options);
    let mut by_limit = [0; 4];
    for seed in 0..400 {
        let mut case = Case::decode(&list(70_000 + seed));
        case.strip();
        case.call = Call::default();
        let (problem, inputs) = (case.problem(), case.inputs());
        let key = tall.key(&problem, &padded(Storage::F32)).map_err(fail)?;
        if key.tile != Tile::Tall || key.features != Features::Rotary || !key.vec4 {
            continue;
        }
        let whole = tall.forward_blocking(&problem, &inputs, &case.call).map_err(fail)?;
        for (axis, hits) in by_limit.iter_mut().enumerate() {
            let Some((part, cut)) = forward(&limited(&tall, axis), &case)? else { continue };
            *hits += usize::from(cut);
            if bits(&part.out) != bits(&whole.out) {
                return Err(format!("seed {seed}, limit {axis}: other bits\n{case:?}").into());
            }
        }
        if by_limit.iter().all(|&n| n >= 8) {
            return Ok(());
        }
    }
    Err(format!("split by each limit {by_limit:?} times, 8 wanted").into())
}

/// Weights of a block of queries that together do not fit.
pub fn large_weights(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d) = (900, 4);
    let data = Noise::new(9).normals(n * d);
    let t = || HostTensor::new(&data[..], [1, n, d]).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let attention = LocalAttention::new(LocalAttentionConfig::new(300)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let mut options = one_tile(gpu)?.options().clone();
    let whole = gpu.with_options(options.clone());
    // Keys fit, and weights of 900 slots of 4 queries.
    options.max_binding_bytes = Some(16 << 10);
    let small = gpu.with_options(options);
    for queries in [290..370, 5..6] {
        let all = whole.weights_blocking(&problem, &inputs, queries.clone()).map_err(fail)?;
        let before = gpu.dispatches();
        let parts = small.weights_blocking(&problem, &inputs, queries.clone()).map_err(fail)?;
        let least = queries.len() as u64 / 4;
        assert!(gpu.dispatches() - before >= least, "{} parts", gpu.dispatches() - before);
        assert_eq!(bits(&parts.weights), bits(&all.weights), "{queries:?}");
    }
    Ok(())
}

/// Kernels without checks around accesses give the bits of those with them.
pub fn checked_shaders(gpu: &Gpu) -> Result<(), Failed> {
    let share = Share::from_env()?;
    // Each has forward passes of every tile and both types of numbers.
    let seeds = if is_whole(share) { 16 } else { 8 };
    for seed in (0..seeds).filter(|seed| share.has(seed / 4)) {
        let list = list(90_000 + seed as u64);
        // Every tile, and every class of head sizes.
        let case = match seed % 10 {
            3 => Case::decode_sized(&list, &[128, 100], &[65, 96, 128]),
            7 => Case::decode_sized(&list, &[192, 256], &[129, 256]),
            _ => Case::decode(&list),
        };
        let mut options = GpuOptions::default();
        options.tile = Some(Tile::ALL[seed % Tile::ALL.len()]);
        let plain = gpu.with_options(options.clone());
        options.checked_shaders = true;
        let checked = gpu.with_options(options);
        // Of some: each is five kernels more, twice. Every tile once; in a share one tile, in each another, with another
        // type of numbers.
        let gradients = [0, 6].contains(&seed) || is_whole(share) && [11, 13].contains(&seed);
        // Another type at the next turn of the tiles.
        if (seed + seed / 4) % 2 == 0 {
            same_results(&plain, &checked, &case, &case.inputs(), gradients)
        } else {
            same_results(&plain, &checked, &case, &case.half(), gradients)
        }
        .map_err(|e| format!("seed {seed}: {e}\n{case:?}"))?;
    }
    Ok(())
}

/// An error unless both give the same bits: output, lse and some weights, and the gradients where asked for.
fn same_results<T: GpuElement>(
    plain: &Gpu,
    checked: &Gpu,
    case: &Case,
    inputs: &HostInputs<'_, T>,
    gradients: bool,
) -> Result<(), String> {
    let mut case = case.clone();
    case.shape = case.shape.with_lse();
    let problem = case.problem();
    let results = |gpu: &Gpu| {
        let got = gpu.forward_blocking(&problem, inputs, &case.call)?;
        let all = problem.shape().query.clone();
        let few = all.start..all.end.min(all.start + 16);
        let weights = gpu.weights_blocking(&problem, inputs, few)?;
        let out = got.out.iter().map(|x| x.load());
        let mut all: Vec<f32> = out.chain(weights.weights).collect();
        if gradients {
            let dout = HostTensor::new(&got.out[..], problem.out_shape()).unwrap();
            let saved = BackwardInputs::new(&problem, &got, dout).unwrap();
            let g = gpu.backward_blocking(&problem, inputs, &saved, &case.call)?;
            let bias = g.dattn_bias.into_iter().flat_map(|g| g.data);
            let each = [g.dq.data, g.dk.data, g.dv.data].into_iter().flatten().chain(bias);
            all.extend(each.map(|x| x.load()));
        }
        all.extend(got.lse.unwrap_or_default());
        Ok(bits(&all))
    };
    match (results(plain), results(checked)) {
        (Ok(one), Ok(other)) if one == other => Ok(()),
        (Err(GpuError::Plan(PlanError::LoopTurns { .. })), _) => Ok(()),
        (Ok(_), Ok(_)) => Err("other bits".to_owned()),
        (one, other) => Err(format!("{:?}, {:?}", one.err(), other.err())),
    }
}

/// A bias that is larger than a binding is cut by queries, like all else: in host memory and in a buffer.
pub fn large_bias(gpu: &Gpu) -> Result<(), Failed> {
    const W: usize = 96;
    let (n, d, slots) = (5 * W - 20, 8, 2 * W);
    let data = Noise::new(5).normals(n * d);
    let bias = Noise::new(6).normals(W * slots);
    let t = || HostTensor::new(&data[..], [n, d]).unwrap();
    let bias_tensor = HostTensor::new(&bias[..], [1, W, slots]).unwrap();
    let inputs = HostInputs::new(t(), t(), t()).with_attn_bias(bias_tensor);
    let config = LocalAttentionConfig::new(W as i64).causal(true).autopad(true);
    let attention = LocalAttention::new(config).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let call = Call::default();
    for tile in Tile::ALL {
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        let whole = gpu
            .with_options(options.clone())
            .forward_blocking(&problem, &inputs, &call)
            .map_err(fail)?;
        // Two thirds of the bias, and as much as one block of queries reads of it.
        options.max_binding_bytes = Some(W as u64 * slots as u64 * 4 * 2 / 3);
        let small = gpu.with_options(options);
        let before = gpu.dispatches();
        let part = small.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
        assert!(gpu.dispatches() > before + 5, "{} dispatches", gpu.dispatches() - before);
        assert_eq!(bits(&part.out), bits(&whole.out), "{tile:?}, host tensors");
        let [x, b, out] = [&data[..], &bias, &vec![0.0; n * d]].map(|data| upload(gpu, data));
        let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [n, d]);
        let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out))
            .with_attn_bias(TensorView::contiguous(&b, Dtype::F32, [1, W, slots]));
        let plan = small
            .plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))
            .map_err(fail)?;
        let mut workspace = Workspace::new_blocking(&small, 1).map_err(fail)?;
        let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
        assert!(bound.chunks() > 5, "{} chunks", bound.chunks());
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &call).unwrap());
        assert_eq!(bits(&read(gpu, &out)), bits(&whole.out), "{tile:?}, buffers");
    }
    Ok(())
}

/// A mask that is larger than a binding is cut by keys.
pub fn large_mask(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d, rows) = (20_000, 4, 2);
    let data = Noise::new(8).normals(rows * n * d);
    let mask: Vec<bool> = (0..n).map(|u| u % 7 != 0 && !(5_000..5_200).contains(&u)).collect();
    let t = || HostTensor::new(&data[..], [rows, n, d]).unwrap();
    let inputs =
        HostInputs::new(t(), t(), t()).with_mask(HostTensor::new(&mask[..], [1, n]).unwrap());
    let attention = LocalAttention::new(LocalAttentionConfig::new(100)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let call = Call::default();
    let whole = gpu.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
    let mut options = GpuOptions::default();
    options.max_binding_bytes = Some(12 << 10);
    let small = gpu.with_options(options);
    let part = small.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
    assert_eq!(bits(&part.out), bits(&whole.out), "host tensors");
    let words: Vec<u32> = mask.iter().map(|&open| u32::from(open)).collect();
    let [x, out] = [&data[..], &vec![0.0; data.len()]].map(|data| upload(gpu, data));
    let bytes: Vec<u8> = words.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mask = upload_bytes(gpu, &bytes);
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [rows, n, d]);
    let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out))
        .with_mask(TensorView::contiguous(&mask, Dtype::U32, [1, n]));
    let plan = small
        .plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))
        .map_err(fail)?;
    let mut workspace = Workspace::new_blocking(&small, 1).map_err(fail)?;
    let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
    submit(gpu, |pass| bound.encode(pass, &mut workspace, &call).unwrap());
    assert_eq!(bits(&read(gpu, &out)), bits(&whole.out), "buffers");
    Ok(())
}

pub fn what_cannot_fit(gpu: &Gpu) -> Result<(), Failed> {
    let data = vec![0.5_f32; 256 * 64];
    let t = || HostTensor::new(&data[..], [256, 64]).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let attention = LocalAttention::new(LocalAttentionConfig::new(256)).unwrap();
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    let mut options = GpuOptions::default();
    options.max_binding_bytes = Some(1 << 10);
    let error = gpu.with_options(options).forward_blocking(&problem, &inputs, &Call::default());
    match error {
        Err(GpuError::Plan(PlanError::LayoutExceedsBinding { needed, max: 1024, .. })) => {
            assert!(needed > 1024);
        }
        other => return Err(format!("{other:?}").into()),
    }
    gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;
    Ok(())
}
