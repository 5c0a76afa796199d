// Attention weights of a block of queries of one packed row: `out` holds [row, query, slot] and begins
// as zeros. Keys are visited twice, first for the sums, then for the weights.

#import scores
#import block
#ifdef DEGENERATE
#import degenerate
#endif

@compute @workgroup_size(THREADS)
fn weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let packed_row = params.first_row + group.y;
    let first_query = (params.first_block + group.x) * params.block_len;
    let extent = begin_block(thread, packed_row, max(first_query, params.query_start), first_query, first_query + params.block_len);
    for (var i = 0u; i < TQ; i++) {
        push_zero_keys(i, block.start + row_group * TQ + i);
    }
    let start = extent.first.start / KT * KT;
    let keys_end = min(extent.last.end, params.key_end);
    for (var first = start; first < keys_end; first += KT) {
        score_tile(thread, extent, first, params.key_end);
        add_tile();
    }
    workgroupBarrier();
    put(column_group, total);
    workgroupBarrier();
    var sums = row_total();
    workgroupBarrier();
    let out_at = params.out.offset + packed_row * params.out.leading.w;
    // The zeros of autopad that were counted too.
    for (var first = start; first < extent.last.end; first += KT) {
        score_tile(thread, extent, first, extent.last.end);
        for (var i = 0u; i < TQ; i++) {
            let query = block.start + row_group * TQ + i;
            for (var j = 0u; j < TK; j++) {
                let key = first + column_group + j * GROUPS;
                if within(seen[i], key) {
                    let slot = slot_of(query, key);
                    let weight = weight_of(i, scores[i * TK + j]);
                    // Where nothing has a weight there is nothing to divide.
                    if weight != 0.0 {
                        store_out(out_at + query * params.out.position + slot, weight / sums[i]);
                    }
                }
            }
        }
    }
#ifdef DEGENERATE
    let empty = empty_rows(sums);
    if empty != 0u && on(UNIFORM_MASKED_ROWS) {
        var hidden = hidden_slots();
        for (var i = 0u; i < TQ; i++) {
            let query = block.start + row_group * TQ + i;
            if ((empty >> i) & 1u) == 1u {
                share_evenly(i, query, hidden[i], out_at + query * params.out.position);
            }
        }
    }
#endif
}

#ifdef DEGENERATE
// A row that sees nothing with a weight: the same for each slot that it does not see.
fn share_evenly(i: u32, query: u32, hidden: u32, row_at: u32) {
    let keys = gathered(query / params.window);
    let before = slot_of(query, keys.start);
    for (var slot = column_group; slot < params.slots; slot += GROUPS) {
        let key = keys.start + slot - before;
        let inside = slot >= before && key < keys.end;
        if !(inside && within(seen[i], key) && lets(mask_at, key)) {
            store_out(row_at + slot, 1.0 / f32(hidden));
        }
    }
}
#endif
