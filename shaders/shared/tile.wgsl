// The tile of a workgroup: what lies where, and loading it.
//
// Thread = 8 * row group + column group. A row group has TQ neighbouring queries; a column group has
// every 8th key of a tile, and every 8th vec4 of the values.
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
// Quads of a row lie in an order of their own, so that threads of different rows do not meet in one
// bank of memory.
var<workgroup> q_tile: array<vec4<f32>, QT * QUADS>;
// Keys, then values.
var<workgroup> kv_tile: array<vec4<f32>, KT * CHUNK>;
// Of each key the numbers of all queries. Whole vectors belong to one thread: some compilers write
// all of one where a component is assigned.
var<workgroup> s_tile: array<Part, KT * max(ROW, GROUPS)>;

// Where a part of a row group's numbers lies.
fn part_at(key: u32, group: u32, part: u32) -> u32 {
    return key * ROW + ((group * PARTS + part) ^ (key * PARTS % ROW));
}

var<private> row_group: u32;
var<private> column_group: u32;
// Rows of tensors, as offsets.
var<private> q_at: u32;
var<private> k_at: u32;
var<private> v_at: u32;
var<private> mask_at: u32;
var<private> bias_at: u32;
// The block of queries, the key that rotary positions are counted from, the query xpos decays about.
var<private> block: Keys;
// The keys that some of them sees, real or not.
var<private> hull: Keys;
var<private> origin: u32;
var<private> centre: u32;
// What each query of this thread sees.
var<private> seen: array<Keys, TQ>;

// Numbers of neighbouring queries of this thread for one of its keys: the key in the tile, the first query,
// and where they lie.
struct OwnPart {
    key: u32,
    query: u32,
    at: u32,
}

// The n-th of this thread's parts.
fn own_part(n: u32) -> OwnPart {
    let key = column_group + n / PARTS * GROUPS;
    let query = block.start + row_group * TQ + n % PARTS * PART;
    return OwnPart(key, query, part_at(key, row_group, n % PARTS));
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
    return (params.head_dim + WIDTH - 1u) / WIDTH;
}

fn q_quad(row: u32, quad: u32) -> u32 {
    return row * QUADS + (quad ^ (row / TQ % 8u));
}

fn k_quad(slot: u32, quad: u32) -> u32 {
    return slot * CHUNK + (quad ^ (slot % 8u));
}

// All queries of the block: scaled, rotated; 0 past its end.
fn load_queries(thread: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        let query = block.start + row;
        let there = query < block.end && chunk < chunks();
        let at = q_at + query * params.q.position;
        let to = chunk * CHUNK + quad;
        if !on(ROTARY) {
            let feature = to * 4u;
            var x = vec4<f32>(0.0);
            if there && feature < params.head_dim {
                x = load_q(at + feature * params.q.feature, left(feature, params.head_dim)) * params.scale;
            }
            q_tile[q_quad(row, to)] = x;
        } else if quad < chunk_pairs(chunk) {
            let half = params.head_dim / 2u;
            let feature = chunk * (WIDTH / 2u) + quad * 4u;
            var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
            if there {
                let valid = left(feature, half);
                pair.low = load_q(at + feature * params.q.feature, valid) * params.scale;
                pair.high = load_q(at + (half + feature) * params.q.feature, valid) * params.scale;
                let position = bitcast<i32>(query - origin + rotary_shift());
                pair = rotate(pair, position, bitcast<i32>(query - centre), feature / 4u);
            }
            q_tile[q_quad(row, to)] = pair.low;
            q_tile[q_quad(row, to + chunk_pairs(chunk))] = pair.high;
        }
    }
}

// Whether a position holds a key that some query sees: what no query sees may be anything.
fn worth_loading(key: u32) -> bool {
    return key >= hull.start && key < min(hull.end, params.key_len) && lets(mask_at, key);
}

// A chunk of the keys from `first` on: rotated; 0 where there is none or a mask hides it. Of whole
// keys, sums of squares.
fn load_keys(first: u32, chunk: u32) {
    for (var slot = row_group; slot < KT; slot += ROW_GROUPS) {
        let key = first + slot;
        let there = worth_loading(key);
        let at = k_at + key * params.k.position;
        var squares = 0.0;
        if !on(ROTARY) {
            for (var quad = column_group; quad < chunk_quads(chunk); quad += GROUPS) {
                let feature = chunk * WIDTH + quad * 4u;
                var x = vec4<f32>(0.0);
                if there {
                    x = load_k(at + feature * params.k.feature, left(feature, params.head_dim));
                }
                squares += dot(x, x);
                kv_tile[k_quad(slot, quad)] = x;
            }
        } else {
            let half = params.head_dim / 2u;
            for (var quad = column_group; quad < chunk_pairs(chunk); quad += GROUPS) {
                let feature = chunk * (WIDTH / 2u) + quad * 4u;
                var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
                if there {
                    let valid = left(feature, half);
                    pair.low = load_k(at + feature * params.k.feature, valid);
                    pair.high = load_k(at + (half + feature) * params.k.feature, valid);
                    squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
                    let lag = bitcast<i32>(centre + rotary_shift() - key);
                    pair = rotate(pair, bitcast<i32>(key - origin), lag, feature / 4u);
                }
                kv_tile[k_quad(slot, quad)] = pair.low;
                kv_tile[k_quad(slot, chunk_pairs(chunk) + quad)] = pair.high;
            }
        }
        if on(SHARED_QK) {
            let index = slot * GROUPS + column_group;
            if chunk > 0u {
                squares += s_tile[index][0];
            }
            s_tile[index] = Part(squares);
        }
    }
}

// A chunk of features of the values of the keys from `first` on, from a feature on; 0 as for keys.
fn load_values(thread: u32, first: u32, first_feature: u32) {
    for (var i = thread; i < KT * CHUNK; i += THREADS) {
        let key = first + i / CHUNK;
        let feature = first_feature + i % CHUNK * 4u;
        var x = vec4<f32>(0.0);
        if feature < params.value_dim && worth_loading(key) {
            x = load_v(v_at + key * params.v.position + feature * params.v.feature, left(feature, params.value_dim));
        }
        kv_tile[i] = x;
    }
}
