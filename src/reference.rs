//! The oracle: the definition of the operation, in plain loops.
//!
//! For every query it lists the slots of the query's window, each with what it stands for (a real
//! key, a zero of autopad, or nothing) and its logit (none where it is hidden), takes the softmax
//! over them, and adds up values. Neighbouring slots that cannot differ are listed as one, so that
//! a window far larger than the sequence costs what the sequence costs. The formulas are those of
//! the PyTorch module, in its order.

mod backward;
mod engine;

use std::ops::Range;

use crate::engine::{reserve, zeros};
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
pub(crate) struct Span<T> {
    slots: Range<usize>,
    holds: Holds,
    pub(crate) logit: Option<T>,
    /// The softmax weight of each slot.
    weight: T,
}

/// All slots of one query.
pub(crate) struct Row<T> {
    pub(crate) spans: Vec<Span<T>>,
}

/// A query with all that it is compared to.
struct Seen<'a, 'r, T: Element> {
    /// Packed batch row.
    b: usize,
    t: usize,
    row: Row<T>,
    /// The query, scaled and rotated.
    query: Vec<T>,
    /// The keys that its window gathers, from one on, normalised and rotated.
    keys: &'r [T],
    first_key: usize,
    tables: Option<&'a RotaryTables<T::Accumulator>>,
}

impl<T: Element> Seen<'_, '_, T> {
    fn key(&self, u: usize, d: usize) -> &[T] {
        &self.keys[(u - self.first_key) * d..][..d]
    }
}

impl<T: Scalar> Row<T> {
    fn push(
        &mut self,
        slots: Range<usize>,
        holds: Holds,
        logit: Option<T>,
    ) -> Result<(), RunError> {
        if !slots.is_empty() {
            let elements = self.spans.len() as u128 + 1;
            let fail = |_| RunError::OutOfMemory { what: "slots of a query", elements };
            self.spans.try_reserve(1).map_err(fail)?;
            self.spans.push(Span { slots, holds, logit, weight: T::zero() });
        }
        Ok(())
    }

    /// The sum of exponentials relative to the power of 2 below the largest: times that, weights are rounded to f16.
    fn f16_sum(&self, lse: T) -> T {
        let logits = self.spans.iter().filter_map(|s| s.logit);
        let log2_e = T::of(std::f64::consts::LOG2_E);
        let top = logits.fold(T::neg_infinity(), |m, x| if x > m { x } else { m });
        (lse - (top * log2_e).floor() / log2_e).exp()
    }

    /// Sets the weights, and gives the log of the sum of exponentials.
    fn softmax(&mut self, uniform_masked_rows: bool) -> T {
        let count = |s: &Span<T>| T::of(s.slots.len() as f64);
        let visible = || self.spans.iter().filter_map(|s| Some((s.logit?, count(s))));
        // Not `max`, which drops NaN.
        let max =
            visible().fold(T::neg_infinity(), |m, (x, _)| if m.is_nan() || x <= m { m } else { x });
        if max == T::neg_infinity() {
            let hidden: T = self.spans.iter().filter(|s| s.logit.is_none()).map(count).sum();
            let each = if uniform_masked_rows { hidden.recip() } else { T::zero() };
            self.spans.iter_mut().filter(|s| s.logit.is_none()).for_each(|s| s.weight = each);
            return T::of(DEGENERATE_LSE);
        }
        let sum: T = visible().map(|(x, n)| (x - max).exp() * n).sum();
        for span in &mut self.spans {
            span.weight = span.logit.map_or(T::zero(), |x| (x - max).exp() / sum);
        }
        max + sum.ln()
    }
}

/// The number that f16 has for it.
fn to_f16<T: Scalar>(x: T) -> T {
    T::of(half::f16::from_f64(x.wide()).to_f64())
}

/// One packed batch row and what is needed to read it.
struct Reader<'a, T: Element> {
    /// Whether products are of numbers rounded to f16, and how much farther all are rotated first.
    f16_products: Option<u32>,
    problem: &'a Problem,
    inputs: &'a HostInputs<'a, T>,
    tables: Option<&'a RotaryTables<T::Accumulator>>,
    b: usize,
}

/// Calls `each(packed batch row, query, its slots)` for every query of a range.
pub(crate) fn each_query<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    queries: Range<usize>,
    mut each: impl FnMut(usize, usize, Row<T>),
) -> Result<(), RunError> {
    let each = |seen: Seen<'_, '_, T>| each(seen.b, seen.t, seen.row);
    each_query_seen(problem, inputs, queries, None, each)
}

/// The same, with the query and the keys of its window.
fn each_query_seen<T: Scalar + Element<Accumulator = T>>(
    problem: &Problem,
    inputs: &HostInputs<'_, T>,
    queries: Range<usize>,
    f16_products: Option<u32>,
    mut each: impl FnMut(Seen<'_, '_, T>),
) -> Result<(), RunError> {
    problem.check_inputs(inputs)?;
    if queries.is_empty() || problem.batch == 0 {
        return Ok(());
    }
    let geometry = &problem.geometry;
    let windows = geometry.window_of(queries.start)..geometry.window_of(queries.end - 1) + 1;
    let turn = f16_products.map_or(0, i64::from);
    let tables = tables(problem, &queries, windows.clone(), turn)?;
    let mut reader = Reader { f16_products, problem, inputs, tables: tables.as_ref(), b: 0 };
    for b in 0..problem.batch {
        reader.b = b;
        for window in windows.clone() {
            let keys = reader.gather_keys(window)?;
            let first = queries.start.max(window * geometry.window());
            for t in first..queries.end.min((window + 1) * geometry.window()) {
                let (row, query) = reader.list_slots(&keys, t)?;
                let (keys, first_key) = (&keys[..], geometry.gathered(window).start);
                each(Seen { b, t, row, query, keys, first_key, tables: reader.tables });
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
    turn: i64,
) -> Result<Option<RotaryTables<T>>, RunError> {
    let Some(spec) = &problem.rotary else { return Ok(None) };
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
    // A range without positions stays one.
    let turned = |r: Range<i64>| if r.is_empty() { r } else { r.start + turn..r.end + turn };
    RotaryTables::new(spec, &[turned(q), turned(k)], &[lags]).map(Some)
}

impl<T: Scalar + Element<Accumulator = T>> Reader<'_, T> {
    /// How much farther queries and keys are rotated.
    fn turn(&self) -> i64 {
        self.f16_products.map_or(0, i64::from)
    }

    /// The real keys that a window gathers, normalised and rotated, one after the other.
    fn gather_keys(&self, window: usize) -> Result<Vec<T>, RunError> {
        let (geometry, d) = (&self.problem.geometry, self.problem.shape.head_dim);
        let k = self.inputs.k.packed_row(self.problem.kv_row(self.b), 2);
        let Range { start, end } = geometry.gathered(window);
        let real = start..end.min(geometry.key_len());
        let (mut keys, _) = reserve("keys of a window", &[real.len(), d])?;
        let mut buffer = zeros("features", &[d])?;
        for u in real {
            let at = keys.len();
            keys.extend((0..d).map(|c| k.at(u, c)));
            let key = &mut keys[at..];
            let squares = |key: &[T]| key.iter().map(|&x| x * x).sum::<T>();
            let norm = self.problem.shared_qk.then(|| squares(key).sqrt().max(T::of(1e-12)));
            let normalise = |key: &mut [T]| {
                if let Some(norm) = norm {
                    key.iter_mut().for_each(|x| *x = *x / norm);
                }
            };
            if self.f16_products.is_none() {
                normalise(key);
            }
            if let Some(tables) = &self.tables {
                tables.rotate(key, geometry.slot_of(window, u) as i64 + self.turn(), &mut buffer);
            }
            if self.f16_products.is_some() {
                key.iter_mut().for_each(|x| *x = to_f16(*x));
                normalise(key);
            }
        }
        Ok(keys)
    }

    /// Every slot of a query's window, with what it holds and its logit; and the query, scaled and rotated.
    fn list_slots(&self, keys: &[T], t: usize) -> Result<(Row<T>, Vec<T>), RunError> {
        let Self { problem, inputs, tables, b, f16_products } = self;
        let (geometry, d) = (&problem.geometry, problem.shape.head_dim);
        let (window, position) = (geometry.window_of(t), geometry.rotary_position(t) as i64);
        let gathered = geometry.gathered(window);
        let visible = geometry.visible_range(t);
        let mask = problem.mask_row(inputs, *b);
        let bias = problem.bias_row(inputs, *b);

        // The query, scaled and rotated.
        let view = inputs.q.packed_row(*b, 2);
        let (mut q, _) = reserve("features", &[d])?;
        // Rounded ones are scaled once they are.
        let scale = T::of(problem.scale);
        let first = if f16_products.is_some() { T::one() } else { scale };
        q.extend((0..d).map(|c| view.at(t - problem.shape.query.start, c) * first));
        let mut buffer = zeros("features", &[d])?;
        if let Some(tables) = tables {
            tables.rotate(&mut q, position + self.turn(), &mut buffer);
        }
        if f16_products.is_some() {
            q.iter_mut().for_each(|x| *x = to_f16(*x) * scale);
        }
        let mut dot = |u: usize, k: &[T]| -> T {
            let lag = position - geometry.slot_of(window, u) as i64;
            match tables.and_then(|x| x.xpos(lag, &mut buffer)) {
                // As if the query were the centre of the decay: its own factor is 1.
                Some(decay) => (0..d).map(|c| q[c] * (k[c] * decay[c % decay.len()])).sum(),
                None => q.iter().zip(k).map(|(&a, &b)| a * b).sum(),
            }
        };
        // The logit of position u, given q.k: bias, then the self rule, then what is hidden.
        let logit = |u: usize, dot: T| {
            if !visible.contains(&u) || mask.as_ref().is_some_and(|m| !m.lets(u)) {
                return None;
            }
            if problem.shared_qk && u == t {
                return Some(T::of(SELF_LOGIT));
            }
            let bias = bias.as_ref().map(|x| clamp_bias(x.at(t, geometry.slot_of(window, u))));
            Some(bias.map_or(dot, |bias| dot + bias))
        };

        let mut row = Row { spans: Vec::new() };
        row.push(0..geometry.slot_of(window, gathered.start), Holds::Pad, None)?;
        let real = gathered.start..gathered.end.min(geometry.key_len());
        for (u, k) in real.zip(keys.chunks_exact(d)) {
            let slot = geometry.slot_of(window, u);
            row.push(slot..slot + 1, Holds::Key(u), logit(u, dot(u, k)))?;
        }
        // Zeros of autopad: alike between these cuts, unless a mask or a bias tells them apart.
        let mask_len = mask.as_ref().map_or(0, |m| m.len);
        let bias_varies = bias.as_ref().is_some_and(|x| x.varies());
        let cuts = [visible.start, visible.end, t, t + 1, mask_len];
        let mut u = geometry.key_len().max(gathered.start);
        while u < gathered.end {
            let cut = cuts.into_iter().filter(|&c| c > u).min().unwrap_or(usize::MAX);
            let mut end = cut.min(gathered.end);
            if bias_varies && visible.contains(&u) {
                end = u + 1;
            } else if let Some(mask) = mask.as_ref().filter(|_| u < mask_len) {
                end = (u + 1..end).find(|&next| mask.lets(next) != mask.lets(u)).unwrap_or(end);
            }
            let slot = geometry.slot_of(window, u);
            row.push(slot..slot + end - u, Holds::Zero, logit(u, T::zero()))?;
            u = end;
        }
        row.push(geometry.slot_of(window, gathered.end)..geometry.slots(), Holds::Pad, None)?;
        Ok((row, q))
    }
}
