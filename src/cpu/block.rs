//! How a call is cut into blocks of queries.

use std::ops::Range;

use crate::dropout::KeepMask;
use crate::rotary::RotaryTables;
use crate::{Element, HostInputs, Problem};

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
