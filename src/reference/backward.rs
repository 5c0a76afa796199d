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
use crate::gradients::{Shapes, SharedRows};
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
    let shapes = Shapes::new(problem, inputs, saved);
    let mut gradients = Sums {
        dq: zeros("dq", &shapes.dq)?,
        dk: zeros("dk", &shapes.dk)?,
        dv: zeros("dv", &shapes.dv)?,
        bias: shapes.bias.as_deref().map(|b| zeros("dattn_bias", b)).transpose()?,
        k_rows: shapes.k_rows,
        v_rows: shapes.v_rows,
    };
    let keep = KeepMask::new(problem.dropout, call);
    let mut failed = Ok(());
    each_query_seen(problem, inputs, problem.shape.query.clone(), None, |seen| {
        if failed.is_ok() {
            failed = gradients.add(problem, inputs, saved, keep.as_ref(), seen);
        }
    })?;
    failed?;
    let gradient = |data, shape| Gradient { data, shape };
    Ok(Gradients {
        dq: gradient(gradients.dq, shapes.dq),
        dk: gradient(gradients.dk, shapes.dk),
        dv: gradient(gradients.dv, shapes.dv),
        dattn_bias: gradients.bias.zip(shapes.bias).map(|(data, shape)| gradient(data, shape)),
    })
}

struct Sums<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    /// Where it is wanted.
    bias: Option<Vec<T>>,
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
            if let Some((sums, bias)) = self.bias.as_mut().zip(shape.bias) {
                let row = (b % bias.rows * bias.queries + t % geometry.window() % bias.queries)
                    * bias.slots;
                for slot in span.slots.clone() {
                    sums[row + slot % bias.slots] += by_logit;
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
