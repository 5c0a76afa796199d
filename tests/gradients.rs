//! Gradients of the CPU engine against the f64 oracle's, and the oracle's against central differences of its
//! forward pass, on random cases; the same bits whatever the number of threads.
//!
//! `LOCAL_ATTENTION_CASES` sets the number of cases (default 500), `LOCAL_ATTENTION_SEED` the first.

mod common;

use common::{CHOICES, Case, Noise};
use local_attention::cpu::{Cpu, Isa};
use local_attention::{
    BackwardInputs, Element, Engine, ErrorBudget, Forward, Gradients, HostInputs, HostTensor,
    Reference,
};
use rayon::prelude::*;

fn list(seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed as usize);
    (0..CHOICES).map(|_| noise.bits() as u32).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect(name))
}

/// A case without what has no gradient: biases of which minus infinity is not the only infinite value, and
/// hidden numbers that are none.
fn case(seed: u64) -> Case {
    let mut case = Case::decode(&list(seed));
    case.shape = case.shape.with_lse();
    case
}

fn dout(case: &Case) -> Vec<f32> {
    let n = case.problem().out_shape().iter().product();
    Noise::new(7).normals(n)
}

/// The gradients of an engine, from its own forward pass.
fn gradients<T: Element, E: Engine<T>>(
    engine: &E,
    case: &Case,
    inputs: &HostInputs<'_, T>,
    dout: &[T],
) -> Gradients<T> {
    let problem = case.problem();
    let forward = engine.forward(&problem, inputs, &case.call).unwrap();
    backward(engine, case, inputs, &forward, dout)
}

fn backward<T: Element, E: Engine<T>>(
    engine: &E,
    case: &Case,
    inputs: &HostInputs<'_, T>,
    forward: &Forward<T>,
    dout: &[T],
) -> Gradients<T> {
    let problem = case.problem();
    let dout = HostTensor::new(dout, problem.out_shape()).unwrap();
    let saved = BackwardInputs::new(&problem, forward, dout).unwrap();
    engine.backward(&problem, inputs, &saved, &case.call).unwrap()
}

/// Each gradient by name, in f64.
fn parts<T: Element>(g: &Gradients<T>) -> Vec<(&'static str, Vec<usize>, Vec<f64>)>
where
    T::Accumulator: Into<f64>,
{
    let all = [("dq", Some(&g.dq)), ("dk", Some(&g.dk)), ("dv", Some(&g.dv))];
    let all = all.into_iter().chain([("dattn_bias", g.dattn_bias.as_ref())]);
    let wide = |x: &[T]| x.iter().map(|x| x.load().into()).collect();
    all.filter_map(|(name, g)| g.map(|g| (name, g.shape.clone(), wide(&g.data)))).collect()
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let error = (a - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| x.abs().max(m))
}

/// How large what a gradient is a sum of may be, though it may cancel: gradients by logits are differences of
/// products of dout, an element of `dattn_bias` sums over many of them, and normalised keys divide by their norm.
fn sizes(case: &Case, name: &str, wide: &HostInputs<'_, f64>, dout: &[f64], out: &[f64]) -> f64 {
    let s = &case.shape;
    let width = s.value_dim;
    let products = dout.chunks(width).zip(out.chunks(width));
    let products = products.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>());
    let product = products.fold(1.0, f64::max);
    match (name, s.bias) {
        ("dattn_bias", Some(bias)) => {
            let queries = case.problem().batch() * s.query.len() / bias.rows / bias.queries;
            product * (queries.max(1) as f64).sqrt()
        }
        ("dk", _) if case.config.shared_qk => {
            let keys: Vec<_> = wide.k.iter().collect();
            let norms =
                keys.chunks(s.head_dim).map(|k| k.iter().map(|x| x * x).sum::<f64>().sqrt());
            product / norms.fold(1.0, f64::min)
        }
        _ => product,
    }
}

/// Compares an engine's gradients with the oracle's: within twice the error of the plain evaluation, and roundings.
fn check<T: Element<Accumulator = f32>>(
    case: &Case,
    inputs: &HostInputs<'_, T>,
) -> Result<(), String>
where
    Cpu: Engine<T>,
{
    let problem = case.problem();
    let dout: Vec<T> = dout(case).into_iter().map(T::store).collect();
    let wide = inputs.map(|x| f64::from(x.load()));
    let narrow = inputs.map(|x| x.load());
    let wide_dout: Vec<f64> = dout.iter().map(|x| f64::from(x.load())).collect();
    let narrow_dout: Vec<f32> = dout.iter().map(|x| x.load()).collect();
    let oracle = Reference::<f64>::new();
    let forward = oracle.forward(&problem, &wide, &case.call).unwrap();
    let truth = parts(&backward(&oracle, case, &wide, &forward, &wide_dout));
    let plain = parts(&gradients(&Reference::<f32>::new(), case, &narrow, &narrow_dout));
    let logits = ErrorBudget::measure_call(&problem, inputs, &case.call).unwrap().max_logit;
    for isa in Isa::available() {
        let engine = Cpu::new().with_isa(isa).unwrap();
        let got = parts(&gradients(&engine, case, inputs, &dout));
        for (((name, shape, x), (_, true_shape, y)), (_, _, z)) in
            got.iter().zip(&truth).zip(&plain)
        {
            assert_eq!(shape, true_shape);
            let size = largest(y).max(sizes(case, name, &wide, &wide_dout, &forward.out));
            // The output is given as it is stored: rounded, and its product with dout is a sum over features.
            let features = (case.shape.value_dim as f64).sqrt();
            let stored = if size_of::<T>() == 2 { 2_f64.powi(-10) * (1.0 + features) } else { 0.0 };
            let roundings = 16.0 * 2_f64.powi(-24) + stored;
            let allowed = 2.0 * worst(z, y) + size * roundings * (1.0 + logits);
            let error = worst(x, y);
            if error > allowed {
                return Err(format!(
                    "{isa}: {name} is off by {error:e}, allowed {allowed:e}, plain {:e}, size {size}, logits {logits}",
                    worst(z, y)
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn cpu_matches_the_oracle() {
    let first = setting("LOCAL_ATTENTION_SEED", 0) * 1_000_000;
    let cases = setting("LOCAL_ATTENTION_CASES", 500);
    let failures: Vec<_> = (first..first + cases)
        .into_par_iter()
        .filter_map(|seed| {
            let case = case(seed);
            let error = check(&case, &case.inputs()).err()?;
            Some(format!(
                "seed {seed}: {error}\n{:?}\n{:?}\n{:?}",
                case.config, case.quirks, case.shape
            ))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {cases}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn cpu_matches_the_oracle_on_f16() {
    for seed in 0..setting("LOCAL_ATTENTION_CASES", 500) / 5 {
        let case = case(seed);
        if let Err(e) = check(&case, &case.half()) {
            panic!("seed {seed}: {e}\n{:?}", case.config);
        }
    }
}
