//! How far a result may be from the oracle's.

use crate::reference::{DEGENERATE_LSE, SELF_LOGIT, each_query};
use crate::{Call, Element, Engine, HostInputs, Problem, Reference, RunError, Scalar};

/// The error an f32 engine is allowed on given inputs, by what a plain f32 evaluation of the same
/// inputs is off by: `2 * err_plain + 4 * 2^-24 * max|v| * (1 + max|logit|)`.
///
/// For f16 tensors the plain evaluation rounds its output to f16.
///
/// ```
/// use local_attention::{
///     AttentionShape, ErrorBudget, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
/// };
///
/// let x = HostTensor::new(vec![0.5_f32; 12], [1, 6, 2])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x);
/// let problem = LocalAttention::new(LocalAttentionConfig::new(3))?
///     .problem(&AttentionShape::from_inputs(&inputs)?)?;
/// assert!(ErrorBudget::measure(&problem, &inputs)?.allowed() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ErrorBudget {
    /// The oracle's output, in f64.
    pub oracle: Vec<f64>,
    /// The largest error of the plain evaluation.
    pub err_plain: f64,
    /// The largest absolute finite value, 1 at least where slots outside the sequence count.
    pub max_value: f64,
    /// The largest absolute logit of a visible key.
    pub max_logit: f64,
}

impl ErrorBudget {
    /// By how much farther than by its slots all is rotated in evaluations with f16 products, one after the other: engines
    /// count positions from where they like, roundings depend on it, and those of one evaluation of few numbers may be
    /// lucky, as they are at position 0, where there are none. Without rotary embeddings all are the same.
    pub fn turns(problem: &Problem) -> &'static [u32] {
        const TURNS: [u32; 16] = [0, 1, 3, 7, 13, 23, 41, 57, 74, 97, 118, 151, 187, 211, 239, 260];
        if problem.rotary.is_some() { &TURNS } else { &TURNS[..1] }
    }

    /// Runs the oracle in f64 and in f32.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub fn measure<T: Element>(
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
    ) -> Result<Self, RunError> {
        Self::measure_call(problem, inputs, &Call::default())
    }

    /// The same for a call with dropout.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub fn measure_call<T: Element>(
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Self, RunError> {
        Self::measure_plain(problem, inputs, call, &[Reference::new()])
    }

    /// The same of an engine that multiplies on matrix units: the plain evaluation rounds what is multiplied to f16 too, as
    /// [`Reference::with_f16_products`] says, and `err_plain` is the largest of all
    /// [`turns`](Self::turns).
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub fn measure_f16_products<T: Element>(
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Self, RunError> {
        let plain = |turn: &u32| Reference::new().with_f16_products(*turn);
        let plain: Vec<_> = Self::turns(problem).iter().map(plain).collect();
        Self::measure_plain(problem, inputs, call, &plain)
    }

    fn measure_plain<T: Element>(
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
        plain: &[Reference<f32>],
    ) -> Result<Self, RunError> {
        let mut with_lse = problem.clone();
        with_lse.shape.lse = true;
        let wide = inputs.map(|x| x.load().wide());
        let truth = Reference::<f64>::new();
        let oracle = truth.forward(&with_lse, &wide, call)?;
        let narrow = inputs.map(|x| x.load().wide() as f32);
        let stored = |x: f32| T::store(T::Accumulator::of(f64::from(x))).load().wide();
        let mut err_plain = 0.0;
        for plain in plain {
            let out = plain.forward(problem, &narrow, call)?.out;
            let errors = out.iter().zip(&oracle.out).map(|(&x, &y)| (stored(x) - y).abs());
            err_plain = errors.fold(err_plain, f64::max);
        }
        let degenerate = oracle.lse.iter().flatten().any(|&x| x == DEGENERATE_LSE);
        let least = if degenerate { 1.0 } else { 0.0 };
        let finite = wide.v.iter().map(f64::abs).filter(|x| x.is_finite());
        let max_value = finite.fold(least, f64::max);
        let dropped = call.dropout.map_or(1.0, |_| 1.0 / (1.0 - problem.dropout));
        Ok(Self {
            oracle: oracle.out,
            err_plain,
            max_value: max_value * dropped,
            max_logit: max_abs_logit(problem, &wide)?,
        })
    }

    /// The largest error allowed.
    pub fn allowed(&self) -> f64 {
        2.0 * self.err_plain + 4.0 * 2_f64.powi(-24) * self.max_value * (1.0 + self.max_logit)
    }
}

/// The largest absolute finite logit that a query has for a key it sees: what rounding errors of
/// the weights scale with.
fn max_abs_logit(problem: &Problem, inputs: &HostInputs<'_, f64>) -> Result<f64, RunError> {
    let mut largest = 0.0_f64;
    each_query(problem, inputs, problem.shape.query.clone(), |_, _, row| {
        // The self rule's logit is a constant that nothing rounds.
        let own = |l: &f64| problem.shared_qk && *l == SELF_LOGIT;
        let logits = row.spans.iter().filter_map(|s| s.logit).filter(|l| !own(l));
        largest = logits.map(f64::abs).filter(|l| l.is_finite()).fold(largest, f64::max);
    })?;
    Ok(largest)
}
