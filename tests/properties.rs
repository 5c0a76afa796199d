//! The CPU engine against the f64 oracle, on random cases: output, lse and attention weights within
//! the error budget, with every instruction set of the machine; those it lacks are listed as ignored. What the
//! cases covered is asserted.
//!
//! `LOCAL_ATTENTION_CASES` sets their number (default 1,000), `LOCAL_ATTENTION_SEED` their seed;
//! `LOCAL_ATTENTION_ISA` names an instruction set that the machine has to have.

mod common;

use common::coverage::Coverage;
use common::{CHOICES, Case, DEGENERATE, Noise, list};
use libtest_mimic::{Arguments, Trial};
use local_attention::cpu::{Cpu, Isa};
use local_attention::{
    AttentionShape, Call, Element, Engine, ErrorBudget, HostInputs, LocalAttentionConfig,
    Reference, ReferenceQuirks,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rayon::prelude::*;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect(name))
}

/// Every instruction set of the machine.
fn instruction_sets() -> Vec<Isa> {
    let found = Isa::available();
    if let Ok(name) = std::env::var("LOCAL_ATTENTION_ISA") {
        assert!(found.iter().any(|isa| isa.name() == name), "no {name} in {found:?}");
    }
    found
}

fn cpu_matches_the_oracle() {
    const CHUNKS: u64 = 8;
    let cases = setting("LOCAL_ATTENTION_CASES", 1000);
    let seed = setting("LOCAL_ATTENTION_SEED", 0);
    let coverage = (0..CHUNKS)
        .into_par_iter()
        .map(|chunk| {
            let mut coverage = Coverage::default();
            check_chunk(seed * CHUNKS + chunk, cases.div_ceil(CHUNKS), &mut coverage);
            coverage
        })
        .reduce(Coverage::default, |mut all, part| {
            all.merge(part);
            all
        });
    if cases >= 1000 {
        assert_eq!(coverage.missing(10), [], "covered fewer than 10 times");
    }
}

fn check_chunk(seed: u64, cases: u64, coverage: &mut Coverage) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: cases as u32,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let coverage = std::cell::RefCell::new(coverage);
    let lists = prop::collection::vec(any::<u32>(), CHOICES..=CHOICES);
    let result = runner.run(&lists, |list| {
        let case = Case::decode(&list);
        let degenerate = check(&case).map_err(|e| {
            TestCaseError::fail(format!(
                "{e}\n{:?}\n{:?}\n{:?}",
                case.config, case.quirks, case.shape
            ))
        })?;
        coverage.borrow_mut().add(&case, &degenerate);
        Ok(())
    });
    if let Err(e) = result {
        panic!("seed {seed}: {e}");
    }
}

/// Largest difference; any NaN counts as infinite.
fn worst(got: &[f32], truth: &[f64]) -> f64 {
    assert_eq!(got.len(), truth.len());
    got.iter().zip(truth).fold(0.0, |worst, (&a, &b)| {
        let error = (f64::from(a) - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

/// Compares everything the engine gives for a case; says which rows saw nothing.
fn check(case: &Case) -> Result<Vec<bool>, String> {
    check_as(case, &case.inputs())
}

/// The same for inputs in one of the engine's types.
fn check_as<T: Element<Accumulator = f32>>(
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> Result<Vec<bool>, String>
where
    Cpu: Engine<T>,
{
    let (problem, wide) = (case.problem(), inputs.map(|x| x.load().into()));
    let narrow = inputs.map(|x| x.load());
    let oracle = Reference::<f64>::new();
    let plain = Reference::<f32>::new();
    let budget = ErrorBudget::measure_call(&problem, inputs, &case.call).unwrap();
    let roundings = 4.0 * 2_f64.powi(-24) * (1.0 + budget.max_logit);

    let with_lse = case.attention().problem(&case.shape.clone().with_lse()).unwrap();
    let true_lse = oracle.forward(&with_lse, &wide, &case.call).unwrap().lse.unwrap();
    let plain_lse = plain.forward(&with_lse, &narrow, &case.call).unwrap().lse.unwrap();
    // Not averaged over keys as the output is: a rounding of the scale alone moves all of it.
    let lse_allowed = 2.0 * worst(&plain_lse, &true_lse) + 2.0 * roundings;

    let some = case.shape.query.start..case.shape.query.end.min(case.shape.query.start + 9);
    let true_weights = oracle.weights(&problem, &wide, some.clone()).unwrap();
    let plain_weights = plain.weights(&problem, &narrow, some.clone()).unwrap();
    let weights_allowed = 2.0 * worst(&plain_weights.weights, &true_weights.weights) + roundings;

    for isa in instruction_sets() {
        let off = |what: &str, error: f64, allowed: f64| {
            Err(format!("{isa}: {what} is off by {error:e}, allowed {allowed:e}"))
        };
        let engine = Cpu::new().with_isa(isa).unwrap();
        let got = engine.forward(&problem, inputs, &case.call).unwrap();
        assert_eq!(got.shape, problem.out_shape());
        let out: Vec<f32> = got.out.iter().map(|x| x.load()).collect();
        let error = worst(&out, &budget.oracle);
        if error > budget.allowed() {
            return off("out", error, budget.allowed());
        }
        assert_eq!(got.lse.is_some(), case.shape.lse);
        if let Some(lse) = &got.lse {
            let error = worst(lse, &true_lse);
            if error > lse_allowed {
                return off("lse", error, lse_allowed);
            }
        }
        let weights = engine.weights(&problem, inputs, some.clone()).unwrap();
        assert_eq!((weights.shape, &weights.keys), (true_weights.shape, &true_weights.keys));
        let error = worst(&weights.weights, &true_weights.weights);
        if error > weights_allowed {
            return off("a weight", error, weights_allowed);
        }
    }
    Ok(true_lse.iter().map(|&x| x == f64::from(DEGENERATE)).collect())
}

fn cpu_matches_the_oracle_on_f16() {
    for seed in 0..setting("LOCAL_ATTENTION_CASES", 1000) / 4 {
        let case = Case::decode(&list(seed));
        if let Err(e) = check_as(&case, &case.half()) {
            panic!("seed {seed}: {e}\n{case:?}");
        }
    }
}

/// Heads as large as those of models, of which rows and tables have several vectors.
fn cpu_matches_the_oracle_with_large_heads() {
    for seed in 0..setting("LOCAL_ATTENTION_CASES", 1000) / 10 {
        let list = list(2_000_000 + seed);
        let case = Case::decode_sized(&list, &[64, 80, 96, 128, 256], &[64, 80, 100, 128]);
        if let Err(e) = check(&case) {
            panic!("seed {seed}: {e}\n{case:?}");
        }
    }
}

/// Positions so many that tables are split into coarse and fine ones.
fn cpu_matches_the_oracle_far_away() {
    for (window, n, xpos) in [(20_000, 40_000, false), (10_000, 30_000, true)] {
        let config = LocalAttentionConfig::new(window).causal(true).dim(64).use_xpos(xpos);
        let mut noise = Noise::new(window as usize);
        let query = n - 7..n;
        let case = Case {
            config,
            quirks: ReferenceQuirks::ALL,
            q: noise.normals(7 * 64),
            k: noise.normals(n * 64),
            v: noise.normals(n * 8),
            shape: AttentionShape::new([], n, 64).with_value_dim(8).with_query(query).with_lse(),
            call: Call::default(),
            strided: false,
            mask: Vec::new(),
            bias: Vec::new(),
        };
        check(&case).unwrap_or_else(|e| panic!("window {window}: {e}"));
    }
}

/// Bits of everything that an engine gives for a case: of every row, query by query.
fn results<T: Element<Accumulator = f32>>(
    engine: &Cpu,
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> Vec<Vec<u32>>
where
    Cpu: Engine<T>,
{
    let problem = case.attention().problem(&case.shape.clone().with_lse()).unwrap();
    let got = engine.forward(&problem, inputs, &case.call).unwrap();
    let (queries, width) = (case.shape.query.len(), case.shape.value_dim);
    let mut rows = Vec::new();
    let lse = got.lse.unwrap();
    for (i, lse) in lse.iter().enumerate() {
        let out = got.out[i * width..][..width].iter().map(|x| x.load().to_bits());
        rows.push(out.chain([lse.to_bits()]).collect());
    }
    assert_eq!(rows.len(), problem.batch() * queries);
    rows
}

/// The same bits whatever the number of threads, and however queries are cut into calls.
fn cpu_is_deterministic() {
    // WebAssembly has one thread, which the global pool falls back to.
    let threads: &[usize] = if cfg!(target_family = "wasm") { &[1] } else { &[1, 2, 3] };
    let pools = threads.iter().map(|&n| Cpu::with_threads(n).unwrap());
    let pools: Vec<_> = pools.chain([Cpu::new()]).collect();
    let cases = setting("LOCAL_ATTENTION_CASES", 1000);
    let (small, large) = (cases / 16, cases / 125);
    let small = (0..small).map(|seed| (seed, Case::decode(&list(1_000_000 + seed))));
    // Those alone use more than one thread; none of a few cases: emulated, one takes minutes.
    let large = (60..60 + large).map(|seed| (seed, Case::large(seed)));
    for (seed, case) in small.chain(large) {
        for isa in instruction_sets() {
            let engines: Vec<_> = pools.iter().map(|e| e.clone().with_isa(isa).unwrap()).collect();
            deterministic(&engines, &case, |case| case.inputs(), seed);
            deterministic(&engines, &case, |case| case.half(), seed);
        }
    }
}

fn deterministic<T: Element<Accumulator = f32>>(
    engines: &[Cpu],
    case: &Case,
    inputs: impl Fn(&Case) -> HostInputs<'static, T>,
    seed: u64,
) where
    Cpu: Engine<T>,
{
    let at = |engine: &Cpu| format!("seed {seed}, {}, {} threads", engine.isa(), engine.threads());
    let all = results(&engines[0], case, &inputs(case));
    for engine in &engines[1..] {
        assert_eq!(results(engine, case, &inputs(case)), all, "{}", at(engine));
    }
    let (s, d, engine) = (&case.shape, case.shape.head_dim, &engines[1]);
    let whole = s.query.len();
    let few = s.query.start..s.query.end.min(s.query.start + 12);
    let problem = case.problem();
    let slots = problem.geometry().slots();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let weights = engine.weights(&problem, &inputs(case), few.clone()).unwrap();
    let last = engine.weights(&problem, &inputs(case), few.end - 1..few.end).unwrap();
    for (all, one) in weights.weights.chunks(few.len() * slots).zip(last.weights.chunks(slots)) {
        assert_eq!(bits(&all[all.len() - slots..]), bits(one), "weights, {}", at(engine));
    }
    // The caller's memory, whatever it held.
    let n = problem.out_shape().iter().product();
    let mut out = vec![T::store(f32::NAN); n];
    let mut lse = vec![f32::NAN; if s.lse { all.len() } else { 0 }];
    engine.forward_into(&problem, &inputs(case), &case.call, &mut out, &mut lse).unwrap();
    let fresh = engine.forward(&problem, &inputs(case), &case.call).unwrap();
    let wide = |x: &[T]| x.iter().map(|x| x.load().to_bits()).collect::<Vec<_>>();
    assert_eq!(wide(&out), wide(&fresh.out), "forward_into, {}", at(engine));
    assert_eq!(bits(&lse), bits(&fresh.lse.unwrap_or_default()), "forward_into, {}", at(engine));
    for cut in [whole / 3, whole / 2, whole - 1] {
        for part in [0..cut, cut..whole] {
            let mut piece = case.clone();
            piece.shape.query = s.query.start + part.start..s.query.start + part.end;
            let rows = case.q.chunks(whole * d);
            piece.q = rows.flat_map(|r| r[part.start * d..part.end * d].to_vec()).collect();
            let got = results(engine, &piece, &inputs(&piece));
            let expected: Vec<_> =
                all.chunks(whole).flat_map(|row| row[part.clone()].to_vec()).collect();
            assert_eq!(got, expected, "queries {part:?} of {whole}, {}", at(engine));
        }
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    if cfg!(target_family = "wasm") {
        // There are no threads there.
        arguments.test_threads = Some(1);
    }
    let tests: [(&str, fn()); 5] = [
        ("cpu_matches_the_oracle", cpu_matches_the_oracle),
        ("cpu_matches_the_oracle_on_f16", cpu_matches_the_oracle_on_f16),
        ("cpu_matches_the_oracle_with_large_heads", cpu_matches_the_oracle_with_large_heads),
        ("cpu_matches_the_oracle_far_away", cpu_matches_the_oracle_far_away),
        ("cpu_is_deterministic", cpu_is_deterministic),
    ];
    let run = tests.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let sets = instruction_sets();
    let absent = Isa::ALL.into_iter().filter(|isa| !sets.contains(isa));
    let absent = absent
        .map(|isa| Trial::test(format!("all_of_it_on_{isa}"), || Ok(())).with_ignored_flag(true));
    libtest_mimic::run(&arguments, run.into_iter().chain(absent).collect()).exit();
}
