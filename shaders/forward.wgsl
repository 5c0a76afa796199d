// The forward pass: a workgroup is a block of queries of one packed row, and up to 64 * CHUNKS
// features of the values.

#import scores
#import softmax
#ifdef DROPOUT
#import dropout
#endif
#ifdef DEGENERATE
#import degenerate
#endif

// Unnormalised output: rows of this thread, CHUNKS times two vec4s.
var<private> out_quads: array<vec4<f32>, TQ * 2u * CHUNKS>;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let packed_row = params.first_row + group.y;
    let first_feature = group.z * 64u * CHUNKS;
    row_group = thread / GROUPS;
    column_group = thread % GROUPS;
    q_at = row_offset(params.q, packed_row);
    k_at = row_offset(params.k, packed_row);
    v_at = row_offset(params.v, packed_row);
    mask_at = params.mask.offset + packed_row / max(params.mask_rows_share, 1u) * params.mask.leading.w;
    bias_at = params.bias.offset + packed_row % max(params.bias_rows, 1u) * params.bias.leading.w;

    let block_start = (params.first_block + group.x) * params.block_len;
    let block_end = block_start + params.block_len;
    // Where the first query sees nothing, none does.
    let from_start = visible(block_start);
    origin = select(from_start.start, block_start, from_start.start == from_start.end);
    // No farther from any query than its tables reach.
    centre = block_start + (min(block_end, params.seq_len) - block_start) / 2u;
    // Kept beside the private variable: what barriers depend on must be provably uniform.
    let queries = Keys(max(block_start, params.query_start), min(block_end, params.query_end));
    let first_seen = visible(queries.start);
    let last_seen = visible(queries.end - 1u);
    block = queries;
    hull = Keys(first_seen.start, last_seen.end);

    load_queries(thread);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if query < block.end {
            seen[i] = visible(query);
        } else {
            seen[i] = Keys(0u, 0u);
        }
        largest[i] = HIDDEN;
        total[i] = 0.0;
        push_zero_keys(i, query);
    }
    for (var i = 0u; i < TQ * 2u * CHUNKS; i++) {
        out_quads[i] = vec4<f32>(0.0);
    }

    // Key tiles lie at multiples of their size: sums have one order, however queries are split.
    let keys_end = min(last_seen.end, params.key_end);
    for (var first = first_seen.start / KT * KT; first < keys_end; first += KT) {
        for (var i = 0u; i < TQ * TK; i++) {
            scores[i] = 0.0;
        }
        for (var chunk = 0u; chunk < chunks(); chunk++) {
            // The tile is free: of the last products, or of the last values.
            workgroupBarrier();
            load_keys(thread, first, chunk);
            workgroupBarrier();
            add_products(chunk);
        }
        let inside = last_seen.start <= first && first + KT <= min(first_seen.end, params.key_len)
            && queries.end - queries.start == QT;
        finish_scores(first, inside);
        var top = largest;
        for (var i = 0u; i < TQ; i++) {
            for (var j = 0u; j < TK; j++) {
                top[i] = max(top[i], scores[i * TK + j]);
            }
        }
        share_rows(top);
        workgroupBarrier();
        weigh(packed_row, first);
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            if chunk > 0u {
                workgroupBarrier();
            }
            load_values(thread, first, first_feature + chunk * 64u);
            workgroupBarrier();
            add_values(chunk);
        }
    }

    workgroupBarrier();
    share_rows(total);
    workgroupBarrier();
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if query < block.end {
            finish_row(packed_row, i, query, first_feature, group.z);
        }
    }
}

// Zeros of autopad that a query sees, where they are alike: counted, not visited.
fn push_zero_keys(i: u32, query: u32) {
    let start = max(seen[i].start, max(params.key_len, params.key_end));
    if start >= seen[i].end {
        return;
    }
    // With a mask none is seen past its end, which is where visited keys end.
    if on(MASK) {
        return;
    }
    var count = seen[i].end - start;
    var logit = 0.0;
    if on(SHARED_QK) && query >= start && query < seen[i].end {
        push(i, SELF_LOGIT, 1.0);
        count -= 1u;
    }
    if on(BIAS) {
        logit = bias_of(query, start);
    }
    if count > 0u {
        push(i, logit, f32(count));
    }
}

// Turns logits into weights relative to the rows' new maxima, in `s_tile` and in the sums.
fn weigh(packed_row: u32, first: u32) {
    for (var i = 0u; i < TQ; i++) {
        let top = row_largest(i);
        let query = block.start + row_group * TQ + i;
        if top > largest[i] {
            // Nothing before has a weight to scale where nothing was seen.
            let factor = select(0.0, exp2(largest[i] - top), largest[i] > SEEN);
            total[i] *= factor;
            for (var c = 0u; c < 2u * CHUNKS; c++) {
                out_quads[i * 2u * CHUNKS + c] *= factor;
            }
            largest[i] = top;
        }
        for (var j = 0u; j < TK; j++) {
            let logit = scores[i * TK + j];
            var weight = 0.0;
            // Not `>`: a NaN has a weight, which is NaN.
            if !(logit <= SEEN) {
                weight = exp2(logit - top);
            }
            total[i] += weight;
#ifdef DROPOUT
            let key = first + column_group + j * GROUPS;
            if weight > 0.0 {
                let kept = is_kept(packed_row, query, slot_of(query, key));
                weight = select(0.0, weight * params.dropout_factor, kept);
            }
#endif
            s_tile[(row_group * TQ + i) * S_ROW + column_group + j * GROUPS] = weight;
        }
    }
}

// Adds weights times a chunk of values.
fn add_values(of_chunk: u32) {
    // A constant where there is one chunk, so that the output stays in registers.
    let chunk = select(of_chunk, 0u, CHUNKS == 1u);
    for (var key = 0u; key < KT; key++) {
        let low = kv_tile[key * KV_ROW + column_group];
        let high = kv_tile[key * KV_ROW + GROUPS + column_group];
        for (var i = 0u; i < TQ; i++) {
            let weight = s_tile[(row_group * TQ + i) * S_ROW + key];
            let at = i * 2u * CHUNKS + chunk * 2u;
            out_quads[at] += weight * low;
            out_quads[at + 1u] += weight * high;
        }
    }
}

// Writes a query's output and lse.
fn finish_row(packed_row: u32, i: u32, query: u32, first_feature: u32, value_block: u32) {
    let sum = row_total(i);
    let degenerate = largest[i] <= SEEN && sum == 0.0;
    let at = row_offset(params.out, packed_row) + query * params.out.position;
    for (var c = 0u; c < 2u * CHUNKS; c++) {
        let feature = first_feature + c / 2u * 64u + (c % 2u * GROUPS + column_group) * 4u;
        if feature < params.value_dim {
            var x = vec4<f32>(0.0);
            if !degenerate {
                x = out_quads[i * 2u * CHUNKS + c] / sum;
            }
#ifdef DEGENERATE
            if degenerate {
                x = hidden_mean(packed_row, i, feature);
            }
#endif
            store_out(at + feature * params.out.feature, left(feature, params.value_dim), x);
        }
    }
    if on(LSE) && value_block == 0u && column_group == 0u {
        var lse = -3.4028234663852886e38;
        if !degenerate {
            // Of both parts alone, the product could round where the sum does not.
            lse = (largest[i] + log2(sum)) * 0.6931471805599453;
        }
        store_lse(params.lse.offset + packed_row * params.lse.leading.w + query * params.lse.position, lse);
    }
}
