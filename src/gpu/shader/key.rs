//! What decides a pipeline's text.

use std::fmt;

use super::matrix::Matrix;
use super::tile::Tile;
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
    /// Of a backward pass: what is known of each query, from the results of the forward pass.
    Rows,
    /// The mask, as words.
    Mask,
    /// What is known of queries whose results tell too little.
    RowsAgain,
    /// The gradient by queries.
    Dq,
    /// The gradients by keys and values.
    Dkv,
    /// Parts of the gradient by the bias.
    Bias,
    /// Their sum.
    Fold,
    /// A gradient in f32, copied to where and how the caller wants it.
    Copy,
}

impl Kernel {
    /// Whether it works on tiles of rows and columns.
    pub(super) fn has_tile(self) -> bool {
        !matches!(self, Self::Rows | Self::Mask | Self::Fold | Self::Copy)
    }

    /// Whether it holds two tensors of its rows, and computes gradients by logits from them.
    pub(in crate::gpu) fn is_gradient(self) -> bool {
        matches!(self, Self::Dq | Self::Dkv | Self::Bias)
    }

    /// Its entry point, and the name of its source.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Weights => "weights",
            Self::Rows => "rows",
            Self::Mask => "mask",
            Self::RowsAgain => "rows_again",
            Self::Dq => "dq",
            Self::Dkv => "dkv",
            Self::Bias => "bias",
            Self::Fold => "fold",
            Self::Copy => "copy",
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
#[non_exhaustive]
pub struct PipelineKey {
    /// What it computes.
    pub kernel: Kernel,
    /// Type of q, k, v, the bias and the output.
    pub storage: Storage,
    /// The largest head_dim, and the features of a block of values: 64, 128 or 256.
    pub head_dim: u32,
    /// Its tile; [`Tile::Small`] where it has matrices, which have tiles of their own.
    pub tile: Tile,
    /// The matrices that its products are of: forward passes on f16 tensors alone have such.
    pub matrix: Option<Matrix>,
    /// Whether a workgroup is one subgroup of 8 threads, which load each column of a tile once and broadcast it: of
    /// [`Tile::Short`] and [`Tile::Tall`], on software adapters with such subgroups, in forward passes and `dq` and `dkv` without
    /// rarer options, where a thread has two rows at least and head_dim is at most 128.
    pub broadcast: bool,
    /// Whether tensors are read four features at a time.
    pub vec4: bool,
    /// Whether the output is written as single 16-bit floats, for which the device has `SHADER_F16`: its
    /// rows may begin at odd elements. Otherwise two make a word.
    pub f16_out: bool,
    /// Whether weights are dropped.
    pub dropout: bool,
    /// What of the rarer options its code has.
    pub features: Features,
    /// What shares a buffer with the output.
    pub arena: Arena,
}

/// The largest head_dim of the kernels.
pub const MAX_HEAD_DIM: usize = 256;

impl PipelineKey {
    /// Every key there is, of those with an [`Arena`] enough to read each tensor in each way: nothing
    /// else depends on it.
    pub fn all() -> Vec<Self> {
        let plain = Self {
            kernel: Kernel::Forward,
            storage: Storage::F32,
            head_dim: 64,
            tile: Tile::Small,
            matrix: None,
            broadcast: false,
            vec4: false,
            f16_out: false,
            dropout: false,
            features: Features::Plain,
            arena: Arena::NONE,
        };
        let mut all = Vec::new();
        let storages = [Storage::F32, Storage::F16];
        for (storage, vec4) in storages.map(|s| [(s, false), (s, true)]).concat() {
            for features in Features::ALL {
                for (head_dim, tile) in [64, 128, 256].map(|d| Tile::ALL.map(|t| (d, t))).concat() {
                    let key = Self { storage, vec4, features, head_dim, tile, ..plain };
                    let weights = Self { kernel: Kernel::Weights, ..key };
                    all.extend([key, Self { dropout: true, ..key }, weights]);
                    let of = |kernel| Self { kernel, ..key };
                    let again = of(Kernel::RowsAgain);
                    all.push(again);
                    let gradients = [Kernel::Dq, Kernel::Dkv].map(of);
                    all.extend(gradients.map(|key| [key, Self { dropout: true, ..key }]).concat());
                    if features == Features::All {
                        let bias = of(Kernel::Bias);
                        all.extend([bias, Self { dropout: true, ..bias }]);
                    }
                    if storage == Storage::F16 && !vec4 {
                        let key = Self { f16_out: true, ..key };
                        all.extend([key, Self { dropout: true, ..key }]);
                    }
                }
            }
            let key = Self { storage, vec4, ..plain };
            all.extend([
                Self { kernel: Kernel::Rows, ..key },
                Self { kernel: Kernel::Copy, ..key },
            ]);
            if storage == Storage::F16 && !vec4 {
                all.push(Self { kernel: Kernel::Copy, f16_out: true, ..key });
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
        all.extend([Kernel::Mask, Kernel::Fold].map(|kernel| plain.with_kernel(kernel)));
        // No browser knows which subgroups there are.
        #[cfg(not(target_arch = "wasm32"))]
        {
            let same = all.clone().into_iter().map(|key| key.with_broadcast(true));
            all.extend(same.filter(|key| key.broadcast));
        }
        #[cfg(not(target_arch = "wasm32"))]
        all.extend(plain.with_matrices());
        all
    }

    /// Every key with matrices.
    #[cfg(not(target_arch = "wasm32"))]
    fn with_matrices(self) -> Vec<Self> {
        let mut all = Vec::new();
        for matrix in Matrix::ALL {
            for features in Features::ALL {
                for (head_dim, vec4) in [64, 128].map(|d| [(d, false), (d, true)]).concat() {
                    let (storage, matrix) = (Storage::F16, Some(matrix));
                    let f16_out = !vec4;
                    let key = Self { storage, matrix, features, head_dim, vec4, f16_out, ..self };
                    all.extend([key, Self { dropout: true, ..key }]);
                    // Loaded in ways of their own.
                    if (features, head_dim) == (Features::All, 64) {
                        all.extend(Arena::kinds().map(|arena| Self {
                            arena,
                            f16_out: false,
                            ..key
                        }));
                    }
                }
            }
        }
        all
    }

    /// Its label, but for the tile: what tuning chooses among.
    #[cfg(not(target_arch = "wasm32"))]
    pub(in crate::gpu) fn without_tile(&self) -> String {
        let tile = format!("-{}", self.tile.name());
        Self { broadcast: false, ..*self }.to_string().replacen(&tile, "", 1)
    }

    /// The key of another kernel for the same problem: what its text does not depend on is one thing for all.
    pub(in crate::gpu) fn with_kernel(self, kernel: Kernel) -> Self {
        let small = Self {
            kernel,
            head_dim: 64,
            tile: Tile::Small,
            matrix: None,
            broadcast: false,
            features: Features::Plain,
            dropout: false,
            arena: Arena::NONE,
            f16_out: false,
            ..self
        };
        match kernel {
            Kernel::Rows => small,
            Kernel::Copy => Self { f16_out: self.f16_out, ..small },
            Kernel::Mask => {
                Self { storage: Storage::F32, vec4: false, features: Features::All, ..small }
            }
            Kernel::Fold => Self { storage: Storage::F32, vec4: false, ..small },
            Kernel::Bias => {
                let features = Features::All;
                Self { kernel, matrix: None, features, arena: Arena::NONE, f16_out: false, ..self }
                    .with_broadcast(false)
            }
            _ => Self { kernel, matrix: None, arena: Arena::NONE, f16_out: false, ..self }
                .with_broadcast(self.broadcast),
        }
    }
}

impl fmt::Display for PipelineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = match self.storage {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
        };
        write!(f, "{}-{storage}-d{}-", self.kernel.name(), self.head_dim)?;
        match self.matrix {
            Some(matrix) => write!(f, "{matrix}")?,
            None => f.write_str(self.tile.name())?,
        }
        if self.broadcast {
            f.write_str("-broadcast")?;
        }
        let features = match self.features {
            Features::Plain => "",
            Features::Rotary => "-rotary",
            Features::All => "-all",
        };
        f.write_str(features)?;
        let flags = [(self.vec4, "-vec4"), (self.f16_out, "-f16out"), (self.dropout, "-dropout")];
        for (on, name) in flags {
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
    fn labels_tell_keys_apart() {
        let mut labels: Vec<_> = PipelineKey::all().iter().map(ToString::to_string).collect();
        let all = labels.len();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), all);
    }
}
