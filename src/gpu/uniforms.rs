//! The uniforms of a problem, and its rotary tables as kernels read them.

use super::error::PlanError;
use super::params::{self, Params, Table};
use crate::{Problem, rotary};

/// Uniforms that follow from the problem alone.
pub(super) fn of_problem(problem: &Problem) -> Params {
    let (geometry, shape) = (&problem.geometry, &problem.shape);
    let bits = geometry.bits();
    let mut flags = 0;
    for (on, flag) in [
        (bits.causal, params::CAUSAL),
        (bits.exact.is_some(), params::EXACT),
        (geometry.sees_padding(), params::VISIBLE_PADDING),
        (problem.shared_qk, params::SHARED_QK),
        (problem.uniform_masked_rows, params::UNIFORM_MASKED_ROWS),
        (shape.mask.is_some(), params::MASK),
        (shape.bias.is_some(), params::BIAS),
        (shape.bias.is_some_and(|b| b.slots > 1), params::BIAS_VARIES),
        (shape.lse, params::LSE),
        (problem.rotary.is_some(), params::ROTARY),
        (geometry.rotary_shift() > 0, params::TAIL_ALIGNED),
    ] {
        flags |= if on { flag } else { 0 };
    }
    // All lengths and positions are below 2^31, by the checks of shapes.
    let small = |x: usize| x.min(i32::MAX as usize - 1) as u32;
    let (backward, forward) = bits.exact.unwrap_or((0, 0));
    Params {
        window: small(geometry.window()),
        look_backward: small(bits.look_backward),
        look_forward: small(bits.look_forward),
        flags,
        reach_backward: small(backward),
        reach_forward: small(forward),
        key_len: small(geometry.key_len()),
        padded_len: geometry.padded_len() as u32,
        key_end: key_end(problem, shape.bias.is_some_and(|b| b.slots > 1)),
        head_dim: shape.head_dim as u32,
        value_dim: shape.value_dim as u32,
        seq_len: geometry.seq_len() as u32,
        scale: (problem.scale * std::f64::consts::LOG2_E)
            .clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32,
        mask_rows_share: shape.mask.map_or(1, |m| (problem.batch / m.rows).max(1)) as u32,
        mask_len: shape.mask.map_or(0, |m| m.len) as u32,
        bias_rows: shape.bias.map_or(1, |b| b.rows) as u32,
        bias_queries: shape.bias.map_or(1, |b| b.queries) as u32,
        slots: geometry.slots() as u32,
        leading: [1, 1, 1, problem.batch as u32],
        ..Params::default()
    }
}

/// Where visited keys end: zeros of autopad are visited only where a mask or a bias tells them apart.
pub(super) fn key_end(problem: &Problem, bias_varies: bool) -> u32 {
    let geometry = &problem.geometry;
    let end = match problem.shape.mask {
        Some(mask) => mask.len.min(geometry.padded_len()).max(geometry.key_len()),
        None if bias_varies => geometry.padded_len(),
        None => geometry.key_len(),
    };
    end as u32
}

/// The rotary tables as vec4s, halves of the features padded to whole ones; where they lie goes into
/// the uniforms.
pub(super) fn tables(problem: &Problem, base: &mut Params) -> Result<Vec<f32>, PlanError> {
    let Some(tables) = problem.rotary_tables()? else { return Ok(Vec::new()) };
    let half = problem.shape.head_dim / 2;
    let (angles, xpos) = tables.parts();
    let mut words = Vec::new();
    let mut add = |table: Option<&rotary::Table<f32>>| {
        let Some(table) = table else { return Table::default() };
        let first = (words.len() / 4) as u32;
        for row in table.values.chunks_exact(table.width.max(1)) {
            for part in row.chunks_exact(half) {
                words.extend_from_slice(part);
                words.resize(words.len().next_multiple_of(4), 0.0);
            }
        }
        let run = |i: usize| table.runs.get(i).cloned().unwrap_or(0..0);
        Table {
            first,
            start: run(0).start as i32 as u32,
            len: (run(0).end - run(0).start) as u32,
            second_start: run(1).start as i32 as u32,
        }
    };
    (base.angles, base.angles_fine) = (add(angles[0]), add(angles[1]));
    (base.xpos, base.xpos_fine) = (add(xpos[0]), add(xpos[1]));
    for (on, flag) in [
        (angles[1].is_some(), params::ROTARY_SPLIT),
        (xpos[0].is_some(), params::XPOS),
        (xpos[1].is_some(), params::XPOS_SPLIT),
    ] {
        base.flags |= if on { flag } else { 0 };
    }
    Ok(words)
}
