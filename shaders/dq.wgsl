// The gradient by queries: a workgroup is a block of queries of one packed row, as in the forward pass.

#import block
#import outputs
#import finish

@compute @workgroup_size(THREADS)
fn dq(
    @builtin(workgroup_id) group: vec3<u32>,
#ifdef BROADCAST
    @builtin(subgroup_invocation_id) thread: u32,
#else
    @builtin(local_invocation_index) thread: u32,
#endif
) {
    let packed_row = params.first_row + group.y;
    let start = (params.first_block + group.x) * params.block_len;
    let extent = begin_block(thread, packed_row, max(start, params.query_start), start, start + params.block_len);
    begin_outputs(thread, packed_row);
    clear_sums();
    let keys_end = min(extent.last.end, params.key_len);
    for (var first = extent.first.start / KT * KT; first < keys_end; first += KT) {
        multiply_outputs(thread, first);
        score_tile(thread, extent, first, params.key_len);
        finish_gradients(packed_row, first);
        put_gradients();
#repeat chunk VALUE_CHUNKS
        if chunk < chunks() {
            // One chunk is still there.
            if chunks() > 1u {
                workgroupBarrier();
                load_keys(first, chunk, false);
            }
            workgroupBarrier();
            add_columns(0u, chunk, IN_TILE);
        }
#endrepeat
    }
    workgroupBarrier();
    keep_sums(0u);
    workgroupBarrier();
    let at = row_offset(params.out, packed_row);
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        let query = block.start + row;
        if query < block.end && chunk < chunks() && quad < chunk_steps(chunk) {
            var pair = kept_sums(row, chunk, quad);
            if on(ROTARY) {
                pair = rotate_back(pair, query_turn(query), query_lag(query), feature_of(chunk, quad) / 4u);
            }
            // Logits are in powers of 2, and gradients are not.
            let scale = params.scale * 0.6931471805599453;
            pair = Pair(pair.low * scale, pair.high * scale);
            store_pair(at + query * params.out.position, chunk, quad, pair);
        }
    }
}
