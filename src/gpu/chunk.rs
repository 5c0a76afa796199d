//! How a plan's work is cut into dispatches.

use std::ops::Range;

use super::error::PlanError;
use super::params::Params;
use super::plan::Plan;
use super::shader::{Features, Kernel};
use crate::Problem;

/// A part of a problem that one dispatch computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    pub(super) queries: Range<usize>,
    /// The real keys it reads, one at least.
    pub(super) keys: Range<usize>,
}

impl Chunk {
    /// Rows of a mask that it reads.
    pub(super) fn mask_rows(&self, problem: &Problem, rows: usize) -> Range<usize> {
        let share = (problem.batch / rows).max(1);
        self.rows.start / share..(self.rows.end - 1) / share + 1
    }

    /// Positions of a mask that it reads: those that its queries gather, zeros of autopad too, in whole tiles.
    pub(super) fn mask_positions(&self, plan: &Plan, len: usize) -> Range<usize> {
        let (geometry, tile) = (&plan.problem.geometry, plan.key().keys() as usize);
        let gathered = |query: usize| geometry.gathered(geometry.window_of(query));
        let start = gathered(self.queries.start).start / tile * tile;
        let end = gathered(self.queries.end - 1).end.next_multiple_of(tile).min(len);
        // At least one: no binding may be empty.
        let start = start.min(len.saturating_sub(1));
        start..end.max(start + 1)
    }

    /// Rows of a bias that it reads.
    pub(super) fn bias_rows(&self, rows: usize) -> Range<usize> {
        let (first, last) = (self.rows.start, self.rows.end - 1);
        match first / rows == last / rows {
            true => first % rows..last % rows + 1,
            false => 0..rows,
        }
    }

    /// Queries of a bias that it reads: they repeat after so many.
    pub(super) fn bias_queries(&self, queries: usize) -> Range<usize> {
        let (first, last) = (self.queries.start, self.queries.end - 1);
        match first / queries == last / queries {
            true => first % queries..last % queries + 1,
            false => 0..queries,
        }
    }
}

/// Two halves of some rows, or of the positions of one, at a multiple of a block: the later one first. None where that
/// is as small as it gets.
pub(super) fn halves(
    rows: &Range<usize>,
    positions: &Range<usize>,
    block: usize,
) -> Option<[(Range<usize>, Range<usize>); 2]> {
    if rows.len() > 1 {
        let cut = rows.start.midpoint(rows.end);
        return Some([(cut..rows.end, positions.clone()), (rows.start..cut, positions.clone())]);
    }
    let mut cut = positions.start.midpoint(positions.end).next_multiple_of(block);
    if cut >= positions.end {
        cut = positions.end.saturating_sub(1) / block * block;
    }
    let inside = cut > positions.start && cut < positions.end;
    inside.then(|| [(rows.clone(), cut..positions.end), (rows.clone(), positions.start..cut)])
}

impl Plan {
    /// Workgroups of a part.
    pub(super) fn workgroups(&self, chunk: &Chunk) -> [u32; 3] {
        let block = self.base.block_len as usize;
        let blocks = chunk.queries.end.div_ceil(block) - chunk.queries.start / block;
        let values = match self.key().kernel {
            Kernel::Forward | Kernel::Dkv => self.value_blocks(),
            _ => 1,
        };
        [blocks as u32, chunk.rows.len() as u32, values as u32]
    }

    /// Blocks of values.
    pub(super) fn value_blocks(&self) -> usize {
        self.key().value_blocks(self.problem.shape.value_dim).max(1)
    }

    /// Cuts the work into parts that `fits` accepts, by rows and then by queries. Parts begin at
    /// blocks of queries, or where a bias begins again; which bits come out does not depend on them.
    pub(super) fn chunks(
        &self,
        fits: &dyn Fn(&Chunk) -> Result<(), PlanError>,
    ) -> Result<Vec<Chunk>, PlanError> {
        let shape = &self.problem.shape;
        let mut done = Vec::new();
        let no_result = self.key().kernel == Kernel::Forward && shape.value_dim == 0 && !shape.lse;
        if shape.query.is_empty() || self.problem.batch == 0 || no_result {
            return Ok(done);
        }
        // In the order of the output: halves are put back last first.
        let mut open = vec![(0..self.problem.batch, shape.query.clone())];
        while let Some((rows, queries)) = open.pop() {
            let keys = self.keys_of(&queries);
            let chunk = Chunk { rows: rows.clone(), queries: queries.clone(), keys };
            let fit = fits(&chunk);
            if fit.is_ok() && self.small_enough(&chunk) {
                done.push(chunk);
                continue;
            }
            if let Some(halves) = halves(&rows, &queries, self.base.block_len as usize) {
                open.extend(halves);
            } else if let (Err(_), Some(cut)) = (&fit, self.cut_of_block(&queries)) {
                open.push((rows.clone(), cut..queries.end));
                open.push((rows, queries.start..cut));
            } else {
                // As small as it gets.
                fit?;
                done.push(chunk);
            }
        }
        Ok(done)
    }

    /// Where the queries of a block that does not fit are cut: where those of a bias begin again, all of which they read
    /// together, or in the middle where each has weights of its own.
    fn cut_of_block(&self, queries: &Range<usize>) -> Option<usize> {
        let again = self.problem.shape.bias.map(|b| (queries.start / b.queries + 1) * b.queries);
        let middle = queries.start.midpoint(queries.end);
        let middle = (self.key().kernel == Kernel::Weights).then_some(middle);
        let inside = |cut: &usize| *cut > queries.start && *cut < queries.end;
        again.filter(inside).or(middle.filter(inside))
    }

    /// Whether a part stays within a dispatch, and within the patience of a driver's watchdog.
    fn small_enough(&self, chunk: &Chunk) -> bool {
        let most = self.gpu.max_workgroups();
        let queries = chunk.rows.len() as f64 * chunk.queries.len() as f64;
        // Blocks of values are as many as they are, and checked when the plan is made.
        self.workgroups(chunk)[..2].iter().all(|&n| n <= most)
            && queries * self.flops_of_row() <= self.gpu.options().max_chunk_flops
    }

    /// Floating-point operations for a query, or for a key whose gradient is computed.
    pub(super) fn flops_of_row(&self) -> f64 {
        let shape = &self.problem.shape;
        let [d, dv] = [shape.head_dim, shape.value_dim].map(|features| features as f64);
        // Visited zeros of autopad too.
        let within = |end: u32| self.problem.geometry.slots().min(end as usize) as f64;
        let visited = within(self.base.key_end);
        // Scores again for every block of values.
        let scores = self.value_blocks() as f64 * d;
        2.0 * match self.key().kernel {
            Kernel::Forward => visited * (scores + dv),
            // Twice, and then the zeros that were counted too.
            Kernel::Weights => (visited + within(self.base.padded_len)) * d,
            Kernel::RowsAgain => visited * d,
            Kernel::Dq => visited * (2.0 * d + dv),
            Kernel::Dkv => within(self.base.seq_len) * (scores + d + 2.0 * dv),
            Kernel::Bias => within(self.base.padded_len) * (d + dv),
            Kernel::Rows | Kernel::Mask | Kernel::Fold | Kernel::Copy => dv,
        }
    }

    /// The real keys that some of these queries read.
    pub(super) fn keys_of(&self, queries: &Range<usize>) -> Range<usize> {
        let geometry = &self.problem.geometry;
        let last = queries.end - 1;
        // What a row that turns out to see nothing may read, whether one is expected or not.
        let keys = if self.key().features == Features::All {
            let end = geometry.gathered(geometry.window_of(last)).end;
            geometry.gathered(geometry.window_of(queries.start)).start..end
        } else {
            geometry.visible_range(queries.start).start..geometry.visible_range(last).end
        };
        // At least one: no binding may be empty.
        let start = keys.start.min(geometry.key_len() - 1);
        start..keys.end.min(geometry.key_len()).max(start + 1)
    }

    /// The uniforms of a part and a call; views are the caller's to fill in.
    pub(super) fn params(&self, chunk: &Chunk) -> Params {
        Params {
            query_start: chunk.queries.start as u32,
            query_end: chunk.queries.end as u32,
            first_block: chunk.queries.start as u32 / self.base.block_len,
            first_row: chunk.rows.start as u32,
            ..self.base
        }
    }
}
