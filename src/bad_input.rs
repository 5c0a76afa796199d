//! Every error variant, from every public argument that can cause it. The lists of variants are
//! exhaustive matches: a new variant does not build until it stands here, and does not pass until a
//! row causes it.

mod configurations;
mod runs;
mod shapes;

use std::collections::BTreeSet;

use crate::*;

/// The names of an enum's variants, and the name of a value's.
macro_rules! variants {
    ($of:ident, $all:ident, $type:ident: $($variant:ident),* $(,)?) => {
        fn $of(error: &$type) -> &'static str {
            match error {
                $($type::$variant { .. } => stringify!($variant),)*
            }
        }
        const $all: &[&str] = &[$(stringify!($variant)),*];
    };
}

variants!(config_variant, CONFIG, ConfigError: WindowSize, LookBackward, LookForward,
    CausalLookForward, Dropout, RotaryDim, RelPosEmbConfigEmpty, Scale, XposScaleBase);
variants!(shape_variant, SHAPE, ShapeError: Rank, DataLength, Strides, Zero, TooLarge, QueryRange,
    Window, WindowNeedsXpos, Indivisible, RotaryDim, KeyLength, Mismatch, KvBatch, Rows, MaskLength,
    BiasSize);
variants!(run_variant, RUN, RunError: TensorShape, MissingTensor, UnexpectedTensor,
    ResultLength, Queries, OutOfMemory, Threads, Isa);

/// Rows `(variant, argument named in the message, error)`: each must be of its variant, name its
/// argument and stand on one line; together they must cause all variants.
fn assert_rows<E: std::fmt::Display + std::fmt::Debug>(
    all: &[&str],
    variant: fn(&E) -> &'static str,
    rows: Vec<(&'static str, &'static str, E)>,
) {
    let mut seen = BTreeSet::new();
    for (expected, argument, error) in rows {
        let text = error.to_string();
        assert_eq!(variant(&error), expected, "{text}");
        assert!(text.contains(argument), "'{text}' does not name {argument}");
        // "mask has" stands in "input_mask has" too.
        assert!(!argument.starts_with("mask") || text.starts_with(argument), "'{text}'");
        assert!(!text.contains('\n'), "'{text}' has several lines");
        seen.insert(expected);
    }
    let missing: Vec<_> = all.iter().filter(|v| !seen.contains(**v)).collect();
    assert!(missing.is_empty(), "no row causes {missing:?}");
}

fn config(window: i64) -> LocalAttentionConfig {
    LocalAttentionConfig::new(window)
}
