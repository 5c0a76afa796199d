// Products on matrix units, of f16 with sums in f32. A subgroup has as many neighbouring rows as a matrix, and all
// columns. Nothing can be done with a single number of a matrix: scores and outputs go through workgroup memory.

#import load
#import sums

// Of scores, and of outputs for as many features, from a row to the next: whole blocks of 16 bytes.
const SCORE_ROW = KT + 4u;
var<workgroup> score_rows: array<f32, QT * SCORE_ROW>;

// What a subgroup keeps in registers: its queries, and its rows' sums of weighted values.
var<private> query_matrices: array<Left, FEATURE_MATRICES>;
var<private> output_matrices: array<Sum, FEATURE_MATRICES>;

// The first row of a thread's subgroup.
fn first_row_of(thread: u32) -> u32 {
    return thread / LANES * SIDE;
}

// Takes the queries from the tile.
fn take_queries(thread: u32) {
    let row = first_row_of(thread);
#repeat f FEATURE_MATRICES
    query_matrices[f] = coopLoadT<Left>(&row_halves[row * HALF_ROW + f * SIDE], HALF_ROW);
    output_matrices[f] = Sum();
#endrepeat
}

// The scores of the keys from `first` on, in `scores`.
fn multiply_keys(thread: u32, first: u32) {
    // The tile is free: of the last weights and values.
    workgroupBarrier();
    load_keys(first, 0u, true);
    workgroupBarrier();
    let row = first_row_of(thread);
    // `chunk_width`, written out: what a function makes of its arguments is not provably uniform.
    let pairs = (params.head_dim / 2u + 3u) / 4u;
    let quads = select((params.head_dim + 3u) / 4u, 2u * pairs, (params.flags & (ROTARY & POSSIBLE)) != 0u) + opaque_zero();
    for (var column = 0u; column < KT; column += SIDE) {
        var sum = Sum();
#repeat f FEATURE_MATRICES
        if f * SIDE < quads * 4u {
            // By columns: keys, transposed.
            let keys = coopLoad<Right>(&column_halves[column * HALF_ROW + f * SIDE], HALF_ROW);
            sum = coopMultiplyAdd(query_matrices[f], keys, sum);
        }
#endrepeat
        coopStoreT(sum, &score_rows[row * SCORE_ROW + column], SCORE_ROW);
    }
    workgroupBarrier();
#repeat j TK
    for (var i = 0u; i < TQ; i++) {
        scores[i * TK + j] = score_rows[(row_group * TQ + i) * SCORE_ROW + column_group + j * GROUPS] * params.score_scale;
    }
#endrepeat
}

// Adds weights times values, both from the tile, to the outputs.
fn multiply_values(thread: u32) {
    let row = first_row_of(thread);
    let features = params.value_dim + opaque_zero();
    for (var column = 0u; column < KT; column += SIDE) {
        let weights = coopLoadT<Left>(&row_halves[row * HALF_ROW + column], HALF_ROW);
#repeat f FEATURE_MATRICES
        if f * SIDE < features {
            let values = coopLoadT<Right>(&column_halves[column * HALF_ROW + f * SIDE], HALF_ROW);
            output_matrices[f] = coopMultiplyAdd(weights, values, output_matrices[f]);
        }
#endrepeat
    }
}

// Puts the outputs of as many features as a tile has keys where each thread finds its rows', a quad of each.
fn put_outputs(thread: u32, c: u32) {
    let row = first_row_of(thread);
#repeat n KEY_MATRICES
    coopStoreT(output_matrices[c * KEY_MATRICES + n], &score_rows[row * SCORE_ROW + n * SIDE], SCORE_ROW);
#endrepeat
    workgroupBarrier();
}

// Where a thread finds its quad of one of its rows.
fn output_at(i: u32) -> u32 {
    return (row_group * TQ + i) * SCORE_ROW + column_group * 4u;
}

// Multiplies the outputs of each row of this thread by a factor.
fn scale_outputs(thread: u32, of_rows: array<f32, TQ>) {
    var factors = of_rows;
    let row = first_row_of(thread);
#repeat c OUT
    put_outputs(thread, c);
    for (var i = 0u; i < TQ; i++) {
        for (var e = 0u; e < 4u; e++) {
            score_rows[output_at(i) + e] *= factors[i];
        }
    }
    workgroupBarrier();
#repeat n KEY_MATRICES
    output_matrices[c * KEY_MATRICES + n] = coopLoadT<Sum>(&score_rows[row * SCORE_ROW + n * SIDE], SCORE_ROW);
#endrepeat
    workgroupBarrier();
#endrepeat
}

// Makes the outputs this thread's `sums`.
fn take_outputs(thread: u32) {
#repeat c OUT
    put_outputs(thread, c);
    for (var i = 0u; i < TQ; i++) {
        let at = output_at(i);
        sums[i * SUMS + c] = vec4<f32>(score_rows[at], score_rows[at + 1u], score_rows[at + 2u], score_rows[at + 3u]);
    }
    workgroupBarrier();
#endrepeat
}
