//! Memory of a thread, used again from call to call.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};

use super::ahead::LINE;
use super::forward::{KEYS, LOGITS_ROW, MAX_LANES, MAX_TILE_ROWS, TILES};
use super::kernel::RowState;
use crate::engine::zeros;
use crate::shape::saturating_product;
use crate::{Problem, RunError};

/// A thread's memory: O(tile), whatever the sequence.
#[derive(Default)]
pub(super) struct Scratch {
    /// Queries, `[row][feature]`.
    pub(super) q: Floats,
    /// The keys each query sees.
    pub(super) visible: Vec<Range<usize>>,
    /// Keys, `[vector][feature][key of the vector]`.
    pub(super) k: Floats,
    /// Values, `[key][feature]`, features padded to whole vectors.
    pub(super) v: Floats,
    /// 0 for a key that the mask lets through, else minus infinity.
    pub(super) key_mask: Floats,
    /// Keys before they are packed, `[key][feature]`, and what rotating one needs.
    pub(super) features: Floats,
    pub(super) buffer: Floats,
    /// Logits, then weights, `[row][key]`.
    pub(super) logits: Floats,
    /// Unnormalised output, `[row][feature]`.
    pub(super) out: Floats,
    pub(super) state: Vec<RowState>,
    pub(super) value_stride: usize,
    /// Features of queries and keys, padded to whole vectors.
    pub(super) head_stride: usize,
    pub(super) back: Backward,
}

/// What a backward pass needs beside.
#[derive(Default)]
pub(super) struct Backward {
    /// Gradients by outputs, `[row][feature]`, and their products with the outputs.
    pub(super) dout: Floats,
    pub(super) product: Floats,
    /// A row's weights are `exp2(logit - lse) * factor`; `lse` is infinity for rows that saw nothing.
    pub(super) lse: Floats,
    pub(super) factor: Floats,
    /// Gradients by weights, then by logits, `[row][key]`; and a row of weights before dropout.
    pub(super) by_logits: Floats,
    pub(super) dropped: Floats,
    /// Gradients, `[row or key][feature]`, features padded to whole vectors.
    pub(super) dq: Floats,
    pub(super) dk: Floats,
    pub(super) dv: Floats,
}

impl Scratch {
    /// Makes room for a problem; memory of earlier calls is used again. What it holds is left over
    /// from them: everything is written before it is read.
    fn fit(&mut self, problem: &Problem) -> Result<(), RunError> {
        let (d, dv) = (problem.shape.head_dim, problem.shape.value_dim);
        let (rows, keys) = block_size(problem);
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

    /// Makes room for the backward pass of a problem too.
    fn fit_backward(&mut self, problem: &Problem) -> Result<(), RunError> {
        self.fit(problem)?;
        let (d, dv) = (problem.shape.head_dim, problem.shape.value_dim);
        let (rows, keys) = block_size(problem);
        self.head_stride = d.checked_next_multiple_of(MAX_LANES).unwrap_or(usize::MAX);
        // Rows that are read as whole vectors reach over their last feature.
        grow(&mut self.q, &[rows + MAX_LANES, d])?;
        grow(&mut self.features, &[keys + MAX_LANES, d])?;
        grow(&mut self.buffer, &[MAX_LANES, d.max(dv)])?;
        let back = &mut self.back;
        grow(&mut back.dout, &[rows + MAX_LANES, dv])?;
        grow(&mut back.product, &[rows])?;
        grow(&mut back.lse, &[rows])?;
        grow(&mut back.factor, &[rows])?;
        grow(&mut back.by_logits, &[TILES * MAX_TILE_ROWS, LOGITS_ROW])?;
        grow(&mut back.dropped, &[LOGITS_ROW])?;
        grow(&mut back.dq, &[rows, self.head_stride])?;
        grow(&mut back.dk, &[keys + MAX_LANES, self.head_stride])?;
        grow(&mut back.dv, &[keys + MAX_LANES, self.value_stride])
    }

    /// Calls `work` with this thread's memory.
    pub(super) fn with<R>(
        problem: &Problem,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, RunError> {
        Self::fitted(|scratch| scratch.fit(problem), work)
    }

    /// The same for a backward pass.
    pub(super) fn with_backward<R>(
        problem: &Problem,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, RunError> {
        Self::fitted(|scratch| scratch.fit_backward(problem), work)
    }

    fn fitted<R>(
        fit: impl FnOnce(&mut Self) -> Result<(), RunError>,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, RunError> {
        thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
        SCRATCH.with_borrow_mut(|scratch| {
            fit(scratch)?;
            let result = work(scratch);
            // Features by the thousand are rare: do not keep what they took.
            let Self { q, k, v, out, features, back, .. } = &*scratch;
            let kept = [q, k, v, out, features, &back.dq, &back.dk, &back.dv].map(|x| x.len());
            if kept.iter().sum::<usize>() > 3 * 4096 * KEYS {
                *scratch = Self::default();
            }
            Ok(result)
        })
    }
}

/// Queries of a block with those of a register tile that begins at its last, and keys of a block.
fn block_size(problem: &Problem) -> (usize, usize) {
    let rows = problem.query_block().min(problem.shape.query.len()) + MAX_TILE_ROWS;
    // Key blocks lie at multiples of KEYS: a short sequence is in the first.
    (rows, KEYS.min(problem.shape.key_len.next_multiple_of(MAX_LANES)))
}

/// Floats from the start of a cache line on: vectors as long as a line that cross two of them take twice as long.
#[derive(Default)]
pub(super) struct Floats {
    data: Vec<f32>,
    start: usize,
}

impl Deref for Floats {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.data[self.start..]
    }
}

impl DerefMut for Floats {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..]
    }
}

fn grow(floats: &mut Floats, dims: &[usize]) -> Result<(), RunError> {
    let elements = saturating_product(dims);
    if elements > floats.len() as u128 {
        let line = LINE / size_of::<f32>();
        let len = usize::try_from(elements).unwrap_or(usize::MAX).saturating_add(line);
        let data: Vec<f32> = zeros("scratch", &[len])?;
        let start = data.as_ptr().align_offset(LINE).min(line);
        *floats = Floats { data, start };
    }
    Ok(())
}
