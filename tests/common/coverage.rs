//! What a set of cases has covered, computed from the cases alone.

use std::collections::BTreeMap;

use local_attention::TileKind;

use super::Case;

/// Hits by name; pairs of options are named `a + b`.
#[derive(Default)]
pub struct Coverage(BTreeMap<String, usize>);

/// Every option of the module that a case can have.
const OPTIONS: [&str; 24] = [
    "causal",
    "exact",
    "shared_qk",
    "rotary",
    "xpos",
    "padding",
    "mask",
    "bias",
    "dropout",
    "override",
    "look_backward 0",
    "look_backward 2+",
    "look_forward 1+",
    "look_forward 2+",
    "shared kv",
    "other key_len",
    "query range",
    "value_dim",
    "scale",
    "lse",
    "true rotary",
    "hidden padding",
    "zero masked rows",
    "strided",
];

/// Pairs that exclude each other.
const ILLEGAL: [(&str, &str); 3] = [
    ("causal", "look_forward 1+"),
    ("causal", "look_forward 2+"),
    ("look_backward 0", "look_backward 2+"),
];

/// Not options, but what kernels must get right.
const SITUATIONS: [&str; 16] = [
    "tile outside",
    "tile inside",
    "tile edge",
    "several tiles a row",
    "window no multiple of the tile",
    "window below the tile",
    "huge window",
    "degenerate by mask",
    "degenerate by bias",
    "degenerate by hidden padding",
    "visible zero keys",
    "bias -1e35",
    "hidden NaN",
    "hidden NaN bias",
    "several blocks of queries a window",
    "several blocks of keys a row",
];

/// The largest register tile: queries by keys.
const TILE: (usize, usize) = (8, 32);
/// Queries that share packed keys, at most, and keys packed at a time, at multiples of it.
const QUERY_BLOCK: usize = 256;
const KEY_BLOCK: usize = 256;

impl Coverage {
    /// Adds a case; `degenerate`: for each packed row and query, whether it saw nothing.
    pub fn add(&mut self, case: &Case, degenerate: &[bool]) {
        let (c, s) = (&case.config, &case.shape);
        let problem = case.problem();
        let g = problem.geometry();
        let forward = g.slots() / g.window() - 1 - c.look_backward as usize;
        let rotary = case.attention().rotary();
        let options = [
            c.causal,
            c.exact_windowsize,
            c.shared_qk,
            rotary,
            rotary && c.use_xpos,
            g.padded_len() > g.seq_len(),
            s.mask.is_some(),
            s.bias.is_some(),
            case.call.dropout.is_some(),
            s.window.is_some(),
            c.look_backward == 0,
            c.look_backward >= 2,
            forward >= 1,
            forward >= 2,
            s.kv_leading != s.leading,
            s.key_len != s.seq_len,
            s.query.len() < s.seq_len,
            s.value_dim != s.head_dim,
            c.scale.is_some(),
            s.lse,
            !case.quirks.tail_aligned_rotary,
            !case.quirks.visible_autopad_keys,
            !case.quirks.uniform_masked_rows,
            case.strided,
        ];
        let on: Vec<_> =
            OPTIONS.iter().zip(options).filter(|(_, on)| *on).map(|(n, _)| *n).collect();
        for (i, a) in on.iter().enumerate() {
            self.hit(a);
            for b in &on[i + 1..] {
                self.hit(&format!("{a} + {b}"));
            }
        }
        let mut kinds = Vec::new();
        for t in s.query.clone().step_by(TILE.0) {
            let queries = t..s.query.end.min(t + TILE.0);
            for u in (0..g.key_len()).step_by(TILE.1) {
                kinds.push(g.tile_kind(queries.clone(), u..g.key_len().min(u + TILE.1)));
            }
        }
        let seen_first = g.visible_range(s.query.start);
        let any_zero = s.query.clone().any(|t| g.visible_range(t).end > g.key_len());
        // Why a row is degenerate, from what it would have seen.
        let rows = degenerate.chunks(s.query.len().max(1));
        let (mut by_mask, mut by_bias, mut by_padding) = (false, false, false);
        for (row, flags) in rows.enumerate() {
            for (i, _) in flags.iter().enumerate().filter(|(_, d)| **d) {
                let visible = g.visible_range(s.query.start + i);
                let lets = |u: usize| {
                    s.mask.is_none_or(|m| {
                        let mask_row = row / (problem.batch() / m.rows);
                        u < m.len && case.mask[mask_row * m.len + u]
                    })
                };
                by_padding |= visible.is_empty();
                by_mask |= !visible.is_empty() && !visible.clone().any(lets);
                by_bias |= visible.clone().any(lets);
            }
        }
        let situations = [
            kinds.contains(&TileKind::Outside),
            kinds.contains(&TileKind::Inside),
            kinds.contains(&TileKind::Edge),
            seen_first.len() > 2 * TILE.1,
            g.window() > TILE.1 && !g.window().is_multiple_of(TILE.1),
            g.window() < TILE.0,
            g.window() > 10 * s.seq_len,
            by_mask,
            by_bias,
            by_padding,
            any_zero,
            case.bias.contains(&-1e35),
            case.k.iter().any(|x| x.is_nan()),
            case.bias.iter().any(|x| x.is_nan()),
            g.window() > QUERY_BLOCK,
            s.query.clone().any(|t| {
                let seen = g.visible_range(t);
                let last = seen.end.min(g.key_len()).saturating_sub(1);
                seen.start / KEY_BLOCK < last / KEY_BLOCK
            }),
        ];
        for (name, _) in SITUATIONS.iter().zip(situations).filter(|(_, on)| *on) {
            self.hit(name);
        }
    }

    fn hit(&mut self, name: &str) {
        *self.0.entry(name.to_owned()).or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        for (name, hits) in other.0 {
            *self.0.entry(name).or_default() += hits;
        }
    }

    /// Options hit fewer than `least` times, whatever they are paired with.
    pub fn missing_options(&self, least: usize) -> Vec<&'static str> {
        let hits = |name: &str| self.0.get(name).copied().unwrap_or(0);
        OPTIONS.into_iter().filter(|name| hits(name) < least).collect()
    }

    /// Options and situations hit fewer than `least` times.
    pub fn missing_alone(&self, least: usize) -> Vec<&'static str> {
        let hits = |name: &str| self.0.get(name).copied().unwrap_or(0);
        OPTIONS.into_iter().chain(SITUATIONS).filter(|name| hits(name) < least).collect()
    }

    /// Everything hit fewer than `least` times, with its hits.
    pub fn missing(&self, least: usize) -> Vec<(String, usize)> {
        let pairs = OPTIONS.iter().enumerate().flat_map(|(i, a)| {
            let later = OPTIONS[i + 1..].iter().filter(move |b| !ILLEGAL.contains(&(a, b)));
            later.map(move |b| format!("{a} + {b}"))
        });
        let singles = OPTIONS.iter().chain(&SITUATIONS).map(|n| (*n).to_owned());
        singles
            .chain(pairs)
            .map(|name| (self.0.get(&name).copied().unwrap_or(0), name))
            .filter(|(hits, _)| *hits < least)
            .map(|(hits, name)| (name, hits))
            .collect()
    }
}
