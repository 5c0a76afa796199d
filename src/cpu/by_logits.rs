//! What all gradients begin with: weights computed again from `lse`, and the gradients by logits.

use std::f64::consts::LOG2_E;
use std::ops::Range;

use super::forward::{Columns, LOGITS_ROW, TILES, logits, products, whole_vectors};
use super::kernel::{drop_step, softmax_step, weight_step};
use super::pack::{RowInputs, load};
use super::scratch::Scratch;
use super::simd::Simd;
use crate::gradients::EXACT_LSE;
use crate::reference::DEGENERATE_LSE;
use crate::{BackwardInputs, Element};

/// Keys, and values as they are needed here, of the block of keys from `first` on.
#[inline(always)]
pub(super) fn pack<S: Simd, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    scratch: &mut Scratch,
    first: usize,
    present: &Range<usize>,
) {
    inputs.pack_keys::<S, true>(scratch, first, present.clone());
    inputs.pack_transposed_values::<S>(scratch, first, present.clone());
}

/// Gradients by the outputs of the block, `[row][feature]`, their products with the outputs, and what the weights of
/// each row are relative to. Rows that saw nothing have infinity there, so that all weights come out as 0; says whether there
/// are such rows.
#[inline(always)]
pub(super) fn pack_outputs<S: Simd, const MR: usize, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    saved: &BackwardInputs<'_, T>,
    scratch: &mut Scratch,
) -> bool {
    let (row, first) = (inputs.block.row, inputs.problem().shape.query.start);
    let width = inputs.problem().shape.value_dim;
    let [out, dout] = [&saved.out, &saved.dout].map(|x| x.packed_row(row, 2));
    let lse = saved.lse.packed_row(row, 1);
    let rows = inputs.block.queries.len();
    let back = &mut scratch.back;
    let (mut empty, mut inexact) = (false, false);
    for (r, t) in inputs.block.queries.clone().enumerate() {
        let to = &mut back.dout[r * width..][..width];
        load(&dout, t - first, to);
        let outputs = &mut scratch.buffer[..width];
        load(&out, t - first, outputs);
        let product = to.iter().zip(&*outputs).map(|(&a, &b)| f64::from(a) * f64::from(b));
        back.product[r] = product.sum::<f64>() as f32;
        let lse = lse.at1(t - first);
        back.factor[r] = 1.0;
        if lse == DEGENERATE_LSE as f32 {
            empty = true;
            // Whatever `out` is: nothing depends on it.
            (back.lse[r], back.product[r]) = (f32::INFINITY, 0.0);
        } else {
            back.lse[r] = (f64::from(lse) * LOG2_E) as f32;
            inexact |= back.lse[r].abs() > EXACT_LSE;
        }
    }
    back.dout[rows * width..rows.next_multiple_of(MR) * width].fill(0.0);
    if inexact {
        sum_again::<S, MR, T>(inputs, scratch);
    }
    empty
}

/// The maximum and the sum of rows whose `lse`, as one number in f32, says too little: those with a bias of -1e9, say,
/// on all that they see.
// Out of line it would lose its instruction set's features; a WebAssembly module has them everywhere, and a size to mind.
#[cfg_attr(target_arch = "wasm32", inline(never))]
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
fn sum_again<S: Simd, const MR: usize, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    scratch: &mut Scratch,
) {
    let rows = inputs.block.queries.len();
    for r in 0..rows {
        scratch.state[r] = inputs.zero_keys(inputs.query(r), &scratch.visible[r]);
    }
    for (first, present, _) in inputs.block.key_blocks(inputs.problem()) {
        inputs.pack_keys::<S, false>(scratch, first, present.clone());
        for start in (0..rows).step_by(TILES * MR) {
            let group = start..rows.min(start + TILES * MR);
            let tiles = logits::<S, MR, T>(inputs, scratch, group.clone(), first, &present);
            for r in group {
                let vectors = whole_vectors::<S>(&tiles[(r - start) / MR]);
                let row = &mut scratch.logits[(r - start) * LOGITS_ROW..][vectors];
                softmax_step::<S>(row, &mut scratch.state[r]);
            }
        }
    }
    for r in 0..rows {
        if scratch.back.lse[r].is_finite() && scratch.back.lse[r].abs() > EXACT_LSE {
            scratch.back.lse[r] = scratch.state[r].max;
            scratch.back.factor[r] = scratch.state[r].sum.recip();
        }
    }
}

/// For a group of queries and a block of keys: weights, kept ones, in the tile of logits, and the gradients by
/// logits. Both are there over the whole vectors around each tile's columns. `ask`: asks for memory that is needed
/// next, with each row.
#[inline(always)]
pub(super) fn by_logits<S: Simd, const MR: usize, T: Element<Accumulator = f32>>(
    inputs: &RowInputs<'_, T>,
    scratch: &mut Scratch,
    group: Range<usize>,
    (first, present): (usize, &Range<usize>),
    ask: impl Fn(usize),
) -> [Columns; TILES] {
    let width = inputs.problem().shape.value_dim;
    let tiles = logits::<S, MR, T>(inputs, scratch, group.clone(), first, present);
    let back = &mut scratch.back;
    let rows = &back.dout[group.start * width..];
    products::<S, MR>(&tiles, rows, &scratch.v, width, &mut back.by_logits);
    for r in group.clone() {
        ask(r);
        let vectors = whole_vectors::<S>(&tiles[(r - group.start) / MR]);
        let at = (r - group.start) * LOGITS_ROW;
        let weights = &mut scratch.logits[at..][vectors.clone()];
        let by_weight = &mut back.by_logits[at..][vectors.clone()];
        weight_step::<S>(
            weights,
            by_weight,
            (back.lse[r], back.factor[r]),
            back.product[r],
            inputs.job.keep.is_some(),
        );
        let t = inputs.query(r);
        let start = first + vectors.start;
        if let Some(keep) = &inputs.job.keep {
            // So far without dropout: -P sum(dout out) beside P.
            let plain = &mut back.dropped[..weights.len()];
            plain.copy_from_slice(weights);
            inputs.drop_weights(keep, t, &scratch.visible[r], start, weights);
            drop_step::<S>(weights, plain, by_weight, back.product[r]);
        }
        if inputs.problem().shared_qk && (start..first + vectors.end).contains(&t) {
            // A constant.
            by_weight[t - start] = 0.0;
        }
    }
    tiles
}
