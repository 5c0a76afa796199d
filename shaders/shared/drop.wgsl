// Drops weights of this thread's queries and keys, and scales the others.
fn drop_weights(packed_row: u32, first: u32) {
    for (var n = 0u; n < TK * PARTS; n++) {
        let part = own_part(n);
        var weights = s_tile[part.at];
        for (var i = 0u; i < PART; i++) {
            if weights[i] > 0.0 {
                let query = part.row + i;
                let kept = is_kept(packed_row, query, slot_of(query, first + part.column));
                weights[i] = select(0.0, weights[i] * dropout.factor, kept);
            }
        }
        s_tile[part.at] = weights;
    }
}
