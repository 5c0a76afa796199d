//! Loading queries, keys and values: normalised, scaled, rotated, and laid out for the kernels.

use std::f64::consts::LOG2_E;
use std::ops::Range;

use super::block::{Block, Job};
use super::scratch::Scratch;
use super::simd::Simd;
use crate::broadcast::{BiasRow, MaskRow};
use crate::tensor::RowView;
use crate::{Element, Problem};

/// What one block reads.
pub(super) struct RowInputs<'a, T: Element> {
    pub(super) job: &'a Job<'a, T>,
    pub(super) block: &'a Block,
    pub(super) q: RowView<'a, T>,
    pub(super) k: RowView<'a, T>,
    pub(super) v: RowView<'a, T>,
    pub(super) mask: Option<MaskRow<'a>>,
    pub(super) bias: Option<BiasRow<'a, T>>,
}

impl<'a, T: Element<Accumulator = f32>> RowInputs<'a, T> {
    pub(super) fn new(job: &'a Job<'a, T>, block: &'a Block) -> Self {
        let kv_row = job.problem.kv_row(block.row);
        Self {
            job,
            block,
            q: job.inputs.q.packed_row(block.row, 2),
            k: job.inputs.k.packed_row(kv_row, 2),
            v: job.inputs.v.packed_row(kv_row, 2),
            mask: job.problem.mask_row(job.inputs, block.row),
            bias: job.problem.bias_row(job.inputs, block.row),
        }
    }

    pub(super) fn problem(&self) -> &'a Problem {
        self.job.problem
    }

    pub(super) fn head_dim(&self) -> usize {
        self.problem().shape.head_dim
    }

    /// Whether the mask hides a key from every query.
    pub(super) fn masked(&self, key: usize) -> bool {
        self.mask.as_ref().is_some_and(|mask| !mask.lets(key))
    }

    /// All queries of the block, `[row][feature]`; rows that fill up the last tile are 0. And the
    /// keys each of them sees.
    #[inline(always)]
    pub(super) fn pack_queries<S: Simd, const MR: usize>(&self, scratch: &mut Scratch) {
        let d = self.head_dim();
        // Logits are kept in powers of 2.
        let factor = (self.problem().scale * LOG2_E) as f32;
        // A scale near the end of f32, whose product with a query may fit all the same.
        let factors = if factor.is_finite() {
            [factor, 1.0]
        } else {
            [self.problem().scale as f32, LOG2_E as f32]
        };
        let first = self.problem().shape.query.start;
        let rows = self.block.queries.len();
        let from = self.block.queries.start;
        let position = self.query_turn(from);
        let to = &mut scratch.q[..rows * d];
        let done = self.load_rotated::<S>(&self.q, from - first, position, factors, to);
        for (r, t) in self.block.queries.clone().enumerate() {
            scratch.visible[r] = self.problem().geometry.visible_range(t);
            if done {
                continue;
            }
            let features = &mut scratch.q[r * d..][..d];
            load(&self.q, t - first, features);
            features.iter_mut().for_each(|x| *x = *x * factors[0] * factors[1]);
            if let Some(tables) = self.job.tables {
                tables.rotate(features, self.query_turn(t), &mut scratch.buffer);
                tables.decay(features, self.query_lag(t), &mut scratch.buffer);
            }
        }
        scratch.q[rows * d..rows.next_multiple_of(MR) * d].fill(0.0);
    }

    /// The keys of `present`, part of the block of keys from `first` on, as `[vector][feature][key]`,
    /// and which of them the mask hides; those are packed as 0, and so is what is not present. `KEEP`: all of them
    /// stay in `features`, `[key][feature]`.
    #[inline(always)]
    pub(super) fn pack_keys<S: Simd, const KEEP: bool>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        present: Range<usize>,
    ) {
        let d = self.head_dim();
        let start = (present.start - first) / S::LANES * S::LANES;
        let end = (present.end - first).next_multiple_of(S::LANES);
        for column in (start..end).step_by(S::LANES) {
            let kept = if KEEP { column } else { 0 };
            let whole = first + column >= present.start && first + column + S::LANES <= present.end;
            let features = &mut scratch.features[kept * d..][..S::LANES * d];
            if whole && self.mask.is_none() && self.load_keys::<S>(first + column, features) {
                scratch.key_mask[column..][..S::LANES].fill(0.0);
            } else {
                for (i, features) in features.chunks_exact_mut(d).enumerate() {
                    let u = first + column + i;
                    let there = present.contains(&u) && !self.masked(u);
                    scratch.key_mask[column + i] = if there { 0.0 } else { f32::NEG_INFINITY };
                    if there {
                        self.load_key::<S>(u, features, &mut scratch.buffer);
                    } else {
                        features.fill(0.0);
                    }
                }
            }
            let keys = &scratch.features[kept * d..][..S::LANES * d];
            transpose::<S>(keys, d, &mut scratch.k[column * d..][..S::LANES * d]);
        }
    }

    /// The values of `present`, as `[vector][feature][key]`; 0 where the mask hides the key, and for what is not
    /// present. Comes after [`pack_keys`](Self::pack_keys), for the mask.
    #[inline(always)]
    pub(super) fn pack_transposed_values<S: Simd>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        present: Range<usize>,
    ) {
        let width = self.problem().shape.value_dim;
        let start = (present.start - first) / S::LANES * S::LANES;
        let end = (present.end - first).next_multiple_of(S::LANES);
        for column in (start..end).step_by(S::LANES) {
            for i in 0..S::LANES {
                let row = &mut scratch.buffer[i * width..][..width];
                if scratch.key_mask[column + i] == 0.0 {
                    load(&self.v, first + column + i, row);
                } else {
                    row.fill(0.0);
                }
            }
            let packed = &mut scratch.v[column * width..][..S::LANES * width];
            transpose::<S>(&scratch.buffer[..S::LANES * width], width, packed);
        }
    }

    /// Loads neighbouring rows, multiplies them by both factors and rotates them, the first to `position`, in one pass of
    /// whole vectors; says whether it could. The common case: what is asked for every row, and three loops over it,
    /// cost small problems a fifth of their time.
    #[inline(always)]
    fn load_rotated<S: Simd>(
        &self,
        view: &RowView<'a, T>,
        first: usize,
        position: i64,
        factors: [f32; 2],
        to: &mut [f32],
    ) -> bool {
        let d = self.head_dim();
        let (half, rows) = (d / 2, to.len() / d);
        if !half.is_multiple_of(S::LANES) {
            return false;
        }
        let positions = position..position + rows as i64;
        let Some(angles) = self.job.tables.and_then(|t| t.plain(positions)) else { return false };
        let Some((from, row)) = view.rows() else { return false };
        let Some(from) = T::as_f32(&from[first * row..]) else { return false };
        assert!(angles.len() == to.len() && from.len() >= (rows - 1) * row + d);
        let (f, g) = (S::splat(factors[0]), S::splat(factors[1]));
        for r in 0..rows {
            // SAFETY: `from`, `angles` and `to` hold twice `half` floats for every row, and `half` is a whole number of
            // vectors.
            unsafe {
                let from = from.as_ptr().add(r * row);
                let (cos, to) = (angles.as_ptr().add(r * d), to.as_mut_ptr().add(r * d));
                for m in (0..half).step_by(S::LANES) {
                    let x = S::mul(S::mul(S::load(from.add(m)), f), g);
                    let y = S::mul(S::mul(S::load(from.add(half + m)), f), g);
                    let (c, s) = (S::load(cos.add(m)), S::load(cos.add(half + m)));
                    S::store(to.add(m), S::sub(S::mul(x, c), S::mul(y, s)));
                    S::store(to.add(half + m), S::add(S::mul(y, c), S::mul(x, s)));
                }
            }
        }
        true
    }

    /// Neighbouring keys from `u` on, rotated; says whether it could.
    #[inline(always)]
    fn load_keys<S: Simd>(&self, u: usize, features: &mut [f32]) -> bool {
        let position = self.key_turn(u);
        !self.problem().shared_qk
            && self.load_rotated::<S>(&self.k, u, position, [1.0; 2], features)
    }

    /// One key, normalised and rotated.
    #[inline(always)]
    fn load_key<S: Simd>(&self, u: usize, features: &mut [f32], buffer: &mut [f32]) {
        if self.load_keys::<S>(u, features) {
            return;
        }
        load(&self.k, u, features);
        if self.problem().shared_qk {
            normalise(features);
        }
        if let Some(tables) = self.job.tables {
            tables.rotate(features, self.key_turn(u), buffer);
            tables.decay(features, self.key_lag(u), buffer);
        }
    }

    /// How far a query is rotated, in positions, and how far it is from the one that xpos decays about.
    #[inline(always)]
    pub(super) fn query_turn(&self, t: usize) -> i64 {
        (t - self.block.origin + self.problem().geometry.rotary_shift()) as i64
    }

    #[inline(always)]
    pub(super) fn query_lag(&self, t: usize) -> i64 {
        t as i64 - self.block.centre as i64
    }

    /// The same of a key; the distance is that which rotary sees.
    #[inline(always)]
    pub(super) fn key_turn(&self, u: usize) -> i64 {
        (u - self.block.origin) as i64
    }

    #[inline(always)]
    pub(super) fn key_lag(&self, u: usize) -> i64 {
        (self.block.centre + self.problem().geometry.rotary_shift()) as i64 - u as i64
    }

    /// The values where they are, if they are floats that need no packing, with elements from one row to the next.
    pub(super) fn values_in_place(&self, stride: usize) -> Option<(&'a [f32], usize)> {
        if self.mask.is_some() || self.problem().shape.value_dim != stride {
            return None;
        }
        let (values, row) = self.v.rows()?;
        Some((T::as_f32(values)?, row))
    }

    /// The values of `present`, `[key][feature]`, 0 where the mask hides the key.
    #[inline(always)]
    pub(super) fn pack_values(&self, scratch: &mut Scratch, first: usize, present: Range<usize>) {
        let (width, stride) = (self.problem().shape.value_dim, scratch.value_stride);
        for u in present {
            let (row, padding) = scratch.v[(u - first) * stride..][..stride].split_at_mut(width);
            padding.fill(0.0);
            if self.masked(u) {
                row.fill(0.0);
            } else {
                load(&self.v, u, row);
            }
        }
    }
}

/// Rows of a vector's keys, `[key][feature]`, as `[feature][key]`.
#[inline(always)]
fn transpose<S: Simd>(rows: &[f32], width: usize, packed: &mut [f32]) {
    assert!(rows.len() == S::LANES * width && packed.len() == rows.len());
    let whole = width / S::LANES * S::LANES;
    for c in (0..whole).step_by(S::LANES) {
        // SAFETY: `rows` has `LANES` rows of `width`, of which `LANES` floats from `c` on are
        // read; `packed` has `width` rows of `LANES`, of which `LANES` from `c` on are written.
        unsafe {
            let to = packed.as_mut_ptr().add(c * S::LANES);
            S::transpose(rows.as_ptr().add(c), width, to, S::LANES);
        }
    }
    for c in whole..width {
        for i in 0..S::LANES {
            packed[c * S::LANES + i] = rows[i * width + c];
        }
    }
}

#[inline(always)]
pub(super) fn load<T: Element<Accumulator = f32>>(
    view: &RowView<'_, T>,
    row: usize,
    to: &mut [f32],
) {
    match view.slice(row, to.len()) {
        Some(from) => T::load_all(from, to),
        None => (0..to.len()).for_each(|c| to[c] = view.at(row, c).load()),
    }
}

/// From the gradient by a normalised vector `y = x / |x|` to that by `x`: `(g - y (y . g)) / |x|`; where the norm is
/// below 1e-12 the divisor is that constant.
#[inline(always)]
pub(super) fn normalise_back(x: &[f32], gradient: &mut [f32]) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norm = dot(x, x).sqrt();
    let along = if norm < 1e-12 { 0.0 } else { dot(x, gradient) / (norm * norm) };
    let factor = 1.0 / norm.max(1e-12);
    for (g, &x) in gradient.iter_mut().zip(x) {
        *g = ((f64::from(*g) - f64::from(x) * along) * factor) as f32;
    }
}

/// l2 normalisation as the reference does it: by the norm, or 1e-12 where that is larger.
#[inline(always)]
fn normalise(x: &mut [f32]) {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let factor = (1.0 / squares.sqrt().max(1e-12)) as f32;
    x.iter_mut().for_each(|x| *x *= factor);
}
