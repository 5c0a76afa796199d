//! The inner loops: a register tile of a matrix product, and one row's step of the online softmax
//! (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; blocked as in Dao,
//! "FlashAttention-2", 2023).

use super::simd::Simd;

/// One operand of a product, read element by element: `[i, p]` is at `i * row + p * step`.
#[derive(Clone, Copy)]
pub(super) struct Lhs {
    pub(super) at: *const f32,
    pub(super) row: usize,
    pub(super) step: usize,
}

/// A matrix of whole vectors: vector `j` of row `i` starts at `i * row + j * vector`.
#[derive(Clone, Copy)]
pub(super) struct Rhs {
    pub(super) at: *const f32,
    pub(super) row: usize,
    pub(super) vector: usize,
}

/// `c (+)= a b` for `MR` rows and `NV` vectors of columns, over `depth` products each.
///
/// # Safety
/// `a` holds `MR` rows of `depth`; `b` holds, for each of `depth` rows, `NV` vectors at its strides; `c`,
/// with `c_row` floats a row, `MR` rows of `NV * LANES` floats each.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const ADD: bool>(
    depth: usize,
    a: Lhs,
    b: Rhs,
    c: *mut f32,
    c_row: usize,
) {
    // SAFETY: every index stays inside what the caller promises.
    unsafe {
        let mut sums = [[S::splat(0.0); NV]; MR];
        if ADD {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = S::load(c.add(i * c_row + j * S::LANES));
                }
            }
        }
        for p in 0..depth {
            let mut columns = [S::splat(0.0); NV];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.at.add(p * b.row + j * b.vector));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.at.add(i * a.row + p * a.step));
                for (sum, &column) in row.iter_mut().zip(&columns) {
                    *sum = S::fma(x, column, *sum);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                S::store(c.add(i * c_row + j * S::LANES), sum);
            }
        }
    }
}

/// The running maximum and sum of a row's softmax, logits in powers of 2.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowState {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl RowState {
    /// Nothing seen yet.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Adds `count` keys of one logit, scaling what was there before.
    pub(super) fn push(&mut self, logit: f32, count: f32) {
        if logit == f32::NEG_INFINITY {
            return;
        }
        let max = if logit > self.max { logit } else { self.max };
        self.sum = self.sum * (self.max - max).exp2() + count * (logit - max).exp2();
        self.max = max;
    }

    /// Whether nothing with a weight was seen: no key, or none but with a bias of minus infinity.
    pub(super) fn is_degenerate(&self) -> bool {
        self.max == f32::NEG_INFINITY && self.sum == 0.0
    }

    /// Natural log of the sum of exponentials.
    pub(super) fn lse(&self) -> f32 {
        let log2 = f64::from(self.max) + f64::from(self.sum).log2();
        (log2 * std::f64::consts::LN_2) as f32
    }
}

/// Turns a row of logits into weights relative to the new maximum, and says what earlier sums of
/// this row must be multiplied by. `logits` is a whole number of vectors.
#[inline(always)]
pub(super) fn softmax_step<S: Simd>(logits: &mut [f32], state: &mut RowState) -> f32 {
    debug_assert!(logits.len().is_multiple_of(S::LANES));
    let vectors = logits.len() / S::LANES;
    let p = logits.as_mut_ptr();
    // SAFETY: `vectors * LANES` floats are in the slice.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in 0..vectors {
            largest = S::max(S::load(p.add(i * S::LANES)), largest);
        }
        let largest = S::largest(largest);
        let max = if largest > state.max { largest } else { state.max };
        // Where all is minus infinity, so that the difference is not NaN.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let bases = S::splat(base);
        let mut sum = S::splat(0.0);
        for i in 0..vectors {
            let at = p.add(i * S::LANES);
            let weight = S::exp2(S::sub(S::load(at), bases));
            S::store(at, weight);
            sum = S::add(sum, weight);
        }
        // Before the first key with a weight there is nothing to scale, nor to call exp2 for.
        let same = max == state.max || state.max == f32::NEG_INFINITY;
        let earlier = if same { 1.0 } else { (state.max - base).exp2() };
        state.sum = state.sum * earlier + S::sum(sum);
        state.max = max;
        earlier
    }
}

/// Turns logits into weights, `exp2(logit - lse) * factor`, and unless they are still to be dropped gradients by weights into
/// gradients by logits, `weight * (by_weight - product)`. All rows are a whole number of vectors.
#[inline(always)]
pub(super) fn weight_step<S: Simd>(
    logits: &mut [f32],
    by_weight: &mut [f32],
    (lse, factor): (f32, f32),
    product: f32,
    drops: bool,
) {
    let (lse, factor, product) = (S::splat(lse), S::splat(factor), S::splat(product));
    let rows = logits.chunks_exact_mut(S::LANES).zip(by_weight.chunks_exact_mut(S::LANES));
    for (logits, by_weight) in rows {
        let (p, g) = (logits.as_mut_ptr(), by_weight.as_mut_ptr());
        // SAFETY: both chunks hold `LANES` floats.
        unsafe {
            let weight = S::mul(S::exp2(S::sub(S::load(p), lse)), factor);
            S::store(p, weight);
            if !drops {
                S::store(g, S::mul(weight, S::sub(S::load(g), product)));
            }
        }
    }
}

/// Gradients by logits where weights are dropped: `kept * by_weight - weight * product`.
#[inline(always)]
pub(super) fn drop_step<S: Simd>(
    kept: &[f32],
    weights: &[f32],
    by_weight: &mut [f32],
    product: f32,
) {
    let product = S::splat(-product);
    let rows = kept.chunks_exact(S::LANES).zip(weights.chunks_exact(S::LANES));
    for ((kept, weights), by_weight) in rows.zip(by_weight.chunks_exact_mut(S::LANES)) {
        let g = by_weight.as_mut_ptr();
        // SAFETY: all chunks hold `LANES` floats.
        unsafe {
            let all = S::mul(S::load(weights.as_ptr()), product);
            S::store(g, S::fma(S::load(kept.as_ptr()), S::load(g), all));
        }
    }
}

/// Multiplies a whole number of vectors by a factor.
#[inline(always)]
pub(super) fn scale<S: Simd>(row: &mut [f32], factor: f32) {
    debug_assert!(row.len().is_multiple_of(S::LANES));
    let factors = S::splat(factor);
    for vector in row.chunks_exact_mut(S::LANES) {
        let p = vector.as_mut_ptr();
        // SAFETY: the chunk holds `LANES` floats.
        unsafe { S::store(p, S::mul(S::load(p), factors)) };
    }
}
