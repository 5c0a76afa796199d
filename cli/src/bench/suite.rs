//! Lists of shapes.

use clap::ValueEnum;

use super::shape::{BenchShape, BenchType, Pass};

/// What `--suite` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// A look at the machine, under a minute.
    Quick,
    /// Lengths, windows, options, head sizes, types, and a small problem.
    Standard,
    /// Steps of training, forward and backward, and each backward pass alone.
    Training,
    /// One row from 4,096 to 1,048,576 positions.
    Scaling,
}

impl Suite {
    pub fn shapes(self) -> Vec<BenchShape> {
        let base = BenchShape::causal(8, 4096, 128, 64);
        let long = BenchShape::causal(8, 16384, 256, 64);
        let both_ways = BenchShape { causal: false, look_forward: 1, ..base.clone() };
        let small = BenchShape::causal(4, 128, 16, 32);
        match self {
            Self::Quick => {
                vec![small, BenchShape::causal(8, 1024, 128, 64), base, long, both_ways]
            }
            Self::Standard => vec![
                base.clone(),
                long.clone(),
                BenchShape::causal(8, 65536, 512, 64),
                BenchShape { rotary: false, ..base.clone() },
                both_ways,
                BenchShape { exact: true, ..base.clone() },
                BenchShape { mask: true, ..base.clone() },
                BenchShape { bias: true, ..base.clone() },
                BenchShape { head_dim: 32, ..base.clone() },
                BenchShape { head_dim: 80, ..base.clone() },
                BenchShape { head_dim: 128, ..base.clone() },
                BenchShape { dtype: BenchType::F16, ..base },
                small,
            ],
            Self::Training => {
                let shapes = [
                    base.clone(),
                    long,
                    both_ways,
                    BenchShape { mask: true, ..base.clone() },
                    BenchShape { bias: true, ..base },
                    small,
                ];
                let passes = [Pass::Both, Pass::Backward];
                let each = shapes
                    .into_iter()
                    .flat_map(|shape| passes.map(|pass| BenchShape { pass, ..shape.clone() }));
                each.collect()
            }
            Self::Scaling => {
                (12..=20).map(|log| BenchShape::causal(1, 1 << log, 256, 64)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Suite;
    use clap::ValueEnum;

    #[test]
    fn every_shape_is_one_and_is_there_once() {
        for suite in Suite::value_variants() {
            let shapes = suite.shapes();
            for (i, shape) in shapes.iter().enumerate() {
                assert!(shape.problem().is_ok(), "{suite:?}: {shape}");
                assert!(!shapes[..i].contains(shape), "{suite:?} holds {shape} twice");
            }
        }
    }
}
