//! The dropout keep mask: counter-based random bits, the same on every engine.

/// What makes a call drop softmax weights.
///
/// Whether a weight is kept depends on the seed, the offset and the weight's own index (packed
/// batch row, query, slot) alone: not on the engine, the number of threads or how work is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dropout {
    /// The random key: one a training step, say.
    pub seed: u64,
    /// A second counter beside it: one a layer, say.
    pub offset: u32,
}

/// What changes from call to call.
///
/// ```
/// use local_attention::{Call, Dropout};
///
/// let evaluation = Call::default();
/// let training = Call::with_seed(42);
/// assert_eq!(training.dropout, Some(Dropout { seed: 42, offset: 0 }));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Dropout happens only where this is set and the configuration's `dropout` is above 0.
    pub dropout: Option<Dropout>,
}

impl Call {
    /// A training call with this dropout seed.
    pub fn with_seed(seed: u64) -> Self {
        Self { dropout: Some(Dropout { seed, offset: 0 }) }
    }

    /// A training call with this seed and offset.
    pub fn with_dropout(dropout: Dropout) -> Self {
        Self { dropout: Some(dropout) }
    }
}

/// The keep mask of one call: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
/// 1, 2, 3", 2011).
///
/// Key: the seed, low word first. Counter: `[slot / 4, query, packed batch row, offset]`; word
/// `slot % 4` of the result decides. A weight is dropped when that word is below
/// `floor(p * 2^32)`, and the others are multiplied by `1 / (1 - p)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepMask {
    key: [u32; 2],
    offset: u32,
    threshold: u32,
    factor: f64,
}

impl KeepMask {
    /// `None` where nothing would be dropped.
    pub(crate) fn new(p: f64, call: &Call) -> Option<Self> {
        let dropout = call.dropout.filter(|_| p > 0.0)?;
        Some(Self {
            key: [dropout.seed as u32, (dropout.seed >> 32) as u32],
            offset: dropout.offset,
            threshold: (p * 4_294_967_296.0) as u32,
            factor: 1.0 / (1.0 - p),
        })
    }

    /// What to multiply the weight of this slot by: 0 or `1 / (1 - p)`.
    pub(crate) fn factor(&self, row: usize, query: usize, slot: usize) -> f64 {
        let counter = [(slot / 4) as u32, query as u32, row as u32, self.offset];
        if philox(counter, self.key)[slot % 4] < self.threshold { 0.0 } else { self.factor }
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key[0] = key[0].wrapping_add(0x9E37_79B9);
        key[1] = key[1].wrapping_add(0xBB67_AE85);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of the Random123 distribution.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn share_dropped_is_p() {
        let mask = KeepMask::new(0.3, &Call::with_seed(7)).unwrap();
        let dropped =
            (0..100_000).filter(|i| mask.factor(i / 1000, i % 1000, i % 97) == 0.0).count();
        assert!((29_000..31_000).contains(&dropped), "{dropped}");
    }
}
