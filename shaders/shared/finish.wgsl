// From sums over columns, in the order of a chunk's quads, to gradients in the order of features.

#import sums

// Puts sums from one on where the rows' first tensor was.
fn keep_sums(at: u32) {
#repeat chunk VALUE_CHUNKS
#repeat c VALUES
    for (var i = 0u; i < TQ; i++) {
        let quad = chunk * CHUNK + c * GROUPS + column_group;
        row_tile[row_quad(row_group * TQ + i, quad)] = sums[i * SUMS + at + chunk * VALUES + c];
    }
#endrepeat
#endrepeat
}

// The sums of a row at a quad of a chunk.
fn kept_sums(row: u32, chunk: u32, quad: u32) -> Pair {
    let at = chunk * CHUNK + quad;
    var pair = Pair(row_tile[row_quad(row, at)], vec4<f32>(0.0));
    if on(ROTARY) {
        pair.high = row_tile[row_quad(row, at + chunk_pairs(chunk))];
    }
    return pair;
}

// Writes them, `at` being where the row's first feature lies.
fn store_pair(at: u32, chunk: u32, quad: u32, pair: Pair) {
    let feature = feature_of(chunk, quad);
    if !on(ROTARY) {
        add_first(at + feature * params.out.feature, left(feature, params.head_dim), pair.low);
        return;
    }
    let half = params.head_dim / 2u;
    add_first(at + feature * params.out.feature, left(feature, half), pair.low);
    add_first(at + (half + feature) * params.out.feature, left(feature, half), pair.high);
}

// What earlier dispatches wrote is added to, where several share a gradient.
fn add_first(at: u32, valid: u32, x: vec4<f32>) {
    if on(ADD) {
        store_first(at, valid, x + load_first(at, valid));
    } else {
        store_first(at, valid, x);
    }
}
