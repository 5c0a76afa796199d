// The forward pass on matrix units: as `forward`, but for the products.

#import scores
#import block
#import softmax
#import sums
#import products
#ifdef DROPOUT
#import dropout
#endif

// How far a logit may be above what weights are relative to: they stay far below the largest f16.
const LAZY = 8.0;
// Whether outputs are to be scaled.
var<workgroup> grown: atomic<u32>;

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
        if largest[i] > SEEN {
            raise(i, floor(largest[i]));
        }
    }
    if thread == 0u {
        atomicStore(&grown, 0u);
    }
    workgroupBarrier();
    take_queries(thread);

    // Key tiles lie at multiples of their size: sums have one order, however queries are split.
    let keys_end = min(extent.last.end, params.key_end);
    for (var first = extent.first.start / KT * KT; first < keys_end; first += KT) {
        // Zeros past the last visited key are counted, though tiles reach over them.
        score_tile(thread, extent, first, params.key_end);
        load_values(thread, first, first_feature);
        put(column_group, top_logits());
        workgroupBarrier();
        let factors = raise_rows(row_largest());
        if workgroupUniformLoad(&grown) != 0u {
            if thread == 0u {
                atomicStore(&grown, 0u);
            }
            scale_outputs(thread, factors);
        }
        weigh(packed_row, first);
        workgroupBarrier();
        multiply_values(thread);
    }

    take_outputs(thread);
    finish_rows(packed_row, first_feature, group.z);
}

// What each row's outputs are to be multiplied by. Weights are relative to whole powers of 2, so that those factors
// are exact, and f16 rounds weights the same whatever they are relative to; and to the same as before until a logit
// is far above. Each row's own doing: which rows share a tile does not matter.
fn raise_rows(of_tops: array<f32, TQ>) -> array<f32, TQ> {
    var tops = of_tops;
    var factors: array<f32, TQ>;
    for (var i = 0u; i < TQ; i++) {
        factors[i] = 1.0;
        if tops[i] > largest[i] + LAZY {
            // What is zero so far needs no factor.
            if largest[i] > SEEN {
                atomicStore(&grown, 1u);
            }
            factors[i] = raise(i, floor(tops[i]));
        }
    }
    return factors;
}

// Turns logits into weights, in f16 where the queries were.
fn weigh(packed_row: u32, first: u32) {
#repeat j TK
    var weights: array<f32, TQ>;
    for (var i = 0u; i < TQ; i++) {
        weights[i] = weight_of(i, scores[i * TK + j]);
        total[i] += weights[i];
    }
#ifdef DROPOUT
    put(column_group + j * GROUPS, weights);
#else
    for (var i = 0u; i < TQ; i++) {
        row_halves[(row_group * TQ + i) * HALF_ROW + column_group + j * GROUPS] = f16(weights[i]);
    }
#endif
#endrepeat
#ifdef DROPOUT
    drop_weights(packed_row, first);
    for (var n = 0u; n < TK * PARTS; n++) {
        let part = own_part(n);
        let weights = s_tile[part.at];
        for (var i = 0u; i < PART; i++) {
            row_halves[(part.row + i - block.start) * HALF_ROW + part.column] = f16(weights[i]);
        }
    }
#endif
}

#ifdef DROPOUT
#import drop
#endif

#import results
