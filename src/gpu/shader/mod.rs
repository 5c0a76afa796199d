//! From a key to WGSL.

mod key;
mod matrix;
mod prelude;
mod preprocess;
mod tile;

pub use key::{Arena, Features, Kernel, MAX_HEAD_DIM, PipelineKey, Storage};
pub use matrix::Matrix;
#[cfg(not(target_arch = "wasm32"))]
pub(in crate::gpu) use tile::LANES;
pub use tile::Tile;

/// The sources, by the name they are imported by.
fn source_of(name: &str) -> Option<&'static str> {
    macro_rules! sources {
        ($($name:literal: $path:literal),* $(,)?) => {
            match name {
                $($name => Some(include_str!(concat!("../../../shaders/", $path))),)*
                _ => None,
            }
        };
    }
    // No browser has matrix units.
    #[cfg(not(target_arch = "wasm32"))]
    let matrix = sources! {
        "forward_matrix": "forward_matrix.wgsl",
        "halves": "shared/halves.wgsl",
        "products": "shared/products.wgsl",
    };
    #[cfg(target_arch = "wasm32")]
    let matrix = None;
    matrix.or(sources! {
        "forward": "forward.wgsl",
        "weights": "weights.wgsl",
        "rows": "rows.wgsl",
        "mask": "mask.wgsl",
        "rows_again": "rows_again.wgsl",
        "dq": "dq.wgsl",
        "dkv": "dkv.wgsl",
        "bias": "bias.wgsl",
        "fold": "fold.wgsl",
        "copy": "copy.wgsl",
        "load": "shared/load.wgsl",
        "sums": "shared/sums.wgsl",
        "stats": "shared/stats.wgsl",
        "gradients": "shared/gradients.wgsl",
        "outputs": "shared/outputs.wgsl",
        "keys": "shared/keys.wgsl",
        "finish": "shared/finish.wgsl",
        "share": "shared/share.wgsl",
        "keeps": "shared/keeps.wgsl",
        "block": "shared/block.wgsl",
        "params": "shared/params.wgsl",
        "window": "shared/window.wgsl",
        "rotary": "shared/rotary.wgsl",
        "tile": "shared/tile.wgsl",
        "scores": "shared/scores.wgsl",
        "softmax": "shared/softmax.wgsl",
        "dropout": "shared/dropout.wgsl",
        "degenerate": "shared/degenerate.wgsl",
        "average": "shared/average.wgsl",
        "drop": "shared/drop.wgsl",
        "results": "shared/results.wgsl",
    })
}

impl PipelineKey {
    /// The WGSL of its pipeline.
    pub fn wgsl(&self) -> String {
        let mut defined = Vec::new();
        let degenerate = self.features == Features::All;
        for (on, name) in [
            (self.dropout, "DROPOUT"),
            (degenerate, "DEGENERATE"),
            (self.kernel == Kernel::Dkv, "KEY_ROWS"),
            (self.matrix.is_some(), "MATRIX"),
            (self.broadcast, "BROADCAST"),
        ] {
            if on {
                defined.push(name);
            }
        }
        // The sources are part of the crate, and a test expands them for every key.
        let counts = self.counts();
        let source = if self.matrix.is_some() { "forward_matrix" } else { self.kernel.name() };
        let body = preprocess::expand(source, &source_of, &defined, &counts)
            .unwrap_or_else(|e| format!("// {e}\n"));
        prelude::render(self) + &body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_expands() {
        for key in PipelineKey::all() {
            let text = key.wgsl();
            assert!(text.contains(&format!("fn {}(", key.kernel.name())), "{key}:\n{text}");
            assert_eq!(text.contains("fn philox("), key.dropout, "{key}");
        }
    }
}
