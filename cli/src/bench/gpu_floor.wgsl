// What a device can do at best: fused multiply-adds in registers, and copying.

@group(0) @binding(0) var<storage, read> source_data: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> result_data: array<vec4<f32>>;

const THREADS = 64u;

@compute @workgroup_size(64)
fn multiply_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = source_data[id.x % THREADS];
    var sums: array<vec4<f32>, 8>;
    for (var i = 0u; i < 256u; i++) {
        for (var j = 0u; j < 8u; j++) {
            sums[j] = fma(sums[j], x, x);
        }
    }
    var all = vec4<f32>(0.0);
    for (var j = 0u; j < 8u; j++) {
        all += sums[j];
    }
    // Never true for the numbers given, but the compiler does not know.
    if all.x == 1.5 {
        result_data[0] = all;
    }
}

@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let stride = groups.x * THREADS;
    for (var i = id.x; i < arrayLength(&result_data); i += stride) {
        result_data[i] = source_data[i];
    }
}
