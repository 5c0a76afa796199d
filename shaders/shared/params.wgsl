// What changes from dispatch to dispatch: src/gpu/params.rs, word for word.

// Where element [packed row, position, feature] of a tensor lies, counted in elements, modulo 2^32.
struct View {
    offset: u32,
    position: u32,
    feature: u32,
    unused: u32,
    // One stride for each leading dimension.
    leading: vec4<u32>,
}

// A rotary table: rows at the integers of two runs, from a row of `tables` on.
struct Table {
    first: u32,
    start: u32,
    len: u32,
    second_start: u32,
}

struct Params {
    // Geometry.
    window: u32,
    look_backward: u32,
    look_forward: u32,
    flags: u32,
    reach_backward: u32,
    reach_forward: u32,
    key_len: u32,
    padded_len: u32,
    // What this dispatch computes: queries, from a block on, of packed rows from one on.
    query_start: u32,
    query_end: u32,
    first_block: u32,
    first_row: u32,
    block_len: u32,
    // Keys that are visited end here.
    key_end: u32,
    head_dim: u32,
    value_dim: u32,
    seq_len: u32,
    // Times log2(e): logits are powers of 2.
    scale: f32,
    mask_rows_share: u32,
    mask_len: u32,
    bias_rows: u32,
    bias_queries: u32,
    slots: u32,
    unused: u32,
    // Sizes of the leading dimensions, the fastest last.
    leading: vec4<u32>,
    q: View,
    k: View,
    v: View,
    out: View,
    // Leading: the row. Mask: [row, key]. Bias: [row, query, slot].
    mask: View,
    bias: View,
    // As q: [row, query].
    lse: View,
    // Gradients: that by the output, as `out`. Of the backward kernels `out` is the first result, and `lse`
    // the second, but for `rows`, which reads both.
    dout: View,
    // What is known of queries: vec4s of `tables`, from one on, so many a packed row.
    stats: u32,
    stats_len: u32,
    // Leading dimensions, a bit each, along which gradients of keys are shared, and which of those that share one.
    shared_dims: u32,
    member: u32,
    // The gradient by the bias: parts of so many windows, so many a packed row; where the windows, the queries of
    // windows and the slots begin that there are; the sizes of a part, and how many there are.
    first_window: u32,
    end_window: u32,
    part_windows: u32,
    row_parts: u32,
    first_query: u32,
    first_slot: u32,
    part_queries: u32,
    part_slots: u32,
    parts: u32,
    bias_width: u32,
    first_tile: u32,
#ifdef MATRIX
    score_scale: f32,
#else
    unused_score_scale: u32,
#endif
    angles: Table,
    angles_fine: Table,
    xpos: Table,
    xpos_fine: Table,
}

// `opaque_zero` of the prelude is 0, which no compiler can know. Mesa's lavapipe (22.3) takes words of uniforms that
// alone decide a branch or end a loop for constants and compiles the kernel again, seconds long, at each dispatch:
// with this beside them they do not decide alone. A test looks for branches without it.

// Bits of `flags` are named by the prelude. Compilers drop the code of those that are not possible.
fn on(flag: u32) -> bool {
    return ((params.flags | opaque_zero()) & (flag & POSSIBLE)) != 0u;
}

// The offset of a packed row.
fn row_offset(view: View, row: u32) -> u32 {
    let sizes = params.leading;
    // Mostly one dimension is left: divisions are slow.
    if sizes.x * sizes.y * sizes.z + opaque_zero() == 1u {
        return view.offset + row * view.leading.w;
    }
    let c = row / sizes.w;
    let b = c / sizes.z;
    let a = b / sizes.y;
    let at = vec4<u32>(a, b - a * sizes.y, c - b * sizes.z, row - c * sizes.w) * view.leading;
    return view.offset + at.x + at.y + at.z + at.w;
}
