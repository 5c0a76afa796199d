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
    pub(super) unused: u32,
    pub(super) leading: [u32; 4],
    pub(super) q: View,
    pub(super) k: View,
    pub(super) v: View,
    pub(super) out: View,
    pub(super) mask: View,
    pub(super) bias: View,
    pub(super) lse: View,
    pub(super) dout: View,
    pub(super) stats: u32,
    pub(super) stats_len: u32,
    pub(super) shared_dims: u32,
    pub(super) member: u32,
    pub(super) first_window: u32,
    pub(super) end_window: u32,
    pub(super) part_windows: u32,
    pub(super) row_parts: u32,
    pub(super) first_query: u32,
    pub(super) first_slot: u32,
    pub(super) part_queries: u32,
    pub(super) part_slots: u32,
    pub(super) parts: u32,
    pub(super) bias_width: u32,
    pub(super) first_tile: u32,
    /// Of kernels with matrices, whose queries are not scaled: `scale`.
    pub(super) score_scale: f32,
    pub(super) angles: Table,
    pub(super) angles_fine: Table,
    pub(super) xpos: Table,
    pub(super) xpos_fine: Table,
}

/// What changes from call to call, all else being as it was bound: `shaders/shared/dropout.wgsl`, word for word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct DropoutParams {
    pub(super) key: [u32; 2],
    pub(super) offset: u32,
    pub(super) threshold: u32,
    pub(super) factor: f32,
    pub(super) unused: u32,
}

macro_rules! flags {
    ($($name:ident = $bit:literal,)*) => {
        $(pub(super) const $name: u32 = 1 << $bit;)*
        /// Every bit of `Params::flags`, by the name that shaders know it by.
        pub(super) const FLAGS: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

flags! {
    CAUSAL = 0,
    EXACT = 1,
    VISIBLE_PADDING = 2,
    SHARED_QK = 3,
    UNIFORM_MASKED_ROWS = 4,
    MASK = 5,
    MASK_WORDS = 6,
    BIAS = 7,
    BIAS_VARIES = 8,
    LSE = 9,
    ROTARY = 10,
    ROTARY_SPLIT = 11,
    XPOS = 12,
    XPOS_SPLIT = 13,
    TAIL_ALIGNED = 14,
    ADD = 15,
    DK = 16,
    DV = 17,
    SUM_QUERIES = 18,
    SUM_SLOTS = 19,
}
