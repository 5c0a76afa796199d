// What is known of queries once the forward pass is done, a vec4 each, beside the rotary tables: what
// their weights are relative to, in powers of 2, and the factor of those; the product of the output and the
// gradient by it; of a query that saw nothing, the share of each slot it does not see.

#import params

fn stats_at(packed_row: u32, query: u32) -> u32 {
    return params.stats + packed_row * params.stats_len + query;
}

// What a query without weights has: relative to this, every weight is 0.
const NO_STATS = vec4<f32>(3e38, 1.0, 0.0, 0.0);
