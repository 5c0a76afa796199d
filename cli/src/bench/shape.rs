//! The shape of one measurement.

use std::fmt;

use clap::Args;
use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig, Problem};
use serde::{Deserialize, Serialize};

use super::machine::available_bytes;
use crate::error::BadInput;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchShape {
    pub pass: Pass,
    pub batch: usize,
    pub heads: usize,
    pub n: usize,
    pub head_dim: usize,
    pub window_size: usize,
    pub look_backward: usize,
    pub look_forward: usize,
    pub causal: bool,
    pub exact: bool,
    pub rotary: bool,
    pub mask: bool,
    pub bias: bool,
    pub dtype: BenchType,
}

/// Which pass is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Pass {
    #[serde(rename = "forward")]
    Forward,
    /// From the results of a forward pass.
    #[serde(rename = "backward")]
    Backward,
    /// One after the other: a step of training.
    #[serde(rename = "forward+backward")]
    #[value(name = "forward+backward")]
    Both,
}

impl Pass {
    /// Products of two matrices: 2 forward; 5 backward, of which one computes the scores again.
    fn products(self) -> f64 {
        match self {
            Self::Forward => 2.0,
            Self::Backward => 5.0,
            Self::Both => 7.0,
        }
    }

    /// Tensors as large as q that are read or written once.
    fn tensors(self) -> f64 {
        match self {
            // q, k, v and out.
            Self::Forward => 4.0,
            // Those, dout, dq, dk and dv.
            Self::Backward => 8.0,
            Self::Both => 12.0,
        }
    }
}

/// Type of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BenchType {
    F32,
    F16,
}

impl BenchType {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

/// One shape from flags.
#[derive(Debug, Args)]
pub struct ShapeArgs {
    /// Sequences.
    #[arg(long, requires = "n", default_value_t = 1)]
    batch: usize,
    /// Heads.
    #[arg(long, requires = "n", default_value_t = 8)]
    heads: usize,
    /// Length of a sequence, a multiple of --window; measures this one shape.
    #[arg(long)]
    n: Option<usize>,
    /// Features of a head.
    #[arg(long, requires = "n", default_value_t = 64)]
    head_dim: usize,
    /// Positions in a window.
    #[arg(long, requires = "n", default_value_t = 128)]
    window: usize,
    /// Windows before its own that a query sees.
    #[arg(long, requires = "n", default_value_t = 1)]
    look_backward: usize,
    /// Windows after its own that a query sees [default: 0 if causal, else 1].
    #[arg(long, requires = "n")]
    look_forward: Option<usize>,
    /// No query sees a later key.
    #[arg(long, requires = "n", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    causal: bool,
    /// Limit the distance too (exact_windowsize).
    #[arg(long, requires = "n")]
    exact: bool,
    /// Rotary embeddings.
    #[arg(long, requires = "n", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    rotary: bool,
    /// A key mask that hides one key in eight.
    #[arg(long, requires = "n")]
    mask: bool,
    /// A bias for each head, row and slot.
    #[arg(long, requires = "n")]
    bias: bool,
    /// Which pass is timed.
    #[arg(long, requires = "n", value_enum, default_value = "forward")]
    pass: Pass,
    /// Type of the tensors.
    #[arg(long, requires = "n", value_enum, default_value = "f32")]
    dtype: BenchType,
}

impl ShapeArgs {
    pub fn shape(&self) -> Result<Option<BenchShape>, BadInput> {
        let Some(n) = self.n else { return Ok(None) };
        let shape = BenchShape {
            pass: self.pass,
            batch: self.batch,
            heads: self.heads,
            n,
            head_dim: self.head_dim,
            window_size: self.window,
            look_backward: self.look_backward,
            look_forward: self.look_forward.unwrap_or(usize::from(!self.causal)),
            causal: self.causal,
            exact: self.exact,
            rotary: self.rotary,
            mask: self.mask,
            bias: self.bias,
            dtype: self.dtype,
        };
        shape.problem()?;
        if self.batch == 0 || self.heads == 0 {
            return Err(BadInput::Usage("--batch and --heads must be at least 1".to_owned()));
        }
        Ok(Some(shape))
    }
}

impl BenchShape {
    /// Causal, one window back, rotary, f32: what most rows are a variation of.
    pub fn causal(heads: usize, n: usize, window_size: usize, head_dim: usize) -> Self {
        Self {
            pass: Pass::Forward,
            batch: 1,
            heads,
            n,
            head_dim,
            window_size,
            look_backward: 1,
            look_forward: 0,
            causal: true,
            exact: false,
            rotary: true,
            mask: false,
            bias: false,
            dtype: BenchType::F32,
        }
    }

    /// The problem it stands for.
    pub fn problem(&self) -> Result<Problem, BadInput> {
        let count = |x: usize| i64::try_from(x).unwrap_or(i64::MAX);
        let mut config = LocalAttentionConfig::new(count(self.window_size))
            .causal(self.causal)
            .look_backward(count(self.look_backward))
            .look_forward(count(self.look_forward))
            .exact_windowsize(self.exact);
        if self.rotary {
            config = config.dim(count(self.head_dim));
        }
        let mut shape = AttentionShape::new([self.batch, self.heads], self.n, self.head_dim);
        if self.mask {
            shape = shape.with_mask(self.batch, self.n);
        }
        if self.pass != Pass::Forward {
            shape = shape.with_lse();
        }
        if self.bias {
            shape = shape.with_bias(self.heads, self.window_size, self.slots());
        }
        Ok(LocalAttention::new(config)?.problem(&shape)?)
    }

    pub fn slots(&self) -> usize {
        (self.look_backward + 1 + self.look_forward).saturating_mul(self.window_size)
    }

    /// Floating-point operations on pairs that attend: 2 for each product and sum of all matrix
    /// products, that for the gradient of a bias not counted. A mask does not lower it.
    pub fn flops(&self, problem: &Problem) -> f64 {
        let pairs = problem.geometry().visible_pairs() as f64;
        pairs * (self.batch * self.heads) as f64 * 2.0 * self.pass.products() * self.head_dim as f64
    }

    /// Refuses tensors that this machine has no memory for: systems promise more than they have.
    pub fn check_memory(&self) -> Result<(), BadInput> {
        // Tensors in f16 are made of such in f32.
        let copies = if self.dtype == BenchType::F16 { 3.0 } else { 1.0 };
        let needed = self.least_bytes() * copies;
        match available_bytes() {
            Some(free) if needed > free as f64 => Err(BadInput::Usage(format!(
                "{self} does not fit into memory: its tensors take {:.1} GiB, {:.1} are free",
                needed / GIB,
                free as f64 / GIB,
            ))),
            _ => Ok(()),
        }
    }

    /// Bytes that must move: each input and each result once, `lse` not counted.
    pub fn least_bytes(&self) -> f64 {
        let product = |sizes: &[usize]| sizes.iter().map(|&s| s as f64).product::<f64>();
        let (Self { batch, heads, n, head_dim, window_size, .. }, bytes) =
            (self, self.dtype.bytes());
        let tensors = self.pass.tensors() * product(&[*batch, *heads, *n, *head_dim, bytes]);
        let mask = if self.mask { product(&[*batch, *n]) } else { 0.0 };
        let bias = product(&[*heads, *window_size, self.slots(), bytes]);
        tensors + mask + if self.bias { bias } else { 0.0 }
    }
}

impl fmt::Display for BenchShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, n, head_dim, window_size, .. } = self;
        write!(f, "b{batch} h{heads} n{n} d{head_dim} w{window_size}")?;
        if self.causal {
            write!(f, " causal")?;
        }
        if (self.look_backward, self.look_forward) != (1, usize::from(!self.causal)) {
            write!(f, " back {} ahead {}", self.look_backward, self.look_forward)?;
        }
        for (on, name) in [
            (self.pass == Pass::Backward, " backward"),
            (self.pass == Pass::Both, " forward+backward"),
            (self.exact, " exact"),
            (!self.rotary, " no rotary"),
            (self.mask, " mask"),
            (self.bias, " bias"),
            (self.dtype == BenchType::F16, " f16"),
        ] {
            if on {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}
