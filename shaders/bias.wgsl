// The gradient by the bias, of some windows of one packed row: a workgroup is a block of queries of a window by a tile
// of its slots, and sums over the windows.

#import block
#import outputs

var<private> window_sums: array<f32, TQ * TK>;

@compute @workgroup_size(THREADS)
fn bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let part = params.first_row + group.z;
    let packed_row = part / params.row_parts;
    let first_window = params.first_window + part % params.row_parts * params.part_windows;
    let end_window = min(first_window + params.part_windows, params.end_window);
    // Of the queries of a window, and of its slots.
    let block_of_queries = params.first_block + group.x;
    let tile = params.first_tile + group.y;
    let offset = params.first_query + block_of_queries * params.block_len;
    let first_slot = params.first_slot + tile * KT;
    begin_row(thread, packed_row);
    window_sums = array<f32, TQ * TK>();
    for (var window = first_window; window < end_window; window++) {
        let base = window * params.window;
        let start = base + offset;
        let end = min(base + min(offset + params.block_len, params.window), params.query_end);
        let first_there = max(start, params.query_start);
        if first_there < end {
            // Modulo 2^32: slots may lie before the sequence.
            let first = base + first_slot - params.look_backward * params.window;
            let keys = Keys(visible(first_there).start, visible(end - 1u).end);
            // Tiles before the sequence begin far above it.
            if keys.start < keys.end && bitcast<i32>(first) < bitcast<i32>(keys.end) && bitcast<i32>(first + KT) > bitcast<i32>(keys.start) {
                // The tiles are free: of the last window.
                workgroupBarrier();
                let extent = begin_block(thread, packed_row, start, start, end);
                begin_outputs(thread, packed_row);
                multiply_outputs(thread, first);
                score_tile(thread, extent, first, params.padded_len);
                finish_gradients(packed_row, first);
                for (var i = 0u; i < TQ * TK; i++) {
                    window_sums[i] += by_logit[i];
                }
            }
        }
    }
    let parts_at = (params.parts + group.z) * params.part_queries * params.part_slots;
    if !on(SUM_QUERIES | SUM_SLOTS) {
        for (var i = 0u; i < TQ; i++) {
            let query = block_of_queries * params.block_len + row_group * TQ + i;
            for (var j = 0u; j < TK; j++) {
                let slot = tile * KT + column_group + j * GROUPS;
                if row_group * TQ + i < params.block_len && query < params.part_queries && slot < params.part_slots {
                    store_word(parts_at + query * params.part_slots + slot, window_sums[i * TK + j]);
                }
            }
        }
        return;
    }
    workgroupBarrier();
    for (var j = 0u; j < TK; j++) {
        var numbers: array<f32, TQ>;
        for (var i = 0u; i < TQ; i++) {
            numbers[i] = window_sums[i * TK + j];
        }
        put(column_group + j * GROUPS, numbers);
    }
    workgroupBarrier();
    if on(SUM_QUERIES) && on(SUM_SLOTS) {
        if thread == 0u {
            var sum = 0.0;
            for (var column = 0u; column < KT; column++) {
                sum += sum_of_rows(column);
            }
            store_word(parts_at + block_of_queries * params.part_slots + tile, sum);
        }
    } else if on(SUM_QUERIES) {
        for (var column = thread; column < KT; column += THREADS) {
            let slot = tile * KT + column;
            if slot < params.part_slots {
                store_word(parts_at + block_of_queries * params.part_slots + slot, sum_of_rows(column));
            }
        }
    } else {
        for (var n = thread; n < ROW; n += THREADS) {
            let sum = sum_of_columns(n / PARTS, n % PARTS);
            for (var i = 0u; i < PART; i++) {
                let row = n * PART + i;
                let query = block_of_queries * params.block_len + row;
                if row < params.block_len && query < params.part_queries {
                    store_word(parts_at + query * params.part_slots + tile, sum[i]);
                }
            }
        }
    }
}

// The sum of a column's numbers, and those of some rows.
fn sum_of_rows(column: u32) -> f32 {
    var sum = Part(0.0);
    for (var n = 0u; n < ROW; n++) {
        sum += s_tile[column * ROW + n];
    }
    return dot(sum, Part(1.0));
}

fn sum_of_columns(group: u32, part: u32) -> Part {
    var sum = Part(0.0);
    for (var column = 0u; column < KT; column++) {
        sum += s_tile[part_at(column, group, part)];
    }
    return sum;
}
