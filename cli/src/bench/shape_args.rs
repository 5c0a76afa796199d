//! One shape from flags.

use clap::Args;

use super::shape::{BenchShape, BenchType, Pass, look_forward};
use crate::error::BadInput;

/// One shape from flags.
#[derive(Debug, Args)]
pub struct ShapeArgs {
    /// Sequences.
    #[arg(long, requires = "n", default_value_t = 1, allow_negative_numbers = true)]
    batch: usize,
    /// Heads.
    #[arg(long, requires = "n", default_value_t = 8, allow_negative_numbers = true)]
    heads: usize,
    /// Length of a sequence, a multiple of --window; measures this one shape.
    #[arg(long, allow_negative_numbers = true)]
    n: Option<usize>,
    /// Features of a head.
    #[arg(long, requires = "n", default_value_t = 64, allow_negative_numbers = true)]
    head_dim: usize,
    /// Positions in a window.
    #[arg(long, requires = "n", default_value_t = 128, allow_negative_numbers = true)]
    window: usize,
    /// Windows before its own that a query sees.
    #[arg(long, requires = "n", default_value_t = 1, allow_negative_numbers = true)]
    look_backward: usize,
    /// Windows after its own that a query sees [default: 0 if causal, else 1].
    #[arg(long, requires = "n", allow_negative_numbers = true)]
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
    /// Whether there is one.
    pub fn is_given(&self) -> bool {
        self.n.is_some()
    }

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
            look_forward: self.look_forward.unwrap_or(look_forward(self.causal)),
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
