//! The oracle's gradients: the chain rule through `reference.rs`, slot by slot. It uses neither `out` nor `lse` of the
//! forward pass, but computes the weights again.
//!
//! With weights P, kept by factors D (1 without dropout), and dP = D (dout . v):
//! dS = P (dP - sum P dP), which is 0 for hidden slots and for the constant logit of the self rule;
//! dv = sum over queries of P D dout, dq = scale R^T sum dS k', dk = R^T sum dS q', then through the normalisation
//! of keys; dattn_bias = sum dS.

use super::{DEGENERATE_LSE, Holds, Seen, each_query_seen};
use crate::dropout::KeepMask;
use crate::engine::zeros;
use crate::gradients::SharedRows;
use crate::{
    BackwardInputs, Call, Element, Gradient, Gradients, HostInputs, Problem, RunError, Scalar,
};

pub(super) fn backward<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    saved: &BackwardInputs<'_, T>,
    call: &Call,
) -> Result<Gradients<T>, RunError> {
    problem.check_backward(inputs, saved)?;
    let shape = &problem.shape;
    let (d, dv, keys) = (shape.head_dim, shape.value_dim, shape.key_len);
    let (k_rows, v_rows) = (SharedRows::new(&inputs.k), SharedRows::new(&inputs.v));
    let queries = shape.query.len();
    let mut gradients = Sums {
        dq: zeros("dq", &[problem.batch, queries, d])?,
        dk: zeros("dk", &[k_rows.rows(), keys, d])?,
        dv: zeros("dv", &[v_rows.rows(), keys, dv])?,
        bias: Vec::new(),
        k_rows,
        v_rows,
    };
    let bias_shape = shape.bias.filter(|_| saved.bias_gradient);
    if let Some(b) = bias_shape {
        gradients.bias = zeros("dattn_bias", &[b.rows, b.queries, b.slots])?;
    }
    let keep = KeepMask::new(problem.dropout, call);
    let mut failed = Ok(());
    each_query_seen(problem, inputs, shape.query.clone(), |seen| {
        if failed.is_ok() {
            failed = gradients.add(problem, inputs, saved, keep.as_ref(), seen);
        }
    })?;
    failed?;
    Ok(Gradients {
        dq: Gradient { data: gradients.dq, shape: [&shape.leading[..], &[queries, d]].concat() },
        dk: Gradient { data: gradients.dk, shape: gradients.k_rows.shape(keys, d) },
        dv: Gradient { data: gradients.dv, shape: gradients.v_rows.shape(keys, dv) },
        dattn_bias: bias_shape
            .map(|b| Gradient { data: gradients.bias, shape: vec![b.rows, b.queries, b.slots] }),
    })
}

struct Sums<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    /// Empty where it is not wanted.
    bias: Vec<T>,
    k_rows: SharedRows,
    v_rows: SharedRows,
}

impl<T: Scalar + Element<Accumulator = T>> Sums<T> {
    /// Adds what one query contributes.
    fn add(
        &mut self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        keep: Option<&KeepMask>,
        mut seen: Seen<'_, '_, T>,
    ) -> Result<(), RunError> {
        let (shape, geometry) = (&problem.shape, &problem.geometry);
        let (b, t) = (seen.b, seen.t);
        let (d, dv) = (shape.head_dim, shape.value_dim);
        let kv_row = problem.kv_row(b);
        let i = t - shape.query.start;
        let empty = seen.row.softmax(problem.uniform_masked_rows) == T::of(DEGENERATE_LSE);
        let v = inputs.v.packed_row(kv_row, 2);
        let dout_row = saved.dout.packed_row(b, 2);
        let dout: Vec<T> = (0..dv).map(|e| dout_row.at(i, e)).collect();
        let kept = |slot: usize| T::of(keep.map_or(1.0, |keep| keep.factor(b, t, slot)));
        // The gradient by the weight of a slot, before and after dropout is the same: dropped ones have none.
        let by_weight = |span: &super::Span<T>| -> T {
            match span.holds {
                Holds::Key(u) => {
                    let dot: T = dout.iter().enumerate().map(|(e, &x)| x * v.at(u, e)).sum();
                    kept(span.slots.start) * dot
                }
                Holds::Zero => T::zero(),
                // Without a weight unless the row sees nothing, and then nothing depends on it.
                Holds::Pad => T::zero(),
            }
        };
        let weighted = seen.row.spans.iter().filter(|s| s.weight != T::zero());
        for span in weighted {
            let Holds::Key(u) = span.holds else { continue };
            let weight = span.weight * kept(span.slots.start);
            let to = (self.v_rows.of(kv_row) * shape.key_len + u) * dv;
            for (to, &x) in self.dv[to..to + dv].iter_mut().zip(&dout) {
                *to += weight * x;
            }
        }
        if empty {
            return Ok(());
        }
        let visible =
            || seen.row.spans.iter().filter(|s| s.logit.is_some() && s.weight != T::zero());
        let mean: T =
            visible().map(|s| s.weight * by_weight(s) * T::of(s.slots.len() as f64)).sum();
        let mut dq: Vec<T> = zeros("features", &[d])?;
        let mut buffer: Vec<T> = zeros("features", &[d])?;
        let mut dkey: Vec<T> = zeros("features", &[d])?;
        let (window, position) = (geometry.window_of(t), geometry.rotary_position(t) as i64);
        for span in visible() {
            let own = geometry.slot_of(window, t);
            if problem.shared_qk && span.slots.contains(&own) {
                continue;
            }
            let by_logit = span.weight * (by_weight(span) - mean);
            if let Some(bias) = shape.bias.filter(|_| !self.bias.is_empty()) {
                let row = (b % bias.rows * bias.queries + t % geometry.window() % bias.queries)
                    * bias.slots;
                for slot in span.slots.clone() {
                    self.bias[row + slot % bias.slots] += by_logit;
                }
            }
            let Holds::Key(u) = span.holds else { continue };
            let slot = span.slots.start;
            let key = seen.key(u, d);
            let tables = seen.tables;
            let decay =
                tables.and_then(|x| x.xpos(position - slot as i64, &mut buffer)).map(<[T]>::to_vec);
            let factor = |c: usize| decay.as_ref().map_or(T::one(), |f| f[c % f.len()]);
            for c in 0..d {
                dq[c] += by_logit * key[c] * factor(c);
                dkey[c] = by_logit * seen.query[c] * factor(c);
            }
            if let Some(tables) = tables {
                tables.rotate_back(&mut dkey, slot as i64, &mut buffer);
            }
            let k = inputs.k.packed_row(kv_row, 2);
            if problem.shared_qk {
                let raw: Vec<T> = (0..d).map(|c| k.at(u, c)).collect();
                normalise_back(&raw, &mut dkey);
            }
            let to = (self.k_rows.of(kv_row) * shape.key_len + u) * d;
            for (to, &x) in self.dk[to..to + d].iter_mut().zip(&dkey) {
                *to += x;
            }
        }
        if let Some(tables) = seen.tables {
            tables.rotate_back(&mut dq, position, &mut buffer);
        }
        let at = (b * shape.query.len() + i) * d;
        for (to, x) in self.dq[at..at + d].iter_mut().zip(dq) {
            *to = x * T::of(problem.scale);
        }
        Ok(())
    }
}

/// From the gradient by a normalised key to that by the key: (g - y (y . g)) / |x| with y = x / |x|; where the norm is
/// below 1e-12 the divisor is that constant.
fn normalise_back<T: Scalar>(x: &[T], gradient: &mut [T]) {
    let norm = x.iter().map(|&x| x * x).sum::<T>().sqrt();
    let least = T::of(1e-12);
    if norm < least {
        gradient.iter_mut().for_each(|g| *g = *g / least);
        return;
    }
    let along: T = x.iter().zip(&*gradient).map(|(&x, &g)| x / norm * g).sum();
    for (g, &x) in gradient.iter_mut().zip(x) {
        *g = (*g - x / norm * along) / norm;
    }
}
