//! Gradients of random cases, and how far an engine's may be off.

use local_attention::{
    BackwardInputs, Element, Engine, ErrorBudget, Forward, Gradients, HostInputs, HostTensor,
    Reference,
};

use super::{Case, DEGENERATE, Noise, list};

/// A case with `lse`.
pub fn case(seed: u64) -> Case {
    let mut case = Case::decode(&list(seed));
    case.shape = case.shape.with_lse();
    case
}

pub fn dout(case: &Case) -> Vec<f32> {
    let n = case.problem().out_shape().iter().product();
    Noise::new(7).normals(n)
}

/// The gradients of an engine, from its own forward pass.
pub fn gradients<T: Element, E: Engine<T>>(
    engine: &E,
    case: &Case,
    inputs: &HostInputs<'_, T>,
    dout: &[T],
) -> Gradients<T> {
    let problem = case.problem();
    let forward = engine.forward(&problem, inputs, &case.call).unwrap();
    backward(engine, case, inputs, &forward, dout)
}

pub fn backward<T: Element, E: Engine<T>>(
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
pub fn parts<T: Element>(g: &Gradients<T>) -> Vec<(&'static str, Vec<usize>, Vec<f64>)>
where
    T::Accumulator: Into<f64>,
{
    let all = [("dq", Some(&g.dq)), ("dk", Some(&g.dk)), ("dv", Some(&g.dv))];
    let all = all.into_iter().chain([("dattn_bias", g.dattn_bias.as_ref())]);
    let wide = |x: &[T]| x.iter().map(|x| x.load().into()).collect();
    all.filter_map(|(name, g)| g.map(|g| (name, g.shape.clone(), wide(&g.data)))).collect()
}

pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let error = (a - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

pub fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| x.abs().max(m))
}

/// How large what a gradient is a sum of may be, though it may cancel: gradients by logits are differences of
/// products of dout, an element of `dattn_bias` sums over many of them, and normalised keys divide by their norm.
pub fn sizes(
    case: &Case,
    name: &str,
    wide: &HostInputs<'_, f64>,
    dout: &[f64],
    out: &[f64],
) -> f64 {
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

/// What storing as f16 costs: rounding the gradient, and for all but dv the product with an output that was given
/// rounded, a random walk over features.
pub fn stored<T: Element>(name: &str, gradient: &[f64], product: f64, logits: f64) -> f64 {
    if size_of::<T>() != 2 {
        return 0.0;
    }
    let of_output = if name == "dv" { 0.0 } else { 4.0 * product * (1.0 + logits) };
    2_f64.powi(-11) * (2.0 * largest(gradient) + of_output)
}

/// The gradients of a case, and what an engine's are compared with.
pub struct Truth<T> {
    pub dout: Vec<T>,
    /// Of each packed row and query, whether it saw nothing.
    pub degenerate: Vec<bool>,
    truth: Vec<(&'static str, Vec<usize>, Vec<f64>)>,
    plain: Vec<(&'static str, Vec<usize>, Vec<f64>)>,
    sizes: Vec<f64>,
    logits: f64,
    product: f64,
}

impl<T: Element<Accumulator = f32>> Truth<T> {
    pub fn new(case: &Case, inputs: &HostInputs<'_, T>) -> Self {
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
        let products = wide_dout.chunks(case.shape.value_dim);
        let products = products.zip(forward.out.chunks(case.shape.value_dim));
        let product = products
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a * b).powi(2)).sum::<f64>().sqrt())
            .fold(0.0, f64::max);
        let size = |(name, _, y): &(&'static str, Vec<usize>, Vec<f64>)| {
            largest(y).max(sizes(case, name, &wide, &wide_dout, &forward.out))
        };
        let sizes = truth.iter().map(size).collect();
        let empty = |x: &f64| *x == f64::from(DEGENERATE);
        let degenerate = forward.lse.iter().flatten().map(empty).collect();
        Self { dout, degenerate, truth, plain, sizes, logits, product }
    }

    /// Within twice the error of the plain evaluation, and roundings.
    pub fn check(&self, got: &Gradients<T>) -> Result<(), String> {
        let got = parts(got);
        if got.len() != self.truth.len() {
            return Err(format!("{} gradients of {}", got.len(), self.truth.len()));
        }
        let expected = self.truth.iter().zip(&self.plain).zip(&self.sizes);
        for ((name, shape, x), (((_, true_shape, y), (_, _, z)), size)) in got.iter().zip(expected)
        {
            assert_eq!(shape, true_shape);
            let roundings = size * 16.0 * 2_f64.powi(-24) * (1.0 + self.logits);
            let allowed =
                2.0 * worst(z, y) + roundings + stored::<T>(name, y, self.product, self.logits);
            let error = worst(x, y);
            if error > allowed {
                let (plain, logits) = (worst(z, y), self.logits);
                return Err(format!(
                    "{name} is off by {error:e}, allowed {allowed:e}, plain {plain:e}, size {size}, logits {logits}"
                ));
            }
        }
        Ok(())
    }
}
