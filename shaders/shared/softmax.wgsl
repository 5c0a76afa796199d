// The softmax, carried along from tile to tile, logits in powers of 2.

#import tile

// The logit of what is hidden, and a number that is below every other logit and above it.
const HIDDEN = -3.4e38;
const SEEN = -3.3e38;

// The largest logit so far of each query of this thread, and its part of the sum of exponentials.
var<private> largest: array<f32, TQ>;
var<private> total: array<f32, TQ>;

// Adds neighbouring keys of one logit to a query's sum, before any tile.
fn push(i: u32, logit: f32, count: f32) {
    if logit <= SEEN {
        return;
    }
    let top = max(largest[i], logit);
    // One thread of a row counts them.
    if column_group == 0u {
        total[i] = total[i] * exp2(max(largest[i], -3e38) - top) + count * exp2(logit - top);
    }
    largest[i] = top;
}

// Makes a larger logit the base of a query's sum; what else was summed before is to be scaled so.
fn raise(i: u32, top: f32) -> f32 {
    // Nothing before has a weight to scale where nothing was seen.
    let factor = select(0.0, exp2(largest[i] - top), largest[i] > SEEN);
    total[i] *= factor;
    largest[i] = top;
    return factor;
}

// The weight of a logit, relative to the query's largest.
fn weight_of(i: u32, logit: f32) -> f32 {
    // Not `>`: a NaN has a weight, which is NaN.
    if !(logit <= SEEN) {
        return exp2(logit - largest[i]);
    }
    return 0.0;
}

// Puts a key's numbers, one for each query of this thread, where other threads find them.
fn put(key: u32, numbers: array<f32, TQ>) {
    var n = numbers;
    for (var p = 0u; p < PARTS; p++) {
        var part: Part;
        for (var i = 0u; i < PART; i++) {
            part[i] = n[p * PART + i];
        }
        s_tile[part_at(key, row_group, p)] = part;
    }
}

fn row_largest() -> array<f32, TQ> {
    var top: array<f32, TQ>;
    for (var p = 0u; p < PARTS; p++) {
        var part = Part(HIDDEN);
        for (var g = 0u; g < GROUPS; g++) {
            part = max(part, s_tile[part_at(g, row_group, p)]);
        }
        for (var i = 0u; i < PART; i++) {
            top[p * PART + i] = part[i];
        }
    }
    return top;
}

fn row_total() -> array<f32, TQ> {
    var sums: array<f32, TQ>;
    for (var p = 0u; p < PARTS; p++) {
        var part = Part(0.0);
        for (var g = 0u; g < GROUPS; g++) {
            part += s_tile[part_at(g, row_group, p)];
        }
        for (var i = 0u; i < PART; i++) {
            sums[p * PART + i] = part[i];
        }
    }
    return sums;
}

// Queries of this thread that see nothing, or nothing with a weight: a bit each.
fn empty_rows(of_sums: array<f32, TQ>) -> u32 {
    var sums = of_sums;
    var empty = 0u;
    for (var i = 0u; i < TQ; i++) {
        let there = block.start + row_group * TQ + i < block.end;
        empty |= u32(there && largest[i] <= SEEN && sums[i] == 0.0) << i;
    }
    return empty;
}
