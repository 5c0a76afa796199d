//! The gradient by the bias: its rows each for themselves, and what shares one in fixed chunks that are added up in
//! their order, so that it depends on neither threads nor chance. The gradients by logits are computed again.

use std::ops::Range;

use super::Cpu;
use super::ahead::turn;
use super::block::{Block, Blocks, Job};
use super::by_logits::{by_logits, pack, pack_outputs};
use super::forward::{LOGITS_ROW, TILES, whole_vectors};
use super::pack::RowInputs;
use super::scratch::Scratch;
use super::simd::{Op, Simd};
use crate::engine::zeros;
use crate::shape::BiasShape;
use crate::{BackwardInputs, Element, RunError};

/// Floats of all chunks together, at most, unless one alone has more.
const CHUNK_FLOATS: usize = 4 << 20;

/// Chunks of all rows of the bias together, about.
const CHUNKS: usize = 32;

impl Cpu {
    /// `[rows, queries, slots]` of the bias.
    pub(super) fn bias_back<T: Element<Accumulator = f32>>(
        &self,
        job: &Job<'_, T>,
        saved: &BackwardInputs<'_, T>,
        blocks: &Blocks<'_>,
        shape: BiasShape,
    ) -> Result<Vec<f32>, RunError> {
        let problem = job.problem;
        let row_len = shape.queries * shape.slots;
        let mut sums: Vec<f32> = zeros("dattn_bias", &[shape.rows, shape.queries, shape.slots])?;
        if sums.is_empty() {
            return Ok(sums);
        }
        let per_row = blocks.count() / problem.batch;
        let sharing = problem.batch / shape.rows;
        let units = sharing * per_row;
        let chunks = (CHUNKS / shape.rows).min(CHUNK_FLOATS / sums.len()).clamp(1, units);
        let mut parts: Vec<f32> = zeros("parts of dattn_bias", &[chunks - 1, sums.len()])?;
        // The first chunk of each row is the result itself.
        let all: Vec<_> = sums
            .chunks_mut(row_len)
            .chain(parts.chunks_mut(row_len))
            .map(std::sync::Mutex::new)
            .collect();
        self.each(problem, all.len(), |task| {
            let (chunk, row) = (task / shape.rows, task % shape.rows);
            // Nobody else has it: a task is locked once.
            let mut part = all[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for unit in units * chunk / chunks..units * (chunk + 1) / chunks {
                let batch_row = unit / per_row * shape.rows + row;
                let block = blocks.get(batch_row * per_row + unit % per_row);
                Scratch::with_backward(problem, |scratch| {
                    let sums = &mut part[..];
                    self.isa.run(BiasOp { job, saved, block, shape, scratch, sums });
                })?;
            }
            Ok(())
        })?;
        drop(all);
        for part in parts.chunks(sums.len()) {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        Ok(sums)
    }
}

/// Adds what one block contributes.
struct BiasOp<'a, T: Element> {
    job: &'a Job<'a, T>,
    saved: &'a BackwardInputs<'a, T>,
    block: Block,
    shape: BiasShape,
    scratch: &'a mut Scratch,
    /// `[queries, slots]` of the bias.
    sums: &'a mut [f32],
}

impl<T: Element<Accumulator = f32>> Op for BiasOp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self) {
        let Self { job, saved, block, shape, scratch, sums } = self;
        let geometry = &job.problem.geometry;
        let inputs = RowInputs::new(job, &block);
        let rows = block.queries.len();
        let row_of = |t: usize| t % geometry.window() % shape.queries * shape.slots;
        inputs.pack_queries::<S, MR>(scratch);
        pack_outputs::<S, MR, T>(&inputs, saved, scratch);
        for (first, present, next) in block.key_blocks(job.problem) {
            pack::<S, T>(&inputs, scratch, first, &present);
            for start in (0..rows).step_by(TILES * MR) {
                let group = start..rows.min(start + TILES * MR);
                let tiles = by_logits::<S, MR, T>(
                    &inputs,
                    scratch,
                    group.clone(),
                    (first, &present),
                    |r| inputs.ask_keys(turn(&next, r, rows)),
                );
                for r in group {
                    let vectors = whole_vectors::<S>(&tiles[(r - start) / MR]);
                    let t = inputs.query(r);
                    let visible = &scratch.visible[r];
                    let seen = visible.start.max(first + vectors.start)
                        ..visible.end.min(first + vectors.end).min(present.end);
                    if seen.is_empty() {
                        continue;
                    }
                    let at = (r - start) * LOGITS_ROW;
                    let row = &scratch.back.by_logits[at..][seen.start - first..seen.end - first];
                    let slot = geometry.slot_of(geometry.window_of(t), seen.start);
                    add(&mut sums[row_of(t)..][..shape.slots], slot, row);
                }
            }
        }
        // Autopad's zeros have weights too, and values of 0.
        for r in 0..rows {
            let t = inputs.query(r);
            let (lse, product) = (scratch.back.lse[r], scratch.back.product[r]);
            let factor = scratch.back.factor[r];
            inputs.each_zero_key(t, &scratch.visible[r], |logit, keys: Range<usize>| {
                if job.problem.shared_qk && keys.contains(&t) {
                    return;
                }
                let by_logit = -(logit - lse).exp2() * factor * product;
                let slot = geometry.slot_of(geometry.window_of(t), keys.start);
                let to = &mut sums[row_of(t)..][..shape.slots];
                match to {
                    [one] => *one += by_logit * keys.len() as f32,
                    _ => to[slot..][..keys.len()].iter_mut().for_each(|x| *x += by_logit),
                }
            });
        }
    }
}

/// Adds neighbouring slots, from one on, to a row of the bias.
#[inline(always)]
fn add(to: &mut [f32], slot: usize, row: &[f32]) {
    match to {
        [one] => *one += row.iter().sum::<f32>(),
        _ => to[slot..].iter_mut().zip(row).for_each(|(to, x)| *to += x),
    }
}
