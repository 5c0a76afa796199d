//! How long a thread may loop. Adapters that end loops: Mesa's llvmpipe lets all loops of an invocation together take 65,535 turns,
//! and then ends them all, without a word. What would need more is refused: a wrong result is worse.

use super::device::Gpu;
use super::error::PlanError;
use super::params::{self, Params};
use super::shader::{Features, Kernel, PipelineKey};
use crate::Problem;

/// `LP_MAX_TGSI_LOOP_ITERATIONS` of Mesa.
const MAX_TURNS: u64 = 65_535;

/// What no adapter is asked for in one dispatch: seconds of one thread, which watchdogs end.
const MOST_TURNS: u64 = 1 << 25;

/// Turns for a slot outside the sequence (2.6 measured).
const OUTSIDE_TURNS: u64 = 3;

/// An error where a thread's loops would be ended. `drops`: whether the call drops weights.
pub(super) fn check(
    gpu: &Gpu,
    problem: &Problem,
    key: &PipelineKey,
    base: &Params,
    drops: bool,
) -> Result<(), PlanError> {
    let info = &gpu.caps().info;
    let llvmpipe = info.name.contains("llvmpipe") || info.driver == "llvmpipe";
    // Browsers need not say whose software it is.
    let nameless = cfg!(target_arch = "wasm32") && gpu.caps().is_software() && info.name.is_empty();
    let llvmpipe = llvmpipe || nameless;
    let max = if llvmpipe { MAX_TURNS } else { MOST_TURNS };
    match turns(problem, key, base, drops) {
        needed if needed > max => Err(PlanError::LoopTurns { needed, max }),
        _ => Ok(()),
    }
}

/// Turns of the loops of one thread, at most: a loop counts one more than it has turns. Measured
/// kernels take 0.4 to 0.98 of what this says.
fn turns(problem: &Problem, key: &PipelineKey, base: &Params, drops: bool) -> u64 {
    let geometry = &problem.geometry;
    let slots = geometry.slots() as u64;
    // What the queries of a block see together, or gather.
    let window = geometry.window() as u64;
    let block = u64::from(base.block_len).max(1);
    // Of the windows after the block's first, each adds one; causal queries see nothing past the last of them.
    let borders = if window.is_multiple_of(block) { 0 } else { (block - 1).div_ceil(window) };
    let more =
        if base.flags & params::CAUSAL == 0 { window.saturating_mul(borders) } else { block };
    let span = slots.saturating_add(more.max(block)).min(u64::from(base.padded_len));
    let visited = span.min(u64::from(base.key_end));
    let tile = key.tile_turns(problem.shape.head_dim);
    let tiles = |keys: u64| keys.div_ceil(u64::from(key.keys())) + 1;
    // Queries whose windows gather keys of a block.
    let sharing =
        |span: u64| span.saturating_add(geometry.window() as u64).min(u64::from(base.padded_len));
    let blocks = key.value_blocks(problem.shape.value_dim).max(1) as u64;
    // Tiles whose scores are computed, and how often values, or what is like them, are loaded and multiplied.
    let (scores, values) = match key.kernel {
        Kernel::Forward => (tiles(visited), tiles(visited)),
        // Once for the sums, and once for the weights.
        Kernel::Weights => (tiles(visited) + tiles(span), 0),
        Kernel::RowsAgain => (tiles(visited), 0),
        Kernel::Dq => (tiles(visited), tiles(visited) * (blocks + 1)),
        Kernel::Dkv => {
            // Queries that see keys of a block.
            let queries = sharing(span).min(u64::from(base.seq_len));
            (tiles(queries), tiles(queries) * (blocks + 2))
        }
        Kernel::Bias => (u64::from(base.part_windows), u64::from(base.part_windows) * blocks),
        // A few, whatever the shape.
        Kernel::Rows | Kernel::Mask | Kernel::Copy => return problem.shape.value_dim as u64,
        Kernel::Fold => return fold_turns(base),
    };
    let mut turns = scores * tile.scores + values * tile.values;
    if key.kernel.is_gradient() {
        // Loads of rows, and a thread's own numbers.
        turns += 100 + scores * (tile.own + tile.rows * blocks);
    }
    if drops {
        turns += values * tile.own;
    }
    if key.features == Features::All {
        if problem.shape.bias.is_some() {
            turns += scores * tile.own;
        }
        let real = span.min(u64::from(base.key_len));
        // What is hidden is counted, then averaged or given a weight.
        turns += real;
        turns += match key.kernel {
            Kernel::Forward => tile.outputs * (real + real / 64 * 2 + 2),
            Kernel::Weights => tile.queries * (slots / 8 + 1),
            Kernel::Dkv => {
                sharing(span).min(u64::from(base.seq_len)) * tile.outputs * (tile.queries + 1)
            }
            _ => 0,
        };
        // Slots outside the sequence are visited for the bits of dropout alone: most by the first or the last
        // queries.
        if drops && key.kernel == Kernel::Forward {
            let outside =
                |query: usize| slots - geometry.gathered(geometry.window_of(query)).len() as u64;
            // Of the sequence, whatever the range asked for: the tile, and with it the bits, must not depend on it.
            let most = outside(0).max(outside(geometry.seq_len().saturating_sub(1)));
            turns = turns.saturating_add(most.saturating_mul(OUTSIDE_TURNS * tile.queries));
        }
    }
    // What compilers add.
    turns.saturating_add(turns / 7)
}

/// Turns for an element of the gradient by a bias.
fn fold_turns(base: &Params) -> u64 {
    let along = |flag: u32, parts: u32| if base.flags & flag == 0 { 1 } else { u64::from(parts) };
    let queries = along(params::SUM_QUERIES, base.part_queries);
    u64::from(base.parts) * queries * along(params::SUM_SLOTS, base.part_slots) + 1
}
