// A workgroup's block of queries, and the scores of a tile of keys.

#import scores
#import load
#ifdef MATRIX
#import products
#endif

// The queries of a block, and what the first and the last of them see. A value beside the private
// variables: what barriers depend on must be provably uniform.
struct Extent {
    queries: Keys,
    first: Keys,
    last: Keys,
}

// Sets up the private variables of `tile` for the queries of a block that are computed, the first row at a
// position of its own, and loads them.
fn begin_block(thread: u32, packed_row: u32, first_row: u32, start: u32, end: u32) -> Extent {
    begin_row(thread, packed_row);
    // Where the first query sees nothing, none does.
    let from_start = visible(start);
    origin = select(from_start.start, start, from_start.start == from_start.end);
    // No farther from any query than its tables reach.
    centre = start + (min(end, params.seq_len) - start) / 2u;
    let queries = Keys(max(start, params.query_start), min(end, params.query_end));
    let extent = Extent(queries, visible(queries.start), visible(queries.end - 1u));
    present = queries;
    block = Keys(first_row, queries.end);
    hull = Keys(extent.first.start, extent.last.end);
    load_queries(thread);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        seen[i] = Keys(0u, 0u);
        if within(present, query) {
            seen[i] = visible(query);
        }
    }
    return extent;
}

// The logits of the keys from `first` on, those from `end` on hidden, in `scores`.
fn score_tile(thread: u32, extent: Extent, first: u32, end: u32) {
#ifdef MATRIX
    multiply_keys(thread, first);
#else
    scores = array<f32, TQ * TK>();
    for (var chunk = 0u; chunk < chunks(); chunk++) {
        // The tile is free: of the last products, or of the last values.
        workgroupBarrier();
        load_keys(first, chunk, true);
        workgroupBarrier();
        add_products(0u, chunk, chunk_width(chunk), IN_TILE);
    }
#endif
    let inside = first < extent.first.end && extent.last.start <= first && first + KT <= min(extent.first.end, params.key_len)
        && extent.queries.end - extent.queries.start == QT;
    finish_scores(first, inside, end);
}
