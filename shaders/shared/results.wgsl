#ifdef DEGENERATE
#import average
#endif

// Writes outputs and lse of this thread's queries, whose sums are whole but for what threads of a row share.
fn finish_rows(packed_row: u32, first_feature: u32, value_block: u32) {
    put(column_group, total);
    workgroupBarrier();
    var totals = row_total();
    let empty = empty_rows(totals);
#ifdef DEGENERATE
    if empty != 0u {
        average_hidden(packed_row, empty, first_feature);
    }
#endif
    let out_at = row_offset(params.out, packed_row);
    for (var i = 0u; i < TQ; i++) {
        let query = block.start + row_group * TQ + i;
        if query < block.end {
            let row = Row(query, totals[i], ((empty >> i) & 1u) == 1u);
            finish_row(packed_row, out_at, i, row, first_feature, value_block);
        }
    }
}

// A query's sum of weights, and whether none is one.
struct Row {
    query: u32,
    sum: f32,
    empty: bool,
}

// Writes a query's output and lse.
fn finish_row(packed_row: u32, out_at: u32, i: u32, row: Row, first_feature: u32, value_block: u32) {
    let at = out_at + row.query * params.out.position;
    for (var c = 0u; c < OUT; c++) {
        let feature = first_feature + (c * GROUPS + column_group) * 4u;
        if feature < params.value_dim {
            var x = sums[i * SUMS + c];
            if !row.empty {
                x /= row.sum;
            }
#ifndef DEGENERATE
            if row.empty {
                x = vec4<f32>(0.0);
            }
#endif
            store_out(at + feature * params.out.feature, left(feature, params.value_dim), x);
        }
    }
    if on(LSE) && value_block == 0u && column_group == 0u {
        var lse = -3.4028234663852886e38;
        if !row.empty {
            // Of both parts alone, the product could round where the sum does not.
            lse = (largest[i] + log2(row.sum)) * 0.6931471805599453;
        }
        store_lse(row_offset(params.lse, packed_row) + row.query * params.lse.position, lse);
    }
}
