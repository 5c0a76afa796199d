// Rotary embedding and xpos from the tables of src/rotary.rs: no sin, cos or pow here.

#import params

// How much farther a query is rotated than its position says.
fn rotary_shift() -> u32 {
    return select(0u, params.look_forward * params.window, on(TAIL_ALIGNED));
}

// vec4s of a half of the features.
fn half_quads() -> u32 {
    return (params.head_dim / 2u + 3u) / 4u;
}

// The row of a table at an integer, in rows of `tables`' vec4s from the table's first.
fn table_row(table: Table, at: i32) -> u32 {
    let row = bitcast<u32>(at) - table.start;
    if row < table.len {
        return row;
    }
    return table.len + bitcast<u32>(at) - table.second_start;
}

struct Turn {
    cosine: vec4<f32>,
    sine: vec4<f32>,
}

fn direct_turn(table: Table, at: i32, quad: u32) -> Turn {
    let row = table.first + table_row(table, at) * 2u * half_quads();
    return Turn(tables[row + quad], tables[row + half_quads() + quad]);
}

// Cosines and sines of four neighbouring frequencies at a position.
fn turn(position: i32, quad: u32) -> Turn {
    if !on(ROTARY_SPLIT) {
        return direct_turn(params.angles, position, quad);
    }
    // The addition theorem, of coarse and fine positions.
    let a = direct_turn(params.angles, position >> 8u, quad);
    let b = direct_turn(params.angles_fine, position & 255, quad);
    return Turn(
        a.cosine * b.cosine - a.sine * b.sine,
        a.sine * b.cosine + a.cosine * b.sine,
    );
}

// xpos factors of four neighbouring frequencies at a distance.
fn decay(lag: i32, quad: u32) -> vec4<f32> {
    if !on(XPOS) {
        return vec4<f32>(1.0);
    }
    if !on(XPOS_SPLIT) {
        return tables[params.xpos.first + table_row(params.xpos, lag) * half_quads() + quad];
    }
    // Both parts have the sign of the lag, so that neither overflows before the product.
    let coarse = tables[params.xpos.first + table_row(params.xpos, lag / 256) * half_quads() + quad];
    let fine = tables[params.xpos_fine.first + table_row(params.xpos_fine, lag % 256) * half_quads() + quad];
    return min(coarse * fine, vec4<f32>(3.4028234e38));
}

// A pair of features, low and high, turned and scaled.
struct Pair {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn rotate(pair: Pair, position: i32, lag: i32, quad: u32) -> Pair {
    let t = turn(position, quad);
    let f = decay(lag, quad);
    return Pair(
        (pair.low * t.cosine - pair.high * t.sine) * f,
        (pair.high * t.cosine + pair.low * t.sine) * f,
    );
}

// The gradient of what was rotated, from that of what came of it.
fn rotate_back(pair: Pair, position: i32, lag: i32, quad: u32) -> Pair {
    let t = turn(position, quad);
    let f = decay(lag, quad);
    return Pair(
        (pair.low * t.cosine + pair.high * t.sine) * f,
        (pair.high * t.cosine - pair.low * t.sine) * f,
    );
}
