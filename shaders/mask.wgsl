// A mask as words, four keys a thread: kernels of the backward pass find it beside the tables.

#import window

@compute @workgroup_size(64)
fn mask(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = params.first_row + group.y;
    let quad = (params.first_block + group.x) * 64u + thread;
    if quad >= params.stats_len {
        return;
    }
    let mask_row = params.mask.offset + row * params.mask.leading.w;
    var open: vec4<u32>;
    open.x = u32(lets(mask_row, quad * 4u));
    open.y = u32(lets(mask_row, quad * 4u + 1u));
    open.z = u32(lets(mask_row, quad * 4u + 2u));
    open.w = u32(lets(mask_row, quad * 4u + 3u));
    tables[params.stats + row * params.stats_len + quad] = bitcast<vec4<f32>>(open);
}
