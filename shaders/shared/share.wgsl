// The gradient by values of queries that saw nothing: their outputs are means over what they do not see.

#import keys
#import gradients
#import sums
#import keeps

fn share_hidden(packed_row: u32, keys: Keys, first_feature: u32) {
    let queries = gatherers(keys);
    // Of queries that see none of the keys too.
    present = queries;
    for (var query = queries.start; query < queries.end; query++) {
        var share = tables[stats_at(packed_row, query)].w;
#ifdef DROPOUT
        share *= dropout.factor;
#endif
        if share > 0.0 {
            let slots = gathered(query / params.window);
            let sees = visible(query);
            for (var c = 0u; c < OUT; c++) {
                let feature = first_feature + (c * GROUPS + column_group) * 4u;
                let x = output_quad(query, feature) * share;
                for (var i = 0u; i < TQ; i++) {
                    let key = keys.start + row_group * TQ + i;
                    let hidden = within(slots, key) && !(within(sees, key) && lets(mask_at, key));
                    if hidden && keeps(packed_row, query, slot_of(query, key)) {
                        sums[i * SUMS + c] += x;
                    }
                }
            }
        }
    }
}
