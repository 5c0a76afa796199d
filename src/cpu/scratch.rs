//! Memory of a thread, used again from call to call.

use std::cell::RefCell;
use std::ops::Range;

use super::forward::{KEYS, LOGITS_ROW, MAX_LANES, MAX_TILE_ROWS, TILES};
use super::kernel::RowState;
use crate::engine::zeros;
use crate::shape::saturating_product;
use crate::{Problem, RunError};

/// A thread's memory: O(tile), whatever the sequence.
#[derive(Default)]
pub(super) struct Scratch {
    /// Queries, `[row][feature]`.
    pub(super) q: Vec<f32>,
    /// The keys each query sees.
    pub(super) visible: Vec<Range<usize>>,
    /// Keys, `[vector][feature][key of the vector]`.
    pub(super) k: Vec<f32>,
    /// Values, `[key][feature]`, features padded to whole vectors.
    pub(super) v: Vec<f32>,
    /// 0 for a key that the mask lets through, else minus infinity.
    pub(super) key_mask: Vec<f32>,
    /// Keys before they are packed, `[key][feature]`, and what rotating one needs.
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
    /// Makes room for a problem; memory of earlier calls is used again. What it holds is left over
    /// from them: everything is written before it is read.
    fn fit(&mut self, problem: &Problem) -> Result<(), RunError> {
        let (d, dv) = (problem.shape.head_dim, problem.shape.value_dim);
        let rows = problem.query_block().min(problem.shape.query.len()) + MAX_TILE_ROWS;
        // Key blocks lie at multiples of KEYS: a short sequence is in the first.
        let keys = KEYS.min(problem.shape.key_len.next_multiple_of(MAX_LANES));
        // Beyond what can be had: the allocation says so.
        self.value_stride = dv.checked_next_multiple_of(MAX_LANES).unwrap_or(usize::MAX);
        grow(&mut self.q, &[rows, d])?;
        grow(&mut self.k, &[keys, d])?;
        grow(&mut self.v, &[keys, self.value_stride])?;
        grow(&mut self.key_mask, &[KEYS])?;
        grow(&mut self.features, &[MAX_LANES, d])?;
        grow(&mut self.buffer, &[d])?;
        grow(&mut self.logits, &[TILES * MAX_TILE_ROWS, LOGITS_ROW])?;
        grow(&mut self.out, &[rows, self.value_stride])?;
        self.state.resize(rows.max(self.state.len()), RowState::EMPTY);
        self.visible.resize(rows.max(self.visible.len()), 0..0);
        Ok(())
    }

    /// Calls `work` with this thread's memory.
    pub(super) fn with<R>(
        problem: &Problem,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, RunError> {
        thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(problem)?;
            let result = work(scratch);
            // Features by the thousand are rare: do not keep what they took.
            let kept = [&scratch.q, &scratch.k, &scratch.v, &scratch.out].map(|x| x.len());
            if kept.iter().sum::<usize>() > 4096 * KEYS {
                *scratch = Self::default();
            }
            Ok(result)
        })
    }
}

fn grow(data: &mut Vec<f32>, dims: &[usize]) -> Result<(), RunError> {
    let elements = saturating_product(dims);
    if elements > data.len() as u128 {
        *data = zeros("scratch", dims)?;
    }
    Ok(())
}
