// QK^T of a tile, and what is added to it.

#import tile
#import softmax

// The logit of a query's own position under shared_qk, in powers of 2.
const SELF_LOGIT = -72134.75;
const LOG2_E = 1.4426950408889634;
// A bias below this counts as minus infinity.
const BIAS_FLOOR = -1e30;

var<private> scores: array<f32, TQ * TK>;

#ifndef MATRIX
// Adds the products of one chunk of features, `width` quads; the rows' tensor lies `at` quads into their
// tile.
fn add_products(at: u32, chunk: u32, width: u32, place: Columns) {
    for (var c = 0u; c < width; c++) {
        // All rows of a thread have their quads in one order: one address and steps from it.
        let row_first = at + row_quad(row_group * TQ, chunk * CHUNK + c);
        var columns: array<vec4<f32>, TK>;
#ifdef BROADCAST
#repeat m COLUMN_LOADS
        let own = quad_of(place, m * LANES + row_group, c);
#repeat l LANES
        columns[m * LANES + l] = subgroupBroadcast(own, l);
#endrepeat
#endrepeat
#else
        let column_first = column_quad(column_group, c);
#repeat j TK
        columns[j] = column_tile[column_first + j * GROUPS * CHUNK];
#endrepeat
#endif
#repeat i TQ
        let row = row_tile[row_first + i * QUADS];
#repeat j TK
        scores[i * TK + j] += dot(row, columns[j]);
#endrepeat
#endrepeat
    }
}

#endif
// A bias by its bits: a shader that assumes finite arithmetic must not compare infinities.
fn finite_bias(bias: f32) -> f32 {
    let bits = bitcast<u32>(bias);
    if bits == 0xff800000u || bias < BIAS_FLOOR {
        return HIDDEN;
    }
    // A bias that f32 can hold stays finite; infinity and NaN stay.
    return select(bias * LOG2_E, 3.4e38, bias > 2.3e38 && bits != 0x7f800000u);
}

// The bias of a query on a key, in powers of 2.
fn bias_of(query: u32, key: u32) -> f32 {
    var at = bias_at + query % params.bias_queries * params.bias.position;
    if on(BIAS_VARIES) {
        at += slot_of(query, key) * params.bias.feature;
    }
    return finite_bias(load_bias(at));
}

// Puts the biases of this thread's queries and keys where its weights will be: a loop that stays one,
// where all of them in registers would be as many copies of the code.
fn load_biases(first: u32) {
    for (var n = 0u; n < TK * PARTS; n++) {
        let part = own_part(n);
        let column = first + part.column;
        var biases: Part;
        for (var i = 0u; i < PART; i++) {
            let row = part.row + i;
            let query = query_of(row, column);
            let key = key_of(row, column);
            biases[i] = HIDDEN;
            // Queries of other parts have biases that are not bound.
            if row < block.end && within(present, query) && slot_of(query, key) < params.slots {
                biases[i] = bias_of(query, key);
            }
        }
        s_tile[part.at] = biases;
    }
}

#ifdef KEY_ROWS
// One over the norm of each key of this thread, and whether it can be seen.
var<private> inverse_norms: array<f32, TQ>;
var<private> open_rows: array<bool, TQ>;
#else
// One over the norm of each key of this thread.
var<private> inverse_norms: array<f32, TK>;

// From the sums of squares that its loaders left.
fn inverse_norm(slot: u32) -> f32 {
    var squares = 0.0;
    for (var i = 0u; i < GROUPS; i++) {
        squares += s_tile[slot * GROUPS + i][0];
    }
    return 1.0 / max(sqrt(squares), 1e-12);
}
#endif

// Turns the scores of the columns from `first` on into logits; keys from `end` on are hidden. `inside`:
// every query sees every key.
fn finish_scores(first: u32, inside: bool, end: u32) {
    if on(SHARED_QK) {
#ifndef KEY_ROWS
        for (var j = 0u; j < TK; j++) {
            inverse_norms[j] = inverse_norm(column_group + j * GROUPS);
        }
#endif
#repeat j TK
        for (var i = 0u; i < TQ; i++) {
            scores[i * TK + j] *= inverse_norms[key_of(i, j)];
        }
#endrepeat
#ifndef KEY_ROWS
        // The sums make room for logits.
        workgroupBarrier();
#endif
    }
    if inside && !on(SHARED_QK | BIAS | MASK) {
        return;
    }
    if on(BIAS) {
        load_biases(first);
    }
#repeat j TK
        let slot = column_group + j * GROUPS;
        let column = first + slot;
#ifndef KEY_ROWS
        let open = column < end && lets(mask_at, column);
#endif
        for (var p = 0u; p < PARTS; p++) {
            var biases = Part(0.0);
            if on(BIAS) {
                biases = s_tile[part_at(slot, row_group, p)];
            }
            for (var n = 0u; n < PART; n++) {
                let i = p * PART + n;
                let row = block.start + row_group * TQ + i;
                // Not `!=`, which in SPIR-V is false of a NaN.
                var logit = select(scores[i * TK + j] + biases[n], HIDDEN, biases[n] == HIDDEN);
                if on(SHARED_QK) && column == row {
                    logit = SELF_LOGIT;
                }
#ifdef KEY_ROWS
                let open = row < end && open_rows[i];
#endif
                let sees = open && within(seen[query_of(i, j)], key_of(row, column));
                scores[i * TK + j] = select(HIDDEN, logit, sees);
            }
        }
#endrepeat
}

// The largest logits so far, with those of the tile.
fn top_logits() -> array<f32, TQ> {
    var top = largest;
#repeat j TK
    for (var i = 0u; i < TQ; i++) {
        top[i] = max(top[i], scores[i * TK + j]);
    }
#endrepeat
    return top;
}

// Adds the weights of a tile to the rows' sums.
fn add_tile() {
    put(column_group, top_logits());
    workgroupBarrier();
    var tops = row_largest();
    for (var i = 0u; i < TQ; i++) {
        if tops[i] > largest[i] {
            raise(i, tops[i]);
        }
        for (var j = 0u; j < TK; j++) {
            total[i] += weight_of(i, scores[i * TK + j]);
        }
    }
}

// Begins a query's softmax with the zeros of autopad that it sees, where they are alike: counted, not
// visited.
fn push_zero_keys(i: u32, query: u32) {
    largest[i] = HIDDEN;
    total[i] = 0.0;
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
