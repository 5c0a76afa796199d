// The forward pass: a workgroup is a block of queries of one packed row, and up to 4 * QUADS
// features of the values.

#import scores
#import block
#import softmax
#import sums
#ifdef DROPOUT
#import dropout
#endif

@compute @workgroup_size(THREADS)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
#ifdef BROADCAST
    @builtin(subgroup_invocation_id) thread: u32,
#else
    @builtin(local_invocation_index) thread: u32,
#endif
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
        let feature = first_feature + chunk * WIDTH;
#ifndef BROADCAST
        if chunk > 0u {
            workgroupBarrier();
        }
        load_values(thread, first, feature);
#endif
        workgroupBarrier();
        add_columns(0u, chunk, Columns(true, first, feature));
#endrepeat
    }

    workgroupBarrier();
    finish_rows(packed_row, first_feature, group.z);
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
#import drop
#endif

#import results
