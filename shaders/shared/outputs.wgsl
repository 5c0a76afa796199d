// What is known of a block of queries, beside the queries.

#import gradients

// Loads what is known of each query of this thread, and the gradients by outputs.
fn begin_outputs(thread: u32, packed_row: u32) {
    dout_at = row_offset(params.dout, packed_row);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        stats[i] = NO_STATS;
        if within(present, query) {
            stats[i] = tables[stats_at(packed_row, query)];
        }
    }
    begin_row_features(thread);
}
