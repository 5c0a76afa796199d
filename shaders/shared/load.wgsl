// Loading blocks of queries and tiles of keys: where rows are queries.

#import tile

// All queries of the block; 0 where there is none.
fn load_queries(thread: u32) {
    for (var i = thread; i < QT * QUADS; i += THREADS) {
        let row = i / QUADS;
        let chunk = i % QUADS / CHUNK;
        let quad = i % CHUNK;
        if chunk < chunks() && quad < chunk_steps(chunk) {
            let query = block.start + row;
            put_row(row, chunk, quad, query_quads(query, within(present, query), chunk, quad));
        }
    }
}

// A chunk of the keys from `first` on; 0 where there is none or a mask hides it. With `norms`, of whole
// keys the sums of squares.
fn load_keys(first: u32, chunk: u32, norms: bool) {
    for (var column = row_group; column < KT; column += ROW_GROUPS) {
        let key = first + column;
        let there = worth_loading(key);
        var squares = 0.0;
        for (var quad = column_group; quad < chunk_steps(chunk); quad += GROUPS) {
            var pair = Pair(vec4<f32>(0.0), vec4<f32>(0.0));
            if there {
                pair = raw_key_quads(key, chunk, quad);
                squares += dot(pair.low, pair.low) + dot(pair.high, pair.high);
                pair = rotated_key(pair, key, chunk, quad);
            }
            put_column(column, chunk, quad, pair);
        }
        if on(SHARED_QK) && norms {
            let index = column * GROUPS + column_group;
            if chunk > 0u {
                squares += s_tile[index][0];
            }
            s_tile[index] = Part(squares);
        }
    }
}

// A chunk of features of the values of the keys from `first` on, from a feature on; 0 as for keys.
fn load_values(thread: u32, first: u32, first_feature: u32) {
    for (var i = thread; i < KT * CHUNK; i += THREADS) {
        let column = i / CHUNK;
        let x = value_quad(first + column, first_feature + i % CHUNK * 4u);
#ifdef MATRIX
        put_column_quad(column, i % CHUNK, x);
#else
        column_tile[column_quad(column, i % CHUNK)] = x;
#endif
    }
}
