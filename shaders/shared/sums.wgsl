// Sums over columns, of each row of this thread every GROUPS-th quad.

#import tile

const OUT = QUADS / GROUPS;
// Quads of a chunk of them.
const VALUES = CHUNK / GROUPS;
const SUMS = SUM_TILES * OUT;
var<private> sums: array<vec4<f32>, TQ * SUMS>;

fn clear_sums() {
    sums = array<vec4<f32>, TQ * SUMS>();
}
#ifndef MATRIX

// Adds numbers of rows and columns, from `s_tile`, times a chunk of what the columns hold, to the sums
// from one on.
fn add_columns(at: u32, chunk: u32, place: Columns) {
    let to = at + chunk * VALUES;
    for (var column = 0u; column < KT; column++) {
        var values: array<vec4<f32>, VALUES>;
#ifdef BROADCAST
#repeat m VALUE_LOADS
        let own = quad_of(place, column, m * LANES + row_group);
#repeat l LANES
        values[m * LANES + l] = subgroupBroadcast(own, l);
#endrepeat
#endrepeat
#else
        // Quads of a thread are in one order too.
        let first_quad = column_quad(column, column_group);
#repeat c VALUES
        values[c] = column_tile[first_quad + c * GROUPS];
#endrepeat
#endif
        let first = part_at(column, row_group, 0u);
#repeat p PARTS
        // The order of parts moves all parts of a thread together.
        let weights = s_tile[first ^ p];
#repeat i PART
#repeat c VALUES
        sums[(p * PART + i) * SUMS + to + c] += weights[i] * values[c];
#endrepeat
#endrepeat
#endrepeat
    }
}
#endif
