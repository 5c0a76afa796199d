// Who sees whom: src/geometry.rs.

#import params

struct Keys {
    start: u32,
    end: u32,
}

fn within(keys: Keys, key: u32) -> bool {
    return key >= keys.start && key < keys.end;
}

// The positions that a window gathers.
fn gathered(window: u32) -> Keys {
    let windows = params.padded_len / params.window;
    let after = windows - min(windows, window + 1u);
    let first = window - min(window, params.look_backward);
    let end = min(windows, window + 1u) + min(params.look_forward, after);
    return Keys(min(first, windows) * params.window, end * params.window);
}

// The keys a query sees, before any mask.
fn visible(query: u32) -> Keys {
    var keys = gathered(query / params.window);
    if on(CAUSAL) {
        keys.end = min(keys.end, query + 1u);
    }
    if on(EXACT) {
        keys.start = max(keys.start, query - min(query, params.reach_backward));
        keys.end = min(keys.end, query + params.reach_forward + 1u);
    }
    if !on(VISIBLE_PADDING) {
        keys.end = min(keys.end, params.key_len);
    }
    keys.start = min(keys.start, keys.end);
    return keys;
}

// The slot of a gathered position in a query's window.
fn slot_of(query: u32, key: u32) -> u32 {
    return params.look_backward * params.window + key - query / params.window * params.window;
}

// Whether the mask lets a key be attended.
fn lets(mask_row: u32, key: u32) -> bool {
    if !on(MASK) {
        return true;
    }
    if key >= params.mask_len {
        return false;
    }
    let element = mask_row + key * params.mask.position;
    if on(MASK_WORDS) {
        return mask_word(element) != 0u;
    }
    return ((mask_word(element / 4u) >> (element % 4u * 8u)) & 255u) != 0u;
}
