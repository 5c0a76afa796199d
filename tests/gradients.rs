//! Gradients of the CPU engine against the f64 oracle's, and the oracle's against central differences of its
//! forward pass, on random cases; the same bits whatever the number of threads.
//!
//! `LOCAL_ATTENTION_CASES` sets the number of cases (default 700), `LOCAL_ATTENTION_SEED` the first.

mod common;

use common::coverage::Coverage;
use common::gradients::{Truth, backward, case, dout, gradients, largest, parts, worst};
use common::{Case, Noise};
use half::f16;
use local_attention::cpu::{Cpu, GradientsMut, Isa};
use local_attention::{
    AttentionShape, BackwardInputs, Call, Element, Engine, Gradient, Gradients, HostInputs,
    HostTensor, LocalAttentionConfig, Reference, ReferenceQuirks,
};
use rayon::prelude::*;

/// So many that every option and situation comes ten times.
const CASES: u64 = 700;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect(name))
}

/// Compares an engine's gradients with the oracle's, with every instruction set; says which rows saw nothing too.
fn check<T: Element<Accumulator = f32>>(
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> (Vec<bool>, Result<(), String>)
where
    Cpu: Engine<T>,
{
    let truth = Truth::new(case, inputs);
    let checked = Isa::available().into_iter().try_for_each(|isa| {
        let engine = Cpu::new().with_isa(isa).unwrap();
        let got = gradients(&engine, case, inputs, &truth.dout);
        truth.check(&got).map_err(|e| format!("{isa}: {e}"))
    });
    (truth.degenerate, checked)
}

#[test]
fn cpu_matches_the_oracle() {
    let first = setting("LOCAL_ATTENTION_SEED", 0) * 1_000_000;
    let cases = setting("LOCAL_ATTENTION_CASES", CASES);
    let results: Vec<_> = (first..first + cases)
        .into_par_iter()
        .map(|seed| {
            let case = case(seed);
            let (degenerate, checked) = check(&case, &case.inputs());
            let (config, quirks, shape) = (&case.config, &case.quirks, &case.shape);
            let failure = checked
                .err()
                .map(|e| format!("seed {seed}: {e}\n{config:?}\n{quirks:?}\n{shape:?}"));
            (seed, degenerate, failure)
        })
        .collect();
    let mut coverage = Coverage::default();
    results.iter().for_each(|(seed, degenerate, _)| coverage.add(&case(*seed), degenerate));
    let failures: Vec<_> = results.into_iter().filter_map(|(_, _, failure)| failure).collect();
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
    if cases >= CASES {
        assert_eq!(coverage.missing_alone(10), [""; 0], "covered fewer than 10 times");
    }
}

/// Every option was met ten times, where the cases are as many as by default: of the oracle alone.
fn check_options(seeds: std::ops::Range<u64>, cases: u64) {
    let mut coverage = Coverage::default();
    seeds.for_each(|seed| coverage.add(&case(seed), &[]));
    if cases >= CASES {
        assert_eq!(coverage.missing_options(10), [""; 0], "covered fewer than 10 times");
    }
}

#[test]
fn cpu_matches_the_oracle_on_f16() {
    for seed in 0..setting("LOCAL_ATTENTION_CASES", CASES) / 5 {
        let case = case(seed);
        if let (_, Err(e)) = check(&case, &case.half()) {
            panic!("seed {seed}: {e}\n{:?}", case.config);
        }
    }
}

/// The oracle's gradients are those of its own forward pass: central differences of a loss, element by element.
#[test]
fn the_oracle_matches_central_differences() {
    const H: f64 = 1e-5;
    let oracle = Reference::<f64>::new();
    // The same whatever the instruction set.
    let cases = setting("LOCAL_ATTENTION_CASES", CASES) * 3 / 5;
    let checked: usize = (0..cases)
        .into_par_iter()
        .map(|i| {
            let seed = 5_000_000 + i;
            let mut noise = Noise::new(i as usize);
            let case = case(seed);
            let dout: Vec<f64> = dout(&case).into_iter().map(f64::from).collect();
            let gradients = parts(&gradients(&oracle, &case, &case.wide(), &dout));
            let loss = |inputs: &HostInputs<'_, f64>| -> f64 {
                let out = oracle.forward(&case.problem(), inputs, &case.call).unwrap().out;
                out.iter().zip(&dout).map(|(a, b)| a * b).sum()
            };
            let mut checked = 0;
            for (name, _, gradient) in &gradients {
                for _ in 0..4 {
                    let at = (noise.bits() % gradient.len() as u64) as usize;
                    let moved = |step: f64| {
                        let mut inputs = case.wide();
                        let x = match *name {
                            "dq" => &mut inputs.q,
                            "dk" => &mut inputs.k,
                            "dv" => &mut inputs.v,
                            _ => inputs.attn_bias.as_mut().unwrap(),
                        };
                        let mut all: Vec<_> = x.iter().collect();
                        all[at] += step;
                        *x = HostTensor::new(all, x.shape().to_vec()).unwrap();
                        loss(&inputs)
                    };
                    let slope = (moved(H) - moved(-H)) / (2.0 * H);
                    let size = largest(gradient).max(1.0);
                    let error = (slope - gradient[at]).abs();
                    assert!(
                        error <= 1e-5 * size,
                        "seed {seed}: {name}[{at}] is {}, differences say {slope}\n{:?}\n{:?}",
                        gradient[at],
                        case.config,
                        case.shape
                    );
                    checked += 1;
                }
            }
            checked
        })
        .sum();
    assert!(checked > cases as usize * 12, "{checked}");
    check_options(5_000_000..5_000_000 + cases, cases * 5 / 3);
}

fn bits<T: Element<Accumulator = f32>>(g: &Gradients<T>) -> Vec<u32> {
    let bias = g.dattn_bias.iter().map(|g| &g.data);
    let all = [&g.dq.data, &g.dk.data, &g.dv.data].into_iter().chain(bias);
    all.flatten().map(|x| x.load().to_bits()).collect()
}

/// The same bits over ten runs and over numbers of threads, and with queries in parts the same sums.
#[test]
fn cpu_is_deterministic() {
    let threads: &[usize] = if cfg!(target_family = "wasm") { &[1] } else { &[1, 2, 3, 7] };
    let engines: Vec<_> = threads.iter().map(|&n| Cpu::with_threads(n).unwrap()).collect();
    let cases = setting("LOCAL_ATTENTION_CASES", CASES);
    let (small, large) = (cases / 12, cases / 116);
    let small = (0..small).map(|seed| (seed, case(6_000_000 + seed)));
    // Those alone use more than one thread; none of a few cases: emulated, one takes minutes.
    let large = (60..60 + large).map(|seed| (seed, Case::large(seed)));
    for (seed, case) in small.chain(large) {
        let (inputs, dout) = (case.inputs(), dout(&case));
        let first = gradients(&engines[0], &case, &inputs, &dout);
        for (run, engine) in engines.iter().cycle().take(10).enumerate() {
            let again = bits(&gradients(engine, &case, &inputs, &dout));
            assert_eq!(again, bits(&first), "seed {seed}, run {run}, {} threads", engine.threads());
        }
        let half_dout: Vec<_> = dout.iter().map(|x| f16::from_f32(*x)).collect();
        let half = |engine| bits(&gradients(engine, &case, &case.half(), &half_dout));
        for engine in &engines[1..] {
            assert_eq!(half(engine), half(&engines[0]), "seed {seed}, f16");
        }
        in_parts(engines.last().unwrap(), &case, &dout, &first, seed);
    }
}

fn in_parts(engine: &Cpu, case: &Case, dout: &[f32], whole: &Gradients<f32>, seed: u64) {
    let s = &case.shape;
    let (n, d, width) = (s.query.len(), s.head_dim, s.value_dim);
    let mut sums: Vec<Vec<f64>> = parts(whole).iter().map(|(_, _, x)| vec![0.0; x.len()]).collect();
    for part in [0..n / 3, n / 3..n] {
        let of = |all: &[f32], width: usize| -> Vec<f32> {
            let rows = all.chunks(n * width);
            rows.flat_map(|r| r[part.start * width..part.end * width].to_vec()).collect()
        };
        let mut piece = case.clone();
        piece.shape.query = s.query.start + part.start..s.query.start + part.end;
        piece.q = of(&case.q, d);
        let got = parts(&gradients(engine, &piece, &piece.inputs(), &of(dout, width)));
        // dq is that of its queries alone.
        for (i, x) in got[0].2.iter().enumerate() {
            let (row, at) = (i / (part.len() * d), i % (part.len() * d));
            sums[0][row * n * d + part.start * d + at] = *x;
        }
        for (sum, (_, _, x)) in sums.iter_mut().zip(&got).skip(1) {
            sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
    }
    for ((name, _, x), sum) in parts(whole).iter().zip(&sums) {
        let error = worst(x, sum);
        let allowed = if *name == "dq" { 0.0 } else { 2e-5 * largest(x).max(1.0) };
        assert!(error <= allowed, "seed {seed}: {name} in parts is off by {error:e}");
    }
}

/// Keys and values that heads share by a stride of 0 have one gradient: the sum over the heads.
#[test]
fn shared_keys_have_one_gradient() {
    // Few queries, and so many that threads share them.
    for n in [20, 1500] {
        shared_gradients(n);
    }
}

fn shared_gradients(n: usize) {
    let (b, h, d) = (2, 3, 8);
    let mut noise = Noise::new(11);
    let (q, kv) = (noise.normals(b * h * n * d), noise.normals(b * n * d));
    let dout = noise.normals(b * h * n * d);
    let config = LocalAttentionConfig::new(5).dim(d as i64).shared_qk(true);
    let attention = local_attention::LocalAttention::new(config).unwrap();
    let all = [b, h, n, d];
    let t = |data: &[f32]| HostTensor::new(data.to_vec(), all).unwrap();
    let strides = [(n * d) as isize, 0, d as isize, 1];
    let shared = || HostTensor::strided(kv.clone(), 0, all, strides).unwrap();
    let copied: Vec<f32> = shared().iter().collect();
    let run = |k: HostTensor<'static, f32>, v: HostTensor<'static, f32>, reference: bool| {
        let inputs = HostInputs::new(t(&q), k, v);
        let shape = AttentionShape::from_inputs(&inputs).unwrap().with_lse();
        let problem = attention.problem(&shape).unwrap();
        let call = Call::default();
        let forward = Cpu::new().forward(&problem, &inputs, &call).unwrap();
        let saved = BackwardInputs::new(&problem, &forward, t(&dout)).unwrap();
        if reference {
            return Reference::<f32>::new().backward(&problem, &inputs, &saved, &call).unwrap();
        }
        let on = |threads| Cpu::with_threads(threads).unwrap();
        let one = on(1).backward(&problem, &inputs, &saved, &call).unwrap();
        if !cfg!(target_family = "wasm") {
            let three = on(3).backward(&problem, &inputs, &saved, &call).unwrap();
            assert_eq!(bits(&three), bits(&one), "three threads");
        }
        one
    };
    let apart = run(t(&copied), t(&copied), false);
    for reference in [false, true] {
        // Both, or one alone.
        let both = run(shared(), shared(), reference);
        let mixed = run(shared(), t(&copied), reference);
        assert_eq!(
            (&both.dk.shape[..], &both.dv.shape[..]),
            (&[b, 1, n, d][..], &[b, 1, n, d][..])
        );
        assert_eq!((&mixed.dk.shape[..], &mixed.dv.shape[..]), (&[b, 1, n, d][..], &all[..]));
        for (got, of) in [(&both.dk, &apart.dk), (&both.dv, &apart.dv), (&mixed.dk, &apart.dk)] {
            for (i, x) in got.data.iter().enumerate() {
                let (batch, at) = (i / (n * d), i % (n * d));
                let sum: f32 = (0..h).map(|head| of.data[(batch * h + head) * n * d + at]).sum();
                assert!((x - sum).abs() < 1e-5, "{x}, expected {sum}");
            }
        }
        assert!(mixed.dv.data.iter().zip(&apart.dv.data).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

/// Problems that threads share: several blocks of one colour a row, rows that share keys, rows that see nothing.
#[test]
fn threads_share_large_problems() {
    let threads: &[usize] = if cfg!(target_family = "wasm") { &[1] } else { &[1, 2, 3] };
    let engines: Vec<_> = threads.iter().map(|&n| Cpu::with_threads(n).unwrap()).collect();
    for (i, (window, kv, masked)) in
        [(64, [1, 2], true), (300, [1, 1], false), (100, [1, 2], false), (64, [1, 1], true)]
            .into_iter()
            .enumerate()
    {
        let (h, n, d) = (2, 2400_usize.next_multiple_of(window), 16);
        let config = LocalAttentionConfig::new(window as i64).causal(i % 2 == 0).dim(d as i64);
        let mut shape = AttentionShape::new([1, h], n, d).with_kv_leading(kv).with_lse();
        shape = shape.with_bias(h, 1, (2 + i % 2) * window);
        let mut noise = Noise::new(40 + i);
        let kv_rows = kv[1];
        let mut case = Case {
            config,
            quirks: ReferenceQuirks::ALL,
            q: noise.normals(h * n * d),
            k: noise.normals(kv_rows * n * d),
            v: noise.normals(kv_rows * n * d),
            bias: noise.normals(h * (2 + i % 2) * window),
            mask: Vec::new(),
            shape,
            call: Call::default(),
            strided: false,
        };
        if masked {
            // Whole windows in the middle see nothing.
            case.mask = (0..n).map(|u| !(n / 3..2 * n / 3).contains(&u)).collect();
            case.shape = case.shape.with_mask(1, n);
        }
        let (inputs, dout) = (case.inputs(), dout(&case));
        let first = gradients(&engines[0], &case, &inputs, &dout);
        for engine in &engines[1..] {
            let again = gradients(engine, &case, &inputs, &dout);
            assert_eq!(bits(&again), bits(&first), "case {i}, {} threads", engine.threads());
        }
        let wide_dout: Vec<f64> = dout.iter().map(|x| f64::from(*x)).collect();
        let truth = parts(&gradients(&Reference::<f64>::new(), &case, &case.wide(), &wide_dout));
        for ((name, _, x), (_, _, y)) in parts(&first).iter().zip(&truth) {
            let error = worst(x, y);
            assert!(error <= 1e-5 * largest(y).max(1.0), "case {i}: {name} is off by {error:e}");
        }
    }
}

/// Small cases by hand.
fn by_hand(config: LocalAttentionConfig, n: usize, mask: &[bool], bias: &[f32]) -> Case {
    let mut noise = Noise::new(3);
    let mut shape = AttentionShape::new([1], n, 8).with_lse();
    if !mask.is_empty() {
        shape = shape.with_mask(1, n);
    }
    if !bias.is_empty() {
        shape = shape.with_bias(1, 1, bias.len());
    }
    Case {
        config,
        quirks: ReferenceQuirks::ALL,
        q: noise.normals(n * 8),
        k: noise.normals(n * 8),
        v: noise.normals(n * 8),
        bias: bias.to_vec(),
        mask: mask.to_vec(),
        shape,
        call: Call::default(),
        strided: false,
    }
}

/// A bias that is as large on all that a row sees moves nothing, though `lse` in f32 can hardly tell it.
#[test]
fn large_biases_move_no_weight() {
    // Just within what is taken from `lse`, and beyond.
    for size in [-40.0_f32, -50.0, -150.0, -700.0, -1e3, -1e4, -1e6, -1e9, 1e6] {
        let config = LocalAttentionConfig::new(64).causal(true);
        let case = by_hand(config, 192, &[], &[size]);
        let (inputs, dout) = (case.inputs(), dout(&case));
        for isa in Isa::available() {
            let engine = Cpu::new().with_isa(isa).unwrap();
            let got = gradients(&engine, &case, &inputs, &dout);
            // Each row's weights are 1 together: so is what it gives away of dout.
            let sums = |x: &[f32]| x.chunks(8).map(|r| f64::from(r[0])).sum::<f64>();
            let (given, taken) = (sums(&dout), sums(&got.dv.data));
            let error = (given - taken).abs();
            // 192 weights of queries, each to what a logit of this size rounds to.
            let allowed = 1e-5 + 192.0 * f64::from(size.abs().min(64.0)) * 2_f64.powi(-24);
            assert!(error < allowed, "{isa}, {size:e}: {taken} of {given}, off by {error:e}");
            let all = [&got.dq, &got.dk, &got.dv];
            assert!(all.iter().all(|g| g.data.iter().all(|x| x.abs() < 20.0)), "{isa}, {size:e}");
        }
    }
}

/// Rows that see nothing may average over anything: no gradient but dv depends on them.
#[test]
fn what_empty_rows_average_reaches_no_other() {
    for strange in [f32::NAN, f32::INFINITY, 1e38] {
        let config = LocalAttentionConfig::new(4).causal(true).exact_windowsize(true);
        let mask: Vec<bool> = (0..16).map(|u| u < 3).collect();
        let mut case = by_hand(config, 16, &mask, &[]);
        case.v[3 * 8..].fill(strange);
        let mut dout = dout(&case);
        dout[8 * 8..].fill(0.0);
        for isa in Isa::available() {
            let engine = Cpu::new().with_isa(isa).unwrap();
            let got = gradients(&engine, &case, &case.inputs(), &dout);
            let wide: Vec<f64> = dout.iter().map(|x| f64::from(*x)).collect();
            let truth = parts(&gradients(&Reference::<f64>::new(), &case, &case.wide(), &wide));
            for ((name, _, x), (_, _, y)) in parts(&got).iter().zip(&truth) {
                assert!(worst(x, y) < 1e-5, "{isa}, {strange}: {name} is {x:?}, expected {y:?}");
            }
        }
    }
}

/// Into the caller's memory, whatever it holds; and without the gradient of a bias.
#[test]
fn into_the_callers_memory() {
    for seed in 0..40 {
        let case = case(7_000_000 + seed);
        into_memory(&case, &case.inputs());
        into_memory(&case, &case.half());
    }
}

fn into_memory<T: Element<Accumulator = f32> + PartialEq>(case: &Case, inputs: &HostInputs<'_, T>)
where
    Cpu: Engine<T>,
{
    let (engine, problem) = (Cpu::new(), case.problem());
    let dout: Vec<T> = dout(case).into_iter().map(T::store).collect();
    let forward = engine.forward(&problem, inputs, &case.call).unwrap();
    let fresh = backward(&engine, case, inputs, &forward, &dout);
    let dout = HostTensor::new(&dout[..], problem.out_shape()).unwrap();
    let saved = BackwardInputs::new(&problem, &forward, dout).unwrap();
    let room = |g: &Gradient<T>| vec![T::store(f32::NAN); g.data.len()];
    let [mut dq, mut dk, mut dv] = [&fresh.dq, &fresh.dk, &fresh.dv].map(room);
    let mut bias = fresh.dattn_bias.as_ref().map(room);
    let dattn_bias = bias.as_deref_mut();
    let to = GradientsMut { dq: &mut dq, dk: &mut dk, dv: &mut dv, dattn_bias };
    engine.backward_into(&problem, inputs, &saved, &case.call, to).unwrap();
    let of = |x: &[T]| x.iter().map(|x| x.load().to_bits()).collect::<Vec<_>>();
    let all = [&dq, &dk, &dv].into_iter().chain(&bias);
    assert_eq!(all.flat_map(|x| of(x)).collect::<Vec<_>>(), bits(&fresh));
    let without = saved.with_bias_gradient(false);
    let rest = engine.backward(&problem, inputs, &without, &case.call).unwrap();
    assert_eq!((&rest.dq, &rest.dk, &rest.dv), (&fresh.dq, &fresh.dk, &fresh.dv));
    assert_eq!(rest.dattn_bias, None);
}
