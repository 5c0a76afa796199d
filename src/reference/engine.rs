//! The oracle as an engine: values added up by the weights of `reference.rs`.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Holds, PAD_VALUE, SELF_LOGIT, each_query};
use crate::dropout::KeepMask;
use crate::engine::zeros;
use crate::{Call, Element, Engine, Forward, HostInputs, Problem, RunError, Scalar, Weights};

/// The oracle engine, computing in `T`: `f64` is the truth, `f32` the plain evaluation that error
/// budgets are measured by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference<T>(PhantomData<T>);

impl<T> Reference<T> {
    /// The oracle.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Scalar + Element<Accumulator = T>> Reference<T> {
    /// The largest absolute finite logit that a query has for a key it sees: what rounding errors
    /// of the weights scale with.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub fn max_abs_logit(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
    ) -> Result<f64, RunError> {
        let mut largest = 0.0_f64;
        each_query(problem, inputs, problem.shape.query.clone(), |_, _, row| {
            // The self rule's logit is a constant that nothing rounds.
            let own = |l: &f64| problem.shared_qk && *l == SELF_LOGIT;
            let logits = row.spans.iter().filter_map(|s| s.logit.map(T::wide)).filter(|l| !own(l));
            largest = logits.map(f64::abs).filter(|l| l.is_finite()).fold(largest, f64::max);
        })?;
        Ok(largest)
    }
}

impl<T: Scalar + Element<Accumulator = T>> Engine<T> for Reference<T> {
    fn forward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, RunError> {
        let (queries, features) = (problem.shape.query.len(), problem.shape.value_dim);
        let mut out: Vec<T> = zeros("out", &[problem.batch, queries, features])?;
        let mut lse: Vec<T> = zeros("lse", &[problem.batch, queries])?;
        let keep = KeepMask::new(problem.dropout, call);
        each_query(problem, inputs, problem.shape.query.clone(), |b, t, row| {
            let at = b * queries + t - problem.shape.query.start;
            let (weights, row_lse) = row.softmax(problem.uniform_masked_rows);
            lse[at] = row_lse;
            let v = inputs.v.packed_row(problem.kv_row(b), 2);
            for (span, weight) in row.spans.iter().zip(weights) {
                if weight == T::zero() || span.holds == Holds::Zero {
                    continue;
                }
                let kept: T = match &keep {
                    None => T::of(span.slots.len() as f64),
                    Some(keep) => {
                        let factors = span.slots.clone().map(|slot| keep.factor(b, t, slot));
                        T::of(factors.sum())
                    }
                };
                for e in 0..features {
                    out[at * features + e] += weight
                        * kept
                        * match span.holds {
                            Holds::Key(u) => v.at(u, e),
                            Holds::Zero => T::zero(),
                            Holds::Pad => T::of(PAD_VALUE),
                        };
                }
            }
        })?;
        Ok(Forward { out, shape: problem.out_shape(), lse: problem.shape.lse.then_some(lse) })
    }

    fn weights(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
    ) -> Result<Weights<T>, RunError> {
        problem.check_queries(&queries)?;
        let shape = [problem.batch, queries.len(), problem.geometry.slots()];
        let mut all: Vec<T> = zeros("attention weights", &shape)?;
        each_query(problem, inputs, queries.clone(), |b, t, row| {
            let at = (b * shape[1] + t - queries.start) * shape[2];
            let (weights, _) = row.softmax(problem.uniform_masked_rows);
            for (span, weight) in row.spans.iter().zip(weights) {
                all[at..at + shape[2]][span.slots.clone()].fill(weight);
            }
        })?;
        Ok(Weights { weights: all, shape, keys: problem.slot_positions(queries)? })
    }
}
