//! The dropout keep mask: counter-based random bits, the same on every engine.

/// What makes a call drop softmax weights.
///
/// Whether a weight is kept depends on the seed, the offset and the weight's own index (packed
/// batch row, query, slot) alone: not on the engine, the number of threads or how work is split.
///
/// ```
/// use local_attention::{Call, Dropout};
///
/// let (step, layer) = (1000, 3);
/// let call = Call::with_dropout(Dropout { seed: step, offset: layer });
/// assert_eq!(call.dropout.map(|d| d.offset), Some(3));
/// ```
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
            threshold: threshold_and_factor(p).0,
            factor: threshold_and_factor(p).1,
        })
    }

    /// What to multiply the weight of this slot by: 0 or `1 / (1 - p)`.
    pub(crate) fn factor(&self, row: usize, query: usize, slot: usize) -> f64 {
        let words = self.words::<1>(row, query, slot / 4);
        if words[slot % 4][0] < self.threshold { 0.0 } else { self.factor }
    }

    /// Multiplies the weights of neighbouring slots, from `first` on, by their factors.
    #[inline(always)]
    pub(crate) fn apply(&self, row: usize, query: usize, first: usize, weights: &mut [f32]) {
        let factor = self.factor as f32;
        let mut slot = first / (4 * LANES) * (4 * LANES);
        while slot < first + weights.len() {
            let words = self.words::<LANES>(row, query, slot / 4);
            let mut factors = [0.0; 4 * LANES];
            for (i, f) in factors.iter_mut().enumerate() {
                *f = if words[i % 4][i / 4] < self.threshold { 0.0 } else { factor };
            }
            let from = first.max(slot);
            let to = (first + weights.len()).min(slot + 4 * LANES);
            for (weight, f) in
                weights[from - first..to - first].iter_mut().zip(&factors[from - slot..])
            {
                *weight *= f;
            }
            slot += 4 * LANES;
        }
    }

    /// The random words of `4 * N` slots, from slot `4 * group` on: `[slot % 4][slot / 4 - group]`.
    #[inline(always)]
    fn words<const N: usize>(&self, row: usize, query: usize, group: usize) -> [[u32; N]; 4] {
        let groups = std::array::from_fn(|lane| (group + lane) as u32);
        philox([groups, [query as u32; N], [row as u32; N], [self.offset; N]], self.key)
    }
}

/// Below which word a weight is dropped, and what the others are multiplied by.
pub(crate) fn threshold_and_factor(p: f64) -> (u32, f64) {
    ((p * 4_294_967_296.0) as u32, 1.0 / (1.0 - p))
}

/// Counters that go through Philox together.
const LANES: usize = 16;

/// `[word][lane]`: a counter a lane.
#[inline(always)]
fn philox<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        let last = counter;
        for lane in 0..N {
            let first = u64::from(last[0][lane]) * 0xD251_1F53;
            let second = u64::from(last[2][lane]) * 0xCD9E_8D57;
            counter[0][lane] = (second >> 32) as u32 ^ last[1][lane] ^ key[0];
            counter[1][lane] = second as u32;
            counter[2][lane] = (first >> 32) as u32 ^ last[3][lane] ^ key[1];
            counter[3][lane] = first as u32;
        }
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
        let one = |counter: [u32; 4], key| philox(counter.map(|x| [x]), key).map(|[x]| x);
        assert_eq!(one([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            one([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            one([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn neighbours_at_once_are_the_same() {
        let mask = KeepMask::new(0.4, &Call::with_seed(3)).unwrap();
        for (first, len) in [(0, 1), (0, 200), (3, 64), (63, 2), (129, 77)] {
            let mut weights = vec![2.0_f32; len];
            mask.apply(5, 6, first, &mut weights);
            for (i, w) in weights.into_iter().enumerate() {
                assert_eq!(w, 2.0 * mask.factor(5, 6, first + i) as f32, "{first} + {i}");
            }
        }
    }

    #[test]
    fn share_dropped_is_p() {
        let mask = KeepMask::new(0.3, &Call::with_seed(7)).unwrap();
        let dropped =
            (0..100_000).filter(|i| mask.factor(i / 1000, i % 1000, i % 97) == 0.0).count();
        assert!((29_000..31_000).contains(&dropped), "{dropped}");
    }
}
