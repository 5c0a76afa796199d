//! The backward pass of one block of queries (Dao, "FlashAttention-2", 2023): weights are computed again from `lse`,
//! in one sweep over the keys for all three gradients.
//!
//! What a block adds to dk and dv goes straight into the result: blocks that may reach the same keys never run at
//! the same time ([`Blocks::colours`]), and come in one order.

use std::f64::consts::LN_2;

use super::ahead::{ask, turn};
use super::block::{Block, Job};
use super::by_logits::{by_logits, pack, pack_outputs};
use super::forward::{Columns, LOGITS_ROW, TILES, add_features, add_rows, whole_vectors};
use super::kernel::Lhs;
use super::keys::KeyRows;
use super::pack::{RowInputs, load, normalise_back};
use super::scratch::Scratch;
use super::simd::{Op, Simd};
use crate::{BackwardInputs, Element};

/// The backward pass of one block.
pub(super) struct BackwardOp<'a, T: Element> {
    pub(super) job: &'a Job<'a, T>,
    pub(super) saved: &'a BackwardInputs<'a, T>,
    pub(super) block: Block,
    pub(super) scratch: &'a mut Scratch,
    /// `[queries, d]`, all of which is written.
    pub(super) dq: &'a mut [T],
    /// Keys are those of the block alone while it runs.
    pub(super) dk: &'a KeyRows<'a>,
    pub(super) dv: &'a KeyRows<'a>,
}

impl<T: Element<Accumulator = f32>> Op for BackwardOp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self) {
        let Self { job, saved, block, scratch, dq, dk, dv } = self;
        let inputs = RowInputs::new(job, &block);
        let rows = block.queries.len();
        let kv_row = job.problem.kv_row(block.row);
        let (d, width) = (inputs.head_dim(), job.problem.shape.value_dim);
        inputs.pack_queries::<S, MR>(scratch);
        let empty = pack_outputs::<S, MR, T>(&inputs, saved, scratch);
        let (qk, values) = (scratch.head_stride, scratch.value_stride);
        scratch.back.dq[..rows.next_multiple_of(MR) * qk].fill(0.0);
        for (first, present, next) in block.key_blocks(job.problem) {
            pack::<S, T>(&inputs, scratch, first, &present);
            let columns = present.start - first..(present.end - first).next_multiple_of(S::LANES);
            scratch.back.dk[columns.start * qk..(columns.end + MR) * qk].fill(0.0);
            scratch.back.dv[columns.start * values..(columns.end + MR) * values].fill(0.0);
            for start in (0..rows).step_by(TILES * MR) {
                let group = start..rows.min(start + TILES * MR);
                let tiles = by_logits::<S, MR, T>(
                    &inputs,
                    scratch,
                    group.clone(),
                    (first, &present),
                    |r| {
                        for u in turn(&present, r, rows) {
                            dk.ask(kv_row, u);
                            dv.ask(kv_row, u);
                        }
                        inputs.ask_keys(turn(&next, r, rows));
                        if next.is_empty() {
                            ask(dq[r * d..][..d].as_ptr(), d);
                        }
                    },
                );
                clear_between::<S, MR>(&tiles, &mut scratch.logits);
                clear_between::<S, MR>(&tiles, &mut scratch.back.by_logits);
                let back = &mut scratch.back;
                add_rows::<S, MR>(
                    &tiles,
                    &back.by_logits,
                    (&scratch.features, d),
                    (&mut back.dq[start * qk..], qk),
                );
                add_columns::<S, MR>(
                    (&tiles, group.len()),
                    &scratch.logits,
                    (&back.dout[start * width..], width),
                    (&mut back.dv, values),
                );
                add_columns::<S, MR>(
                    (&tiles, group.len()),
                    &back.by_logits,
                    (&scratch.q[start * d..], d),
                    (&mut back.dk, qk),
                );
            }
            for u in present {
                let row = &mut scratch.back.dk[(u - first) * qk..][..d];
                inputs.key_back(u, row, &mut scratch.buffer);
                // SAFETY: the key is the block's alone, and so is this part of each result.
                let (to_k, to_v) = unsafe { (dk.of(kv_row, u), dv.of(kv_row, u)) };
                add(to_k, row);
                add(to_v, &scratch.back.dv[(u - first) * values..][..width]);
            }
        }
        for r in 0..rows {
            let row = &mut scratch.back.dq[r * qk..][..d];
            inputs.query_back(r, row, &mut scratch.buffer);
            for (to, &x) in dq[r * d..][..d].iter_mut().zip(&*row) {
                *to = T::store(x);
            }
        }
        if empty {
            inputs.hidden_back(scratch, dv);
        }
    }
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
}

/// Columns that some tile of a group has, a whole number of vectors.
fn hull<S: Simd>(tiles: &[Columns; TILES]) -> Columns {
    let some = tiles.iter().filter(|columns| !columns.is_empty()).map(whole_vectors::<S>);
    some.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// Puts 0 where other tiles of a group have columns and this one has none, and a few columns further.
#[inline(always)]
fn clear_between<S: Simd, const MR: usize>(tiles: &[Columns; TILES], numbers: &mut [f32]) {
    let hull = hull::<S>(tiles);
    for (i, columns) in tiles.iter().enumerate() {
        let mut own = whole_vectors::<S>(columns);
        if own.is_empty() {
            own = hull.start..hull.start;
        }
        for r in 0..MR {
            let row = &mut numbers[(i * MR + r) * LOGITS_ROW..][..LOGITS_ROW];
            row[hull.start..own.start].fill(0.0);
            row[own.end..hull.end + MR].fill(0.0);
        }
    }
}

/// Adds, for each key, a group's weights for it times what the queries hold, `from_row` floats from one to the
/// next, to rows of `stride` floats, a whole number of vectors.
#[inline(always)]
fn add_columns<S: Simd, const MR: usize>(
    (tiles, rows): (&[Columns; TILES], usize),
    weights: &[f32],
    (from, from_row): (&[f32], usize),
    (to, stride): (&mut [f32], usize),
) {
    let hull = hull::<S>(tiles);
    let vectors = tiles.each_ref().map(whole_vectors::<S>);
    let mut key = hull.start;
    while key < hull.end {
        // The tiles that have some of these keys are neighbours.
        let reaches = |v: &Columns| v.end > key && v.start < key + MR;
        let first = vectors.iter().position(reaches).unwrap_or(0) * MR;
        let end = vectors.iter().rposition(reaches).map_or(0, |i| (i + 1) * MR).min(rows);
        if first < end {
            let depth = end - first;
            let weights = &weights[first * LOGITS_ROW + key..];
            assert!(weights.len() >= (depth - 1) * LOGITS_ROW + MR);
            let a = Lhs { at: weights.as_ptr(), row: 1, step: LOGITS_ROW };
            let from = &from[first * from_row..][..(depth - 1) * from_row + stride];
            let out = &mut to[key * stride..][..MR * stride];
            // SAFETY: the assertion bounds the weights.
            unsafe { add_features::<S, MR>(depth, a, (from, from_row), (out, stride)) };
        }
        key += MR;
    }
}

impl<T: Element<Accumulator = f32>> RowInputs<'_, T> {
    /// From the sum over queries, in powers of 2, to the gradient by a key.
    #[inline(always)]
    fn key_back(&self, u: usize, row: &mut [f32], buffer: &mut [f32]) {
        row.iter_mut().for_each(|x| *x *= LN_2 as f32);
        if let Some(tables) = self.job.tables {
            tables.decay(row, self.key_lag(u), buffer);
            tables.rotate_back(row, self.key_turn(u), buffer);
        }
        if self.problem().shared_qk && !self.masked(u) {
            let key = &mut buffer[..row.len()];
            load(&self.k, u, key);
            normalise_back(key, row);
        }
    }

    /// From the sum over keys to the gradient by a query.
    #[inline(always)]
    fn query_back(&self, r: usize, row: &mut [f32], buffer: &mut [f32]) {
        let t = self.query(r);
        if let Some(tables) = self.job.tables {
            tables.decay(row, self.query_lag(t), buffer);
            tables.rotate_back(row, self.query_turn(t), buffer);
        }
        let scale = self.problem().scale as f32;
        row.iter_mut().for_each(|x| *x *= scale);
    }

    /// Rows that saw nothing averaged the values of what they did not see: those get their share of the gradient.
    fn hidden_back(&self, scratch: &Scratch, dv: &KeyRows<'_>) {
        let geometry = &self.problem().geometry;
        if !self.problem().uniform_masked_rows {
            return;
        }
        let width = self.problem().shape.value_dim;
        let back = &scratch.back;
        // Gradients of rows that saw none of their window's slots, added up: all those have one share.
        let mut whole: Option<(usize, Vec<f32>)> = None;
        for (r, t) in self.block.queries.clone().enumerate() {
            if back.lse[r] != f32::INFINITY {
                continue;
            }
            let hidden = self.hidden_slots(t);
            let window = geometry.window_of(t);
            let dout = &back.dout[r * width..][..width];
            if hidden == geometry.slots() && self.job.keep.is_none() {
                match &mut whole {
                    Some((of, sum)) if *of == window => add(sum, dout),
                    other => {
                        let done = other.replace((window, dout.to_vec()));
                        done.iter().for_each(|(window, sum)| self.share(*window, sum, dv));
                    }
                }
            } else if hidden > 0 {
                self.share_hidden(t, hidden, dout, dv);
            }
        }
        whole.iter().for_each(|(window, sum)| self.share(*window, sum, dv));
    }

    /// Gives an equal share to all keys of a window.
    fn share(&self, window: usize, dout: &[f32], dv: &KeyRows<'_>) {
        let geometry = &self.problem().geometry;
        let share = 1.0 / geometry.slots() as f32;
        let gathered = geometry.gathered(window);
        for u in gathered.start..gathered.end.min(geometry.key_len()) {
            // SAFETY: the keys that the block's windows gather are its alone while it runs.
            let to = unsafe { dv.of(self.problem().kv_row(self.block.row), u) };
            to.iter_mut().zip(dout).for_each(|(to, x)| *to += share * x);
        }
    }

    /// Gives an equal share, if dropout keeps it, to the keys that a query does not see, of `hidden` slots.
    fn share_hidden(&self, t: usize, hidden: usize, dout: &[f32], dv: &KeyRows<'_>) {
        let geometry = &self.problem().geometry;
        let (window, visible) = (geometry.window_of(t), geometry.visible_range(t));
        let gathered = geometry.gathered(window);
        for u in gathered.start..gathered.end.min(geometry.key_len()) {
            if self.sees(&visible, u) {
                continue;
            }
            let slot = geometry.slot_of(window, u);
            let kept = self.job.keep.as_ref().map_or(1.0, |k| k.factor(self.block.row, t, slot));
            let share = (kept / hidden as f64) as f32;
            // SAFETY: as in `share`.
            let to = unsafe { dv.of(self.problem().kv_row(self.block.row), u) };
            to.iter_mut().zip(dout).for_each(|(to, x)| *to += share * x);
        }
    }
}
