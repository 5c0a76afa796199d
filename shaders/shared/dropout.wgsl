// The dropout keep mask, Philox 4x32-10: src/dropout.rs.

#import params

// What changes from call to call, all else being as it was bound: src/gpu/params.rs, word for word.
struct Dropout {
    key: vec2<u32>,
    offset: u32,
    threshold: u32,
    factor: f32,
    unused: u32,
}

// Both halves of a 64-bit product: (low, high).
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 16u);
    let carry = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a * b, a1 * b1 + (middle >> 16u) + (carry >> 16u));
}

fn philox(from_counter: vec4<u32>) -> vec4<u32> {
    var counter = from_counter;
    var key = dropout.key;
    for (var turns = 0u; turns < 10u; turns++) {
        let first = wide_product(counter.x, 0xD2511F53u);
        let second = wide_product(counter.z, 0xCD9E8D57u);
        counter = vec4<u32>(second.y ^ counter.y ^ key.x, second.x, first.y ^ counter.w ^ key.y, first.x);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}

// Whether a weight is kept, and then multiplied by the factor.
fn is_kept(row: u32, query: u32, slot: u32) -> bool {
    let words = philox(vec4<u32>(slot / 4u, query, row, dropout.offset));
    return words[slot % 4u] >= dropout.threshold;
}
