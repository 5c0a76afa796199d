// What all gradients begin with: weights, from what is known of their queries, and the gradients by
// logits.

#import scores
#import stats
#ifdef KEY_ROWS
#import keys
#else
#import load
#endif
#ifdef DROPOUT
#import dropout
#endif

// Of each query of this thread.
#ifdef KEY_ROWS
var<private> stats: array<vec4<f32>, TK>;
#else
var<private> stats: array<vec4<f32>, TQ>;
#endif
var<private> dout_at: u32;
// Gradients by weights, then by logits; weights themselves are where scores were.
var<private> by_logit: array<f32, TQ * TK>;

// Blocks of features that values take.
fn value_blocks() -> u32 {
    return max((params.value_dim + QUADS * 4u - 1u) / (QUADS * 4u), 1u) + opaque_zero();
}

// Features of the gradient by an output, from one on; 0 where there is none.
fn output_quad(query: u32, feature: u32) -> vec4<f32> {
    if within(present, query) && feature < params.value_dim {
        return load_dout(dout_at + query * params.dout.position + feature * params.dout.feature, left(feature, params.value_dim));
    }
    return vec4<f32>(0.0);
}

// A block of features of the rows: of the gradients by outputs, or of values.
fn load_row_features(thread: u32, first_feature: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let position = block.start + i / QUADS;
        let feature = first_feature + i % QUADS * 4u;
#ifdef KEY_ROWS
        let x = value_quad(position, feature);
#else
        let x = output_quad(position, feature);
#endif
        row_tile[SECOND + row_quad(i / QUADS, i % QUADS)] = x;
    }
}

// A chunk of them of the columns.
fn load_column_features(thread: u32, first: u32, first_feature: u32) {
    for (var i = thread; i < KT * CHUNK; i += THREADS) {
        let position = first + i / CHUNK;
        let feature = first_feature + i % CHUNK * 4u;
#ifdef KEY_ROWS
        let x = output_quad(position, feature);
#else
        let x = value_quad(position, feature);
#endif
        column_tile[column_quad(i / CHUNK, i % CHUNK)] = x;
    }
}

// The rows' features, where all of them fit.
fn begin_row_features(thread: u32) {
    if value_blocks() == 1u {
        load_row_features(thread, 0u);
    }
}

// The gradients by the weights of the columns from `first` on, in `by_logit`.
fn multiply_outputs(thread: u32, first: u32) {
    scores = array<f32, TQ * TK>();
    for (var values = 0u; values < value_blocks(); values++) {
        if value_blocks() > 1u {
            workgroupBarrier();
            load_row_features(thread, values * QUADS * 4u);
        }
        for (var chunk = 0u; chunk < QUADS / CHUNK; chunk++) {
            let feature = values * QUADS * 4u + chunk * WIDTH;
            if feature < params.value_dim {
                // The tile is free: of the last sums.
                workgroupBarrier();
#ifndef BROADCAST
                load_column_features(thread, first, feature);
                workgroupBarrier();
#endif
                let width = (min(WIDTH, left(feature, params.value_dim)) + 3u) / 4u;
                add_products(SECOND, chunk, width, Columns(true, first, feature));
            }
        }
    }
    by_logit = scores;
}

#ifdef DROPOUT
// Puts the factors of this thread's weights where those will be.
fn load_factors(packed_row: u32, first: u32) {
    for (var n = 0u; n < TK * PARTS; n++) {
        let part = own_part(n);
        let column = first + part.column;
        var factors: Part;
        for (var i = 0u; i < PART; i++) {
            let query = query_of(part.row + i, column);
            let kept = is_kept(packed_row, query, slot_of(query, key_of(part.row + i, column)));
            factors[i] = select(0.0, dropout.factor, kept);
        }
        s_tile[part.at] = factors;
    }
}
#endif

// Turns logits into weights as dropout left them, and the gradients by those into gradients by logits.
fn finish_gradients(packed_row: u32, first: u32) {
#ifdef DROPOUT
    load_factors(packed_row, first);
#endif
#repeat j TK
        let slot = column_group + j * GROUPS;
        for (var p = 0u; p < PARTS; p++) {
#ifdef DROPOUT
            let factors = s_tile[part_at(slot, row_group, p)];
#endif
            for (var n = 0u; n < PART; n++) {
                let i = p * PART + n;
                let at = i * TK + j;
                let known = stats[query_of(i, j)];
                var weight = 0.0;
                // Not `>`: a NaN has a weight, which is NaN.
                if !(scores[at] <= SEEN) {
                    let above = scores[at] - known.x;
                    // Never above 1 but for roundings, which large logits make large. Not `min`, for NaN.
                    weight = select(exp2(above), 1.0, above > 0.0) * known.y;
                }
#ifdef DROPOUT
                let by_weight = by_logit[at] * factors[n];
                scores[at] = weight * factors[n];
#else
                let by_weight = by_logit[at];
                scores[at] = weight;
#endif
                by_logit[at] = weight * (by_weight - known.z);
                // Where there is no weight the product need not be finite. The logit of a query's own position is
                // a constant.
                if weight == 0.0 || (on(SHARED_QK) && block.start + row_group * TQ + i == first + slot) {
                    by_logit[at] = 0.0;
                }
            }
        }
#endrepeat
}

// Puts this thread's gradients by logits where other threads find them, times the factors of normalised
// keys where keys are columns.
fn put_gradients() {
#repeat j TK
        var numbers: array<f32, TQ>;
        for (var i = 0u; i < TQ; i++) {
            numbers[i] = by_logit[i * TK + j];
#ifndef KEY_ROWS
            if on(SHARED_QK) {
                numbers[i] *= inverse_norms[j];
            }
#endif
        }
        put(column_group + j * GROUPS, numbers);
#endrepeat
}
