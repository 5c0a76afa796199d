//! The gradients by keys and values.

use std::ops::Range;

use super::bind::Binder;
use crate::gpu::bound::Dispatch;
use crate::gpu::chunk::{Chunk, halves};
use crate::gpu::error::BindError;
use crate::gpu::params;
use crate::gpu::shader::{Features, Kernel};

impl<'b: 'a, 'a> Binder<'b, 'a> {
    /// The gradients by keys and values: together where rows share both or none.
    pub(super) fn keys(&self) -> Result<Vec<Dispatch<'a>>, BindError> {
        let (k, v) = (self.laid.shared_k, self.laid.shared_v);
        let passes = match k == v {
            true => vec![(params::DK | params::DV, k)],
            false if self.problem().shape.value_dim == 0 => vec![(params::DK, k)],
            false => vec![(params::DK, k), (params::DV, v)],
        };
        let mut all = Vec::new();
        for (flags, shared) in passes {
            self.keys_of(flags, shared, &mut all)?;
        }
        Ok(all)
    }

    /// One pass over the keys: rows that share a gradient one after the other, each adding to it.
    fn keys_of(
        &self,
        flags: u32,
        shared: u32,
        all: &mut Vec<Dispatch<'a>>,
    ) -> Result<(), BindError> {
        let plan = &self.plan.dkv;
        let problem = self.problem();
        let members = Members { dims: self.laid.dims, shared };
        let block = plan.base.block_len as usize;
        let gpu = &plan.gpu;
        let (most, most_flops) = (gpu.max_workgroups() as usize, gpu.options().max_chunk_flops);
        let empty = problem.batch == 0 || problem.shape.key_len == 0;
        for member in 0..if empty { 0 } else { members.count() } {
            let mut open = vec![(0..members.groups(), 0..problem.shape.key_len)];
            while let Some((groups, keys)) = open.pop() {
                let chunk = Chunk {
                    rows: members.rows(&groups, member),
                    queries: self.queries_of(&keys),
                    keys: keys.clone(),
                };
                let fit = self.fits(Kernel::Dkv, &chunk);
                let blocks = keys.len().div_ceil(block);
                let flops = groups.len() as f64 * keys.len() as f64 * plan.flops_of_row();
                let small = groups.len() <= most && blocks <= most && flops <= most_flops;
                let halves = halves(&groups, &keys, block);
                if fit.is_ok() && (small || halves.is_none()) {
                    // Of blocks of values one computes dk.
                    let values = if flags & params::DV == 0 { 1 } else { plan.value_blocks() };
                    let workgroups = [blocks as u32, groups.len() as u32, values as u32];
                    all.push(self.dispatch(plan, &chunk, workgroups, |params| {
                        params.flags |= flags | if member > 0 { params::ADD } else { 0 };
                        (params.shared_dims, params.member) = (shared, member as u32);
                        params.first_row = groups.start as u32;
                        params.first_block = (keys.start / block) as u32;
                        let query = &problem.shape.query;
                        (params.query_start, params.query_end) =
                            (query.start as u32, query.end as u32);
                        // Blocks end with the part.
                        params.key_end = keys.end as u32;
                    }));
                } else if let Some(halves) = halves {
                    open.extend(halves);
                } else {
                    fit?;
                }
            }
        }
        Ok(())
    }

    /// The queries that may read some of these keys, one at least.
    fn queries_of(&self, keys: &Range<usize>) -> Range<usize> {
        let geometry = &self.problem().geometry;
        let query = &self.problem().shape.query;
        // What a row that sees nothing averages over, whether one is expected or not.
        let all = self.plan.dq.key().features == Features::All;
        let read = |t: usize| match all {
            true => geometry.gathered(geometry.window_of(t)),
            false => geometry.visible_range(t),
        };
        // Neither end moves left from one query to the next.
        let first = |holds: &dyn Fn(usize) -> bool| -> usize {
            let (mut low, mut high) = (query.start, query.end);
            while low < high {
                let middle = low.midpoint(high);
                if holds(middle) { high = middle } else { low = middle + 1 }
            }
            low
        };
        let start = first(&|t| read(t).end > keys.start).min(query.end.saturating_sub(1));
        start..first(&|t| read(t).start >= keys.end).max(start + 1)
    }
}

/// Packed rows that share gradients of keys: in groups along the dimensions that share none, members along the others.
struct Members {
    dims: [u32; 4],
    shared: u32,
}

impl Members {
    fn sizes(&self, shared: bool) -> impl Iterator<Item = usize> {
        let sizes = (0..4).filter(move |i| (self.shared >> i & 1 == 1) == shared);
        sizes.map(|i| self.dims[i] as usize)
    }

    fn count(&self) -> usize {
        self.sizes(true).product()
    }

    fn groups(&self) -> usize {
        self.sizes(false).product()
    }

    /// The packed row of a member of a group: `member_row` of `keys.wgsl`.
    fn row(&self, mut group: usize, mut member: usize) -> usize {
        let (mut row, mut step) = (0, 1);
        for i in (0..4).rev() {
            let size = self.dims[i] as usize;
            let from = if self.shared >> i & 1 == 1 { &mut member } else { &mut group };
            row += *from % size * step;
            *from /= size;
            step *= size;
        }
        row
    }

    /// From the first packed row to the last.
    fn rows(&self, groups: &Range<usize>, member: usize) -> Range<usize> {
        // Groups count upwards, and so do their rows.
        self.row(groups.start, member)..self.row(groups.end - 1, member) + 1
    }
}
