//! The oracle: the definition of the operation, in plain loops.
//!
//! For every query it lists the slots of the query's window, each with what it stands for (a real
//! key, a zero of autopad, or nothing) and its logit (none where it is hidden), takes the softmax
//! over them, and adds up values. Neighbouring slots that cannot differ are listed as one, so that
//! a window far larger than the sequence costs what the sequence costs. The formulas are those of
//! the PyTorch module, in its order.

mod engine;

use std::ops::Range;

use crate::rotary::RotaryTables;
use crate::scalar::clamp_bias;
use crate::{Element, HostInputs, Problem, RunError, Scalar};
pub use engine::Reference;

/// The logit a query has for its own position under `shared_qk`.
pub(crate) const SELF_LOGIT: f64 = -5e4;
/// The value of slots outside the sequence, seen only by rows that see nothing else.
pub(crate) const PAD_VALUE: f64 = -1.0;
/// `lse` of a row that sees nothing.
pub(crate) const DEGENERATE_LSE: f64 = -(f32::MAX as f64);

/// What a slot stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Holds {
    Key(usize),
    Zero,
    Pad,
}

/// Neighbouring slots that hold the same and have the same logit; `None`: hidden.
struct Span<T> {
    slots: Range<usize>,
    holds: Holds,
    logit: Option<T>,
}

/// All slots of one query.
struct Row<T> {
    spans: Vec<Span<T>>,
}

impl<T: Scalar> Row<T> {
    /// The weight of one slot of each span, and the log of the sum of exponentials.
    fn softmax(&self, uniform_masked_rows: bool) -> (Vec<T>, T) {
        let count = |s: &Span<T>| T::of(s.slots.len() as f64);
        let visible = || self.spans.iter().filter_map(|s| Some((s.logit?, count(s))));
        // Not `max`, which drops NaN.
        let max =
            visible().fold(T::neg_infinity(), |m, (x, _)| if m.is_nan() || x <= m { m } else { x });
        if max == T::neg_infinity() {
            let hidden: T = self.spans.iter().filter(|s| s.logit.is_none()).map(count).sum();
            let each = if uniform_masked_rows { hidden.recip() } else { T::zero() };
            let weight = |s: &Span<T>| if s.logit.is_none() { each } else { T::zero() };
            return (self.spans.iter().map(weight).collect(), T::of(DEGENERATE_LSE));
        }
        let sum: T = visible().map(|(x, n)| (x - max).exp() * n).sum();
        let weight = |s: &Span<T>| s.logit.map_or(T::zero(), |x| (x - max).exp() / sum);
        (self.spans.iter().map(weight).collect(), max + sum.ln())
    }
}

/// Calls `each(packed batch row, query, its slots)` for every query of a range.
fn each_query<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    queries: Range<usize>,
    mut each: impl FnMut(usize, usize, Row<T>),
) -> Result<(), RunError> {
    problem.check_inputs(inputs)?;
    if queries.is_empty() || problem.batch == 0 {
        return Ok(());
    }
    let geometry = &problem.geometry;
    let windows = geometry.window_of(queries.start)..geometry.window_of(queries.end - 1) + 1;
    let tables = tables(problem, &queries, windows.clone());
    for b in 0..problem.batch {
        for window in windows.clone() {
            let keys = gather_keys(problem, inputs, tables.as_ref(), b, window);
            let first = queries.start.max(window * geometry.window());
            for t in first..queries.end.min((window + 1) * geometry.window()) {
                let q = load_query(problem, inputs, tables.as_ref(), b, t);
                each(b, t, list_slots(problem, inputs, tables.as_ref(), &q, &keys, b, t));
            }
        }
    }
    Ok(())
}

/// Rotary tables over the slots that hold a real key and the positions that queries take.
fn tables<T: Scalar>(
    problem: &Problem,
    queries: &Range<usize>,
    windows: Range<usize>,
) -> Option<RotaryTables<T>> {
    let geometry = &problem.geometry;
    let hull = |a: Range<i64>, x: usize| a.start.min(x as i64)..a.end.max(x as i64 + 1);
    let nothing = Range { start: i64::MAX, end: i64::MIN };
    let q = queries.clone().map(|t| geometry.rotary_position(t)).fold(nothing.clone(), hull);
    let k = windows.fold(nothing, |k, w| {
        let Range { start, end } = geometry.gathered(w);
        let end = end.min(geometry.key_len());
        if start >= end {
            return k;
        }
        hull(hull(k, geometry.slot_of(w, start)), geometry.slot_of(w, end - 1))
    });
    let lags = if k.is_empty() { 0..0 } else { q.start - k.end + 1..q.end - k.start };
    Some(RotaryTables::new(problem.rotary.as_ref()?, &[q, k], &[lags]))
}

/// The real keys that a window gathers, normalised and rotated, one after the other.
fn gather_keys<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    tables: Option<&RotaryTables<T>>,
    b: usize,
    window: usize,
) -> Vec<T> {
    let d = problem.shape.head_dim;
    let k = inputs.k.packed_row(problem.kv_row(b), 2);
    let Range { start, end } = problem.geometry.gathered(window);
    let mut keys = Vec::new();
    let mut buffer = vec![T::zero(); d];
    for u in start..end.min(problem.shape.key_len) {
        let mut key: Vec<T> = (0..d).map(|c| k.at(u, c)).collect();
        if problem.shared_qk {
            let norm = key.iter().map(|&x| x * x).sum::<T>().sqrt().max(T::of(1e-12));
            key.iter_mut().for_each(|x| *x = *x / norm);
        }
        if let Some(tables) = tables {
            tables.rotate(&mut key, problem.geometry.slot_of(window, u) as i64, &mut buffer);
        }
        keys.extend(key);
    }
    keys
}

/// One query, scaled and rotated.
fn load_query<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    tables: Option<&RotaryTables<T>>,
    b: usize,
    t: usize,
) -> Vec<T> {
    let d = problem.shape.head_dim;
    let view = inputs.q.packed_row(b, 2);
    let scale = T::of(problem.scale);
    let mut q: Vec<T> = (0..d).map(|c| view.at(t - problem.shape.query.start, c) * scale).collect();
    if let Some(tables) = tables {
        tables.rotate(&mut q, problem.geometry.rotary_position(t) as i64, &mut vec![T::zero(); d]);
    }
    q
}

/// Every slot of a query's window, with what it holds and its logit.
fn list_slots<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    tables: Option<&RotaryTables<T>>,
    q: &[T],
    keys: &[T],
    b: usize,
    t: usize,
) -> Row<T> {
    let (geometry, shape) = (&problem.geometry, &problem.shape);
    let window = geometry.window_of(t);
    let gathered = geometry.gathered(window);
    let visible = geometry.visible_range(t);
    let mask = inputs.effective_mask().zip(shape.mask);
    let mask = mask.map(|(m, s)| (m.packed_row(problem.mask_row(s, b), 1), s.len));
    let bias = inputs.attn_bias.as_ref().zip(shape.bias);
    let bias = bias.map(|(x, s)| (x.packed_row(b % s.rows, 2), s));

    // The logit of position u, given q.k: bias, then the self rule, then what is hidden.
    let logit = |u: usize, dot: T| {
        let masked = mask.as_ref().is_some_and(|(m, len)| u >= *len || !m.at1(u));
        if !visible.contains(&u) || masked {
            return None;
        }
        if problem.shared_qk && u == t {
            return Some(T::of(SELF_LOGIT));
        }
        Some(bias.as_ref().map_or(dot, |(x, s)| {
            let slot = geometry.slot_of(window, u);
            dot + clamp_bias(x.at(t % s.queries, if s.slots == 1 { 0 } else { slot }))
        }))
    };
    let mut buffer = vec![T::zero(); q.len()];
    let mut dot = |u: usize, k: &[T]| -> T {
        let lag = geometry.rotary_position(t) as i64 - geometry.slot_of(window, u) as i64;
        match tables.and_then(|x| x.xpos(lag, &mut buffer)) {
            // As if the query were the centre of the decay: its own factor is 1.
            Some(decay) => (0..q.len()).map(|c| q[c] * (k[c] * decay[c % decay.len()])).sum(),
            None => q.iter().zip(k).map(|(&a, &b)| a * b).sum(),
        }
    };

    let mut spans = Vec::new();
    let mut push = |slots: Range<usize>, holds, logit| {
        if !slots.is_empty() {
            spans.push(Span { slots, holds, logit });
        }
    };
    let first = geometry.slot_of(window, gathered.start);
    push(0..first, Holds::Pad, None);
    let real = gathered.start..gathered.end.min(shape.key_len);
    for (u, k) in real.zip(keys.chunks_exact(q.len())) {
        let slot = geometry.slot_of(window, u);
        push(slot..slot + 1, Holds::Key(u), logit(u, dot(u, k)));
    }
    // Zeros of autopad: alike between these cuts, unless a mask or a bias tells them apart.
    let mask_len = mask.as_ref().map_or(0, |(_, len)| *len);
    let bias_varies = bias.as_ref().is_some_and(|(_, s)| s.slots > 1);
    let cuts = [visible.start, visible.end, t, t + 1, mask_len];
    let mut u = shape.key_len.max(gathered.start);
    while u < gathered.end {
        let alike = !(bias_varies && visible.contains(&u)) && u >= mask_len;
        let cut = cuts.into_iter().filter(|&c| c > u).min().unwrap_or(usize::MAX);
        let end = if alike { cut.min(gathered.end) } else { u + 1 };
        let slot = geometry.slot_of(window, u);
        push(slot..slot + end - u, Holds::Zero, logit(u, T::zero()));
        u = end;
    }
    let last = geometry.slot_of(window, gathered.end);
    push(last..geometry.slots(), Holds::Pad, None);
    Row { spans }
}
