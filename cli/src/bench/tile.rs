//! The tile of GPU kernels: by rules, one by name, or the fastest.

use local_attention::Problem;
use local_attention::gpu::{Gpu, Layouts, Storage, Tile, TuningCache};

use super::inputs::Tensors;
use crate::backend::Chosen;
use crate::console::complain;
use crate::error::BadInput;

/// What `--tile` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileChoice {
    One(Tile),
    Matrix,
    Fastest,
}

pub fn parse_tile(text: &str) -> Result<TileChoice, String> {
    let tile = Tile::ALL.into_iter().find(|tile| tile.name() == text).map(TileChoice::One);
    let names: Vec<_> = Tile::ALL.iter().map(|t| t.name()).collect();
    match (tile, text) {
        (Some(tile), _) => Ok(tile),
        (None, "matrix") => Ok(TileChoice::Matrix),
        (None, "fastest") => Ok(TileChoice::Fastest),
        _ => Err(format!("it must be one of {}, matrix, fastest", names.join(", "))),
    }
}

impl TileChoice {
    /// An engine with this tile.
    pub fn of(self, chosen: Chosen) -> Result<Chosen, BadInput> {
        let Chosen::Gpu(gpu) = chosen else {
            let why = "--tile: only the GPU engine has tiles: add --backend gpu";
            return Err(BadInput::Usage(why.to_owned()));
        };
        Ok(Chosen::Gpu(match self {
            Self::Fastest => gpu,
            Self::One(tile) => {
                let mut options = gpu.options().clone();
                options.tile = Some(tile);
                gpu.with_options(options)
            }
            Self::Matrix if gpu.matrix().is_none() => {
                let why = format!("--tile matrix: {} has no matrix units", gpu.caps().info.name);
                return Err(BadInput::Usage(why));
            }
            Self::Matrix => {
                let mut options = gpu.options().clone();
                options.matrix = Some(true);
                gpu.with_options(options)
            }
        }))
    }
}

/// Lets plans of a problem take the fastest tile, from the user's cache or measured now.
pub fn tune(gpu: &Gpu, problem: &Problem, inputs: &Tensors) -> Result<(), BadInput> {
    let storage = match inputs {
        Tensors::F32(..) => Storage::F32,
        Tensors::F16(..) => Storage::F16,
    };
    let cache = TuningCache::user();
    let layouts = Layouts::contiguous(storage, problem);
    let tuned = gpu.autotune_blocking(problem, &layouts, cache.as_ref());
    let tuned = tuned.map_err(|e| BadInput::Usage(format!("--tile fastest: {e}")))?;
    let path = cache.map(|cache| cache.path().display().to_string());
    let trouble = match (path, tuned.cache_error) {
        (Some(path), Some(e)) => format!("{path}: {e}"),
        (None, _) => "there is no cache directory".to_owned(),
        _ => return Ok(()),
    };
    complain(&format!("the fastest tile will be measured again: {trouble}"));
    Ok(())
}
