//! The forward pass of one block of queries: its keys block by block, its output row by row.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::ahead::{ask, turn};
use super::block::{Block, Job};
use super::kernel::{Lhs, Rhs, scale, softmax_step, tile};
use super::pack::RowInputs;
use super::scratch::Scratch;
use super::simd::{Op, Simd};
use crate::{Element, TileKind};

/// Keys packed at a time: with 64 features K and V fill a quarter of a small L2 cache.
pub(super) const KEYS: usize = 256;
/// Register tiles of queries that share one pass over packed keys.
pub(super) const TILES: usize = 4;
/// The largest register tile of any instruction set: rows, and lanes of a vector.
pub(super) const MAX_TILE_ROWS: usize = 8;
pub(super) const MAX_LANES: usize = 16;
/// Floats from one row of logits to the next: not a power of two, so that rows of a tile do not
/// compete for the same cache sets.
pub(super) const LOGITS_ROW: usize = KEYS + MAX_LANES;

/// The key columns of a tile of queries: what some query sees, as offsets in the key block.
pub(super) type Columns = Range<usize>;

/// The forward pass of one block.
pub(super) struct ForwardOp<'a, T: Element> {
    pub(super) job: &'a Job<'a, T>,
    pub(super) block: Block,
    pub(super) scratch: &'a mut Scratch,
    /// `[queries, value_dim]`, all of which is written.
    pub(super) out: &'a mut [MaybeUninit<T>],
    /// `[queries]`, or empty.
    pub(super) lse: &'a mut [f32],
}

impl<T: Element<Accumulator = f32>> Op for ForwardOp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self) {
        let Self { job, block, scratch, out, lse } = self;
        let inputs = RowInputs::new(job, &block);
        let rows = block.queries.len();
        inputs.pack_queries::<S, MR>(scratch);
        for r in 0..rows {
            scratch.state[r] = inputs.zero_keys(inputs.query(r), &scratch.visible[r]);
        }
        let padded = rows.next_multiple_of(MR) * scratch.value_stride;
        scratch.out[..padded].fill(0.0);
        let in_place = inputs.values_in_place(scratch.value_stride);
        for (first, present, next) in block.key_blocks(job.problem) {
            inputs.pack_keys::<S, false>(scratch, first, present.clone());
            if in_place.is_none() {
                inputs.pack_values(scratch, first, present.clone());
            }
            for group in (0..rows).step_by(TILES * MR) {
                let group = group..rows.min(group + TILES * MR);
                let tiles = logits::<S, MR, T>(&inputs, scratch, group.clone(), first, &present);
                for r in group.clone() {
                    let columns = &tiles[(r - group.start) / MR];
                    let at = (r - group.start) * LOGITS_ROW;
                    let vectors = whole_vectors::<S>(columns);
                    if !next.is_empty() {
                        inputs.ask_keys(turn(&next, r, rows));
                    } else {
                        inputs.ask_query(block.queries.end + r);
                        let width = job.problem.shape.value_dim;
                        ask(out[r * width..][..width].as_ptr(), width);
                    }
                    let row = &mut scratch.logits[at..][vectors.clone()];
                    let earlier = softmax_step::<S>(row, &mut scratch.state[r]);
                    if let Some(keep) = &job.keep {
                        let start = first + vectors.start;
                        let t = inputs.query(r);
                        inputs.drop_weights(keep, t, &scratch.visible[r], start, row);
                    }
                    if earlier != 1.0 {
                        let stride = scratch.value_stride;
                        scale::<S>(&mut scratch.out[r * stride..][..stride], earlier);
                    }
                }
                let stride = scratch.value_stride;
                let out = &mut scratch.out[group.start * stride..];
                let values = match in_place {
                    Some((values, row)) => (&values[first * row..], row),
                    None => (&*scratch.v, stride),
                };
                add_rows::<S, MR>(&tiles, &scratch.logits, values, (out, stride));
            }
        }
        let mut whole = None;
        for r in 0..rows {
            let width = job.problem.shape.value_dim;
            let state = scratch.state[r];
            if state.is_degenerate() {
                inputs.degenerate_row(r, out, &mut whole);
            } else {
                let to = &mut out[r * width..][..width];
                let from = &scratch.out[r * scratch.value_stride..][..width];
                let factor = state.sum.recip();
                for (to, &from) in to.iter_mut().zip(from) {
                    to.write(T::store(from * factor));
                }
            }
            if let Some(lse) = lse.get_mut(r) {
                *lse = if state.is_degenerate() {
                    crate::reference::DEGENERATE_LSE as f32
                } else {
                    state.lse()
                };
            }
        }
    }
}

/// Whole vectors of keys around some columns.
pub(super) fn whole_vectors<S: Simd>(columns: &Columns) -> Columns {
    if columns.is_empty() {
        return 0..0;
    }
    columns.start / S::LANES * S::LANES..columns.end.next_multiple_of(S::LANES)
}

/// Logits of a group of queries for one block of keys, in powers of 2: scores, bias, the self
/// rule, and minus infinity wherever a key is hidden. Each row is filled over the whole vectors
/// around its tile's columns. Tiles outside what their queries see are left out, and those inside
/// have nothing hidden.
#[inline(always)]
pub(super) fn logits<S: Simd, const MR: usize, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    scratch: &mut Scratch,
    group: Range<usize>,
    first: usize,
    present: &Range<usize>,
) -> [Columns; TILES] {
    let tiles: [Columns; TILES] = std::array::from_fn(|i| {
        let start = group.start + i * MR;
        let end = group.end.min(start + MR);
        if start >= end {
            return 0..0;
        }
        // Ranges move right from query to query.
        let low = scratch.visible[start].start.max(present.start);
        let high = scratch.visible[end - 1].end.min(present.end);
        if low < high { low - first..high - first } else { 0..0 }
    });
    let queries = &scratch.q[group.start * inputs.head_dim()..];
    products::<S, MR>(&tiles, queries, &scratch.k, inputs.head_dim(), &mut scratch.logits);
    for (i, columns) in tiles.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let vectors = whole_vectors::<S>(columns);
        let keys = first + vectors.start..first + vectors.end;
        let start = group.start + i * MR;
        let end = group.end.min(start + MR);
        // Of keys past the last real one, which may be visible, there are no scores.
        let (head, tail) = (&scratch.visible[start], &scratch.visible[end - 1]);
        let kind = match TileKind::of(head, tail, &keys) {
            TileKind::Inside if keys.end <= present.end => TileKind::Inside,
            _ => TileKind::Edge,
        };
        if kind == TileKind::Inside && !inputs.adjusts_logits() {
            continue;
        }
        for r in start..end {
            let row = &mut scratch.logits[(r - group.start) * LOGITS_ROW..][vectors.clone()];
            let visible = &scratch.visible[r];
            let visible = visible.start.max(present.start)..visible.end.min(present.end);
            inputs.hide::<S>(r, row, keys.start, &visible, &scratch.key_mask[vectors.clone()]);
        }
    }
    tiles
}

/// Products of a group of rows, `[row][depth]`, with packed keys, `[vector][depth][key]`, over the whole vectors
/// around each tile's columns, into a tile of logits.
#[inline(always)]
pub(super) fn products<S: Simd, const MR: usize>(
    tiles: &[Columns; TILES],
    rows: &[f32],
    keys: &[f32],
    depth: usize,
    to: &mut [f32],
) {
    // Each tile's pairs of vectors, in turn: tiles that see the same keys find them in the cache.
    let widest = tiles.iter().map(|columns| whole_vectors::<S>(columns).len()).max().unwrap_or(0);
    for step in (0..widest).step_by(2 * S::LANES) {
        for (i, columns) in tiles.iter().enumerate() {
            let vectors = whole_vectors::<S>(columns);
            let start = vectors.start + step;
            if start >= vectors.end {
                continue;
            }
            let two = vectors.end - start > S::LANES;
            let a = rows[i * MR * depth..][..MR * depth].as_ptr();
            let width = if two { 2 * S::LANES } else { S::LANES };
            let b = keys[start * depth..][..width * depth].as_ptr();
            let c = &mut to[i * MR * LOGITS_ROW + start..];
            assert!(c.len() >= (MR - 1) * LOGITS_ROW + width);
            let a = Lhs { at: a, row: depth, step: 1 };
            let b = Rhs { at: b, row: S::LANES, vector: S::LANES * depth };
            let c = c.as_mut_ptr();
            // SAFETY: a tile of queries is `MR` rows of `depth` floats, a vector of keys `depth`
            // vectors, and the assertion bounds the logits.
            unsafe {
                if two {
                    tile::<S, MR, 2, false>(depth, a, b, c, LOGITS_ROW);
                } else {
                    tile::<S, MR, 1, false>(depth, a, b, c, LOGITS_ROW);
                }
            }
        }
    }
}

/// Adds weights, a tile of logits, times what keys hold, `from_row` floats from one to the next, to a group of
/// rows of `stride` floats, a whole number of vectors.
#[inline(always)]
pub(super) fn add_rows<S: Simd, const MR: usize>(
    tiles: &[Columns; TILES],
    weights: &[f32],
    (from, from_row): (&[f32], usize),
    (to, stride): (&mut [f32], usize),
) {
    for (i, columns) in tiles.iter().enumerate() {
        if columns.is_empty() {
            continue;
        }
        let depth = columns.len();
        let weights = &weights[i * MR * LOGITS_ROW + columns.start..];
        assert!(weights.len() >= (MR - 1) * LOGITS_ROW + depth);
        let a = Lhs { at: weights.as_ptr(), row: LOGITS_ROW, step: 1 };
        let from = &from[columns.start * from_row..][..(depth - 1) * from_row + stride];
        let out = &mut to[i * MR * stride..][..MR * stride];
        // SAFETY: the assertion bounds the weights.
        unsafe { add_features::<S, MR>(depth, a, (from, from_row), (out, stride)) };
    }
}

/// Adds products to `MR` rows of `stride` floats, a whole number of vectors: of `a` with `depth` rows that begin
/// `from_row` floats apart, of which `stride` are read.
///
/// # Safety
/// `a` holds `MR` rows of `depth`.
#[inline(always)]
pub(super) unsafe fn add_features<S: Simd, const MR: usize>(
    depth: usize,
    a: Lhs,
    (from, from_row): (&[f32], usize),
    (to, stride): (&mut [f32], usize),
) {
    assert!(depth > 0 && from.len() >= (depth - 1) * from_row + stride);
    assert!(to.len() >= MR * stride && stride.is_multiple_of(S::LANES));
    let mut e = 0;
    while e < stride {
        // SAFETY: the assertions bound rows and results, of which the vectors from `e` on are used, and the
        // caller promises `a`.
        unsafe {
            let b = Rhs { at: from.as_ptr().add(e), row: from_row, vector: S::LANES };
            let c = to.as_mut_ptr().add(e);
            if e + 2 * S::LANES <= stride {
                tile::<S, MR, 2, true>(depth, a, b, c, stride);
                e += 2 * S::LANES;
            } else {
                tile::<S, MR, 1, true>(depth, a, b, c, stride);
                e += S::LANES;
            }
        }
    }
}
