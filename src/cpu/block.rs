//! How a call is cut into blocks of queries, and where their results go.

use std::marker::PhantomData;
use std::ops::Range;

use super::forward::KEYS;
use crate::dropout::KeepMask;
use crate::rotary::RotaryTables;
use crate::{Element, HostInputs, Problem, RunError};

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
    ) -> Result<Self, RunError> {
        Ok(Self { problem, inputs, tables: problem.rotary_tables()?, keep })
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
    /// The real keys that some query sees.
    pub(super) fn keys(&self, problem: &Problem) -> Range<usize> {
        let geometry = &problem.geometry;
        let start = geometry.visible_range(self.queries.start).start;
        let end = geometry.visible_range(self.queries.end - 1).end;
        start..end.min(geometry.key_len())
    }

    /// Those keys by blocks of [`KEYS`], at multiples of it: where a block begins, which of its keys are there, and the
    /// keys of the one after it, none after the last.
    pub(super) fn key_blocks(
        &self,
        problem: &Problem,
    ) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + use<> {
        let keys = self.keys(problem);
        // Where none is seen the range may run backwards.
        let end = if keys.is_empty() { 0 } else { keys.end };
        let of = move |first: usize| keys.start.max(first)..keys.end.min(first + KEYS);
        let firsts = (keys.start / KEYS * KEYS..end).step_by(KEYS);
        firsts.map(move |first| (first, of(first), of(first + KEYS)))
    }
}

/// The blocks of all packed batch rows. Where blocks begin depends on positions alone, not on the
/// range asked for, so that every range gives the same bits.
pub(super) struct Blocks<'a> {
    problem: &'a Problem,
    queries: Range<usize>,
    /// Whole windows that make one block, or a window that is cut into `per_unit` of them.
    unit: usize,
    len: usize,
    per_unit: usize,
    /// Number of the first block of a row, counted from the start of the sequence.
    first: usize,
    per_row: usize,
}

impl<'a> Blocks<'a> {
    /// `queries` is not empty.
    pub(super) fn new(problem: &'a Problem, queries: Range<usize>) -> Self {
        let window = problem.geometry.window();
        let len = problem.query_block();
        let len = if len >= window { len / window * window } else { len };
        let unit = len.max(window);
        let per_unit = unit.div_ceil(len);
        let number = |query: usize| query / unit * per_unit + query % unit / len;
        let first = number(queries.start);
        let per_row = number(queries.end - 1) + 1 - first;
        Self { problem, queries, unit, len, per_unit, first, per_row }
    }

    /// How many there are. Each has a result of at least one element, so the product fits.
    pub(super) fn count(&self) -> usize {
        self.problem.batch * self.per_row
    }

    /// Into how many colours blocks have to be put, in turn, so that no two of one colour gather the same key.
    pub(super) fn colours(&self) -> usize {
        let geometry = &self.problem.geometry;
        // Positions that a unit gathers beside its own.
        let beside = geometry.slots() - geometry.window();
        (beside.div_ceil(self.unit) + 1).saturating_mul(self.per_unit).min(self.per_row)
    }

    /// Blocks of a row.
    pub(super) fn per_row(&self) -> usize {
        self.per_row
    }

    /// The first block of a row that has a colour: blocks are coloured by their numbers.
    pub(super) fn first_of(&self, colour: usize, colours: usize) -> usize {
        (colour + colours - self.first % colours) % colours
    }

    /// One of them.
    pub(super) fn get(&self, index: usize) -> Block {
        let number = self.first + index % self.per_row;
        let unit = number / self.per_unit * self.unit;
        let first = unit + number % self.per_unit * self.len;
        let end = (first + self.len).min(unit + self.unit).min(self.problem.geometry.seq_len());
        let visible = self.problem.geometry.visible_range(first);
        Block {
            row: index / self.per_row,
            queries: first.max(self.queries.start)..end.min(self.queries.end),
            // Where the first sees nothing, none does: ranges only move right.
            origin: if visible.is_empty() { first } else { visible.start },
            centre: first.midpoint(end),
        }
    }

    /// The part of a row-major result, `width` elements a query, that belongs to a block.
    fn part_of(&self, block: &Block, width: usize) -> Range<usize> {
        let row = block.row * self.queries.len();
        let at = |query: usize| (row + query - self.queries.start) * width;
        at(block.queries.start)..at(block.queries.end)
    }
}

/// A result, `width` elements a query, of which every block has its own part.
pub(super) struct Parts<'a, T> {
    at: *mut T,
    len: usize,
    width: usize,
    all: PhantomData<&'a mut [T]>,
}

// SAFETY: threads reach elements through `of` alone, which gives each block others.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(super) fn new(all: &'a mut [T], width: usize) -> Self {
        Self { at: all.as_mut_ptr(), len: all.len(), width, all: PhantomData }
    }

    /// The part of one block.
    ///
    /// # Safety
    /// Parts of one block are not alive at the same time; all blocks are of one `Blocks`.
    #[expect(clippy::mut_from_ref, reason = "parts of different blocks do not overlap")]
    pub(super) unsafe fn of(&self, blocks: &Blocks<'_>, block: &Block) -> &mut [T] {
        let part = blocks.part_of(block, self.width);
        assert!(part.start <= part.end && part.end <= self.len);
        // SAFETY: inside the slice this was made of, and nobody else's as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(part.start), part.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttentionShape, LocalAttention, LocalAttentionConfig};

    /// Blocks of one colour gather different keys, and colours have every block once.
    #[test]
    fn colours_keep_keys_apart() {
        for window in [1, 3, 64, 100, 256, 300, 600] {
            for (back, ahead, xpos) in [(0, 0, false), (1, 0, false), (2, 1, false), (3, 3, true)] {
                let mut config =
                    LocalAttentionConfig::new(window).look_backward(back).look_forward(ahead);
                if xpos {
                    // Short blocks.
                    config = config.dim(4).use_xpos(true).xpos_scale_base(2.0);
                }
                let n = (window as usize * 9).max(2100).next_multiple_of(window as usize);
                let attention = LocalAttention::new(config).unwrap();
                let problem = attention.problem(&AttentionShape::new([2], n, 4)).unwrap();
                for range in [0..n, n / 3..n, 5..n / 2] {
                    let blocks = Blocks::new(&problem, range);
                    let colours = blocks.colours();
                    let mut met = vec![0; blocks.per_row()];
                    for colour in 0..colours {
                        let first = blocks.first_of(colour, colours);
                        let mut last_end = 0;
                        for i in (first..blocks.per_row()).step_by(colours) {
                            met[i] += 1;
                            let queries = blocks.get(i).queries;
                            let windows = [queries.start, queries.end - 1]
                                .map(|t| problem.geometry.gathered(problem.geometry.window_of(t)));
                            assert!(windows[0].start >= last_end, "window {window}, block {i}");
                            last_end = windows[1].end;
                        }
                    }
                    assert!(met.iter().all(|n| *n == 1), "window {window}: {met:?}");
                }
            }
        }
    }

    /// Blocks of any range tile it, and cut at the same positions as the blocks of all queries.
    #[test]
    fn blocks_tile_every_range_alike() {
        for (window, n) in [(1, 700), (3, 999), (100, 900), (256, 768), (300, 900), (600, 1200)] {
            let attention = LocalAttention::new(LocalAttentionConfig::new(window)).unwrap();
            let problem = attention.problem(&AttentionShape::new([2], n, 4)).unwrap();
            let all = Blocks::new(&problem, 0..n);
            let starts: Vec<_> = (0..all.count()).map(|i| all.get(i).queries.start).collect();
            for range in [0..n, 1..n, 5..n / 2, 257..258, n - 1..n] {
                let blocks = Blocks::new(&problem, range.clone());
                let mut next = range.start;
                for i in 0..blocks.count() {
                    let block = blocks.get(i);
                    assert_eq!(block.row, i / blocks.per_row);
                    assert_eq!(block.queries.start, next, "window {window}, {range:?}");
                    assert!(!block.queries.is_empty());
                    assert!(next == range.start || starts.contains(&next));
                    next = if block.queries.end == range.end {
                        range.start
                    } else {
                        block.queries.end
                    };
                }
                assert_eq!(blocks.count(), 2 * blocks.per_row);
                assert_eq!(next, range.start);
            }
        }
    }
}
