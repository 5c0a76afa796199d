// The tile in f16, as matrices are loaded from it: a row after the other. Rows are whole blocks of 16 bytes, as
// matrix loads want them, and one more, so that neighbouring ones begin in other banks of memory.
const HALF_ROW = QUADS * 4u + 8u;
// Queries; once those are in registers, weights.
var<workgroup> row_halves: array<f16, QT * HALF_ROW>;
// Keys, then values.
var<workgroup> column_halves: array<f16, KT * HALF_ROW>;

fn put_row_quad(row: u32, quad: u32, x: vec4<f32>) {
    let at = row * HALF_ROW + quad * 4u;
    for (var i = 0u; i < 4u; i++) {
        row_halves[at + i] = f16(x[i]);
    }
}

fn put_column_quad(column: u32, quad: u32, x: vec4<f32>) {
    let at = column * HALF_ROW + quad * 4u;
    for (var i = 0u; i < 4u; i++) {
        column_halves[at + i] = f16(x[i]);
    }
}

// Quads of a row that products go over: whole matrices.
fn matrix_quads() -> u32 {
    return (chunk_width(0u) * 4u + SIDE - 1u) / SIDE * (SIDE / 4u) + opaque_zero();
}

// Puts what a row has at a quad into the tile, and after its last one the zeros that fill a matrix.
fn put_row(row: u32, chunk: u32, quad: u32, pair: Pair) {
    put_row_quad(row, quad, pair.low);
    if on(ROTARY) {
        put_row_quad(row, quad + chunk_pairs(chunk), pair.high);
    }
    if quad + 1u == chunk_steps(chunk) {
        for (var filler = chunk_width(chunk); filler < matrix_quads(); filler++) {
            put_row_quad(row, filler, vec4<f32>(0.0));
        }
    }
}

fn put_column(column: u32, chunk: u32, quad: u32, pair: Pair) {
    put_column_quad(column, quad, pair.low);
    if on(ROTARY) {
        put_column_quad(column, quad + chunk_pairs(chunk), pair.high);
    }
    if quad + 1u == chunk_steps(chunk) {
        for (var filler = chunk_width(chunk); filler < matrix_quads(); filler++) {
            put_column_quad(column, filler, vec4<f32>(0.0));
        }
    }
}
