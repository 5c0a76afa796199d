//! The tile of a kernel: how much its workgroups hold, and what that takes.

use super::key::{Features, Kernel, PipelineKey};
use super::matrix::Matrix;
use crate::gpu::error::PlanError;
use crate::gpu::params;

/// Keys of a tile.
const KEYS: u32 = 32;

/// Threads of the subgroups that kernels with broadcasts are for.
pub(in crate::gpu) const LANES: u32 = 8;

/// How much a workgroup computes at a time. Threads hold 8 queries by 4 keys (fewer queries with a
/// head_dim above 64 and 128, so that registers hold the output).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Tile {
    /// 32 threads, 32 queries by 32 keys, 32 features at a time: within 16 KiB of workgroup memory,
    /// which every device has.
    Small,
    /// 64 threads, 64 queries by 32 keys, 64 features at a time: within 32 KiB.
    Large,
    /// As small with 8 threads of 8 queries by 16 keys (4 by 32 with [`PipelineKey::broadcast`]): what `Tall` is to `Large`, within 16 KiB.
    Short,
    /// As large with 8 threads of 16 queries by 16 keys (16 threads of 8 keys with a head_dim above 64; 32 of 4 in
    /// kernels with all features): far fewer loads, more registers than a GPU has. Pays where registers are a
    /// processor's memory. With [`PipelineKey::broadcast`] 8 threads of 8 queries by 32 keys (4 queries above 64, and
    /// half as many of gradients).
    Tall,
}

impl Tile {
    /// Every tile.
    pub const ALL: [Self; 4] = [Self::Small, Self::Large, Self::Short, Self::Tall];

    /// Its name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
            Self::Short => "short",
            Self::Tall => "tall",
        }
    }

    /// Groups of threads that share queries.
    fn row_groups(self) -> u32 {
        match self {
            Self::Small | Self::Short | Self::Tall => 4,
            Self::Large => 8,
        }
    }

    /// Queries of a thread with a head_dim of 64.
    fn thread_queries(self) -> u32 {
        match self {
            Self::Small | Self::Large | Self::Short => 8,
            Self::Tall => 16,
        }
    }

    /// vec4s of features that keys and values are loaded in.
    fn chunk(self) -> u32 {
        match self {
            Self::Small | Self::Short => 8,
            Self::Large | Self::Tall => 16,
        }
    }
}

impl PipelineKey {
    /// Queries of a workgroup, at most; of the gradient by keys and values, keys.
    pub fn queries(&self) -> u32 {
        self.thread_queries() * self.row_groups()
    }

    /// The bits of the uniforms' flags that may be set.
    pub(super) fn flags(&self) -> u32 {
        match self.matrix {
            // The factors of xpos leave f16.
            Some(_) => self.features.flags() & !(params::XPOS | params::XPOS_SPLIT),
            None => self.features.flags(),
        }
    }

    /// vec4s of features that keys and values are loaded in: with matrices all there are.
    fn chunk(&self) -> u32 {
        if self.matrix.is_some() { self.head_dim / 4 } else { self.tile.chunk() }
    }

    /// Rows of a thread: half as many where the tile holds two tensors of them.
    fn thread_queries(&self) -> u32 {
        match self.matrix {
            Some(matrix) => matrix.queries() * self.groups() / matrix.threads(),
            None => self.whole_queries().max(2),
        }
    }

    /// As many rows of a thread as there is room for.
    fn whole_queries(&self) -> u32 {
        let groups = if self.broadcast { LANES } else { self.tile.row_groups() };
        self.tile_queries() / groups
    }

    /// Rows of the tile.
    fn tile_queries(&self) -> u32 {
        let rows = self.tile.thread_queries() * self.tile.row_groups();
        rows * 64 / self.head_dim.clamp(64, 256) / self.row_tiles()
    }

    /// Groups of threads that share rows.
    fn row_groups(&self) -> u32 {
        if let Some(matrix) = self.matrix {
            return matrix.threads() / self.groups();
        }
        if self.broadcast {
            return LANES;
        }
        self.tile.row_groups() * self.whole_queries() / self.thread_queries()
    }

    /// Threads that share rows, and the columns of a tile among them. Where registers are memory, fewer with more
    /// columns each: loads are what costs there, and two numbers are loaded for their product. Of kernels that
    /// do little else than products: the code grows with it.
    fn groups(&self) -> u32 {
        match self.tile {
            _ if self.matrix.is_some() => 8,
            _ if self.broadcast => 1,
            Tile::Short | Tile::Tall if self.mostly_products() => {
                if self.head_dim <= 64 && self.kernel != Kernel::Dkv { 2 } else { 4 }
            }
            _ => 8,
        }
    }

    /// Whether it does little else than products.
    fn mostly_products(&self) -> bool {
        matches!(self.kernel, Kernel::Forward | Kernel::Dq | Kernel::Dkv)
            && self.features != Features::All
    }

    /// The same, with broadcasts where they are `possible` and pay: each thread of the subgroup has rows of its own, two at
    /// least, and no more output than the 32 vec4s a row that Mesa unrolls loops over (with 64 they go to memory).
    pub(in crate::gpu) fn with_broadcast(self, possible: bool) -> Self {
        let tall = matches!(self.tile, Tile::Short | Tile::Tall) && self.matrix.is_none();
        let fits = self.head_dim <= 128 && self.tile_queries() >= 2 * LANES;
        Self { broadcast: possible && tall && fits && self.mostly_products(), ..self }
    }

    /// Columns of a thread.
    fn thread_keys(&self) -> u32 {
        KEYS / self.groups()
    }

    /// Tensors of the rows that the tile holds.
    fn row_tiles(&self) -> u32 {
        1 + u32::from(self.kernel.is_gradient())
    }

    /// Queries whose numbers are read and written at once.
    pub(super) fn part(&self) -> u32 {
        self.thread_queries().min(4)
    }

    /// Keys of a tile.
    pub fn keys(&self) -> u32 {
        KEYS
    }

    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        match self.kernel.has_tile() {
            true => self.row_groups() * self.groups(),
            false => 64,
        }
    }

    /// Blocks of values that outputs of this many features take.
    pub(crate) fn value_blocks(&self, value_dim: usize) -> usize {
        value_dim.div_ceil(self.head_dim.max(1) as usize)
    }

    /// Parts that loads of values are cut into.
    pub(super) fn value_chunks(&self) -> u32 {
        self.head_dim / 4 / self.chunk()
    }

    /// How often blocks of its text are repeated.
    pub(super) fn counts(&self) -> Vec<(&'static str, u32)> {
        let mut counts = vec![
            ("TQ", self.thread_queries()),
            ("TK", self.thread_keys()),
            ("VALUE_CHUNKS", self.value_chunks()),
            ("VALUES", self.chunk() / self.groups()),
            ("PART", self.part()),
            ("PARTS", self.thread_queries() / self.part()),
            // vec4s of output of a thread's query.
            ("OUT", self.head_dim / 4 / self.groups()),
        ];
        counts.extend(self.matrices());
        // Of text that is left out where nothing is broadcast.
        counts.extend([
            ("LANES", LANES),
            ("COLUMN_LOADS", KEYS / LANES),
            ("VALUE_LOADS", self.chunk() / LANES),
        ]);
        counts
    }

    /// Matrices of the keys of a tile, and of the features of a row.
    fn matrices(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let features = self.head_dim;
        self.matrix.into_iter().flat_map(move |Matrix { side, .. }| {
            [("KEY_MATRICES", KEYS / side), ("FEATURE_MATRICES", features / side)]
        })
    }

    /// The constants that its text begins with.
    pub(super) fn constants(&self) -> Vec<(&'static str, u32)> {
        let mut all = vec![
            ("TQ", self.thread_queries()),
            ("TK", self.thread_keys()),
            ("GROUPS", self.groups()),
            ("ROW_GROUPS", self.row_groups()),
            ("ROW_TILES", self.row_tiles()),
            ("SUM_TILES", 1 + u32::from(self.kernel == Kernel::Dkv)),
            ("QUADS", self.head_dim / 4),
            ("CHUNK", self.chunk()),
            ("PART", self.part()),
        ];
        if let Some(Matrix { side, lanes, .. }) = self.matrix {
            all.extend([("SIDE", side), ("LANES", lanes)]);
            all.extend(self.matrices());
        }
        if self.broadcast {
            all.push(("LANES", LANES));
        }
        all
    }

    /// Turns of a thread's loops.
    pub(in crate::gpu) fn tile_turns(&self, head_dim: usize) -> Turns {
        let (keys, quads) = (u64::from(self.keys()), u64::from(self.chunk()));
        let (rows, threads) = (u64::from(self.row_groups()), u64::from(self.threads()));
        let chunks = (head_dim as u64).div_ceil(4 * quads);
        let outputs = u64::from(self.head_dim / 4 / self.groups());
        // Loading keys (each loop in it once more than it turns), then their products; and what a
        // compiler may leave of loops over a thread's own numbers.
        let load = keys / rows * (quads / u64::from(self.groups()) + 2) + 1;
        // Outputs on matrix units, where each tile has larger logits than the last.
        let scaling = match self.matrix {
            Some(_) => outputs * (5 * u64::from(self.thread_queries()) + 1),
            None => 0,
        };
        Turns {
            scores: chunks * (load + quads + 2) + 40,
            values: u64::from(self.value_chunks()) * (keys * quads / threads + keys + 2) + scaling,
            rows: u64::from(self.queries() * self.head_dim / 4) / threads + 1,
            own: u64::from(self.thread_keys() * self.thread_queries() / self.part() * 6),
            queries: u64::from(self.thread_queries()),
            outputs,
        }
    }

    /// Whether a device with these limits can run it.
    ///
    /// ```
    /// use local_attention::gpu::{PipelineKey, wgpu};
    ///
    /// // Within WebGPU's defaults there is a kernel for every head_dim.
    /// let limits = wgpu::Limits::default();
    /// let all = PipelineKey::all().into_iter().filter(|key| key.check_limits(&limits).is_ok());
    /// assert!(all.map(|key| key.head_dim).any(|d| d == 256));
    /// ```
    ///
    /// # Errors
    /// [`PlanError::Limit`]: the first limit that is too low.
    pub fn check_limits(&self, limits: &wgpu::Limits) -> Result<(), PlanError> {
        for (limit, got, needed) in [
            (
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size,
                self.workgroup_bytes(),
            ),
            (
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup,
                self.threads(),
            ),
            ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, self.threads()),
        ] {
            if got < needed {
                let (got, needed) = (u64::from(got), u64::from(needed));
                return Err(PlanError::Limit { limit, got, needed });
            }
        }
        Ok(())
    }

    /// Bytes of workgroup memory: wgpu does not check them against the device's limit.
    pub fn workgroup_bytes(&self) -> u32 {
        match self.kernel {
            // A number a thread.
            Kernel::Rows => return 4 * self.threads(),
            kernel if !kernel.has_tile() => return 0,
            _ => {}
        }
        let (queries, keys) = (self.queries(), self.keys());
        // Numbers of queries by keys, and sums of squares in vectors of their own.
        let numbers = 4 * keys * queries.max(self.part() * self.groups());
        if self.matrix.is_some() {
            // Rows of f16 and of scores with room between them, and a word.
            let halves = 2 * (queries + keys) * (self.head_dim + 8);
            return halves + 4 * queries * (keys + 4) + numbers + 4;
        }
        let rows = 4 * queries * self.head_dim * self.row_tiles();
        rows + 16 * keys * self.chunk() + numbers
    }
}

/// Turns of a thread's loops for a tile of keys, and what else decides about turns.
pub(in crate::gpu) struct Turns {
    pub(in crate::gpu) scores: u64,
    pub(in crate::gpu) values: u64,
    /// Of loading what the rows hold.
    pub(in crate::gpu) rows: u64,
    /// Of a loop over the thread's own queries and keys.
    pub(in crate::gpu) own: u64,
    /// Queries of the thread.
    pub(in crate::gpu) queries: u64,
    /// vec4s of output of each.
    pub(in crate::gpu) outputs: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_the_memory_they_are_for() {
        for key in PipelineKey::all() {
            let limit = match key.matrix {
                // What all adapters with such matrices have.
                Some(matrix) if matrix.side == 16 => 48 << 10,
                Some(_) => 32 << 10,
                None if matches!(key.tile, Tile::Small | Tile::Short) => 16 << 10,
                None => 32 << 10,
            };
            assert!(key.workgroup_bytes() <= limit, "{key}: {}", key.workgroup_bytes());
        }
    }
}
