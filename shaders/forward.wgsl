// The forward pass: a workgroup is a block of queries of one packed row, and up to 64 * CHUNKS
// features of the values.

#import scores
#import block
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
    let extent = begin_block(thread, packed_row, params.first_block + group.x);
    for (var i = 0u; i < TQ; i++) {
        push_zero_keys(i, block.start + row_group * TQ + i);
    }
    for (var i = 0u; i < TQ * 2u * CHUNKS; i++) {
        out_quads[i] = vec4<f32>(0.0);
    }

    // Key tiles lie at multiples of their size: sums have one order, however queries are split.
    let keys_end = min(extent.last.end, params.key_end);
    for (var first = extent.first.start / KT * KT; first < keys_end; first += KT) {
        // Zeros past the last visited key are counted, though tiles reach over them.
        score_tile(thread, extent, first, params.key_end);
        share_rows(top_logits());
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
    let out_at = row_offset(params.out, packed_row);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if query < block.end {
            finish_row(packed_row, out_at, i, query, first_feature, group.z);
        }
    }
}

// Turns logits into weights relative to the rows' new maxima, in `s_tile` and in the sums.
fn weigh(packed_row: u32, first: u32) {
    for (var i = 0u; i < TQ; i++) {
        let top = row_largest(i);
        let query = block.start + row_group * TQ + i;
        if top > largest[i] {
            let factor = raise(i, top);
            for (var c = 0u; c < 2u * CHUNKS; c++) {
                out_quads[i * 2u * CHUNKS + c] *= factor;
            }
        }
        for (var j = 0u; j < TK; j++) {
            var weight = weight_of(i, scores[i * TK + j]);
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
fn finish_row(packed_row: u32, out_at: u32, i: u32, query: u32, first_feature: u32, value_block: u32) {
    let sum = row_total(i);
    let degenerate = largest[i] <= SEEN && sum == 0.0;
    let at = out_at + query * params.out.position;
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
