// Adds parts of the gradient by the bias, in their order, to what earlier parts gave, or to nothing: a thread
// an element, of which `stats` lie before the binding.

#import params

@compute @workgroup_size(64)
fn fold(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let element = (params.first_block + group.x) * 64u + thread;
    let row_len = params.bias_queries * params.bias_width;
    if element >= min(params.stats_len, params.bias_rows * row_len) {
        return;
    }
    let row = element / row_len;
    let query = element % row_len / params.bias_width;
    let slot = element % params.bias_width;
    // The number of each part, or those that are summed: modulo 2^32, what no window has is beyond every part.
    var from_query = query - params.first_query;
    var from_slot = slot - params.first_slot;
    var queries = 1u;
    var slots = 1u;
    if on(SUM_QUERIES) {
        from_query = 0u;
        queries = params.part_queries;
    }
    if on(SUM_SLOTS) {
        from_slot = 0u;
        slots = params.part_slots;
    }
    var sum = 0.0;
    if on(ADD) {
        sum = load_word(element - params.stats);
    }
    if from_query < params.part_queries && from_slot < params.part_slots {
        // One loop: some adapters count the turns of all loops, and end them.
        let numbers = queries * slots;
        for (var n = 0u; n < params.parts * numbers; n++) {
            let part = n / numbers;
            let packed_row = (params.first_row + part) / params.row_parts;
            if packed_row % params.bias_rows == row {
                let q = from_query + n % numbers / slots;
                let s = from_slot + n % slots;
                sum += part_word((part * params.part_queries + q) * params.part_slots + s);
            }
        }
    }
    store_word(element - params.stats, sum);
}
