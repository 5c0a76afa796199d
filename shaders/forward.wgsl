// The forward pass: a workgroup is a block of queries of one packed row, and up to 4 * QUADS
// features of the values.

#import scores
#import block
#import softmax
#import sums
#ifdef DROPOUT
#import dropout
#endif
#ifdef DEGENERATE
#import average
#endif

@compute @workgroup_size(THREADS)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let packed_row = params.first_row + group.y;
    let first_feature = group.z * QUADS * 4u;
    let start = (params.first_block + group.x) * params.block_len;
    let extent = begin_block(thread, packed_row, max(start, params.query_start), start, start + params.block_len);
    for (var i = 0u; i < TQ; i++) {
        push_zero_keys(i, block.start + row_group * TQ + i);
    }
    clear_sums();

    // Key tiles lie at multiples of their size: sums have one order, however queries are split.
    let keys_end = min(extent.last.end, params.key_end);
    for (var first = extent.first.start / KT * KT; first < keys_end; first += KT) {
        // Zeros past the last visited key are counted, though tiles reach over them.
        score_tile(thread, extent, first, params.key_end);
        put(column_group, top_logits());
        workgroupBarrier();
        let top = row_largest();
        workgroupBarrier();
        weigh(packed_row, first, top);
#repeat chunk VALUE_CHUNKS
        if chunk > 0u {
            workgroupBarrier();
        }
        load_values(thread, first, first_feature + chunk * WIDTH);
        workgroupBarrier();
        add_columns(0u, chunk);
#endrepeat
    }

    workgroupBarrier();
    put(column_group, total);
    workgroupBarrier();
    var totals = row_total();
    let empty = empty_rows(totals);
#ifdef DEGENERATE
    if empty != 0u {
        average_hidden(packed_row, empty, first_feature);
    }
#endif
    let out_at = row_offset(params.out, packed_row);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if query < block.end {
            let row = Row(query, totals[i], ((empty >> i) & 1u) == 1u);
            finish_row(packed_row, out_at, i, row, first_feature, group.z);
        }
    }
}

// Turns logits into weights relative to the rows' new maxima, in `s_tile` and in the sums.
fn weigh(packed_row: u32, first: u32, new_tops: array<f32, TQ>) {
    var tops = new_tops;
    for (var i = 0u; i < TQ; i++) {
        if tops[i] > largest[i] {
            let factor = raise(i, tops[i]);
            for (var c = 0u; c < OUT; c++) {
                sums[i * SUMS + c] *= factor;
            }
        }
    }
#repeat j TK
        var weights: array<f32, TQ>;
        for (var i = 0u; i < TQ; i++) {
            weights[i] = weight_of(i, scores[i * TK + j]);
            total[i] += weights[i];
        }
        put(column_group + j * GROUPS, weights);
#endrepeat
#ifdef DROPOUT
    drop_weights(packed_row, first);
#endif
}

#ifdef DROPOUT
// Drops weights of this thread's queries and keys, and scales the others.
fn drop_weights(packed_row: u32, first: u32) {
    for (var n = 0u; n < TK * PARTS; n++) {
        let part = own_part(n);
        var weights = s_tile[part.at];
        for (var i = 0u; i < PART; i++) {
            if weights[i] > 0.0 {
                let query = part.row + i;
                let kept = is_kept(packed_row, query, slot_of(query, first + part.column));
                weights[i] = select(0.0, weights[i] * params.dropout_factor, kept);
            }
        }
        s_tile[part.at] = weights;
    }
}
#endif

// A query's sum of weights, and whether none is one.
struct Row {
    query: u32,
    sum: f32,
    empty: bool,
}

// Writes a query's output and lse.
fn finish_row(packed_row: u32, out_at: u32, i: u32, row: Row, first_feature: u32, value_block: u32) {
    let at = out_at + row.query * params.out.position;
    for (var c = 0u; c < OUT; c++) {
        let feature = first_feature + (c * GROUPS + column_group) * 4u;
        if feature < params.value_dim {
            var x = sums[i * SUMS + c];
            if !row.empty {
                x /= row.sum;
            }
#ifndef DEGENERATE
            if row.empty {
                x = vec4<f32>(0.0);
            }
#endif
            store_out(at + feature * params.out.feature, left(feature, params.value_dim), x);
        }
    }
    if on(LSE) && value_block == 0u && column_group == 0u {
        var lse = -3.4028234663852886e38;
        if !row.empty {
            // Of both parts alone, the product could round where the sum does not.
            lse = (largest[i] + log2(row.sum)) * 0.6931471805599453;
        }
        store_lse(row_offset(params.lse, packed_row) + row.query * params.lse.position, lse);
    }
}
