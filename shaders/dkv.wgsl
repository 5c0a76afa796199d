// The gradients by keys and values: a workgroup is a block of keys of one packed row, and up to 4 * QUADS
// features of the values.

#import keys
#import gradients
#import finish
#ifdef DEGENERATE
#import share
#endif

@compute @workgroup_size(THREADS)
fn dkv(
    @builtin(workgroup_id) group: vec3<u32>,
#ifdef BROADCAST
    @builtin(subgroup_invocation_id) thread: u32,
#else
    @builtin(local_invocation_index) thread: u32,
#endif
) {
    let packed_row = member_row(params.first_row + group.y);
    let start = (params.first_block + group.x) * params.block_len;
    let keys = Keys(start, min(start + params.block_len, params.key_end));
    let queries = begin_keys(thread, packed_row, keys);
    dout_at = row_offset(params.dout, packed_row);
    let first_feature = group.z * QUADS * 4u;
    // Of the blocks of values, one computes these too.
    let with_keys = on(DK) && group.z == 0u;
    if with_keys {
        begin_row_features(thread);
    }
    clear_sums();
    // Tiles of queries lie at multiples of their size: sums have one order, however keys are split.
    for (var first = queries.start / KT * KT; first < queries.end; first += KT) {
        know_queries(packed_row, queries, first);
        if with_keys {
            multiply_outputs(thread, first);
        }
        score_queries(queries, first);
        finish_gradients(packed_row, first);
        if with_keys {
            // The last sums were read.
            put_gradients();
#repeat chunk VALUE_CHUNKS
            if chunk < chunks() {
                // One chunk is still there.
                if chunks() > 1u {
                    workgroupBarrier();
                    load_query_columns(first, chunk);
                }
                workgroupBarrier();
                add_columns(OUT, chunk, IN_TILE);
            }
#endrepeat
            workgroupBarrier();
        }
        if on(DV) {
            put_weights();
#repeat chunk VALUE_CHUNKS
            if first_feature + chunk * WIDTH < params.value_dim {
                workgroupBarrier();
                let feature = first_feature + chunk * WIDTH;
#ifndef BROADCAST
                load_column_features(thread, first, feature);
                workgroupBarrier();
#endif
                add_columns(0u, chunk, Columns(true, first, feature));
            }
#endrepeat
        }
    }
#ifdef DEGENERATE
    if on(DV) && on(UNIFORM_MASKED_ROWS) {
        share_hidden(packed_row, keys, first_feature);
    }
#endif
    if on(DV) {
        let at = row_offset(params.lse, packed_row);
#ifdef BROADCAST
        workgroupBarrier();
        keep_sums(0u);
        workgroupBarrier();
        store_kept_values(thread, at, first_feature);
#else
        for (var i = 0u; i < TQ; i++) {
            let key = keys.start + row_group * TQ + i;
            if key < keys.end {
                store_values(at + key * params.lse.position, i, first_feature);
            }
        }
#endif
    }
    if with_keys {
        workgroupBarrier();
        keep_sums(OUT);
        workgroupBarrier();
        rotate_keys(thread);
        if on(SHARED_QK) {
            workgroupBarrier();
            measure_keys(thread);
            workgroupBarrier();
        }
        store_keys(thread, row_offset(params.out, packed_row));
    }
}

// What is known of the queries from `first` on; where it is broadcast, with what they see.
fn know_queries(packed_row: u32, queries: Keys, first: u32) {
#ifdef BROADCAST
#repeat m COLUMN_LOADS
    let query = first + m * LANES + row_group;
    let own = stats_of(packed_row, queries, query);
    let sees = seen_of(queries, query);
#repeat l LANES
    stats[m * LANES + l] = subgroupBroadcast(own, l);
    seen[m * LANES + l] = Keys(subgroupBroadcast(sees.start, l), subgroupBroadcast(sees.end, l));
#endrepeat
#endrepeat
#else
#repeat j TK
    stats[j] = stats_of(packed_row, queries, first + column_group + j * GROUPS);
#endrepeat
#endif
}

fn stats_of(packed_row: u32, queries: Keys, query: u32) -> vec4<f32> {
    // One return: inlined, several are loops, which SwiftShader takes minutes to compile.
    var known = NO_STATS;
    if within(queries, query) {
        known = tables[stats_at(packed_row, query)];
    }
    return known;
}

// Puts this thread's weights where other threads find them.
fn put_weights() {
#repeat j TK
        var numbers: array<f32, TQ>;
        for (var i = 0u; i < TQ; i++) {
            numbers[i] = scores[i * TK + j];
        }
        put(column_group + j * GROUPS, numbers);
#endrepeat
}

#ifdef BROADCAST
// From workgroup memory: a loop over a thread's own sums that Mesa does not unroll sends all of them to memory.
fn store_kept_values(thread: u32, at: u32, first_feature: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let key = block.start + i / QUADS;
        let feature = first_feature + i % QUADS * 4u;
        if key < block.end && feature < params.value_dim {
            let x = row_tile[row_quad(i / QUADS, i % QUADS)];
            add_second(at + key * params.lse.position + feature * params.lse.feature, left(feature, params.value_dim), x);
        }
    }
}
#else
fn store_values(at: u32, i: u32, first_feature: u32) {
    for (var c = 0u; c < OUT; c++) {
        let feature = first_feature + (c * GROUPS + column_group) * 4u;
        if feature < params.value_dim {
            add_second(at + feature * params.lse.feature, left(feature, params.value_dim), sums[i * SUMS + c]);
        }
    }
}
#endif

// As `add_first`, of the other result.
fn add_second(at: u32, valid: u32, sum: vec4<f32>) {
    var x = sum;
    if on(ADD) {
        x += load_second(at, valid);
    }
    store_second(at, valid, x);
}

// From the sums over queries to the gradients by keys as scores saw them, but for their length.
fn rotate_keys(thread: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        let key = block.start + row;
        if key < block.end && chunk < chunks() && quad < chunk_steps(chunk) {
            var pair = kept_sums(row, chunk, quad);
            if on(ROTARY) {
                pair = rotate_back(pair, key_turn(key), key_lag(key), feature_of(chunk, quad) / 4u);
            }
            // Queries were scaled to powers of 2, and gradients are not.
            let ln2 = 0.6931471805599453;
            put_row(row, chunk, quad, Pair(pair.low * ln2, pair.high * ln2));
        }
    }
}

// One over the norm of each key of the block, and how much of the gradient lies along it, over the norm squared:
// for going back through the normalisation. Where the norm counts as 1e-12, nothing.
fn measure_keys(thread: u32) {
    for (var row = thread; row < QT; row += THREADS) {
        let key = block.start + row;
        var squares = 0.0;
        var along = 0.0;
        if key < block.end && worth_loading(key) {
            for (var chunk = 0u; chunk < chunks(); chunk++) {
                for (var quad = 0u; quad < chunk_steps(chunk); quad++) {
                    let x = raw_key_quads(key, chunk, quad);
                    let g = kept_sums(row, chunk, quad);
                    squares += dot(x.low, x.low) + dot(x.high, x.high);
                    along += dot(x.low, g.low) + dot(x.high, g.high);
                }
            }
        }
        let norm = sqrt(squares);
        var measure: Part;
        measure[0] = 1.0 / max(norm, 1e-12);
        measure[1] = 0.0;
        if norm >= 1e-12 {
            // By no root: with one feature nothing is left but what roundings leave.
            measure[1] = along / squares;
        }
        s_tile[row] = measure;
    }
}

fn store_keys(thread: u32, at: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        let key = block.start + row;
        if key < block.end && chunk < chunks() && quad < chunk_steps(chunk) {
            var pair = kept_sums(row, chunk, quad);
            if on(SHARED_QK) {
                let measure = s_tile[row];
                if worth_loading(key) {
                    let x = raw_key_quads(key, chunk, quad);
                    pair.low -= x.low * measure[1];
                    pair.high -= x.high * measure[1];
                }
                pair = Pair(pair.low * measure[0], pair.high * measure[0]);
            }
            store_pair(at + key * params.out.position, chunk, quad, pair);
        }
    }
}
