//! The oracle as an engine: values added up by the weights of `reference.rs`.

use std::marker::PhantomData;
use std::ops::Range;

use super::backward::backward;
use super::{DEGENERATE_LSE, Holds, PAD_VALUE, Seen, Span, each_query, each_query_seen, to_f16};
use crate::dropout::KeepMask;
use crate::engine::zeros;
use crate::{
    BackwardInputs, Call, Element, Engine, Forward, Gradients, HostInputs, Problem, RunError,
    Scalar, Weights,
};

/// The oracle engine, computing in `T`: `f64` is the truth, `f32` the plain evaluation that error
/// budgets are measured by.
///
/// ```
/// use local_attention::{
///     AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
///     Reference,
/// };
///
/// let x = HostTensor::new(vec![0.5_f64; 12], [1, 6, 2])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x);
/// let problem = LocalAttention::new(LocalAttentionConfig::new(3))?
///     .problem(&AttentionShape::from_inputs(&inputs)?)?;
/// let truth = Reference::<f64>::new().forward(&problem, &inputs, &Call::default())?;
/// assert!(truth.out.iter().all(|x| (x - 0.5).abs() < 1e-15));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference<T> {
    f16_products: Option<u32>,
    element: PhantomData<T>,
}

impl<T> Reference<T> {
    /// The oracle.
    pub fn new() -> Self {
        Self { f16_products: None, element: PhantomData }
    }

    /// Rounds what is multiplied in a forward pass to f16, as matrix units take it: rotated queries and keys, and weights.
    /// The plain evaluation that kernels with matrices are measured by ([`ErrorBudget`](crate::ErrorBudget)).
    ///
    /// `turn`: by how many positions all is rotated farther, which changes no product but for what rounding makes of it:
    /// engines count positions from where they like.
    #[must_use]
    pub fn with_f16_products(self, turn: u32) -> Self {
        Self { f16_products: Some(turn), ..self }
    }
}

impl<T: Scalar + Element<Accumulator = T>> Engine<T> for Reference<T> {
    fn forward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, RunError> {
        problem.check_inputs(inputs)?;
        let (queries, features) = (problem.shape.query.len(), problem.shape.value_dim);
        let mut out: Vec<T> = zeros("out", &[problem.batch, queries, features])?;
        let mut lse: Vec<T> =
            zeros("lse", &[problem.batch, if problem.shape.lse { queries } else { 0 }])?;
        let keep = KeepMask::new(problem.dropout, call);
        // Without a result there is nothing to compute, however many rows it has.
        let wanted =
            if out.is_empty() && lse.is_empty() { 0..0 } else { problem.shape.query.clone() };
        each_query_seen(
            problem,
            inputs,
            wanted,
            self.f16_products,
            |Seen { b, t, mut row, .. }| {
                let at = b * queries + t - problem.shape.query.start;
                let row_lse = row.softmax(problem.uniform_masked_rows);
                if let Some(lse) = lse.get_mut(at) {
                    *lse = row_lse;
                }
                let rounds = self.f16_products.is_some() && row_lse != T::of(DEGENERATE_LSE);
                let f16_sum = if rounds { row.f16_sum(row_lse) } else { T::one() };
                let v = inputs.v.packed_row(problem.kv_row(b), 2);
                let counts = |s: &&Span<T>| s.weight != T::zero() && s.holds != Holds::Zero;
                for span in row.spans.iter().filter(counts) {
                    let kept: T = match &keep {
                        None => T::of(span.slots.len() as f64),
                        Some(keep) => {
                            let factors = span.slots.clone().map(|slot| keep.factor(b, t, slot));
                            T::of(factors.sum())
                        }
                    };
                    let mut weight = span.weight * kept;
                    if rounds {
                        weight = to_f16(weight * f16_sum) / f16_sum;
                    }
                    for e in 0..features {
                        let value = match span.holds {
                            Holds::Key(u) => v.at(u, e),
                            Holds::Zero => T::zero(),
                            Holds::Pad => T::of(PAD_VALUE),
                        };
                        out[at * features + e] += weight * value;
                    }
                }
            },
        )?;
        Ok(Forward { out, shape: problem.out_shape(), lse: problem.shape.lse.then_some(lse) })
    }

    fn backward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, RunError> {
        backward(problem, inputs, saved, call)
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
        each_query(problem, inputs, queries.clone(), |b, t, mut row| {
            let at = (b * shape[1] + t - queries.start) * shape[2];
            row.softmax(problem.uniform_masked_rows);
            for span in &row.spans {
                all[at..at + shape[2]][span.slots.clone()].fill(span.weight);
            }
        })?;
        Ok(Weights { weights: all, shape, keys: problem.slot_positions(queries)? })
    }
}
