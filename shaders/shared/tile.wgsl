// The tile of a workgroup: what lies where, and loading it.
//
// Thread = 8 * row group + column group. A row group has TQ neighbouring queries; a column group has
// every 8th key of a tile, and every 8th vec4 of the values.
//
// Features are worked on 64 at a time, a chunk of 16 vec4s. With rotary embeddings a chunk holds
// up to 32 features of the lower half and then those they are rotated with.

#import window
#import rotary

const THREADS = 64u;
const GROUPS = 8u;
const QT = TQ * GROUPS;
const KT = TK * GROUPS;
const CHUNK = 16u;
// Rows of tiles are one vec4 apart from a multiple of memory banks.
const Q_ROW = CHUNK * CHUNKS + 1u;
const KV_ROW = CHUNK + 1u;
const S_ROW = KT + 1u;
// Threads that load one key together.
const LOADERS = THREADS / KT;

var<workgroup> q_tile: array<vec4<f32>, QT * Q_ROW>;
// Keys, then values.
var<workgroup> kv_tile: array<vec4<f32>, KT * KV_ROW>;
// Sums of squares of keys, then weights. Not vec4s: some compilers write a whole vector where one
// component is assigned, and threads have neighbouring ones.
var<workgroup> s_tile: array<f32, QT * S_ROW>;
var<workgroup> row_parts: array<f32, QT * GROUPS>;

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

// Features from one on, at most four of those below an end.
fn left(from_feature: u32, end: u32) -> u32 {
    return end - min(from_feature, end);
}

// vec4s in use in a chunk, or pairs of them.
fn chunk_quads(chunk: u32) -> u32 {
    return (min(64u, left(chunk * 64u, params.head_dim)) + 3u) / 4u;
}

fn chunk_pairs(chunk: u32) -> u32 {
    return (min(32u, left(chunk * 32u, params.head_dim / 2u)) + 3u) / 4u;
}

fn chunk_width(chunk: u32) -> u32 {
    if on(ROTARY) {
        return 2u * chunk_pairs(chunk);
    }
    return chunk_quads(chunk);
}

fn chunks() -> u32 {
    return (params.head_dim + 63u) / 64u;
}

// All queries of the block: scaled, rotated; 0 past its end.
fn load_queries(thread: u32) {
    for (var i = thread; i < QT * CHUNK * CHUNKS; i += THREADS) {
        let row = i / (CHUNK * CHUNKS);
        let chunk = i / CHUNK % CHUNKS;
        let quad = i % CHUNK;
        let query = block.start + row;
        let there = query < block.end && chunk < chunks();
        let at = q_at + query * params.q.position;
        let to = row * Q_ROW + chunk * CHUNK;
        if !on(ROTARY) {
            let feature = chunk * 64u + quad * 4u;
            var x = vec4<f32>(0.0);
            if there && feature < params.head_dim {
                x = load_q(at + feature * params.q.feature, left(feature, params.head_dim)) * params.scale;
            }
            q_tile[to + quad] = x;
        } else if quad < chunk_pairs(chunk) {
            let half = params.head_dim / 2u;
            let feature = chunk * 32u + quad * 4u;
            var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
            if there {
                let valid = left(feature, half);
                pair.low = load_q(at + feature * params.q.feature, valid) * params.scale;
                pair.high = load_q(at + (half + feature) * params.q.feature, valid) * params.scale;
                let position = bitcast<i32>(query - origin + rotary_shift());
                pair = rotate(pair, position, bitcast<i32>(query - centre), feature / 4u);
            }
            q_tile[to + quad] = pair.low;
            q_tile[to + chunk_pairs(chunk) + quad] = pair.high;
        }
    }
}

// Whether a position holds a key that some query sees: what no query sees may be anything.
fn worth_loading(key: u32) -> bool {
    return key >= hull.start && key < min(hull.end, params.key_len) && lets(mask_at, key);
}

// A chunk of the keys from `first` on: rotated; 0 where there is none or a mask hides it. Of whole
// keys, sums of squares.
fn load_keys(thread: u32, first: u32, chunk: u32) {
    let slot = thread / LOADERS;
    let loader = thread % LOADERS;
    let key = first + slot;
    let there = worth_loading(key);
    let at = k_at + key * params.k.position;
    let to = slot * KV_ROW;
    var squares = 0.0;
    if !on(ROTARY) {
        for (var quad = loader; quad < chunk_quads(chunk); quad += LOADERS) {
            let feature = chunk * 64u + quad * 4u;
            var x = vec4<f32>(0.0);
            if there {
                x = load_k(at + feature * params.k.feature, left(feature, params.head_dim));
            }
            squares += dot(x, x);
            kv_tile[to + quad] = x;
        }
    } else {
        let half = params.head_dim / 2u;
        for (var quad = loader; quad < chunk_pairs(chunk); quad += LOADERS) {
            let feature = chunk * 32u + quad * 4u;
            var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
            if there {
                let valid = left(feature, half);
                pair.low = load_k(at + feature * params.k.feature, valid);
                pair.high = load_k(at + (half + feature) * params.k.feature, valid);
                squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
                let lag = bitcast<i32>(centre + rotary_shift() - key);
                pair = rotate(pair, bitcast<i32>(key - origin), lag, feature / 4u);
            }
            kv_tile[to + quad] = pair.low;
            kv_tile[to + chunk_pairs(chunk) + quad] = pair.high;
        }
    }
    if on(SHARED_QK) {
        let index = slot * LOADERS + loader;
        if chunk > 0u {
            squares += s_tile[index];
        }
        s_tile[index] = squares;
    }
}

// 64 features of the values of the keys from `first` on, from a feature on; 0 as for keys.
fn load_values(thread: u32, first: u32, first_feature: u32) {
    for (var i = thread; i < KT * CHUNK; i += THREADS) {
        let key = first + i / CHUNK;
        let feature = first_feature + i % CHUNK * 4u;
        var x = vec4<f32>(0.0);
        if feature < params.value_dim && worth_loading(key) {
            x = load_v(v_at + key * params.v.position + feature * params.v.feature, left(feature, params.value_dim));
        }
        kv_tile[i / CHUNK * KV_ROW + i % CHUNK] = x;
    }
}
