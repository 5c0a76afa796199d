//! Who sees whom: windows, slots and visible ranges, from indices alone.

use std::ops::Range;

use crate::{LocalAttentionConfig, ReferenceQuirks};

/// Which keys each query sees, before any mask.
///
/// A sequence is cut into windows of `W = window()` positions. A query in window `w` gathers the
/// `J = slots()` positions of the windows `w - look_backward ..= w + look_forward`; slot `s` of
/// window `w` is position `(w - look_backward) * W + s`. Of these it sees one contiguous range,
/// [`visible_range`](Self::visible_range).
///
/// ```
/// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(4).causal(true))?;
/// let problem = attention.problem(&AttentionShape::new([1], 16, 8))?;
/// let geometry = problem.geometry();
/// // Query 9 is in the third window: it sees the window before and its own up to itself.
/// assert_eq!(geometry.visible_range(9), 4..10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowGeometry {
    window: usize,
    look_backward: usize,
    look_forward: usize,
    causal: bool,
    exact: Option<Reach>,
    seq_len: usize,
    key_len: usize,
    padded_len: usize,
    visible_padding: bool,
    tail_aligned: bool,
}

/// How far an exact window reaches, in positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reach {
    backward: usize,
    forward: usize,
}

/// How a block of keys relates to a block of queries.
///
/// ```
/// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig, TileKind};
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(4).causal(true))?;
/// let problem = attention.problem(&AttentionShape::new([1], 16, 8))?;
/// let geometry = problem.geometry();
/// assert_eq!(geometry.tile_kind(8..12, 0..4), TileKind::Outside);
/// assert_eq!(geometry.tile_kind(8..12, 4..8), TileKind::Inside);
/// assert_eq!(geometry.tile_kind(8..12, 8..12), TileKind::Edge);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TileKind {
    /// No query sees any of the keys.
    Outside,
    /// Every query sees every key.
    Inside,
    /// Anything else: some pairs may see each other, some do not.
    Edge,
}

impl TileKind {
    /// What a block of keys is to queries of which the first and the last see these ranges: neither
    /// end of the ranges between them moves left.
    #[inline(always)]
    pub(crate) fn of(first: &Range<usize>, last: &Range<usize>, keys: &Range<usize>) -> Self {
        if keys.end <= first.start || last.end <= keys.start {
            Self::Outside
        } else if last.start <= keys.start && keys.end <= first.end {
            Self::Inside
        } else {
            Self::Edge
        }
    }
}

impl WindowGeometry {
    /// `window`, `seq_len`, `key_len` and `padded_len` as `AttentionShape::check_geometry` has
    /// found them to fit each other; the configuration as checked.
    pub(crate) fn new(
        config: &LocalAttentionConfig,
        quirks: ReferenceQuirks,
        window: usize,
        lengths: Lengths,
    ) -> Self {
        let count = |x: i64| usize::try_from(x).unwrap_or(usize::MAX);
        let look_backward = count(config.look_backward);
        let look_forward = count(config.look_forward_or_default());
        // The reference limits distances by the constructor's window, not by the call's.
        let reach = |windows: usize| count(config.window_size).saturating_mul(windows);
        Self {
            window,
            look_backward,
            look_forward,
            causal: config.causal,
            exact: config
                .exact_windowsize
                .then(|| Reach { backward: reach(look_backward), forward: reach(look_forward) }),
            seq_len: lengths.seq_len,
            key_len: lengths.key_len,
            padded_len: lengths.padded_len,
            visible_padding: quirks.visible_autopad_keys,
            tail_aligned: quirks.tail_aligned_rotary,
        }
    }

    /// Positions a window, `W`.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Slots a window gathers, `J = (look_backward + 1 + look_forward) * W`.
    pub fn slots(&self) -> usize {
        (self.look_backward + 1 + self.look_forward) * self.window
    }

    /// Number of windows, padding included.
    pub fn windows(&self) -> usize {
        self.padded_len / self.window
    }

    /// Queries of the sequence.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Real keys; positions from here to [`padded_len`](Self::padded_len) are zeros of autopad.
    pub fn key_len(&self) -> usize {
        self.key_len
    }

    /// Length after autopad, a multiple of the window.
    pub fn padded_len(&self) -> usize {
        self.padded_len
    }

    /// The window a query belongs to.
    pub fn window_of(&self, query: usize) -> usize {
        query / self.window
    }

    /// The positions in `0..padded_len()` that a window gathers.
    pub fn gathered(&self, window: usize) -> Range<usize> {
        // Saturating: a window past the sequence gathers nothing.
        let position = |window: usize| window.saturating_mul(self.window).min(self.padded_len);
        let end = window.saturating_add(1).saturating_add(self.look_forward);
        position(window.saturating_sub(self.look_backward))..position(end)
    }

    /// The slot of a gathered position in a window.
    pub(crate) fn slot_of(&self, window: usize, position: usize) -> usize {
        self.look_backward * self.window + position - window * self.window
    }

    /// The position a slot of a window stands for, `None` outside the padded sequence.
    pub fn position_of(&self, window: usize, slot: usize) -> Option<usize> {
        window
            .saturating_mul(self.window)
            .saturating_add(slot)
            .checked_sub(self.look_backward * self.window)
            .filter(|&p| p < self.padded_len)
    }

    /// The keys a query sees, before any mask. Neither end moves left from one query to the next.
    pub fn visible_range(&self, query: usize) -> Range<usize> {
        let Range { mut start, mut end } = self.gathered(self.window_of(query));
        if self.causal {
            end = end.min(query.saturating_add(1));
        }
        if let Some(reach) = self.exact {
            start = start.max(query.saturating_sub(reach.backward));
            end = end.min(query.saturating_add(reach.forward).saturating_add(1));
        }
        if !self.visible_padding {
            end = end.min(self.key_len);
        }
        start.min(end)..end
    }

    /// How many (query, key) pairs see each other, before any mask: a forward pass computes
    /// `2 * (head_dim + value_dim)` floating-point operations for each.
    pub fn visible_pairs(&self) -> u64 {
        (0..self.seq_len).map(|t| self.visible_range(t).len() as u64).sum()
    }

    /// Whether a query sees a key, before any mask.
    pub fn visible(&self, query: usize, key: usize) -> bool {
        self.visible_range(query).contains(&key)
    }

    /// How a block of keys relates to a block of queries.
    pub fn tile_kind(&self, queries: Range<usize>, keys: Range<usize>) -> TileKind {
        if queries.is_empty() || keys.is_empty() {
            return TileKind::Outside;
        }
        let first = self.visible_range(queries.start);
        TileKind::of(&first, &self.visible_range(queries.end - 1), &keys)
    }

    /// Whether zeros of autopad are seen.
    #[cfg(feature = "gpu")]
    pub(crate) fn sees_padding(&self) -> bool {
        self.visible_padding
    }

    /// What visible ranges follow from, for engines that compute them elsewhere.
    #[cfg(feature = "gpu")]
    pub(crate) fn bits(&self) -> Bits {
        Bits {
            look_backward: self.look_backward,
            look_forward: self.look_forward,
            causal: self.causal,
            exact: self.exact.map(|reach| (reach.backward, reach.forward)),
        }
    }

    /// How much farther a query is rotated than its position says: `look_forward * W` with the
    /// quirk `tail_aligned_rotary`, else 0.
    pub(crate) fn rotary_shift(&self) -> usize {
        if self.tail_aligned { self.look_forward * self.window } else { 0 }
    }

    /// How far behind and ahead of a query, as rotary sees it, its window gathers.
    pub(crate) fn rotary_span(&self) -> (usize, usize) {
        let (window, shift) = (self.window, self.rotary_shift());
        let ahead = if self.causal { 0 } else { (self.look_forward + 1) * window - shift };
        ((self.look_backward + 1) * window + shift, ahead)
    }

    /// The position of a query that rotary sees, counted from the first slot of its window; a key in
    /// slot `s` has position `s`.
    pub(crate) fn rotary_position(&self, query: usize) -> usize {
        self.look_backward * self.window + query % self.window + self.rotary_shift()
    }
}

/// What visible ranges follow from, beside the lengths.
#[cfg(feature = "gpu")]
pub(crate) struct Bits {
    pub(crate) look_backward: usize,
    pub(crate) look_forward: usize,
    pub(crate) causal: bool,
    /// How far exact windows reach back and ahead, in positions.
    pub(crate) exact: Option<(usize, usize)>,
}

/// The three lengths of a sequence, checked against each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) seq_len: usize,
    pub(crate) key_len: usize,
    pub(crate) padded_len: usize,
}
