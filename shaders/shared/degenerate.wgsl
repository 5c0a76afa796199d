// Rows that see nothing, or nothing with a weight: the mean over what they do not see.

#import scores
#import dropout

fn sees(i: u32, key: u32) -> bool {
    return key >= seen[i].start && key < seen[i].end && lets(mask_at, key);
}

// Slots that a query does not see.
fn hidden_slots(i: u32) -> u32 {
    if !on(MASK) {
        return params.slots - (seen[i].end - seen[i].start);
    }
    var count = 0u;
    for (var key = seen[i].start; key < min(seen[i].end, params.mask_len); key++) {
        count += u32(lets(mask_at, key));
    }
    return params.slots - count;
}

// Whether a slot's weight is kept. What is kept is added up first and multiplied once.
fn keeps(packed_row: u32, query: u32, slot: u32) -> bool {
#ifdef DROPOUT
    return is_kept(packed_row, query, slot);
#else
    return true;
#endif
}

// Slots outside the sequence that count.
fn outside(packed_row: u32, query: u32, keys: Keys) -> u32 {
    let before = slot_of(query, keys.start);
    let after = slot_of(query, keys.end);
#ifdef DROPOUT
    var kept = 0u;
    for (var slot = 0u; slot < before; slot++) {
        kept += u32(keeps(packed_row, query, slot));
    }
    for (var slot = after; slot < params.slots; slot++) {
        kept += u32(keeps(packed_row, query, slot));
    }
    return kept;
#else
    return before + (params.slots - after);
#endif
}

// Four neighbouring features of such a row. Slots outside the sequence have the value -1.
fn hidden_mean(packed_row: u32, i: u32, feature: u32) -> vec4<f32> {
    let query = block.start + row_group * TQ + i;
    let hidden = hidden_slots(i);
    if !on(UNIFORM_MASKED_ROWS) || hidden == 0u {
        return vec4<f32>(0.0);
    }
    let keys = gathered(query / params.window);
    var sum = vec4<f32>(-f32(outside(packed_row, query, keys)));
    let end = min(keys.end, params.key_len);
    // In parts, so that roundings do not grow with their number.
    for (var first = keys.start; first < end; first += 64u) {
        var part = vec4<f32>(0.0);
        for (var key = first; key < min(first + 64u, end); key++) {
            if !sees(i, key) && keeps(packed_row, query, slot_of(query, key)) {
                let at = v_at + key * params.v.position + feature * params.v.feature;
                part += load_v(at, left(feature, params.value_dim));
            }
        }
        sum += part;
    }
#ifdef DROPOUT
    sum *= params.dropout_factor;
#endif
    return sum / f32(hidden);
}
