// What is known of queries, where the results of the forward pass tell too little: those whose `lse` is so large that
// rounding it would be seen in the weights, and those that saw nothing.

#import block
#import stats
#ifdef DEGENERATE
#import degenerate
#endif

@compute @workgroup_size(THREADS)
fn rows_again(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let packed_row = params.first_row + group.y;
    let start = (params.first_block + group.x) * params.block_len;
    var vote = 0.0;
    for (var i = thread; i < params.block_len; i += THREADS) {
        let query = start + i;
        if query >= params.query_start && query < params.query_end {
            if abs(tables[stats_at(packed_row, query)].x) > EXACT_LSE {
                vote = 1.0;
            }
        }
    }
    s_tile[thread] = Part(vote);
    workgroupBarrier();
    if thread == 0u {
        for (var i = 1u; i < THREADS; i++) {
            vote = max(vote, s_tile[i][0]);
        }
        s_tile[0] = Part(vote);
    }
    if workgroupUniformLoad(&s_tile[0])[0] == 0.0 {
        return;
    }
    let extent = begin_block(thread, packed_row, max(start, params.query_start), start, start + params.block_len);
    for (var i = 0u; i < TQ; i++) {
        push_zero_keys(i, block.start + row_group * TQ + i);
    }
    let keys_end = min(extent.last.end, params.key_end);
    for (var first = extent.first.start / KT * KT; first < keys_end; first += KT) {
        score_tile(thread, extent, first, params.key_end);
        add_tile();
    }
    workgroupBarrier();
    put(column_group, total);
    workgroupBarrier();
    var totals = row_total();
#ifdef DEGENERATE
    var hidden = hidden_slots();
#endif
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if column_group == 0u && within(present, query) {
            let at = stats_at(packed_row, query);
            var known = tables[at];
            if known.x == NO_STATS.x {
#ifdef DEGENERATE
                if hidden[i] > 0u {
                    known.w = 1.0 / f32(hidden[i]);
                }
#endif
            } else if abs(known.x) > EXACT_LSE {
                known.x = largest[i];
                known.y = 1.0 / totals[i];
            }
            tables[at] = known;
        }
    }
}
