// The output of rows that see nothing with a weight: the mean over what they do not see.

#import degenerate
#import keeps

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

// Makes the mean of what they do not see the output of some queries of this thread, in `sums`,
// from a feature on. Slots outside the sequence have the value -1.
fn average_hidden(packed_row: u32, rows: u32, first_feature: u32) {
    let first_query = block.start + row_group * TQ;
    var hidden = hidden_slots();
    var base: array<f32, TQ>;
    // Slots of each query that lie in the sequence, none of the queries that are not meant.
    var slots: array<Keys, TQ>;
    var reach = Keys(0xffffffffu, 0u);
    for (var i = 0u; i < TQ; i++) {
        slots[i] = Keys(0u, 0u);
        if ((rows >> i) & 1u) == 1u && on(UNIFORM_MASKED_ROWS) && hidden[i] > 0u {
            let keys = gathered((first_query + i) / params.window);
            // Not the negative, which is -0 where nothing is outside.
            base[i] = 0.0 - f32(outside(packed_row, first_query + i, keys));
            slots[i] = Keys(keys.start, min(keys.end, params.key_len));
            reach = Keys(min(reach.start, slots[i].start), max(reach.end, slots[i].end));
        }
    }
    for (var c = 0u; c < OUT; c++) {
        let feature = first_feature + (c * GROUPS + column_group) * 4u;
        var hidden_sums: array<vec4<f32>, TQ>;
        for (var i = 0u; i < TQ; i++) {
            hidden_sums[i] = vec4<f32>(base[i]);
        }
        if feature < params.value_dim {
            // In parts, so that roundings do not grow with their number, and at multiples of their
            // size, so that they do not depend on the other queries.
            for (var first = reach.start / 64u * 64u; first < reach.end; first += 64u) {
                var part: array<vec4<f32>, TQ>;
                for (var i = 0u; i < TQ; i++) {
                    part[i] = vec4<f32>(0.0);
                }
                for (var key = max(first, reach.start); key < min(first + 64u, reach.end); key++) {
                    let at = v_at + key * params.v.position + feature * params.v.feature;
                    let value = load_v(at, left(feature, params.value_dim));
                    let open = lets(mask_at, key);
                    for (var i = 0u; i < TQ; i++) {
                        let sees = open && within(seen[i], key);
                        if within(slots[i], key) && !sees && keeps(packed_row, first_query + i, slot_of(first_query + i, key)) {
                            part[i] += value;
                        }
                    }
                }
                for (var i = 0u; i < TQ; i++) {
                    hidden_sums[i] += part[i];
                }
            }
        }
        for (var i = 0u; i < TQ; i++) {
            if ((rows >> i) & 1u) == 1u {
#ifdef DROPOUT
                hidden_sums[i] *= dropout.factor;
#endif
                sums[i * SUMS + c] = hidden_sums[i] / max(f32(hidden[i]), 1.0);
            }
        }
    }
}
