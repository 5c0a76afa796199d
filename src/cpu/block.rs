//! One block of queries: its keys block by block, its output row by row.

use std::ops::Range;

use super::kernel::{Lhs, Rhs, RowState, scale, softmax_step, tile};
use super::pack::RowInputs;
use super::simd::{Op, Simd};
use crate::dropout::KeepMask;
use crate::engine::zeros;
use crate::rotary::RotaryTables;
use crate::{Element, HostInputs, Problem, RunError};

/// Keys packed at a time: with 64 features K and V fill a quarter of a small L2 cache.
pub(super) const KEYS: usize = 256;
/// Register tiles of queries that share one pass over packed keys.
pub(super) const TILES: usize = 4;
/// The largest register tile of any instruction set: rows, and lanes of a vector.
const MAX_TILE_ROWS: usize = 8;
const MAX_LANES: usize = 16;
/// Floats from one row of logits to the next: not a power of two, so that rows of a tile do not
/// compete for the same cache sets.
pub(super) const LOGITS_ROW: usize = KEYS + MAX_LANES;

/// What all blocks of a call share.
pub(super) struct Job<'a, T: Element> {
    pub(super) problem: &'a Problem,
    pub(super) inputs: &'a HostInputs<'a, T>,
    pub(super) tables: Option<&'a RotaryTables<f32>>,
    pub(super) keep: Option<KeepMask>,
}

impl<'a, T: Element> Job<'a, T> {
    pub(super) fn new(
        problem: &'a Problem,
        inputs: &'a HostInputs<'a, T>,
        keep: Option<KeepMask>,
    ) -> Self {
        Self { problem, inputs, tables: problem.rotary_tables(), keep }
    }
}

/// Queries of one packed batch row that are computed together.
pub(super) struct Block {
    pub(super) row: usize,
    pub(super) queries: Range<usize>,
    /// The key that rotary positions of this block are counted from.
    pub(super) origin: usize,
    /// The query that xpos decays about.
    pub(super) centre: usize,
}

impl Block {
    /// The blocks of all packed batch rows, in the order of the output. Where blocks begin depends
    /// on positions alone, not on the range asked for, so that every range gives the same bits.
    pub(super) fn all(problem: &Problem, range: Range<usize>) -> Vec<Self> {
        let window = problem.geometry.window();
        let len = problem.query_block();
        // Several whole windows, or a part of one.
        let (unit, len) =
            if len >= window { (usize::MAX, len / window * window) } else { (window, len) };
        let mut blocks = Vec::new();
        for row in 0..problem.batch {
            let mut start = range.start;
            while start < range.end {
                let unit_start = start / unit * unit;
                let first = unit_start + (start - unit_start) / len * len;
                let end = (first + len)
                    .min(unit_start.saturating_add(unit))
                    .min(problem.geometry.seq_len());
                blocks.push(Self {
                    row,
                    queries: start..end.min(range.end),
                    origin: problem.geometry.visible_range(first).start,
                    centre: first.midpoint(end),
                });
                start = end;
            }
        }
        blocks
    }

    /// The real keys that some query sees.
    pub(super) fn keys(&self, problem: &Problem) -> Range<usize> {
        let geometry = &problem.geometry;
        let start = geometry.visible_range(self.queries.start).start;
        let end = geometry.visible_range(self.queries.end - 1).end;
        start..end.min(geometry.key_len())
    }
}

/// A thread's memory: O(tile), whatever the sequence.
pub(super) struct Scratch {
    /// Queries, `[tile][feature][row of the tile]`.
    pub(super) q: Vec<f32>,
    /// Keys, `[panel][feature][key of the panel]`.
    pub(super) k: Vec<f32>,
    /// Values, `[key][feature]`, features padded to whole vectors.
    pub(super) v: Vec<f32>,
    /// 0 for a key that the mask lets through, else minus infinity.
    pub(super) key_mask: Vec<f32>,
    /// One row of features before it is packed, and what rotating it needs.
    pub(super) features: Vec<f32>,
    pub(super) buffer: Vec<f32>,
    /// Logits, then weights, `[row][key]`.
    pub(super) logits: Vec<f32>,
    /// Unnormalised output, `[row][feature]`.
    pub(super) out: Vec<f32>,
    pub(super) state: Vec<RowState>,
    pub(super) value_stride: usize,
}

impl Scratch {
    pub(super) fn new(problem: &Problem) -> Result<Self, RunError> {
        let (d, dv) = (problem.shape.head_dim, problem.shape.value_dim);
        let rows = problem.query_block().min(problem.shape.query.len()) + MAX_TILE_ROWS;
        let value_stride = dv.next_multiple_of(MAX_LANES);
        let what = "scratch";
        let mut state = Vec::new();
        state.resize(rows, RowState::EMPTY);
        Ok(Self {
            q: zeros(what, &[rows, d])?,
            k: zeros(what, &[KEYS, d])?,
            v: zeros(what, &[KEYS, value_stride])?,
            key_mask: zeros(what, &[KEYS])?,
            features: zeros(what, &[d])?,
            buffer: zeros(what, &[d])?,
            logits: zeros(what, &[TILES * MAX_TILE_ROWS, LOGITS_ROW])?,
            out: zeros(what, &[rows, value_stride])?,
            state,
            value_stride,
        })
    }
}

/// The key columns of a tile of queries: what some query sees, as offsets in the key block.
type Columns = Range<usize>;

/// The forward pass of one block.
pub(super) struct ForwardOp<'a, T: Element> {
    pub(super) job: &'a Job<'a, T>,
    pub(super) block: Block,
    pub(super) scratch: &'a mut Scratch,
    /// `[queries, value_dim]`.
    pub(super) out: &'a mut [T],
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
        inputs.pack_queries::<MR>(scratch);
        for r in 0..rows {
            scratch.state[r] = inputs.zero_keys(block.queries.start + r);
        }
        let padded = rows.next_multiple_of(MR) * scratch.value_stride;
        scratch.out[..padded].fill(0.0);
        let keys = block.keys(job.problem);
        let mut first = keys.start / KEYS * KEYS;
        while first < keys.end {
            let present = keys.start.max(first)..keys.end.min(first + KEYS);
            inputs.pack_keys::<S>(scratch, first, present.clone());
            inputs.pack_values(scratch, first, present.clone());
            for group in (0..rows).step_by(TILES * MR) {
                let group = group..rows.min(group + TILES * MR);
                let tiles = logits::<S, MR, T>(&inputs, scratch, group.clone(), first, &present);
                for r in group.clone() {
                    let columns = &tiles[(r - group.start) / MR];
                    let at = (r - group.start) * LOGITS_ROW;
                    let panels = whole_panels::<S>(columns);
                    let row = &mut scratch.logits[at..][panels.clone()];
                    let earlier = softmax_step::<S>(row, &mut scratch.state[r]);
                    if let Some(keep) = &job.keep {
                        let start = first + panels.start;
                        inputs.drop_weights(keep, block.queries.start + r, start, row);
                    }
                    if earlier != 1.0 {
                        let stride = scratch.value_stride;
                        scale::<S>(&mut scratch.out[r * stride..][..stride], earlier);
                    }
                }
                add_values::<S, MR>(scratch, group.start, &tiles);
            }
            first += KEYS;
        }
        for r in 0..rows {
            let width = job.problem.shape.value_dim;
            let to = &mut out[r * width..][..width];
            let state = scratch.state[r];
            if state.is_degenerate() {
                inputs.degenerate_row(block.queries.start + r, to);
            } else {
                let from = &scratch.out[r * scratch.value_stride..][..width];
                let factor = state.sum.recip();
                for (to, &from) in to.iter_mut().zip(from) {
                    *to = T::store(from * factor);
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

/// Whole panels of keys around some columns.
pub(super) fn whole_panels<S: Simd>(columns: &Columns) -> Columns {
    let panel = 2 * S::LANES;
    if columns.is_empty() {
        return 0..0;
    }
    columns.start / panel * panel..columns.end.next_multiple_of(panel)
}

/// Logits of a group of queries for one block of keys, in powers of 2: scores, bias, the self
/// rule, and minus infinity wherever a key is hidden. Each row is filled over the whole panels
/// around its tile's columns. Tiles that see nothing of the block are left out, and those that see
/// all of their columns in every row run no code for masking.
#[inline(always)]
pub(super) fn logits<S: Simd, const MR: usize, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    scratch: &mut Scratch,
    group: Range<usize>,
    first: usize,
    present: &Range<usize>,
) -> [Columns; TILES] {
    let panel = 2 * S::LANES;
    let depth = inputs.head_dim();
    let tiles: [Columns; TILES] = std::array::from_fn(|i| {
        let start = group.start + i * MR;
        let end = group.end.min(start + MR);
        if start < end { inputs.columns(start..end, first, present) } else { 0..0 }
    });
    let seen = tiles.iter().filter(|c| !c.is_empty());
    let low = seen.clone().map(|c| c.start / panel).min().unwrap_or(0);
    let high = seen.map(|c| c.end.div_ceil(panel)).max().unwrap_or(0);
    for p in low..high {
        for (i, columns) in tiles.iter().enumerate() {
            if !whole_panels::<S>(columns).contains(&(p * panel)) {
                continue;
            }
            let a = scratch.q[(group.start + i * MR) * depth..][..MR * depth].as_ptr();
            let b = scratch.k[p * panel * depth..][..panel * depth].as_ptr();
            let c = &mut scratch.logits[i * MR * LOGITS_ROW + p * panel..];
            assert!(c.len() >= (MR - 1) * LOGITS_ROW + panel);
            let a = Lhs { at: a, row: 1, step: MR };
            let b = Rhs { at: b, row: panel };
            // SAFETY: a tile of packed queries is `depth` times `MR` floats, a panel of keys
            // `depth` times two vectors, and the assertion bounds the logits.
            unsafe { tile::<S, MR, 2, false>(depth, a, b, c.as_mut_ptr(), LOGITS_ROW) };
        }
    }
    for r in group.clone() {
        let columns = &tiles[(r - group.start) / MR];
        if !columns.is_empty() {
            let panels = whole_panels::<S>(columns);
            let row = &mut scratch.logits[(r - group.start) * LOGITS_ROW..][panels.clone()];
            inputs.hide(r, row, first + panels.start, present, &scratch.key_mask[panels]);
        }
    }
    tiles
}

/// Adds weights times values to the output of a group of queries.
#[inline(always)]
fn add_values<S: Simd, const MR: usize>(
    scratch: &mut Scratch,
    first_row: usize,
    tiles: &[Columns; TILES],
) {
    let stride = scratch.value_stride;
    for (i, columns) in tiles.iter().enumerate() {
        if columns.is_empty() {
            continue;
        }
        let depth = columns.len();
        let weights = &scratch.logits[i * MR * LOGITS_ROW + columns.start..];
        assert!(weights.len() >= (MR - 1) * LOGITS_ROW + depth);
        let a = Lhs { at: weights.as_ptr(), row: LOGITS_ROW, step: 1 };
        let values = &scratch.v[columns.start * stride..][..depth * stride];
        let out = &mut scratch.out[(first_row + i * MR) * stride..][..MR * stride];
        let mut e = 0;
        while e < stride {
            // SAFETY: `values` holds `depth` and `out` `MR` rows of `stride` floats, a whole number
            // of vectors, of which those from `e` on are used; the assertion bounds the weights.
            unsafe {
                let b = Rhs { at: values.as_ptr().add(e), row: stride };
                let c = out.as_mut_ptr().add(e);
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
}
