//! What decides a pipeline's text.

use std::fmt;

use crate::gpu::bindings::Slot;
use crate::gpu::params;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats; computed in 32 bits.
    F16,
}

impl Storage {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// What a kernel computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kernel {
    /// The forward pass.
    Forward,
    /// Attention weights.
    Weights,
}

impl Kernel {
    /// Its entry point, and the name of its source.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Weights => "weights",
        }
    }
}

/// Options that a kernel has code for: data decides about each, but what cannot be costs registers,
/// and on software adapters, which run both sides of a branch, time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Features {
    /// No rotary embedding, mask, bias or shared QK, and no row that may see nothing.
    Plain,
    /// The same with rotary embedding, without xpos, from one table.
    Rotary,
    /// All there is.
    All,
}

impl Features {
    const ALL: [Self; 3] = [Self::Plain, Self::Rotary, Self::All];

    /// The bits of the uniforms' flags that may be set.
    pub(in crate::gpu) fn flags(self) -> u32 {
        let rare = params::MASK
            | params::MASK_WORDS
            | params::BIAS
            | params::BIAS_VARIES
            | params::SHARED_QK
            | params::ROTARY_SPLIT
            | params::XPOS
            | params::XPOS_SPLIT;
        match self {
            Self::Plain => !(rare | params::ROTARY),
            Self::Rotary => !rare,
            Self::All => u32::MAX,
        }
    }
}

/// Tensors that lie in the buffer of the output: a kernel reads and writes that through one binding,
/// as WebGPU asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arena(u8);

impl Arena {
    /// The output has a buffer of its own.
    pub const NONE: Self = Self(0);
    const SLOTS: [Slot; 6] = [Slot::Q, Slot::K, Slot::V, Slot::Bias, Slot::Mask, Slot::Lse];

    /// Those of which this is true.
    pub(in crate::gpu) fn of(shares: impl Fn(Slot) -> bool) -> Self {
        let bits = Self::SLOTS.iter().enumerate().filter(|(_, slot)| shares(**slot));
        Self(bits.map(|(i, _)| 1 << i).sum())
    }

    /// Whether a tensor is read or written through the output's binding.
    pub(in crate::gpu) fn holds(self, slot: Slot) -> bool {
        Self::SLOTS.iter().position(|s| *s == slot).is_some_and(|i| self.0 >> i & 1 == 1)
    }

    /// One tensor, those with features, and all: the others decide how those are read.
    fn kinds() -> impl Iterator<Item = Self> {
        let all = (1 << Self::SLOTS.len()) - 1;
        let single = (0..Self::SLOTS.len()).map(|i| 1 << i);
        single.chain([0b111, all]).map(Self)
    }
}

/// Everything that a pipeline is compiled for. All else (windows, causality, quirks, broadcasting,
/// which tensors there are) is data: one pipeline serves every geometry.
///
/// ```
/// use local_attention::gpu::{PipelineKey, Storage};
///
/// // Every kernel, to be compiled ahead of time or looked at.
/// let f16 = PipelineKey::all().into_iter().filter(|key| key.storage == Storage::F16);
/// assert!(f16.count() > 10);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PipelineKey {
    /// What it computes.
    pub kernel: Kernel,
    /// Type of q, k, v, the bias and the output.
    pub storage: Storage,
    /// Chunks of 64 features that fit: 1, 2 or 4.
    pub chunks: u32,
    /// Keys of a tile: 16, which 16 KiB of workgroup memory have room for, or 32.
    pub keys: u32,
    /// Whether tensors are read four features at a time.
    pub vec4: bool,
    /// Whether weights are dropped.
    pub dropout: bool,
    /// What of the rarer options its code has.
    pub features: Features,
    /// What shares a buffer with the output.
    pub arena: Arena,
}

/// The largest head_dim of the kernels.
pub const MAX_HEAD_DIM: usize = 256;
/// Features of a chunk.
pub(crate) const CHUNK: usize = 64;
const THREADS: u32 = 64;
const GROUPS: u32 = 8;

impl PipelineKey {
    /// Every key there is, of those with an [`Arena`] enough to read each tensor in each way: nothing
    /// else depends on it.
    pub fn all() -> Vec<Self> {
        let plain = Self {
            kernel: Kernel::Forward,
            storage: Storage::F32,
            chunks: 1,
            keys: 16,
            vec4: false,
            dropout: false,
            features: Features::Plain,
            arena: Arena::NONE,
        };
        let mut all = Vec::new();
        let storages = [Storage::F32, Storage::F16];
        for (storage, vec4) in storages.map(|s| [(s, false), (s, true)]).concat() {
            for features in Features::ALL {
                for (chunks, keys) in [1, 2, 4].into_iter().flat_map(|c| [(c, 16), (c, 32)]) {
                    let key = Self { storage, vec4, features, chunks, keys, ..plain };
                    let weights = Self { kernel: Kernel::Weights, ..key };
                    all.extend([key, Self { dropout: true, ..key }, weights]);
                }
            }
            let features = Features::All;
            all.extend(Arena::kinds().map(|arena| Self {
                storage,
                vec4,
                features,
                arena,
                ..plain
            }));
        }
        all
    }

    /// Queries of a workgroup, at most.
    pub fn queries(&self) -> u32 {
        self.thread_queries() * GROUPS
    }

    /// Queries of a thread: with more features fewer, so that registers hold the output.
    pub(crate) fn thread_queries(&self) -> u32 {
        4 / self.chunks.clamp(1, 4)
    }

    /// Keys of a thread.
    pub(crate) fn thread_keys(&self) -> u32 {
        self.keys / GROUPS
    }

    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        THREADS
    }

    /// Bytes of workgroup memory: wgpu does not check them against the device's limit.
    pub fn workgroup_bytes(&self) -> u32 {
        let (queries, keys) = (u64::from(self.queries()), u64::from(self.keys));
        let quads = queries * (16 * u64::from(self.chunks) + 1) + keys * 17;
        let floats = queries * (keys + 1) + queries * u64::from(GROUPS);
        u32::try_from(16 * quads + 4 * floats).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for PipelineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = match self.storage {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
        };
        write!(
            f,
            "{}-{storage}-d{}-k{}",
            self.kernel.name(),
            self.chunks * CHUNK as u32,
            self.keys
        )?;
        let features = match self.features {
            Features::Plain => "",
            Features::Rotary => "-rotary",
            Features::All => "-all",
        };
        f.write_str(features)?;
        for (on, name) in [(self.vec4, "-vec4"), (self.dropout, "-dropout")] {
            if on {
                f.write_str(name)?;
            }
        }
        match self.arena {
            Arena::NONE => Ok(()),
            Arena(bits) => write!(f, "-arena{bits:02x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tiles_fit_the_smallest_device() {
        for key in PipelineKey::all() {
            let limit = if key.keys == 16 { 16 << 10 } else { 32 << 10 };
            assert!(key.workgroup_bytes() <= limit, "{key}: {}", key.workgroup_bytes());
        }
    }

    #[test]
    fn labels_tell_keys_apart() {
        let mut labels: Vec<_> = PipelineKey::all().iter().map(ToString::to_string).collect();
        let all = labels.len();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), all);
    }
}
