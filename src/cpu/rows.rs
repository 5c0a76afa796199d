//! What single queries need beside the products: who is hidden, bias, the self rule, keys that are
//! counted instead of visited, dropout, and rows that see nothing.

use std::f64::consts::LOG2_E;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::kernel::RowState;
use super::pack::RowInputs;
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

impl<T: Element<Accumulator = f32>> RowInputs<'_, T> {
    /// The query of a row of the block.
    pub(super) fn query(&self, row: usize) -> usize {
        self.block.queries.start + row
    }

    /// Finishes a row of scores, of the keys from `start` on: adds the bias, applies the self rule
    /// and puts minus infinity wherever a key is not in `visible` or masked.
    #[inline(always)]
    pub(super) fn hide(
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
        logits[..low].fill(f32::NEG_INFINITY);
        logits[high..].fill(f32::NEG_INFINITY);
        if low < high {
            self.add_bias(t, &mut logits[low..high], start + low);
        }
        if self.problem.shared_qk && (start + low..start + high).contains(&t) {
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
        let Some((bias, shape)) = &self.bias else { return };
        let geometry = &self.problem.geometry;
        let slot = geometry.slot_of(geometry.window_of(t), key);
        match bias.slice(t % shape.queries, shape.slots) {
            Some(row) if shape.slots > 1 => {
                for (x, b) in logits.iter_mut().zip(&row[slot..]) {
                    *x += in_powers_of_2(b.load());
                }
            }
            _ => {
                for (i, x) in logits.iter_mut().enumerate() {
                    *x += self.bias_of(t, key + i);
                }
            }
        }
    }

    /// The bias of a key for a query, in powers of 2.
    #[inline(always)]
    fn bias_of(&self, t: usize, key: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |(bias, shape)| {
            let geometry = &self.problem.geometry;
            let slot = match shape.slots {
                1 => 0,
                _ => geometry.slot_of(geometry.window_of(t), key),
            };
            in_powers_of_2(bias.at(t % shape.queries, slot).load())
        })
    }

    /// The softmax of a row before any real key: the zeros of autopad that the query sees. They
    /// have value 0 and differ by bias and mask alone, so they are counted where they can be.
    pub(super) fn zero_keys(&self, t: usize) -> RowState {
        let mut state = RowState::EMPTY;
        self.each_zero_key(t, |logit, keys| state.push(logit, keys.len() as f32));
        state
    }

    /// Calls `each(logit, keys)` for runs of autopad's zeros that a query sees alike.
    pub(super) fn each_zero_key(&self, t: usize, mut each: impl FnMut(f32, Range<usize>)) {
        let visible = self.problem.geometry.visible_range(t);
        let bias_varies = self.bias.as_ref().is_some_and(|(_, s)| s.slots > 1);
        let mut u = visible.start.max(self.problem.shape.key_len);
        while u < visible.end {
            let own = self.problem.shared_qk && u == t;
            let mut end = u + 1;
            if self.masked(u) {
                // Past its end the mask hides all that is left.
                if self.mask.as_ref().is_some_and(|(_, len)| u >= *len) {
                    return;
                }
            } else {
                if !own && !bias_varies && self.mask.is_none() {
                    end = visible.end;
                    if self.problem.shared_qk && (u..end).contains(&t) {
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
        let geometry = &self.problem.geometry;
        let window = geometry.window_of(t);
        for (i, weight) in weights.iter_mut().enumerate() {
            if visible.contains(&(start + i)) {
                let slot = geometry.slot_of(window, start + i);
                *weight *= keep.factor(self.block.row, t, slot) as f32;
            }
        }
    }

    /// Whether a query sees a key, mask included.
    pub(super) fn sees(&self, visible: &Range<usize>, key: usize) -> bool {
        visible.contains(&key) && !self.masked(key)
    }

    /// How many slots a query does not see: what a degenerate row is averaged over.
    pub(super) fn hidden_slots(&self, t: usize) -> usize {
        let visible = self.problem.geometry.visible_range(t);
        let seen = match &self.mask {
            None => visible.len(),
            Some((mask, len)) => {
                let covered = visible.start..visible.end.min(*len);
                covered.filter(|&u| mask.at1(u)).count()
            }
        };
        self.problem.geometry.slots() - seen
    }

    /// A row whose query sees nothing, or nothing with a weight: the mean of the values of all
    /// slots it does not see, those outside the sequence counting as -1 and autopad's as 0; with
    /// the quirk `uniform_masked_rows` off, or without such a slot, 0. `earlier` is the last mean
    /// over a whole window: all queries of a window that see nothing share it.
    pub(super) fn degenerate_row(
        &self,
        t: usize,
        out: &mut [MaybeUninit<T>],
        earlier: &mut Option<(usize, Vec<f64>)>,
    ) {
        let hidden = self.hidden_slots(t);
        if !self.problem.uniform_masked_rows || hidden == 0 {
            out.iter_mut().for_each(|to| _ = to.write(T::store(0.0)));
            return;
        }
        let geometry = &self.problem.geometry;
        let window = geometry.window_of(t);
        let shared = hidden == geometry.slots() && self.job.keep.is_none();
        let (_, mean) = match earlier.take().filter(|(w, _)| shared && *w == window) {
            Some(same) => earlier.insert(same),
            None => earlier.insert((window, self.hidden_mean(t, hidden))),
        };
        for (to, mean) in out.iter_mut().zip(mean) {
            to.write(T::store(*mean as f32));
        }
        if !shared {
            *earlier = None;
        }
    }

    /// The mean of the values of all slots that a query does not see, which are `hidden`.
    fn hidden_mean(&self, t: usize, hidden: usize) -> Vec<f64> {
        let mut sums = vec![0.0_f64; self.problem.shape.value_dim];
        let geometry = &self.problem.geometry;
        let window = geometry.window_of(t);
        let visible = geometry.visible_range(t);
        let gathered = geometry.gathered(window);
        let factor = |slot: usize| match &self.job.keep {
            None => 1.0,
            Some(keep) => keep.factor(self.block.row, t, slot),
        };
        for u in gathered.start..gathered.end.min(geometry.key_len()) {
            if !self.sees(&visible, u) {
                let weight = factor(geometry.slot_of(window, u));
                for (e, sum) in sums.iter_mut().enumerate() {
                    *sum += weight * f64::from(self.v.at(u, e).load());
                }
            }
        }
        let before = 0..geometry.slot_of(window, gathered.start);
        let after = geometry.slot_of(window, gathered.end)..geometry.slots();
        let pads = match &self.job.keep {
            None => (before.len() + after.len()) as f64,
            Some(_) => before.chain(after).map(factor).sum(),
        };
        sums.iter_mut().for_each(|sum| *sum = (*sum + pads * PAD_VALUE) / hidden as f64);
        sums
    }
}
