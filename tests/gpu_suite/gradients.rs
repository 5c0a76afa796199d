//! Gradients: the f64 oracle's, the same bits however split, wherever tensors lie, and call after call.

use half::f16;
use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{
    BackwardTensors, BindError, Dtype, ForwardTensors, Gpu, GpuElement, GpuError, GpuOptions,
    Layouts, PlanError, Storage, TensorView, Tile, Workspace,
};
use local_attention::{
    AttentionShape, BackwardInputs, Call, Dropout, Element, Engine, Forward, Gradient, Gradients,
    HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

use super::buffers::{read, read_bytes, upload, upload_bytes};
use super::layouts::{Placed, place_mask, repeat_keys};
use super::oracle::{Compared, Kernels, each_geometry, situations_of};
use super::share::Share;
use super::{Cases, bits, fail, is_whole, limit, one_tile, submit};
use crate::common::gradients::{Truth, case, dout};
use crate::common::{Case, DEGENERATE, Noise};

/// The CPU's forward pass.
fn forward_of<T: GpuElement>(case: &Case, inputs: &HostInputs<'_, T>) -> Forward<T>
where
    Cpu: Engine<T>,
{
    Cpu::new().forward(&case.problem(), inputs, &case.call).unwrap()
}

/// The gradients of the GPU engine, from the CPU's forward pass; nothing where it refused.
fn gradients<T: GpuElement>(
    gpu: &Gpu,
    case: &Case,
    inputs: &HostInputs<'_, T>,
    dout: &[T],
) -> Result<Option<Gradients<T>>, String>
where
    Cpu: Engine<T>,
{
    let (problem, forward) = (case.problem(), forward_of(case, inputs));
    let dout = HostTensor::new(dout, problem.out_shape()).unwrap();
    let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
    match gpu.backward_blocking(&problem, inputs, &saved, &case.call) {
        Err(GpuError::Plan(PlanError::LoopTurns { .. })) => Ok(None),
        got => got.map(Some).map_err(|e| e.to_string()),
    }
}

/// As what a backward pass on host tensors has them read.
fn contiguous(case: &Case) -> Layouts {
    Layouts::contiguous(Storage::F32, &case.problem())
}

/// Each gradient, flat.
fn flat<T: Element<Accumulator = f32>>(g: &Gradients<T>) -> Vec<(Vec<usize>, Vec<u32>)> {
    let all = [&g.dq, &g.dk, &g.dv].into_iter().chain(&g.dattn_bias);
    let one =
        |g: &Gradient<T>| (g.shape.clone(), g.data.iter().map(|x| x.load().to_bits()).collect());
    all.map(one).collect()
}

/// The gradients of a case whose `lse` is asked for, against the oracle's; nothing where the engine refused.
pub fn compare<T: GpuElement>(gpu: &Gpu, case: &Case, inputs: &HostInputs<'_, T>) -> Empty
where
    Cpu: Engine<T>,
{
    let truth = Truth::new(case, inputs);
    let Some(got) = gradients(gpu, case, inputs, &truth.dout)? else { return Ok(None) };
    truth.check(&got)?;
    let lse = forward_of(case, inputs).lse.unwrap();
    Ok(Some((lse.iter().filter(|x| **x == DEGENERATE).count(), lse.len())))
}

/// The covering array, with ten geometries each.
pub fn every_factor(gpu: &Gpu) -> Result<(), Failed> {
    each_geometry(gpu, Kernels::Gradients, &|gpu, key, case| -> Compared {
        let mut case = case.clone();
        case.shape = case.shape.with_lse();
        let degenerate = match key.storage {
            Storage::F16 => compare::<f16>(gpu, &case, &case.half()),
            _ => compare::<f32>(gpu, &case, &case.inputs()),
        }?;
        Ok(degenerate.map(|degenerate| situations_of(&case, key, degenerate)))
    })
}

/// Rows that see nothing, and rows.
type Empty = Result<Option<(usize, usize)>, String>;

/// Which bits come out depends neither on limits, nor on chance.
pub fn same_bits(gpu: &Gpu) -> Result<(), Failed> {
    const LEAST: usize = 15;
    let gpu = &one_tile(gpu)?;
    let (mut by_limit, mut cases, mut repeated) = ([0; 4], Cases::default(), 0);
    let mut enough = false;
    for seed in 0..800 {
        enough = by_limit.iter().all(|&n| n >= LEAST) && cases.enough() && repeated == 5;
        if enough {
            break;
        }
        let mut case = case(50_000 + seed);
        cases.vary(&mut case);
        if !cases.take(gpu, &case, &contiguous(&case))? {
            continue;
        }
        let (inputs, dout) = (case.inputs(), dout(&case));
        let Some(whole) = gradients(gpu, &case, &inputs, &dout)? else { continue };
        let whole = flat(&whole);
        let repeats = repeated < 5;
        repeated += usize::from(repeats);
        for _ in 0..if repeats { 9 } else { 0 } {
            let again = gradients(gpu, &case, &inputs, &dout)?;
            assert_eq!(again.as_ref().map(flat).as_ref(), Some(&whole), "seed {seed}");
        }
        for (axis, hits) in by_limit.iter_mut().enumerate().filter(|(_, hits)| **hits < LEAST) {
            let mut options = gpu.options().clone();
            limit(&mut options, axis, [16 << 10, 4 << 10], 1e5);
            let before = gpu.dispatches();
            let problem = case.problem();
            let forward = forward_of(&case, &inputs);
            let grad = HostTensor::new(&dout[..], problem.out_shape()).unwrap();
            let saved = BackwardInputs::new(&problem, &forward, grad).unwrap();
            let split = gpu.with_options(options);
            let got = match split.backward_blocking(&problem, &inputs, &saved, &case.call) {
                Ok(got) => got,
                // What one block sees does not fit.
                Err(GpuError::Plan(PlanError::LayoutExceedsBinding { .. })) => continue,
                Err(e) => return Err(fail(e)),
            };
            if gpu.dispatches() > before + 12 {
                *hits += 1;
            }
            if flat(&got) != whole {
                return Err(format!("seed {seed}, limit {axis}: other bits\n{case:?}").into());
            }
        }
    }
    match enough {
        true => Ok(()),
        false => Err(format!(
            "split by each limit {by_limit:?} times, {LEAST} wanted; {cases:?}, {repeated} again"
        )
        .into()),
    }
}

/// Tensors anywhere in a caller's buffers, whole and cut by limits, twice before a submission: the bits of the same
/// tensors in host memory.
pub fn anywhere(gpu: &Gpu) -> Result<(), Failed> {
    const LEAST: usize = 15;
    let gpu = &one_tile(gpu)?;
    let (mut whole, mut cut, mut repeated, mut cases) = (0, 0, 0, Cases::default());
    for seed in 0.. {
        if whole >= LEAST && cut >= LEAST && repeated >= LEAST / 3 && cases.enough() {
            break;
        }
        assert!(seed < 800, "{whole} whole, {cut} cut, {repeated} repeated, {cases:?}");
        let mut case = case(70_000 + seed);
        cases.vary(&mut case);
        if !cases.take(gpu, &case, &contiguous(&case))? {
            continue;
        }
        // What a mask hides is not read: here it could be.
        case.k.iter_mut().chain(&mut case.v).filter(|x| !x.is_finite()).for_each(|x| *x = 0.5);
        let mut noise = Noise::new(seed as usize);
        let repeats = repeat_keys(&mut case, &mut noise);
        let (problem, mut inputs, grad) = (case.problem(), case.inputs(), dout(&case));
        if repeats {
            (inputs.k, inputs.v) = (one_row(&inputs.k), one_row(&inputs.v));
        }
        let Some(expected) = gradients(gpu, &case, &inputs, &grad)? else { continue };
        let results = forward_of(&case, &inputs);
        let mut options = gpu.options().clone();
        let limited = seed % 2 == 1;
        options.max_binding_bytes = limited.then_some(32 << 10);
        options.max_workgroups = limited.then_some(1);
        let small = gpu.with_options(options);
        let place = |data: &[f32], shape: &[usize], repeats: bool, noise: &mut Noise| {
            Placed::new(gpu, data, shape, repeats, noise)
        };
        let mut strided = |t: &HostTensor<'_, f32>, repeats: bool| {
            place(&t.iter().collect::<Vec<_>>(), t.shape(), repeats, &mut noise)
        };
        let (q, k, v) =
            (strided(&inputs.q, false), strided(&inputs.k, repeats), strided(&inputs.v, repeats));
        let bias = inputs.attn_bias.as_ref().map(|b| strided(b, false));
        let out = place(&results.out, &results.shape, false, &mut noise);
        let dout = place(&grad, &results.shape, false, &mut noise);
        let lse = place(results.lse.as_ref().unwrap(), &problem.lse_shape(), false, &mut noise);
        let mut empty =
            |g: &Gradient<f32>| place(&vec![7.0; g.data.len()], &g.shape, false, &mut noise);
        let (dq, dk, dv) = (empty(&expected.dq), empty(&expected.dk), empty(&expected.dv));
        let dbias = expected.dattn_bias.as_ref().map(&mut empty);
        let mut tensors =
            ForwardTensors::new(q.view(), k.view(), v.view(), out.view()).with_lse(lse.view());
        if let Some(b) = &bias {
            tensors = tensors.with_attn_bias(b.view());
        }
        let mask =
            case.shape.mask.map(|m| (place_mask(gpu, &case.mask, &mut noise), [m.rows, m.len]));
        if let Some(((buffer, dtype, offset), shape)) = &mask {
            let view = TensorView::contiguous(buffer, *dtype, *shape);
            tensors = tensors.with_mask(view.with_offset_bytes(*offset));
        }
        let mut all = BackwardTensors::new(tensors, dout.view(), dq.view(), dk.view(), dv.view());
        if let Some(b) = &dbias {
            all = all.with_dattn_bias(b.view());
        }
        let plan =
            small.plan_backward_blocking(&problem, &Layouts::any(Storage::F32)).map_err(fail)?;
        let mut workspace = Workspace::new_blocking(gpu, 4096).map_err(fail)?;
        let bound = match plan.bind_blocking(&all, &workspace) {
            Err(BindError::Plan(
                PlanError::LayoutExceedsBinding { .. } | PlanError::LoopTurns { .. },
            )) => continue,
            bound => bound.map_err(|e| format!("seed {seed}: {e}\n{case:?}"))?,
        };
        match limited && bound.chunks() > 8 {
            true => cut += 1,
            false => whole += 1,
        }
        repeated += usize::from(repeats);
        submit(gpu, |pass| {
            for _ in 0..2 {
                bound.encode(pass, &mut workspace, &case.call).unwrap();
            }
        });
        let pairs = [(&dq, &expected.dq), (&dk, &expected.dk), (&dv, &expected.dv)];
        let bias = dbias.as_ref().zip(expected.dattn_bias.as_ref());
        for (i, (placed, expected)) in pairs.into_iter().chain(bias).enumerate() {
            if bits(&placed.read(gpu)) != bits(&expected.data) {
                return Err(format!("seed {seed}, gradient {i}: other bits\n{case:?}").into());
            }
        }
    }
    Ok(())
}

/// The first row of k or v, read by all.
fn one_row(t: &HostTensor<'_, f32>) -> HostTensor<'static, f32> {
    let (shape, leading) = (t.shape().to_vec(), t.shape().len() - 2);
    let features = shape[leading + 1];
    let row: Vec<f32> = t.iter().take(shape[leading] * features).collect();
    let mut strides = vec![0; leading];
    strides.extend([features as isize, 1]);
    HostTensor::strided(row, 0, shape, strides).unwrap()
}

/// All tensors in one buffer, results among them, of f32 and of f16.
pub fn one_buffer(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = &one_tile(gpu)?;
    for seed in 0..14 {
        let case = case(80_000 + seed);
        match seed % 2 {
            0 => pooled::<f32>(gpu, &case, &case.inputs()),
            _ => pooled::<f16>(gpu, &case, &case.half()),
        }
        .map_err(|e| format!("seed {seed}: {e}\n{case:?}"))?;
    }
    Ok(())
}

fn pooled<T: GpuElement>(gpu: &Gpu, case: &Case, inputs: &HostInputs<'_, T>) -> Result<(), String>
where
    Cpu: Engine<T>,
{
    let problem = case.problem();
    let grad: Vec<T> = dout(case).into_iter().map(T::store).collect();
    let Some(expected) = gradients(gpu, case, inputs, &grad)? else { return Ok(()) };
    let results = forward_of(case, inputs);
    let dtype = Dtype::from(T::STORAGE);
    let mut pool = Vec::new();
    // Rows of whole words, so that every device writes them.
    let mut put = |data: &[T], shape: &[usize]| {
        let features = *shape.last().unwrap();
        let width = features.next_multiple_of(2);
        pool.resize(pool.len().next_multiple_of(64), 0xff);
        let offset = pool.len() as u64;
        for row in data.chunks(features) {
            row.iter().for_each(|x| x.put(&mut pool));
            (features..width).for_each(|_| T::default().put(&mut pool));
        }
        let mut strides = vec![1; shape.len()];
        let mut step = width as i64;
        for i in (0..shape.len() - 1).rev() {
            strides[i] = step;
            step *= shape[i] as i64;
        }
        (offset, shape.to_vec(), strides)
    };
    let mut host = |t: &HostTensor<'_, T>| put(&t.iter().collect::<Vec<_>>(), t.shape());
    let (q, k, v) = (host(&inputs.q), host(&inputs.k), host(&inputs.v));
    let bias = inputs.attn_bias.as_ref().map(&mut host);
    let (out, dout) = (put(&results.out, &results.shape), put(&grad, &results.shape));
    let mut empty = |g: &Gradient<T>| put(&vec![T::default(); g.data.len()], &g.shape);
    let (dq, dk, dv) = (empty(&expected.dq), empty(&expected.dk), empty(&expected.dv));
    let dbias = expected.dattn_bias.as_ref().map(&mut empty);
    let buffer = upload_bytes(gpu, &pool);
    let lse = upload(gpu, results.lse.as_ref().unwrap());
    let view = |(offset, shape, strides): &(u64, Vec<usize>, Vec<i64>)| {
        TensorView::contiguous(&buffer, dtype, shape.clone())
            .with_strides_elems(strides.clone())
            .with_offset_bytes(*offset)
    };
    let mut tensors = ForwardTensors::new(view(&q), view(&k), view(&v), view(&out))
        .with_lse(TensorView::contiguous(&lse, Dtype::F32, problem.lse_shape()));
    if let Some(b) = &bias {
        tensors = tensors.with_attn_bias(view(b));
    }
    let mask = case.shape.mask.map(|m| (m, place_mask(gpu, &case.mask, &mut Noise::new(1))));
    if let Some((m, (buffer, dtype, offset))) = &mask {
        let view = TensorView::contiguous(buffer, *dtype, [m.rows, m.len]);
        tensors = tensors.with_mask(view.with_offset_bytes(*offset));
    }
    let mut all = BackwardTensors::new(tensors, view(&dout), view(&dq), view(&dk), view(&dv));
    if let Some(b) = &dbias {
        all = all.with_dattn_bias(view(b));
    }
    let plan = gpu
        .plan_backward_blocking(&problem, &Layouts::any(T::STORAGE))
        .map_err(|e| e.to_string())?;
    let mut workspace = Workspace::new_blocking(gpu, 64).map_err(|e| e.to_string())?;
    let bound = plan.bind_blocking(&all, &workspace).map_err(|e| e.to_string())?;
    submit(gpu, |pass| bound.encode(pass, &mut workspace, &case.call).unwrap());
    let got = read_bytes(gpu, &buffer);
    let take = |(offset, shape, strides): &(u64, Vec<usize>, Vec<i64>)| -> Vec<u32> {
        let size = T::STORAGE.bytes() as usize;
        let width = strides[strides.len() - 2] as usize;
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        let features = shape[shape.len() - 1];
        let at = |row: usize, c: usize| *offset as usize + (row * width + c) * size;
        let element = |row, c| T::take(&got[at(row, c)..]).load().to_bits();
        (0..rows)
            .flat_map(|row| (0..features).map(move |c| (row, c)))
            .map(|(r, c)| element(r, c))
            .collect()
    };
    let places = [&dq, &dk, &dv].into_iter().chain(&dbias);
    for (i, (place, (_, expected))) in places.zip(flat(&expected)).enumerate() {
        if take(place) != expected {
            return Err(format!("gradient {i}: other bits"));
        }
    }
    // What else lies there is as it was.
    let end = dq.0 as usize;
    if got[..end] != pool[..end] {
        return Err("what was read was written".to_owned());
    }
    Ok(())
}

/// Shapes at the ends of what there is, against the CPU engine: empty ones, queries far from keys, values of several
/// blocks, keys shared and values not, a bias of each shape over several blocks of queries and slots.
pub fn edges(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = &one_tile(gpu)?;
    let window = |w| LocalAttentionConfig::new(w);
    let plain = |leading: &[usize], n, d| AttentionShape::new(leading.to_vec(), n, d);
    let mut cases = vec![
        ("no query, bias", window(4), plain(&[2], 8, 4).with_query(4..4).with_bias(1, 4, 12)),
        ("no query at the start", window(4), plain(&[2], 8, 4).with_query(0..0).with_bias(2, 1, 1)),
        ("no row, bias", window(4), plain(&[0], 8, 4).with_bias(1, 4, 12)),
        ("no row, mask", window(4), plain(&[0, 2], 8, 4).with_mask(1, 8)),
        ("one position", window(1), plain(&[3], 1, 4)),
        ("far keys", window(16).dim(64), plain(&[64], 1024, 64).with_query(0..256)),
        (
            "values of four blocks",
            window(17).causal(true).autopad(true),
            plain(&[2], 100, 8).with_value_dim(200),
        ),
        ("no values", window(4), plain(&[2], 8, 4).with_value_dim(0)),
        (
            "a part of a block, bias",
            window(64),
            plain(&[1], 128, 8).with_query(40..64).with_bias(1, 64, 192),
        ),
        (
            "an odd part, bias",
            window(64).autopad(true),
            plain(&[1], 100, 8).with_query(70..100).with_bias(1, 64, 192),
        ),
        ("many rows", window(2), plain(&[16_384], 2, 1).with_bias(1, 2, 6)),
    ];
    for (queries, slots) in [(1, 1), (1, 210), (70, 1), (70, 210)] {
        let shape = plain(&[2, 2], 280, 8).with_bias(2, queries, slots);
        cases.push(("a bias of each shape", window(70).look_backward(1).look_forward(1), shape));
    }
    for (name, config, shape) in cases {
        let shape = shape.with_lse();
        let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
        let mut noise = Noise::new(3);
        let mut tensor = |dims: Vec<usize>| {
            let data = noise.normals(dims.iter().product());
            HostTensor::new(data, dims).unwrap()
        };
        let of = |len, features| [&shape.leading[..], &[len, features]].concat();
        let (n, d) = (shape.query.len(), shape.head_dim);
        let (keys, dv) = (shape.key_len, shape.value_dim);
        let mut inputs =
            HostInputs::new(tensor(of(n, d)), tensor(of(keys, d)), tensor(of(keys, dv)));
        if let Some(b) = shape.bias {
            inputs = inputs.with_attn_bias(tensor(vec![b.rows, b.queries, b.slots]));
        }
        if let Some(m) = shape.mask {
            inputs = inputs
                .with_mask(HostTensor::new(vec![true; m.rows * m.len], [m.rows, m.len]).unwrap());
        }
        let call = Call::default();
        let forward = Cpu::new().forward(&problem, &inputs, &call).unwrap();
        let mut grad: Vec<f32> = tensor(problem.out_shape()).iter().collect();
        if name == "far keys" {
            // What one row gets is no other row's.
            grad[40 * n * dv..41 * n * dv].fill(f32::NAN);
        }
        let dout = HostTensor::new(grad, problem.out_shape()).unwrap();
        let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
        let expected = Cpu::new().backward(&problem, &inputs, &saved, &call).unwrap();
        let got = gpu.backward_blocking(&problem, &inputs, &saved, &call);
        let got = got.map_err(|e| format!("{name}: {e}"))?;
        alike(&got, &expected).map_err(|e| format!("{name}: {e}"))?;
    }
    shared(gpu)
}

/// The same numbers, NaN where the others have one.
fn alike(got: &Gradients<f32>, expected: &Gradients<f32>) -> Result<(), String> {
    let all = |g: &Gradients<f32>| -> Vec<Gradient<f32>> {
        [&g.dq, &g.dk, &g.dv].into_iter().chain(&g.dattn_bias).cloned().collect()
    };
    let (got, expected) = (all(got), all(expected));
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.shape, expected.shape);
        let largest = expected.data.iter().fold(1.0_f32, |m, x| m.max(x.abs()));
        for (at, (a, b)) in got.data.iter().zip(&expected.data).enumerate() {
            if a.is_nan() != b.is_nan() || (a - b).abs() > 2e-5 * largest {
                return Err(format!("gradient {i}, element {at}: {a}, and the CPU's is {b}"));
            }
        }
    }
    Ok(())
}

/// About the largest windows that the engine takes on an adapter that ends loops: the CPU's gradients. What is hidden is
/// shared by all queries, the costliest of all.
pub fn long_windows(gpu: &Gpu) -> Result<(), Failed> {
    // Others take what they are given.
    let ends = gpu.caps().info.name.contains("llvmpipe");
    let whole = is_whole(Share::from_env()?);
    let all = [(64, Tile::Tall, 2048), (256, Tile::Small, 1024)];
    // In a share of the suite one of them.
    for (d, tile, most) in all.into_iter().take(if whole { 2 } else { 1 }) {
        let most = if ends { most } else { 512 };
        let mut options = GpuOptions::default();
        options.tile = Some(tile);
        let gpu = gpu.with_options(options);
        for (hidden, drops) in [(false, false), (false, true), (true, false), (true, true)] {
            // Of many features, and in a share of the suite, the cheapest and the costliest.
            if (d > 64 || !whole) && hidden != drops {
                continue;
            }
            let mut keys = most;
            loop {
                assert!(keys >= 128, "d {d}, {tile:?}: every window is refused");
                match long_window(&gpu, d, keys, (hidden, drops)) {
                    Err(GpuError::Plan(PlanError::LoopTurns { .. })) => keys = keys * 15 / 16,
                    Err(e) => return Err(fail(e)),
                    Ok(Ok(())) => break,
                    Ok(Err(e)) => {
                        let what = format!("d {d}, {tile:?}, hidden {hidden}, dropout {drops}");
                        return Err(format!("{what}, {keys} keys: {e}").into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// One window of so many keys, a few of its queries computed.
fn long_window(
    gpu: &Gpu,
    d: usize,
    keys: usize,
    (hidden, drops): (bool, bool),
) -> Result<Result<(), String>, GpuError> {
    let config = LocalAttentionConfig::new(keys as i64).look_forward(0).dropout(0.25);
    let config = config.look_backward(0);
    let mut noise = Noise::new(keys);
    let mut tensor = || HostTensor::new(noise.normals(keys * d), [1, keys, d]).unwrap();
    let mut inputs = HostInputs::new(tensor(), tensor(), tensor());
    let mut shape = AttentionShape::new([1], keys, d).with_lse();
    if hidden {
        inputs = inputs.with_mask(HostTensor::new(vec![false; keys], [1, keys]).unwrap());
        shape = shape.with_mask(1, keys);
    } else if drops {
        let bias = HostTensor::new(vec![0.5; keys], [1, 1, keys]).unwrap();
        inputs = inputs.with_attn_bias(bias);
        shape = shape.with_bias(1, 1, keys);
    }
    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    let call = match drops {
        true => Call::with_dropout(Dropout { seed: 7, offset: 0 }),
        false => Call::default(),
    };
    let forward = Cpu::new().forward(&problem, &inputs, &call).unwrap();
    let saved = BackwardInputs::new(&problem, &forward, tensor()).unwrap();
    let got = gpu.backward_blocking(&problem, &inputs, &saved, &call)?;
    Ok(alike(&got, &Cpu::new().backward(&problem, &inputs, &saved, &call).unwrap()))
}

/// Keys and values that heads share by strides of 0, both, or one of them, or along other dimensions.
fn shared(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d) = (40, 8);
    let leading = [2, 3, 2];
    let shape = [2, 3, 2, n, d];
    let mut noise = Noise::new(11);
    let data = noise.normals(12 * n * d);
    let grad = noise.normals(12 * n * d);
    let full = || HostTensor::new(data.clone(), shape).unwrap();
    let along = |shared: [bool; 3]| {
        let mut strides = [0, 0, 0, d as isize, 1];
        let mut step = (n * d) as isize;
        for i in (0..3).rev().filter(|&i| !shared[i]) {
            strides[i] = step;
            step *= leading[i] as isize;
        }
        HostTensor::strided(data.clone(), 0, shape, strides).unwrap()
    };
    let attention =
        LocalAttention::new(LocalAttentionConfig::new(8).dim(8).shared_qk(true)).unwrap();
    for (k, v) in [
        (along([false, true, false]), full()),
        (full(), along([true, false, true])),
        (along([false, true, false]), along([false, true, false])),
        (along([true, false, false]), along([false, false, true])),
        (along([true, true, true]), along([true, true, false])),
    ] {
        let inputs = HostInputs::new(full(), k, v);
        let shape = AttentionShape::from_inputs(&inputs).unwrap().with_lse();
        let problem = attention.problem(&shape).unwrap();
        let call = Call::default();
        let forward = Cpu::new().forward(&problem, &inputs, &call).unwrap();
        let dout = HostTensor::new(&grad[..], problem.out_shape()).unwrap();
        let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
        let expected = Cpu::new().backward(&problem, &inputs, &saved, &call).unwrap();
        let got = gpu.backward_blocking(&problem, &inputs, &saved, &call).map_err(fail)?;
        alike(&got, &expected)?;
    }
    Ok(())
}

/// `dq`, `dk` and `dv` as views of one `[b, n, 3, h, d]`, beside q, k and v in another.
pub fn interleaved(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = &one_tile(gpu)?;
    let (b, n, h, d) = (2, 24, 3, 8);
    let len = b * n * 3 * h * d;
    let mut noise = Noise::new(4);
    let (qkv, grad) = (noise.normals(len), noise.normals(b * h * n * d));
    let attention = LocalAttention::new(LocalAttentionConfig::new(8)).unwrap();
    let problem = attention.problem(&AttentionShape::new([b, h], n, d).with_lse()).unwrap();
    let strides = [n * 3 * h * d, d, 3 * h * d, 1];
    let host = |third: usize| {
        let strides = strides.map(|s| s as isize);
        HostTensor::strided(&qkv[..], third * h * d, [b, h, n, d], strides).unwrap()
    };
    let inputs = HostInputs::new(host(0), host(1), host(2));
    let forward = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap();
    let dout = HostTensor::new(&grad[..], problem.out_shape()).unwrap();
    let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
    let expected = gpu.backward_blocking(&problem, &inputs, &saved, &Call::default());
    let expected = expected.map_err(fail)?;
    let [qkv, out, lse, dout] =
        [&qkv, &forward.out, forward.lse.as_ref().unwrap(), &grad].map(|x| upload(gpu, x));
    let dqkv = upload(gpu, &vec![7.0; len]);
    let third = |buffer, third: usize| {
        TensorView::contiguous(buffer, Dtype::F32, [b, h, n, d])
            .with_strides_elems(strides.map(|s| s as i64))
            .with_offset_bytes((4 * third * h * d) as u64)
    };
    let whole = |buffer| TensorView::contiguous(buffer, Dtype::F32, [b, h, n, d]);
    let tensors = ForwardTensors::new(third(&qkv, 0), third(&qkv, 1), third(&qkv, 2), whole(&out))
        .with_lse(TensorView::contiguous(&lse, Dtype::F32, [b, h, n]));
    let [dq, dk, dv] = [0, 1, 2].map(|i| third(&dqkv, i));
    let tensors = BackwardTensors::new(tensors, whole(&dout), dq, dk, dv);
    let layouts = Layouts::contiguous(Storage::F32, &problem);
    let plan = gpu.plan_backward_blocking(&problem, &layouts).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let bound = plan.bind_blocking(&tensors, &workspace).map_err(fail)?;
    submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());
    let got = read(gpu, &dqkv);
    for (i, expected) in [&expected.dq, &expected.dk, &expected.dv].into_iter().enumerate() {
        for (at, x) in expected.data.iter().enumerate() {
            let (row, t, c) = (at / (n * d), at / d % n, at % d);
            let place = row / h * strides[0] + row % h * d + t * strides[2] + i * h * d + c;
            assert_eq!(got[place].to_bits(), x.to_bits(), "gradient {i}, element {at}");
        }
    }
    Ok(())
}

/// A model trained for 50 steps with attention on the GPU has the losses of one with attention on the CPU.
pub fn model(gpu: &Gpu) -> Result<(), Failed> {
    let losses = |engine: &str| -> Result<Vec<f64>, Failed> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let out = crate::common::example("char_model").args(["50", path, engine]).output();
        let out = out.map_err(fail)?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).map_err(fail)?;
        let steps = text.lines().filter(|line| line.starts_with("step "));
        Ok(steps.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect())
    };
    let (cpu, gpus) = (losses("cpu")?, losses("gpu")?);
    assert_eq!((cpu.len(), gpus.len()), (50, 50));
    let worst = cpu.iter().zip(&gpus).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-3 && cpu[49] < cpu[0] - 0.5, "{worst}: {cpu:?}, {gpus:?}");
    println!("    losses differ by {worst:.1e} at most");
    // The example has a device of its own.
    let case = case(0);
    gradients(gpu, &case, &case.inputs(), &dout(&case))?;
    Ok(())
}

/// Tensors that do not fit are errors that name them, and nothing is recorded.
pub fn every_error(gpu: &Gpu) -> Result<(), Failed> {
    let gpu = &one_tile(gpu)?;
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    let problem = attention.problem(&AttentionShape::new([2], 8, 4)).unwrap();
    let plan = gpu
        .plan_backward_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem))
        .map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let buffers: Vec<_> = (0..10).map(|_| upload(gpu, &[0.0; 64])).collect();
    let view = |i: usize| TensorView::contiguous(&buffers[i], Dtype::F32, [2, 8, 4]);
    let lse = || TensorView::contiguous(&buffers[4], Dtype::F32, [2, 8]);
    let forward = || ForwardTensors::new(view(0), view(1), view(2), view(3)).with_lse(lse());
    let good = || BackwardTensors::new(forward(), view(5), view(6), view(7), view(8));
    let error = |change: &dyn Fn(&mut BackwardTensors<'_>)| {
        let mut tensors = good();
        change(&mut tensors);
        plan.bind_blocking(&tensors, &workspace).err().map(|e| e.to_string())
    };
    type Change<'c> = &'c dyn Fn(&mut BackwardTensors<'_>);
    let shape = |t: &mut TensorView<'_>| t.shape = vec![2, 8, 3];
    let cases: [(Change<'_>, &str); 9] = [
        (&|t| t.forward.lse = None, "lse is missing"),
        (&|t| shape(&mut t.dout), "dout has shape [2, 8, 3]: this plan needs [2, 8, 4]"),
        (&|t| shape(&mut t.dq), "dq has shape [2, 8, 3]"),
        (&|t| t.dk.shape = vec![1, 8, 4], "dk has shape [1, 8, 4]: this plan needs [2, 8, 4]"),
        (
            &|t| t.forward.v.strides_elems[0] = 0,
            "dv has shape [2, 8, 4]: this plan needs [1, 8, 4]",
        ),
        (&|t| t.dv.dtype = Dtype::F16, "dv is f16: this plan needs f32"),
        (&|t| t.dattn_bias = Some(t.dq.clone()), "dattn_bias is given"),
        (&|t| t.dv.strides_elems[1] = 0, "dv has a stride of 0"),
        (&|t| t.dq.offset_bytes = 16, "dq ends"),
    ];
    for (change, says) in cases {
        let got = error(change);
        assert!(got.as_ref().is_some_and(|e| e.starts_with(says)), "{got:?}, expected {says}");
    }
    // Results that share memory, with what is read and with each other.
    for (i, says) in [
        (0, "dq overlaps q"),
        (5, "dq overlaps dout"),
        (4, "dq overlaps lse"),
        (7, "dk overlaps dq"),
    ] {
        let tensors = BackwardTensors::new(forward(), view(5), view(i), view(7), view(8));
        let got = plan.bind_blocking(&tensors, &workspace).unwrap_err().to_string();
        assert!(got.starts_with(says), "{got}, expected {says}");
    }
    let bound = plan.bind_blocking(&good(), &workspace).map_err(fail)?;
    submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());
    // Of host tensors.
    let case = case(3);
    let (problem, inputs) = (case.problem(), case.inputs());
    let results = forward_of(&case, &inputs);
    let few = HostTensor::new(vec![0.0; 4], [1, 4]).unwrap();
    let saved = BackwardInputs::new(&problem, &results, few).unwrap();
    let got = gpu.backward_blocking(&problem, &inputs, &saved, &case.call).unwrap_err();
    assert!(got.to_string().starts_with("dout has shape [1, 4]"), "{got}");
    Ok(())
}
