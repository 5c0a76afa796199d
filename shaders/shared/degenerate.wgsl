// Rows that see nothing, or nothing with a weight.

#import scores

// Slots that each query of this thread does not see.
fn hidden_slots() -> array<u32, TQ> {
    var counts: array<u32, TQ>;
    for (var i = 0u; i < TQ; i++) {
        counts[i] = params.slots;
        if !on(MASK) {
            counts[i] -= seen[i].end - seen[i].start;
        }
    }
    if on(MASK) {
        for (var key = hull.start; key < min(hull.end, params.mask_len); key++) {
            if lets(mask_at, key) {
                for (var i = 0u; i < TQ; i++) {
                    counts[i] -= u32(within(seen[i], key));
                }
            }
        }
    }
    return counts;
}
