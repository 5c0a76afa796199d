//! What single queries need beside the products: who is hidden, bias, the self rule, keys that are
//! counted instead of visited, dropout, and rows that see nothing.

use std::f64::consts::LOG2_E;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::kernel::RowState;
use super::pack::RowInputs;
use super::simd::Simd;
use crate::Element;
use crate::dropout::KeepMask;
use crate::reference::{PAD_VALUE, SELF_LOGIT};
use crate::scalar::clamp_bias;

/// The self rule's logit in powers of 2.
const SELF: f32 = (SELF_LOGIT * LOG2_E) as f32;

/// A bias as it is added to logits in powers of 2: one that f32 can hold stays finite.
#[inline(always)]
fn in_powers_of_2(bias: f32) -> f32 {
    let scaled = clamp_bias(bias) * LOG2_E as f32;
    if scaled == f32::INFINITY && bias < f32::INFINITY { f32::MAX } else { scaled }
}

/// Puts minus infinity before and after some columns of a row of whole vectors.
#[inline(always)]
fn keep<S: Simd>(logits: &mut [f32], columns: Range<usize>) {
    let vectors = logits.len() / S::LANES;
    let (before, after) = (columns.start.div_ceil(S::LANES), columns.end / S::LANES);
    // The vector that columns start in, and all before it; the one they end in, and all after it.
    for i in (0..before.min(vectors)).chain(after.max(before)..vectors) {
        let lane = |column: usize| column as i32 - (i * S::LANES) as i32;
        // SAFETY: `i` is one of the row's vectors.
        unsafe {
            let at = logits.as_mut_ptr().add(i * S::LANES);
            let kept = S::within(S::load(at), lane(columns.start), lane(columns.end));
            S::store(at, kept);
        }
    }
}

impl<T: Element<Accumulator = f32>> RowInputs<'_, T> {
    /// The query of a row of the block.
    pub(super) fn query(&self, row: usize) -> usize {
        self.block.queries.start + row
    }

    /// Whether there is more to a logit than the score, beside who sees whom.
    pub(super) fn adjusts_logits(&self) -> bool {
        self.bias.is_some() || self.mask.is_some() || self.problem().shared_qk
    }

    /// Finishes a row of scores, a whole number of vectors, of the keys from `start` on: adds the bias, applies the self rule
    /// and puts minus infinity wherever a key is not in `visible` or masked.
    #[inline(always)]
    pub(super) fn hide<S: Simd>(
        &self,
        row: usize,
        logits: &mut [f32],
        start: usize,
        visible: &Range<usize>,
        key_mask: &[f32],
    ) {
        let t = self.query(row);
        let low = visible.start.clamp(start, start + logits.len()) - start;
        let high = visible.end.clamp(start + low, start + logits.len()) - start;
        keep::<S>(logits, low..high);
        if !self.adjusts_logits() {
            return;
        }
        if low < high {
            self.add_bias(t, &mut logits[low..high], start + low);
        }
        if self.problem().shared_qk && (start + low..start + high).contains(&t) {
            logits[t - start] = SELF;
        }
        if self.mask.is_some() {
            for (x, &m) in logits[low..high].iter_mut().zip(&key_mask[low..high]) {
                // Not added: a bias there may be infinite.
                *x = if m == 0.0 { *x } else { m };
            }
        }
    }

    /// Adds the bias of neighbouring keys, from `key` on, for a query.
    #[inline(always)]
    fn add_bias(&self, t: usize, logits: &mut [f32], key: usize) {
        let Some(bias) = &self.bias else { return };
        match bias.slots(t) {
            Some(row) => {
                let geometry = &self.problem().geometry;
                let slot = geometry.slot_of(geometry.window_of(t), key);
                for (x, b) in logits.iter_mut().zip(&row[slot..]) {
                    *x += in_powers_of_2(b.load());
                }
            }
            None => {
                for (i, x) in logits.iter_mut().enumerate() {
                    *x += self.bias_of(t, key + i);
                }
            }
        }
    }

    /// The bias of a key for a query, in powers of 2.
    #[inline(always)]
    fn bias_of(&self, t: usize, key: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |bias| {
            let geometry = &self.problem().geometry;
            in_powers_of_2(bias.at(t, geometry.slot_of(geometry.window_of(t), key)).load())
        })
    }

    fn bias_varies(&self) -> bool {
        self.bias.as_ref().is_some_and(|bias| bias.varies())
    }

    /// The softmax of a row before any real key: the zeros of autopad that the query sees. They
    /// have value 0 and differ by bias and mask alone, so they are counted where they can be.
    /// `visible` is what the query sees.
    #[inline(always)]
    pub(super) fn zero_keys(&self, t: usize, visible: &Range<usize>) -> RowState {
        let mut state = RowState::EMPTY;
        if visible.end <= self.problem().shape.key_len {
            return state;
        }
        match &self.mask {
            Some(mask) if !self.bias_varies() => {
                // One logit for all that the mask lets through: only their number matters.
                let zeros =
                    visible.start.max(self.problem().shape.key_len)..visible.end.min(mask.len);
                let own = self.problem().shared_qk && zeros.contains(&t) && mask.lets(t);
                let start = zeros.start;
                let count = zeros.filter(|&u| mask.lets(u)).count() - usize::from(own);
                if own {
                    state.push(SELF, 1.0);
                }
                if count > 0 {
                    state.push(self.bias_of(t, start), count as f32);
                }
            }
            _ => {
                self.each_zero_key(t, visible, |logit, keys| state.push(logit, keys.len() as f32));
            }
        }
        state
    }

    /// Calls `each(logit, keys)` for runs of autopad's zeros that a query sees alike, of the keys
    /// visible to it.
    #[inline]
    pub(super) fn each_zero_key(
        &self,
        t: usize,
        visible: &Range<usize>,
        mut each: impl FnMut(f32, Range<usize>),
    ) {
        let mut u = visible.start.max(self.problem().shape.key_len);
        while u < visible.end {
            let own = self.problem().shared_qk && u == t;
            let mut end = u + 1;
            if self.masked(u) {
                // Past its end the mask hides all that is left.
                if self.mask.as_ref().is_some_and(|mask| u >= mask.len) {
                    return;
                }
            } else {
                if !own && !self.bias_varies() && self.mask.is_none() {
                    end = visible.end;
                    if self.problem().shared_qk && (u..end).contains(&t) {
                        end = t;
                    }
                }
                each(if own { SELF } else { self.bias_of(t, u) }, u..end);
            }
            u = end;
        }
    }

    /// Applies dropout to the weights of the keys from `start` on.
    pub(super) fn drop_weights(
        &self,
        keep: &KeepMask,
        t: usize,
        visible: &Range<usize>,
        start: usize,
        weights: &mut [f32],
    ) {
        let geometry = &self.problem().geometry;
        let window = geometry.window_of(t);
        let from = visible.start.max(start);
        let to = visible.end.min(start + weights.len());
        if from < to {
            let slot = geometry.slot_of(window, from);
            keep.apply(self.block.row, t, slot, &mut weights[from - start..to - start]);
        }
    }

    /// Whether a query sees a key, mask included.
    pub(super) fn sees(&self, visible: &Range<usize>, key: usize) -> bool {
        visible.contains(&key) && !self.masked(key)
    }

    /// How many slots a query does not see: what a degenerate row is averaged over.
    pub(super) fn hidden_slots(&self, t: usize) -> usize {
        let visible = self.problem().geometry.visible_range(t);
        let seen = match &self.mask {
            None => visible.len(),
            Some(mask) => {
                let covered = visible.start..visible.end.min(mask.len);
                covered.filter(|&u| mask.lets(u)).count()
            }
        };
        self.problem().geometry.slots() - seen
    }

    /// A row whose query sees nothing, or nothing with a weight: the mean of the values of all
    /// slots it does not see, those outside the sequence counting as -1 and autopad's as 0; with
    /// the quirk `uniform_masked_rows` off, or without such a slot, 0. `row` is one of the rows of
    /// `out`. `whole` is the last row that saw nothing of its window: all queries of a window that
    /// see nothing of it share their mean.
    pub(super) fn degenerate_row(
        &self,
        row: usize,
        out: &mut [MaybeUninit<T>],
        whole: &mut Option<usize>,
    ) {
        let width = self.problem().shape.value_dim;
        let t = self.query(row);
        let hidden = self.hidden_slots(t);
        let to = row * width..(row + 1) * width;
        if !self.problem().uniform_masked_rows || hidden == 0 {
            out[to].fill(MaybeUninit::new(T::store(0.0)));
            return;
        }
        let geometry = &self.problem().geometry;
        let window_of = |row| geometry.window_of(self.query(row));
        let shared = hidden == geometry.slots() && self.job.keep.is_none();
        match whole.filter(|&earlier| shared && window_of(earlier) == window_of(row)) {
            Some(earlier) => out.copy_within(earlier * width..(earlier + 1) * width, to.start),
            None => self.hidden_mean(t, hidden, &mut out[to]),
        }
        if shared {
            *whole = Some(row);
        }
    }

    /// The mean of the values of all slots that a query does not see, which are `hidden`.
    fn hidden_mean(&self, t: usize, hidden: usize, out: &mut [MaybeUninit<T>]) {
        const FEATURES: usize = 64;
        let geometry = &self.problem().geometry;
        let window = geometry.window_of(t);
        let visible = geometry.visible_range(t);
        let gathered = geometry.gathered(window);
        let factor = |slot: usize| match &self.job.keep {
            None => 1.0,
            Some(keep) => keep.factor(self.block.row, t, slot),
        };
        let before = 0..geometry.slot_of(window, gathered.start);
        let after = geometry.slot_of(window, gathered.end)..geometry.slots();
        let pads = match &self.job.keep {
            None => (before.len() + after.len()) as f64,
            Some(_) => before.chain(after).map(factor).sum(),
        };
        for (first, out) in (0..).step_by(FEATURES).zip(out.chunks_mut(FEATURES)) {
            let mut sums = [pads * PAD_VALUE; FEATURES];
            for u in gathered.start..gathered.end.min(geometry.key_len()) {
                if !self.sees(&visible, u) {
                    let weight = factor(geometry.slot_of(window, u));
                    for (e, sum) in sums[..out.len()].iter_mut().enumerate() {
                        *sum += weight * f64::from(self.v.at(u, first + e).load());
                    }
                }
            }
            for (to, sum) in out.iter_mut().zip(sums) {
                to.write(T::store((sum / hidden as f64) as f32));
            }
        }
    }
}
