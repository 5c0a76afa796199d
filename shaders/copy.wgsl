// Copies positions of rows of a gradient in f32 to where the caller wants them, as they are stored there: a
// thread four features.

#import params

@compute @workgroup_size(64)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let quads = (params.value_dim + 3u) / 4u;
    let n = (params.first_block + group.x) * 64u + thread;
    let position = params.query_start + n / quads;
    if position >= params.query_end {
        return;
    }
    let row = params.first_row + group.y;
    let feature = n % quads * 4u;
    // What is bound may begin later than the whole.
    let x = from_data[(row * params.seq_len + position) * quads + n % quads - params.stats];
    let at = row_offset(params.out, row) + position * params.out.position + feature * params.out.feature;
    store_out(at, params.value_dim - feature, x);
}
