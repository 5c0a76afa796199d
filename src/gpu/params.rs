//! The uniforms of a dispatch: `shaders/shared/params.wgsl`, word for word.

use bytemuck::{Pod, Zeroable};

/// Where element `[packed row, position, feature]` of a tensor lies, counted in elements from the
/// start of its binding, modulo 2^32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct View {
    pub(super) offset: u32,
    pub(super) position: u32,
    pub(super) feature: u32,
    pub(super) unused: u32,
    pub(super) leading: [u32; 4],
}

/// A rotary table: rows at the integers of two runs, from a vec4 of the tables on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Table {
    pub(super) first: u32,
    pub(super) start: u32,
    pub(super) len: u32,
    pub(super) second_start: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Params {
    pub(super) window: u32,
    pub(super) look_backward: u32,
    pub(super) look_forward: u32,
    pub(super) flags: u32,
    pub(super) reach_backward: u32,
    pub(super) reach_forward: u32,
    pub(super) key_len: u32,
    pub(super) padded_len: u32,
    pub(super) query_start: u32,
    pub(super) query_end: u32,
    pub(super) first_block: u32,
    pub(super) first_row: u32,
    pub(super) block_len: u32,
    pub(super) key_end: u32,
    pub(super) head_dim: u32,
    pub(super) value_dim: u32,
    pub(super) seq_len: u32,
    pub(super) scale: f32,
    pub(super) mask_rows_share: u32,
    pub(super) mask_len: u32,
    pub(super) bias_rows: u32,
    pub(super) bias_queries: u32,
    pub(super) slots: u32,
    pub(super) dropout_threshold: u32,
    pub(super) dropout_key: [u32; 2],
    pub(super) dropout_offset: u32,
    pub(super) dropout_factor: f32,
    pub(super) leading: [u32; 4],
    pub(super) q: View,
    pub(super) k: View,
    pub(super) v: View,
    pub(super) out: View,
    pub(super) mask: View,
    pub(super) bias: View,
    pub(super) lse: View,
    pub(super) angles: Table,
    pub(super) angles_fine: Table,
    pub(super) xpos: Table,
    pub(super) xpos_fine: Table,
}

pub(super) const CAUSAL: u32 = 1;
pub(super) const EXACT: u32 = 2;
pub(super) const VISIBLE_PADDING: u32 = 4;
pub(super) const SHARED_QK: u32 = 8;
pub(super) const UNIFORM_MASKED_ROWS: u32 = 16;
pub(super) const MASK: u32 = 32;
pub(super) const MASK_WORDS: u32 = 64;
pub(super) const BIAS: u32 = 128;
pub(super) const BIAS_VARIES: u32 = 256;
pub(super) const LSE: u32 = 512;
pub(super) const ROTARY: u32 = 1024;
pub(super) const ROTARY_SPLIT: u32 = 2048;
pub(super) const XPOS: u32 = 4096;
pub(super) const XPOS_SPLIT: u32 = 8192;
pub(super) const TAIL_ALIGNED: u32 = 16384;
