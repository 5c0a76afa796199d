// What is known of queries, from the results of the forward pass: eight threads a query.

#import stats

const BLOCK = 64u;
var<workgroup> parts: array<f32, 64>;

@compute @workgroup_size(64)
fn rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let packed_row = params.first_row + group.y;
    let out_at = row_offset(params.out, packed_row);
    let dout_at = row_offset(params.dout, packed_row);
    let start = (params.first_block + group.x) * BLOCK;
    for (var turn = 0u; turn < 8u; turn++) {
        let query = start + turn * 8u + thread / 8u;
        let there = query >= params.query_start && query < params.query_end;
        var product = 0.0;
        if there {
            for (var feature = thread % 8u * 4u; feature < params.value_dim; feature += 32u) {
                let valid = params.value_dim - feature;
                let a = load_out(out_at + query * params.out.position + feature * params.out.feature, valid);
                let b = load_dout(dout_at + query * params.dout.position + feature * params.dout.feature, valid);
                product += dot(a, b);
            }
        }
        parts[thread] = product;
        workgroupBarrier();
        if there && thread % 8u == 0u {
            var sum = 0.0;
            for (var i = 0u; i < 8u; i++) {
                sum += parts[thread + i];
            }
            let lse = load_lse(row_offset(params.lse, packed_row) + query * params.lse.position);
            var known = vec4<f32>(clamp(lse, -2e38, 2e38) * 1.4426950408889634, 1.0, sum, 0.0);
            if lse < -3.4e38 {
                // It saw nothing: whatever its output is, nothing depends on it but values.
                known = NO_STATS;
            }
            tables[stats_at(packed_row, query)] = known;
        }
        workgroupBarrier();
    }
}
