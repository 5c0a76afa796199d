// The same forward pass in three dispatches, scores in memory: what fusing saves. Causal, one window
// back, d = 64, no rotary. Each product is a tile of 32 by 32, 4 by 4 a thread, as in the fused kernel.

struct Shape {
    n: u32,
    window: u32,
    rows: u32,
    scale: f32,
}

const D = 64u;
const TILE = 32u;
const ROW = 17u;
const HIDDEN = -3.4e38;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
// [row, query, slot].
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

var<workgroup> a_tile: array<vec4<f32>, TILE * ROW>;
var<workgroup> b_tile: array<vec4<f32>, TILE * ROW>;

fn score_at(row: u32, query: u32, slot: u32) -> u32 {
    return (row * shape.n + query) * 2u * shape.window + slot;
}

// The position of slot 0 of a query's window, which may lie before the sequence.
fn first_position(query: u32) -> i32 {
    return (i32(query / shape.window) - 1) * i32(shape.window);
}

// Workgroup: a tile of queries by a tile of slots of one row.
@compute @workgroup_size(64)
fn products(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let query = group.x * TILE;
    let slot = group.y * TILE;
    let position = first_position(query) + i32(slot);
    let row = group.z;
    for (var i = thread; i < TILE * 16u; i += 64u) {
        let at = (row * shape.n + query + i / 16u) * 16u + i % 16u;
        a_tile[i / 16u * ROW + i % 16u] = q[at] * shape.scale;
        let key = position + i32(i / 16u);
        var x = vec4<f32>(0.0);
        if key >= 0 {
            x = k[(row * shape.n + u32(key)) * 16u + i % 16u];
        }
        b_tile[i / 16u * ROW + i % 16u] = x;
    }
    workgroupBarrier();
    let r = thread / 8u * 4u;
    let c = thread % 8u;
    var sums: array<f32, 16>;
    for (var p = 0u; p < 16u; p++) {
        for (var i = 0u; i < 4u; i++) {
            let x = a_tile[(r + i) * ROW + p];
            for (var j = 0u; j < 4u; j++) {
                sums[i * 4u + j] += dot(x, b_tile[(c + j * 8u) * ROW + p]);
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let t = query + r + i;
            let u = position + i32(c + j * 8u);
            let seen = u >= 0 && u <= i32(t);
            scores[score_at(row, t, slot + c + j * 8u)] = select(HIDDEN, sums[i * 4u + j], seen);
        }
    }
}

// Thread: one query. Scores are powers of 2.
@compute @workgroup_size(64)
fn softmax(@builtin(global_invocation_id) id: vec3<u32>) {
    let query = id.x;
    let slots = 2u * shape.window;
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
@compute @workgroup_size(64)
fn values(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let query = group.x * TILE;
    let row = group.z;
    let r = thread / 8u * 4u;
    let c = thread % 8u;
    var sums: array<vec4<f32>, 8>;
    for (var slot = 0u; slot < 2u * shape.window; slot += TILE) {
        let position = first_position(query) + i32(slot);
        for (var i = thread; i < TILE * 16u; i += 64u) {
            let key = position + i32(i / 16u);
            var x = vec4<f32>(0.0);
            if key >= 0 {
                x = v[(row * shape.n + u32(key)) * 16u + i % 16u];
            }
            b_tile[i / 16u * ROW + i % 16u] = x;
        }
        workgroupBarrier();
        for (var p = 0u; p < TILE; p++) {
            let low = b_tile[p * ROW + c];
            let high = b_tile[p * ROW + 8u + c];
            for (var i = 0u; i < 4u; i++) {
                let weight = scores[score_at(row, query + r + i, slot + p)];
                sums[i * 2u] += weight * low;
                sums[i * 2u + 1u] += weight * high;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let at = (row * shape.n + query + r + i) * 16u + c;
        out[at] = sums[i * 2u];
        out[at + 8u] = sums[i * 2u + 1u];
    }
}
