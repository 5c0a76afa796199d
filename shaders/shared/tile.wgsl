// The tile of a workgroup: what lies where, and loading it.
//
// The rows of a tile are a block of queries and its columns keys. Where gradients of keys are computed
// (KEY_ROWS) the rows are a block of keys and the columns queries.
//
// Thread = GROUPS * row group + column group. A row group has TQ neighbouring rows; a column group has
// every GROUPS-th column, and every GROUPS-th vec4 of a sum over columns.
//
// Features are worked on a chunk of vec4s at a time. With rotary embeddings a chunk holds features of
// the lower half, half as many as it has room for, and then those they are rotated with.

#import window
#import rotary

const THREADS = ROW_GROUPS * GROUPS;
const QT = TQ * ROW_GROUPS;
const KT = TK * GROUPS;
const PARTS = TQ / PART;
const ROW = PARTS * ROW_GROUPS;
// Features of a chunk.
const WIDTH = CHUNK * 4u;
#ifdef MATRIX
#import halves
#else
// What the rows hold, all chunks. Quads of a row lie in an order of their own, so that threads of
// different rows do not meet in one bank of memory.
var<workgroup> row_tile: array<vec4<f32>, ROW_TILES * QT * QUADS>;
// Where the second tensor of the rows begins.
const SECOND = QT * QUADS;
// What the columns hold, a chunk of one tensor.
var<workgroup> column_tile: array<vec4<f32>, KT * CHUNK>;
#endif
// Of each column the numbers of all rows. Whole vectors belong to one thread: some compilers write
// all of one where a component is assigned.
var<workgroup> s_tile: array<Part, KT * max(ROW, GROUPS)>;

// Where a part of a row group's numbers lies.
fn part_at(column: u32, group: u32, part: u32) -> u32 {
    return column * ROW + ((group * PARTS + part) ^ (column * PARTS % ROW));
}

var<private> row_group: u32;
var<private> column_group: u32;
// Rows of tensors, as offsets.
var<private> q_at: u32;
var<private> k_at: u32;
var<private> v_at: u32;
var<private> mask_at: u32;
var<private> bias_at: u32;
// The rows' positions, the key that rotary positions are counted from, the query xpos decays about.
var<private> block: Keys;
// The queries that are computed: of the rows, or of all columns.
var<private> present: Keys;
// The keys that some of them sees, real or not.
var<private> hull: Keys;
var<private> origin: u32;
var<private> centre: u32;
// What each query of this thread sees: those of the rows, or those of the columns.
#ifdef KEY_ROWS
var<private> seen: array<Keys, TK>;
#else
var<private> seen: array<Keys, TQ>;
#endif

// Sets up what follows from the thread and the packed row.
fn begin_row(thread: u32, packed_row: u32) {
    row_group = thread / GROUPS;
    column_group = thread % GROUPS;
    q_at = row_offset(params.q, packed_row);
    k_at = row_offset(params.k, packed_row);
    v_at = row_offset(params.v, packed_row);
    mask_at = params.mask.offset + packed_row / max(params.mask_rows_share, 1u) * params.mask.leading.w;
    bias_at = params.bias.offset + packed_row % max(params.bias_rows, 1u) * params.bias.leading.w;
}

// Numbers of neighbouring rows of this thread for one of its columns: the column in the tile, the position of the
// first row, and where they lie.
struct OwnPart {
    column: u32,
    row: u32,
    at: u32,
}

// The n-th of this thread's parts.
fn own_part(n: u32) -> OwnPart {
    let column = column_group + n / PARTS * GROUPS;
    let row = block.start + row_group * TQ + n % PARTS * PART;
    return OwnPart(column, row, part_at(column, row_group, n % PARTS));
}

// Of the positions of a row and a column, the query's and the key's.
fn query_of(row: u32, column: u32) -> u32 {
#ifdef KEY_ROWS
    return column;
#else
    return row;
#endif
}

fn key_of(row: u32, column: u32) -> u32 {
#ifdef KEY_ROWS
    return row;
#else
    return column;
#endif
}

// Features from one on, at most four of those below an end.
fn left(from_feature: u32, end: u32) -> u32 {
    return end - min(from_feature, end);
}

// vec4s in use in a chunk, or pairs of them.
fn chunk_quads(chunk: u32) -> u32 {
    return (min(WIDTH, left(chunk * WIDTH, params.head_dim)) + 3u) / 4u;
}

fn chunk_pairs(chunk: u32) -> u32 {
    return (min(WIDTH / 2u, left(chunk * (WIDTH / 2u), params.head_dim / 2u)) + 3u) / 4u;
}

fn chunk_width(chunk: u32) -> u32 {
    if on(ROTARY) {
        return 2u * chunk_pairs(chunk);
    }
    return chunk_quads(chunk);
}

fn chunks() -> u32 {
    return (params.head_dim + WIDTH - 1u) / WIDTH + opaque_zero();
}

fn row_quad(row: u32, quad: u32) -> u32 {
    return row * QUADS + (quad ^ (row / TQ % 8u));
}

fn column_quad(column: u32, quad: u32) -> u32 {
    return column * CHUNK + (quad ^ (column % GROUPS));
}

// Features that lie at a quad of a chunk; with rotary embeddings a pair, by its low features.
fn feature_of(chunk: u32, quad: u32) -> u32 {
    return select(chunk * WIDTH, chunk * (WIDTH / 2u), on(ROTARY)) + quad * 4u;
}

// Quads of a chunk, each with the one it is rotated with.
fn chunk_steps(chunk: u32) -> u32 {
    if on(ROTARY) {
        return chunk_pairs(chunk);
    }
    return chunk_quads(chunk);
}

// What a query has at a quad of a chunk: scaled, rotated; 0 where it is not `there`.
fn query_quads(query: u32, there: bool, chunk: u32, quad: u32) -> Pair {
    var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
    if !there {
        return pair;
    }
    let at = q_at + query * params.q.position;
    let feature = feature_of(chunk, quad);
    if !on(ROTARY) {
        pair.low = load_q(at + feature * params.q.feature, left(feature, params.head_dim)) * params.scale;
        return pair;
    }
    let half = params.head_dim / 2u;
    let valid = left(feature, half);
    pair.low = load_q(at + feature * params.q.feature, valid) * params.scale;
    pair.high = load_q(at + (half + feature) * params.q.feature, valid) * params.scale;
    return rotate(pair, query_turn(query), query_lag(query), feature / 4u);
}

// How far a query is rotated, and how far it is from the one that xpos decays about.
fn query_turn(query: u32) -> i32 {
    return bitcast<i32>(query - origin + rotary_shift());
}

fn query_lag(query: u32) -> i32 {
    return bitcast<i32>(query - centre);
}

// The same of a key.
fn key_turn(key: u32) -> i32 {
    return bitcast<i32>(key - origin);
}

fn key_lag(key: u32) -> i32 {
    return bitcast<i32>(centre + rotary_shift() - key);
}

// What a key has at a quad of a chunk, as it is.
fn raw_key_quads(key: u32, chunk: u32, quad: u32) -> Pair {
    let at = k_at + key * params.k.position;
    let feature = feature_of(chunk, quad);
    if !on(ROTARY) {
        return Pair(load_k(at + feature * params.k.feature, left(feature, params.head_dim)), vec4<f32>(0.0));
    }
    let half = params.head_dim / 2u;
    let valid = left(feature, half);
    return Pair(
        load_k(at + feature * params.k.feature, valid),
        load_k(at + (half + feature) * params.k.feature, valid),
    );
}

fn rotated_key(raw: Pair, key: u32, chunk: u32, quad: u32) -> Pair {
    if !on(ROTARY) {
        return raw;
    }
    return rotate(raw, key_turn(key), key_lag(key), feature_of(chunk, quad) / 4u);
}

// Whether a position holds a key that some query sees: what no query sees may be anything.
fn worth_loading(key: u32) -> bool {
    return key >= hull.start && key < min(hull.end, params.key_len) && lets(mask_at, key);
}

// Features of a value, from one on; 0 where there is none, or nobody sees it.
fn value_quad(key: u32, feature: u32) -> vec4<f32> {
    if worth_loading(key) && feature < params.value_dim {
        return load_v(v_at + key * params.v.position + feature * params.v.feature, left(feature, params.value_dim));
    }
    return vec4<f32>(0.0);
}
#ifndef MATRIX

// Puts what a row has at a quad of a chunk into the tile.
fn put_row(row: u32, chunk: u32, quad: u32, pair: Pair) {
    let to = chunk * CHUNK + quad;
    row_tile[row_quad(row, to)] = pair.low;
    if on(ROTARY) {
        row_tile[row_quad(row, to + chunk_pairs(chunk))] = pair.high;
    }
}

fn put_column(column: u32, chunk: u32, quad: u32, pair: Pair) {
    column_tile[column_quad(column, quad)] = pair.low;
    if on(ROTARY) {
        column_tile[column_quad(column, chunk_pairs(chunk) + quad)] = pair.high;
    }
}

// The columns of a product: what their tile holds; or, where threads broadcast what they load and nothing is loaded
// twice, their values (of queries the gradients by outputs) in place, from a position and a feature on.
struct Columns {
    in_place: bool,
    first: u32,
    feature: u32,
}

const IN_TILE = Columns(false, 0u, 0u);
#ifdef BROADCAST

fn quad_of(place: Columns, column: u32, quad: u32) -> vec4<f32> {
    if !place.in_place {
        return column_tile[column_quad(column, quad)];
    }
    let feature = place.feature + quad * 4u;
#ifdef KEY_ROWS
    return output_quad(place.first + column, feature);
#else
    return value_quad(place.first + column, feature);
#endif
}
#endif
#endif
