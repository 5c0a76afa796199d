//! The CPU engine against the f64 oracle, on random cases: output, lse and attention weights within
//! the error budget, with every instruction set of the machine. What the cases covered is asserted.
//!
//! `LOCAL_ATTENTION_CASES` sets their number (default 1,000), `LOCAL_ATTENTION_SEED` their seed.

mod common;

use common::coverage::Coverage;
use common::{CHOICES, Case, Noise};
use local_attention::cpu::{Cpu, Isa};
use local_attention::{Engine, ErrorBudget, Reference};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// `lse` of a row that sees nothing.
const DEGENERATE: f32 = -f32::MAX;

/// The numbers of a case from a seed, without proptest.
fn list(seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed as usize);
    (0..CHOICES).map(|_| noise.bits() as u32).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect(name))
}

#[test]
fn cpu_matches_the_oracle() {
    const CHUNKS: u64 = 8;
    let cases = setting("LOCAL_ATTENTION_CASES", 1000);
    let seed = setting("LOCAL_ATTENTION_SEED", 0);
    let next = std::sync::atomic::AtomicU64::new(0);
    let mut coverage = Coverage::default();
    std::thread::scope(|scope| {
        let work = || {
            let mut coverage = Coverage::default();
            loop {
                let chunk = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if chunk >= CHUNKS {
                    return coverage;
                }
                check_chunk(seed * CHUNKS + chunk, cases.div_ceil(CHUNKS), &mut coverage);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            coverage.merge(handle.join().unwrap());
        }
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
    let (problem, inputs, wide) = (case.problem(), case.inputs(), case.wide());
    let oracle = Reference::<f64>::new();
    let plain = Reference::<f32>::new();
    let budget = ErrorBudget::measure_call(&problem, &inputs, &case.call).unwrap();
    let roundings = 4.0 * 2_f64.powi(-24) * (1.0 + budget.max_logit);

    let with_lse = case.attention().problem(&case.shape.clone().with_lse()).unwrap();
    let true_lse = oracle.forward(&with_lse, &wide, &case.call).unwrap().lse.unwrap();
    let plain_lse = plain.forward(&with_lse, &inputs, &case.call).unwrap().lse.unwrap();
    // Not averaged over keys as the output is: a rounding of the scale alone moves all of it.
    let lse_allowed = 2.0 * worst(&plain_lse, &true_lse) + 2.0 * roundings;

    let some = case.shape.query.start..case.shape.query.end.min(case.shape.query.start + 9);
    let true_weights = oracle.weights(&problem, &wide, some.clone()).unwrap();
    let plain_weights = plain.weights(&problem, &inputs, some.clone()).unwrap();
    let weights_allowed = 2.0 * worst(&plain_weights.weights, &true_weights.weights) + roundings;

    for isa in Isa::available() {
        let engine = Cpu::new().with_isa(isa).unwrap();
        let got = engine.forward(&problem, &inputs, &case.call).unwrap();
        assert_eq!(got.shape, problem.out_shape());
        let error = worst(&got.out, &budget.oracle);
        if error > budget.allowed() {
            return Err(format!("{isa}: out is off by {error:e}, allowed {:e}", budget.allowed()));
        }
        assert_eq!(got.lse.is_some(), case.shape.lse);
        if let Some(lse) = &got.lse {
            let error = worst(lse, &true_lse);
            if error > lse_allowed {
                return Err(format!("{isa}: lse is off by {error:e}, allowed {lse_allowed:e}"));
            }
        }
        let weights = engine.weights(&problem, &inputs, some.clone()).unwrap();
        assert_eq!((weights.shape, &weights.keys), (true_weights.shape, &true_weights.keys));
        let error = worst(&weights.weights, &true_weights.weights);
        if error > weights_allowed {
            return Err(format!(
                "{isa}: weights are off by {error:e}, allowed {weights_allowed:e}"
            ));
        }
    }
    Ok(true_lse.iter().map(|&x| x == f64::from(DEGENERATE)).collect())
}

#[test]
fn cpu_matches_the_oracle_on_f16() {
    for seed in 0..setting("LOCAL_ATTENTION_CASES", 1000) / 4 {
        let case = Case::decode(&list(seed));
        let (problem, inputs) = (case.problem(), case.half());
        let budget = ErrorBudget::measure_call(&problem, &inputs, &case.call).unwrap();
        let got = Cpu::new().forward(&problem, &inputs, &case.call).unwrap();
        let got: Vec<f32> = got.out.iter().map(|x| x.to_f32()).collect();
        let error = worst(&got, &budget.oracle);
        assert!(
            error <= budget.allowed(),
            "seed {seed}: off by {error:e}, allowed {:e}\n{case:?}",
            budget.allowed()
        );
    }
}

/// The same bits whatever the number of threads, and however queries are cut into calls.
#[test]
fn cpu_is_deterministic() {
    let engines: Vec<_> = [1, 2, 3].into_iter().map(|n| Cpu::with_threads(n).unwrap()).collect();
    for seed in 0..60 {
        let case = Case::decode(&list(1_000_000 + seed));
        let problem = case.problem();
        let all = engines[0].forward(&problem, &case.inputs(), &case.call).unwrap();
        for engine in &engines[1..] {
            let other = engine.forward(&problem, &case.inputs(), &case.call).unwrap();
            assert_eq!(
                bits(&other.out),
                bits(&all.out),
                "seed {seed}, {} threads",
                engine.threads()
            );
        }
        let (s, d, dv) = (&case.shape, case.shape.head_dim, case.shape.value_dim);
        let whole = s.query.len();
        for cut in [whole / 3, whole / 2, whole - 1] {
            for part in [0..cut, cut..whole] {
                let range = s.query.start + part.start..s.query.start + part.end;
                let mut piece = case.clone();
                piece.shape.query = range;
                piece.q = case
                    .q
                    .chunks(whole * d)
                    .flat_map(|row| row[part.start * d..part.end * d].to_vec())
                    .collect();
                let got =
                    engines[1].forward(&piece.problem(), &piece.inputs(), &case.call).unwrap();
                let expected: Vec<f32> = all
                    .out
                    .chunks(whole * dv)
                    .flat_map(|row| row[part.start * dv..part.end * dv].to_vec())
                    .collect();
                assert_eq!(
                    bits(&got.out),
                    bits(&expected),
                    "seed {seed}, queries {part:?} of {whole}"
                );
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
