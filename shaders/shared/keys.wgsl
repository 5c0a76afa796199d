// Loading blocks of keys and tiles of queries: where rows are keys.

#import scores

// The queries whose windows gather some of these keys: those of whole windows.
fn gatherers(keys: Keys) -> Keys {
    let first = keys.start / params.window;
    let last = (keys.end - 1u) / params.window;
    let start = (first - min(first, params.look_forward)) * params.window;
    let end = (last + 1u + params.look_backward) * params.window;
    return of_call(start, end);
}

// Those of a range that are computed.
fn of_call(start: u32, end: u32) -> Keys {
    let last = min(end, params.query_end);
    return Keys(min(max(start, params.query_start), last), last);
}

// The queries that see some of these keys, before any mask: `visible` the other way round.
fn seers(keys: Keys) -> Keys {
    var queries = gatherers(keys);
    if on(CAUSAL) {
        queries.start = max(queries.start, keys.start);
    }
    if on(EXACT) {
        queries.start = max(queries.start, keys.start - min(keys.start, params.reach_forward));
        queries.end = min(queries.end, keys.end + params.reach_backward);
    }
    return of_call(queries.start, queries.end);
}

// The packed row of a group of those that share a gradient: the group's number counts dimensions along
// which they do not, `member` the others.
fn member_row(group: u32) -> u32 {
    var rest = group;
    var member = params.member;
    var row = 0u;
    var step = 1u;
    for (var i = 0u; i < 4u; i++) {
        let dim = 3u - i;
        let size = params.leading[dim];
        if ((params.shared_dims >> dim) & 1u) == 1u {
            row += member % size * step;
            member /= size;
        } else {
            row += rest % size * step;
            rest /= size;
        }
        step *= size;
    }
    return row;
}

// Sets up the private variables of `tile` for a block of keys, loads them, and gives the queries that
// see some of them.
fn begin_keys(thread: u32, packed_row: u32, keys: Keys) -> Keys {
    begin_row(thread, packed_row);
    let queries = seers(keys);
    present = queries;
    block = keys;
    hull = Keys(0u, 0u);
    if queries.start < queries.end {
        hull = Keys(visible(queries.start).start, visible(queries.end - 1u).end);
    }
    // Where no query sees them, keys are rotated all the same.
    origin = select(min(keys.start, queries.start), keys.start, queries.start >= queries.end);
    // Distances of keys are those within the block, and those of queries what is left.
    centre = keys.start + (keys.end - keys.start) / 2u - rotary_shift();
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        let key = block.start + row;
        if chunk < chunks() && quad < chunk_steps(chunk) {
            var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
            if key < block.end && worth_loading(key) {
                pair = rotated_key(raw_key_quads(key, chunk, quad), key, chunk, quad);
            }
            put_row(row, chunk, quad, pair);
        }
    }
    for (var i = 0u; i < TQ; i++) {
        let key = block.start + row_group * TQ + i;
        open_rows[i] = key < block.end && worth_loading(key);
        if on(SHARED_QK) {
            inverse_norms[i] = 0.0;
            if open_rows[i] {
                inverse_norms[i] = 1.0 / max(sqrt(square_of_key(key)), 1e-12);
            }
        }
    }
    return queries;
}

// The sum of a key's squares.
fn square_of_key(key: u32) -> f32 {
    var squares = 0.0;
    for (var feature = 0u; feature < params.head_dim + opaque_zero(); feature += 4u) {
        let x = load_k(k_at + key * params.k.position + feature * params.k.feature, left(feature, params.head_dim));
        squares += dot(x, x);
    }
    return squares;
}

// A chunk of the queries from `first` on; 0 where there is none.
fn load_query_columns(first: u32, chunk: u32) {
    for (var column = row_group; column < KT; column += ROW_GROUPS) {
        let query = first + column;
        for (var quad = column_group; quad < chunk_steps(chunk); quad += GROUPS) {
            put_column(column, chunk, quad, query_quads(query, within(present, query), chunk, quad));
        }
    }
}

// What a query sees: nothing where it is not one of those that are computed.
fn seen_of(queries: Keys, query: u32) -> Keys {
    var keys = Keys(0u, 0u);
    if within(queries, query) {
        keys = visible(query);
    }
    return keys;
}

// The logits of the queries from `first` on, in `scores`.
fn score_queries(queries: Keys, first: u32) {
#ifndef BROADCAST
#repeat j TK
    seen[j] = seen_of(queries, first + column_group + j * GROUPS);
#endrepeat
#endif
    scores = array<f32, TQ * TK>();
    for (var chunk = 0u; chunk < chunks(); chunk++) {
        workgroupBarrier();
        load_query_columns(first, chunk);
        workgroupBarrier();
        add_products(0u, chunk, chunk_width(chunk), IN_TILE);
    }
    let last = first + KT - 1u;
    var inside = queries.start <= first && last < queries.end;
    if inside {
        inside = visible(last).start <= block.start && block.end <= visible(first).end;
    }
    finish_scores(first, inside, params.key_len);
}
