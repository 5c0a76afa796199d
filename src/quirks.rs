//! The artefacts of the reference that can be switched off.

/// Artefacts of the reference, each reproduced by default and each a switch.
///
/// They are no part of [`LocalAttentionConfig`](crate::LocalAttentionConfig) or its JSON; set them
/// with [`LocalAttention::with_quirks`](crate::LocalAttention::with_quirks).
///
/// ```
/// use local_attention::ReferenceQuirks;
///
/// assert_eq!(ReferenceQuirks::default(), ReferenceQuirks::ALL);
/// let mut quirks = ReferenceQuirks::ALL;
/// quirks.visible_autopad_keys = false;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct ReferenceQuirks {
    /// Queries are rotated as if they stood in the *last* window their window sees, so with
    /// windows ahead every distance is `look_forward * window_size` too long. Off: the true
    /// distance. Switch it off when you train a new non-causal model with rotary embeddings and
    /// have no reference weights to stay compatible with.
    pub tail_aligned_rotary: bool,
    /// The zeros that `autopad` appends are attended like keys wherever window, causality and mask
    /// allow it. Off: they are hidden. Switch it off when a non-causal result must not depend on
    /// how far a sequence is padded and you pass no mask.
    pub visible_autopad_keys: bool,
    /// A query that sees no key gets the mean over every slot it does not see: values it must not
    /// know, and -1 for slots outside the sequence. Off: such rows are zero. Switch it off when
    /// whole rows of a padded batch are masked and their output must stay neutral.
    pub uniform_masked_rows: bool,
}

impl ReferenceQuirks {
    /// Everything as the reference does it: the default.
    pub const ALL: Self =
        Self { tail_aligned_rotary: true, visible_autopad_keys: true, uniform_masked_rows: true };

    /// The sane set: none of the artefacts.
    pub const NONE: Self = Self {
        tail_aligned_rotary: false,
        visible_autopad_keys: false,
        uniform_masked_rows: false,
    };
}

impl Default for ReferenceQuirks {
    fn default() -> Self {
        Self::ALL
    }
}
