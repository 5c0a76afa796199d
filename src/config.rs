//! The reference's constructor arguments, with its names and defaults.

use crate::ConfigError;

/// Constructor arguments of the PyTorch module `LocalAttention` (local-attention 1.11.2).
///
/// Names, defaults and interactions are the reference's. With the feature `serde` the same names
/// are its JSON fields; an unknown field is an error. Values are checked by
/// [`LocalAttention::new`](crate::LocalAttention::new), and only where they have an effect.
///
/// ```
/// use local_attention::{LocalAttention, LocalAttentionConfig};
///
/// let config = LocalAttentionConfig::new(128).causal(true).look_backward(1).dim(64);
/// assert!(LocalAttention::new(config).is_ok());
///
/// let error = LocalAttention::new(LocalAttentionConfig::new(0)).unwrap_err();
/// assert_eq!(error.to_string(), "window_size is 0: it must be at least 1");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct LocalAttentionConfig {
    /// Positions in a window. Required, at least 1.
    pub window_size: i64,
    /// Whether a query sees no later key. Default `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub causal: bool,
    /// **Windows** (not positions) before the query's own that it sees. Default 1.
    #[cfg_attr(feature = "serde", serde(default = "one"))]
    pub look_backward: i64,
    /// **Windows** after the query's own that it sees. Default: 0 if causal, else 1.
    #[cfg_attr(feature = "serde", serde(default))]
    pub look_forward: Option<i64>,
    /// Probability with which a softmax weight is dropped, in `[0, 1)`. Takes effect only in calls
    /// that bring a seed. Default 0.
    #[cfg_attr(feature = "serde", serde(default))]
    pub dropout: f64,
    /// Keys are l2-normalised, and a query sees its own position with a logit of -5e4. Default
    /// `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub shared_qk: bool,
    /// Legacy: where given, its first element overrides `dim`; the others are ignored.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "legacy"))]
    pub rel_pos_emb_config: Option<Vec<i64>>,
    /// Rotary dimension; must equal the head dimension. **Unset means no rotary embedding at all**,
    /// as in the reference, whatever `use_rotary_pos_emb` says.
    #[cfg_attr(feature = "serde", serde(default))]
    pub dim: Option<i64>,
    /// Pad sequences with zeros to a multiple of `window_size`. Default `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub autopad: bool,
    /// Also limit the distance: `window_size * look_backward` positions back and
    /// `window_size * look_forward` ahead. Default `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub exact_windowsize: bool,
    /// Factor on the logits before the bias. Default `head_dim^-0.5`; 0 is honoured.
    #[cfg_attr(feature = "serde", serde(default))]
    pub scale: Option<f64>,
    /// `false` switches rotary embeddings off even if `dim` is given. Default `true`.
    #[cfg_attr(feature = "serde", serde(default = "yes"))]
    pub use_rotary_pos_emb: bool,
    /// xpos decay on the rotary embedding; it also permits calls that override the window. Default
    /// `false`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub use_xpos: bool,
    /// Positions over which xpos decays by one power. Default `window_size // 2`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub xpos_scale_base: Option<f64>,
}

#[cfg(feature = "serde")]
fn one() -> i64 {
    1
}

#[cfg(feature = "serde")]
fn yes() -> bool {
    true
}

/// Reads `rel_pos_emb_config`: its first element is an integer, the others may be anything and are
/// kept where they are integers.
#[cfg(feature = "serde")]
fn legacy<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<i64>>, D::Error> {
    use serde::Deserialize;
    use serde::de::{Error, IgnoredAny};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Integer(i64),
        Other(IgnoredAny),
    }
    let Some(entries) = Option::<Vec<Entry>>::deserialize(from)? else { return Ok(None) };
    if let Some(Entry::Other(_)) = entries.first() {
        return Err(D::Error::custom("the first element of rel_pos_emb_config must be an integer"));
    }
    let integers = entries.into_iter().filter_map(|e| match e {
        Entry::Integer(x) => Some(x),
        Entry::Other(_) => None,
    });
    Ok(Some(integers.collect()))
}

/// One builder method a field: `name(value)`.
macro_rules! builder {
    ($($name:ident: $type:ty => $set:expr;)*) => {
        $(
            #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $set($name);
                self
            }
        )*
    };
}

impl LocalAttentionConfig {
    /// The reference's defaults with this window size.
    pub fn new(window_size: i64) -> Self {
        Self {
            window_size,
            causal: false,
            look_backward: 1,
            look_forward: None,
            dropout: 0.0,
            shared_qk: false,
            rel_pos_emb_config: None,
            dim: None,
            autopad: false,
            exact_windowsize: false,
            scale: None,
            use_rotary_pos_emb: true,
            use_xpos: false,
            xpos_scale_base: None,
        }
    }

    builder! {
        causal: bool => |v| v;
        look_backward: i64 => |v| v;
        look_forward: i64 => Some;
        dropout: f64 => |v| v;
        shared_qk: bool => |v| v;
        rel_pos_emb_config: Vec<i64> => Some;
        dim: i64 => Some;
        autopad: bool => |v| v;
        exact_windowsize: bool => |v| v;
        scale: f64 => Some;
        use_rotary_pos_emb: bool => |v| v;
        use_xpos: bool => |v| v;
        xpos_scale_base: f64 => Some;
    }

    /// `look_forward`, or its default.
    pub(crate) fn look_forward_or_default(&self) -> i64 {
        self.look_forward.unwrap_or(if self.causal { 0 } else { 1 })
    }

    /// The rotary dimension and the name of the argument it comes from; `None` with rotary off.
    pub(crate) fn rotary_dim(&self) -> Result<Option<(&'static str, i64)>, ConfigError> {
        match (&self.rel_pos_emb_config, self.dim) {
            _ if !self.use_rotary_pos_emb => Ok(None),
            (Some(legacy), _) => match legacy.first() {
                Some(&dim) => Ok(Some(("rel_pos_emb_config[0]", dim))),
                None => Err(ConfigError::RelPosEmbConfigEmpty),
            },
            (None, Some(dim)) => Ok(Some(("dim", dim))),
            (None, None) => Ok(None),
        }
    }

    /// What the xpos exponents are divided by.
    pub(crate) fn xpos_scale_base_or_default(&self) -> f64 {
        self.xpos_scale_base.unwrap_or(self.window_size.div_euclid(2) as f64)
    }

    /// Rejects what the reference rejects, and what it accepts by accident.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let look_forward = self.look_forward_or_default();
        if self.window_size < 1 {
            return Err(ConfigError::WindowSize { got: self.window_size });
        }
        if self.look_backward < 0 {
            return Err(ConfigError::LookBackward { got: self.look_backward });
        }
        if look_forward < 0 {
            return Err(ConfigError::LookForward { got: look_forward });
        }
        if self.causal && look_forward > 0 {
            return Err(ConfigError::CausalLookForward { got: look_forward });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::Dropout { got: self.dropout });
        }
        if let Some(scale) = self.scale.filter(|s| !(*s as f32).is_finite()) {
            return Err(ConfigError::Scale { got: scale });
        }
        if let Some((argument, got)) = self.rotary_dim()? {
            if got < 2 || got % 2 != 0 {
                return Err(ConfigError::RotaryDim { argument, got });
            }
            let base = self.xpos_scale_base_or_default();
            if self.use_xpos && (base == 0.0 || !base.is_finite()) {
                return Err(ConfigError::XposScaleBase {
                    got: base,
                    defaulted: self.xpos_scale_base.is_none(),
                });
            }
        }
        Ok(())
    }
}
