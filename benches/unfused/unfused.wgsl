// The same forward pass in three dispatches, scores in memory: what fusing saves. Causal, one window
// back, d = 64, no rotary. Each product is a tile of 64 queries by 32 slots, 16 queries by COLUMNS slots a thread,
// loops over a thread's own numbers written out as in the fused kernel.

struct Shape {
    n: u32,
    window: u32,
    rows: u32,
    scale: f32,
}

const D = 64u;
// Queries and slots of a tile, and a thread's queries.
const QUERIES = 64u;
const SLOTS = 32u;
const ROWS = 16u;
// Threads that share queries.
const GROUPS = SLOTS / COLUMNS;
// A thread's vec4s of values.
const QUADS = 16u / GROUPS;
const THREADS = QUERIES / ROWS * GROUPS;
const ROW = 17u;
const HIDDEN = -3.4e38;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
// [row, query, slot].
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

var<workgroup> a_tile: array<vec4<f32>, QUERIES * ROW>;
var<workgroup> b_tile: array<vec4<f32>, SLOTS * ROW>;

fn score_at(row: u32, query: u32, slot: u32) -> u32 {
    return (row * shape.n + query) * 2u * shape.window + slot;
}

// The position of slot 0 of a query's window, which may lie before the sequence.
fn first_position(query: u32) -> i32 {
    return (i32(query / shape.window) - 1) * i32(shape.window);
}

// Slots that some query of a tile sees, whole tiles of them.
fn seen_slots(query: u32) -> u32 {
    let last = i32(query + QUERIES - 1u) - first_position(query);
    return (u32(last) / SLOTS + 1u) * SLOTS;
}

// Workgroup: a tile of queries by a tile of slots of one row.
@compute @workgroup_size(THREADS)
fn products(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let query = group.x * QUERIES;
    let slot = group.y * SLOTS;
    let position = first_position(query) + i32(slot);
    let row = group.z;
    // What no query of the tile sees.
    if position > i32(query + QUERIES - 1u) {
        return;
    }
    for (var i = thread; i < QUERIES * 16u; i += THREADS) {
        let at = (row * shape.n + query + i / 16u) * 16u + i % 16u;
        a_tile[i / 16u * ROW + i % 16u] = q[at] * shape.scale;
    }
    for (var i = thread; i < SLOTS * 16u; i += THREADS) {
        let key = position + i32(i / 16u);
        var x = vec4<f32>(0.0);
        if key >= 0 {
            x = k[(row * shape.n + u32(key)) * 16u + i % 16u];
        }
        b_tile[i / 16u * ROW + i % 16u] = x;
    }
    workgroupBarrier();
    let r = thread / GROUPS * ROWS;
    let c = thread % GROUPS;
    var sums: array<f32, ROWS * COLUMNS>;
    for (var p = 0u; p < 16u; p++) {
        let first = r * ROW + p;
        let first_slot = c * ROW + p;
        var y: array<vec4<f32>, COLUMNS>;
#repeat j COLUMNS
        y[j] = b_tile[first_slot + j * GROUPS * ROW];
#endrepeat
#repeat i ROWS
        let x = a_tile[first + i * ROW];
#repeat j COLUMNS
        sums[i * COLUMNS + j] += dot(x, y[j]);
#endrepeat
#endrepeat
    }
#repeat j COLUMNS
    for (var i = 0u; i < ROWS; i++) {
        let t = query + r + i;
        let u = position + i32(c + j * GROUPS);
        let seen = u >= 0 && u <= i32(t);
        scores[score_at(row, t, slot + c + j * GROUPS)] = select(HIDDEN, sums[i * COLUMNS + j], seen);
    }
#endrepeat
}

// Thread: one query. Scores are powers of 2.
@compute @workgroup_size(64)
fn softmax(@builtin(global_invocation_id) id: vec3<u32>) {
    let query = id.x;
    // Up to the last that its tile computed.
    let slots = min(2u * shape.window, seen_slots(query / QUERIES * QUERIES));
    let at = score_at(id.y, query, 0u);
    var top = HIDDEN;
    for (var s = 0u; s < slots; s++) {
        top = max(top, scores[at + s]);
    }
    var sum = 0.0;
    for (var s = 0u; s < slots; s++) {
        var weight = 0.0;
        if scores[at + s] > -3.3e38 {
            weight = exp2(scores[at + s] - top);
        }
        scores[at + s] = weight;
        sum += weight;
    }
    for (var s = 0u; s < slots; s++) {
        scores[at + s] = scores[at + s] / sum;
    }
}

// Workgroup: a tile of queries of one row, all 64 features.
@compute @workgroup_size(THREADS)
fn values(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let query = group.x * QUERIES;
    let row = group.z;
    let r = thread / GROUPS * ROWS;
    let c = thread % GROUPS;
    var sums: array<vec4<f32>, ROWS * QUADS>;
    let slots = min(2u * shape.window, seen_slots(query));
    for (var slot = 0u; slot < slots; slot += SLOTS) {
        let position = first_position(query) + i32(slot);
        for (var i = thread; i < SLOTS * 16u; i += THREADS) {
            let key = position + i32(i / 16u);
            var x = vec4<f32>(0.0);
            if key >= 0 {
                x = v[(row * shape.n + u32(key)) * 16u + i % 16u];
            }
            b_tile[i / 16u * ROW + i % 16u] = x;
        }
        workgroupBarrier();
        for (var p = 0u; p < SLOTS; p++) {
            let first = score_at(row, query + r, slot + p);
            var values: array<vec4<f32>, QUADS>;
#repeat j QUADS
            values[j] = b_tile[p * ROW + c + j * GROUPS];
#endrepeat
#repeat i ROWS
            let weight = scores[first + i * 2u * shape.window];
#repeat j QUADS
            sums[i * QUADS + j] += weight * values[j];
#endrepeat
#endrepeat
        }
        workgroupBarrier();
    }
#repeat j QUADS
    for (var i = 0u; i < ROWS; i++) {
        out[(row * shape.n + query + r + i) * 16u + c + j * GROUPS] = sums[i * QUADS + j];
    }
#endrepeat
}
