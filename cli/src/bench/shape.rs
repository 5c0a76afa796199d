//! The shape of one measurement.

use std::fmt;
use std::ops::Range;

use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig, Problem};
use serde::{Deserialize, Serialize};

use super::machine::available_bytes;
use crate::backend::Chosen;
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
    /// As `--pass` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Both => "forward+backward",
        }
    }

    /// Products of two matrices: 2 forward; 5 backward, of which one computes the scores again.
    fn products(self) -> f64 {
        match self {
            Self::Forward => 2.0,
            Self::Backward => 5.0,
            Self::Both => 7.0,
        }
    }

    /// Tensors as large as q among its inputs and results.
    fn tensors(self) -> f64 {
        match self {
            // q, k, v and out.
            Self::Forward => 4.0,
            // Those, dout, dq, dk and dv; out is an input of one and a result of the other.
            Self::Backward | Self::Both => 8.0,
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

/// Of so many keys in turn the mask that is measured with hides this one.
pub const HIDDEN: (usize, usize) = (3, 8);

/// Whether that mask lets a key be attended.
pub fn lets(key: usize) -> bool {
    key % HIDDEN.1 != HIDDEN.0
}

/// How many of some keys it lets.
fn let_through(keys: Range<usize>) -> usize {
    let (hidden, period) = HIDDEN;
    let before = |key: usize| key - (key + period - 1 - hidden) / period;
    if keys.is_empty() { 0 } else { before(keys.end) - before(keys.start) }
}

/// The module's look_forward where none is given.
pub fn look_forward(causal: bool) -> usize {
    usize::from(!causal)
}

const GIB: f64 = (1_u64 << 30) as f64;

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
        let windows = self.look_backward.saturating_add(1).saturating_add(self.look_forward);
        windows.saturating_mul(self.window_size)
    }

    /// Floating-point operations on pairs that attend: 2 for each product and sum of all matrix
    /// products, that for the gradient of a bias not counted.
    pub fn flops(&self, problem: &Problem) -> f64 {
        let geometry = problem.geometry();
        let pairs = match self.mask {
            false => geometry.visible_pairs() as f64,
            true => (0..self.n).map(|t| let_through(geometry.visible_range(t)) as f64).sum(),
        };
        pairs * (self.batch * self.heads) as f64 * 2.0 * self.pass.products() * self.head_dim as f64
    }

    /// Refuses tensors that this machine has no memory for: systems promise more than they have.
    pub fn check_memory(&self, chosen: &Chosen) -> Result<(), BadInput> {
        let copies = match chosen {
            // Tensors in f16 are made of such in f32.
            _ if self.dtype == BenchType::F16 => 3.0,
            // In f32, and twice as large.
            Chosen::Reference => 3.0,
            // On the host, where it uploads from, and on the device if that is in the same memory.
            Chosen::Gpu(gpu) if gpu.caps().is_software() => 3.0,
            Chosen::Gpu(_) => 2.0,
            _ => 1.0,
        };
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

    /// Bytes that must move: each input and each result of the pass once, `lse` not counted.
    pub fn least_bytes(&self) -> f64 {
        let product = |sizes: &[usize]| sizes.iter().map(|&s| s as f64).product::<f64>();
        let (Self { batch, heads, n, head_dim, window_size, .. }, bytes) =
            (self, self.dtype.bytes());
        let tensors = self.pass.tensors() * product(&[*batch, *heads, *n, *head_dim, bytes]);
        let mask = if self.mask { product(&[*batch, *n]) } else { 0.0 };
        // A backward pass has its gradient too.
        let biases = match (self.bias, self.pass) {
            (false, _) => 0.0,
            (true, Pass::Forward) => 1.0,
            (true, Pass::Backward | Pass::Both) => 2.0,
        };
        tensors + mask + biases * product(&[*heads, *window_size, self.slots(), bytes])
    }
}

impl fmt::Display for BenchShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, n, head_dim, window_size, .. } = self;
        write!(f, "b{batch} h{heads} n{n} d{head_dim} w{window_size}")?;
        if self.causal {
            write!(f, " causal")?;
        }
        if (self.look_backward, self.look_forward) != (1, look_forward(self.causal)) {
            write!(f, " back {} ahead {}", self.look_backward, self.look_forward)?;
        }
        if self.pass != Pass::Forward {
            write!(f, " {}", self.pass.name())?;
        }
        for (on, name) in [
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

#[cfg(test)]
mod tests {
    use super::{BenchShape, BenchType, Pass, let_through, lets};

    /// 2 heads of 64 positions with 32 features in windows of 16: 4,096 elements a tensor, 1,024 of a
    /// bias for 32 slots, 64 of a mask.
    #[test]
    fn each_input_and_each_result_once() {
        let plain = BenchShape::causal(2, 64, 16, 32);
        let masked = BenchShape { mask: true, ..plain.clone() };
        let biased = BenchShape { bias: true, ..plain.clone() };
        let half = BenchShape { dtype: BenchType::F16, ..masked.clone() };
        for (shape, pass, bytes) in [
            (&plain, Pass::Forward, 4 * 4096 * 4),
            (&plain, Pass::Backward, 8 * 4096 * 4),
            (&plain, Pass::Both, 8 * 4096 * 4),
            (&masked, Pass::Forward, 4 * 4096 * 4 + 64),
            (&half, Pass::Forward, 4 * 4096 * 2 + 64),
            (&biased, Pass::Forward, 4 * 4096 * 4 + 1024 * 4),
            (&biased, Pass::Backward, 8 * 4096 * 4 + 2 * 1024 * 4),
            (&biased, Pass::Both, 8 * 4096 * 4 + 2 * 1024 * 4),
        ] {
            let shape = BenchShape { pass, ..shape.clone() };
            assert_eq!(shape.least_bytes(), f64::from(bytes), "{shape}");
        }
    }

    #[test]
    fn masked_keys_are_counted() {
        for start in 0..20 {
            for end in 0..40 {
                let expected = (start..end).filter(|&key| lets(key)).count();
                assert_eq!(let_through(start..end), expected, "{start}..{end}");
            }
        }
    }

    #[test]
    fn slots_beyond_numbers_are_as_many_as_there_are() {
        let shape = BenchShape { look_backward: usize::MAX, ..BenchShape::causal(1, 16, 16, 2) };
        assert_eq!(shape.slots(), usize::MAX);
    }
}
