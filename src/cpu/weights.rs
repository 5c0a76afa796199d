//! Attention weights of a range of queries.

use std::ops::Range;

use super::Cpu;
use super::block::{Block, Blocks, Job, Parts};
use super::forward::{LOGITS_ROW, TILES, logits, whole_vectors};
use super::pack::RowInputs;
use super::scratch::Scratch;
use super::simd::{Op, Simd};
use crate::engine::zeros;
use crate::{Element, HostInputs, Problem, RunError, Weights};

impl Cpu {
    pub(super) fn weights_f32<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
    ) -> Result<Weights<T>, RunError> {
        problem.check_inputs(inputs)?;
        problem.check_queries(&queries)?;
        let shape = [problem.batch, queries.len(), problem.geometry.slots()];
        let mut weights: Vec<f32> = zeros("attention weights", &shape)?;
        if !weights.is_empty() {
            let job = Job::new(problem, inputs, None)?;
            let blocks = Blocks::new(problem, queries.clone());
            let weights = Parts::new(&mut weights, shape[2]);
            self.each(problem, blocks.count(), |task| {
                let block = blocks.get(task);
                // SAFETY: every task is a block of its own.
                let weights = unsafe { weights.of(&blocks, &block) };
                Scratch::with(problem, |scratch| {
                    self.isa.run(WeightsOp { job: &job, block, scratch, weights });
                })
            })?;
        }
        Ok(Weights { weights, shape, keys: problem.slot_positions(queries)? })
    }
}

/// The weights of one block of queries.
struct WeightsOp<'a, T: Element> {
    job: &'a Job<'a, T>,
    block: Block,
    scratch: &'a mut Scratch,
    /// `[queries, slots]`.
    weights: &'a mut [f32],
}

impl<T: Element<Accumulator = f32>> Op for WeightsOp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self) {
        let Self { job, block, scratch, weights } = self;
        let geometry = &job.problem.geometry;
        let inputs = RowInputs::new(job, &block);
        let (rows, slots) = (block.queries.len(), geometry.slots());
        weights.fill(f32::NEG_INFINITY);
        inputs.pack_queries::<S, MR>(scratch);
        for (first, present, _) in block.key_blocks(job.problem) {
            inputs.pack_keys::<S, false>(scratch, first, present.clone());
            for group in (0..rows).step_by(TILES * MR) {
                let group = group..rows.min(group + TILES * MR);
                let tiles = logits::<S, MR, T>(&inputs, scratch, group.clone(), first, &present);
                for r in group.clone() {
                    let vectors = whole_vectors::<S>(&tiles[(r - group.start) / MR]);
                    let t = inputs.query(r);
                    let row = &scratch.logits[(r - group.start) * LOGITS_ROW..][vectors.clone()];
                    let to = &mut weights[r * slots..][..slots];
                    let visible = &scratch.visible[r];
                    let start = visible.start.max(first + vectors.start);
                    let end = visible.end.min(first + vectors.end);
                    if start < end {
                        let slot = geometry.slot_of(geometry.window_of(t), start);
                        let from = &row[start - first - vectors.start..][..end - start];
                        to[slot..][..end - start].copy_from_slice(from);
                    }
                }
            }
        }
        for (r, row) in weights.chunks_exact_mut(slots).enumerate() {
            let t = inputs.query(r);
            inputs.each_zero_key(t, &scratch.visible[r], |logit, keys| {
                let window = geometry.window_of(t);
                row[geometry.slot_of(window, keys.start)..][..keys.len()].fill(logit);
            });
            softmax(&inputs, t, row);
        }
    }
}

/// Softmax over all slots of a query, whose logits are in powers of 2.
fn softmax<T: Element<Accumulator = f32>>(inputs: &RowInputs<'_, T>, t: usize, row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| if m.is_nan() || x <= m { m } else { x });
    if max != f32::NEG_INFINITY {
        row.iter_mut().for_each(|x| *x = (*x - max).exp2());
        // In f64: there may be millions of slots.
        let factor = row.iter().map(|&x| f64::from(x)).sum::<f64>().recip() as f32;
        row.iter_mut().for_each(|x| *x *= factor);
        return;
    }
    let geometry = &inputs.problem().geometry;
    let (window, visible) = (geometry.window_of(t), geometry.visible_range(t));
    let hidden = if inputs.problem().uniform_masked_rows { inputs.hidden_slots(t) } else { 0 };
    for (slot, weight) in row.iter_mut().enumerate() {
        let seen = geometry.position_of(window, slot).is_some_and(|u| inputs.sees(&visible, u));
        *weight = if seen || hidden == 0 { 0.0 } else { (hidden as f32).recip() };
    }
}
