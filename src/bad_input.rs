//! Every error variant, from every public argument that can cause it. The lists of variants are
//! exhaustive matches: a new variant does not build until it stands here, and does not pass until a
//! row causes it.

use std::collections::BTreeSet;

use crate::cpu::{Cpu, Isa};
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
variants!(run_variant, RUN, RunError: TensorShape, MissingTensor, UnexpectedTensor, Queries,
    OutOfMemory, Threads, Isa);

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
        assert!(!text.contains('\n'), "'{text}' has several lines");
        seen.insert(expected);
    }
    let missing: Vec<_> = all.iter().filter(|v| !seen.contains(**v)).collect();
    assert!(missing.is_empty(), "no row causes {missing:?}");
}

fn config(window: i64) -> LocalAttentionConfig {
    LocalAttentionConfig::new(window)
}

#[test]
fn configurations() {
    let rejected = |c| LocalAttention::new(c).unwrap_err();
    let nan = f64::NAN;
    assert_rows(
        CONFIG,
        config_variant,
        vec![
            ("WindowSize", "window_size is 0", rejected(config(0))),
            ("WindowSize", "window_size is -1", rejected(config(-1))),
            (
                "LookBackward",
                "look_backward is -1",
                rejected(config(4).look_backward(-1).look_forward(1)),
            ),
            ("LookForward", "look_forward is -2", rejected(config(4).look_forward(-2))),
            (
                "LookForward",
                "look_forward is -1",
                rejected(config(4).causal(true).look_forward(-1)),
            ),
            (
                "CausalLookForward",
                "look_forward is 1",
                rejected(config(4).causal(true).look_forward(1)),
            ),
            ("Dropout", "dropout is 1", rejected(config(4).dropout(1.0))),
            ("Dropout", "dropout is -0.1", rejected(config(4).dropout(-0.1))),
            ("Dropout", "dropout is NaN", rejected(config(4).dropout(nan))),
            ("RotaryDim", "dim is 3", rejected(config(4).dim(3))),
            ("RotaryDim", "dim is 0", rejected(config(4).dim(0))),
            ("RotaryDim", "dim is -2", rejected(config(4).dim(-2))),
            (
                "RotaryDim",
                "rel_pos_emb_config[0] is 5",
                rejected(config(4).dim(8).rel_pos_emb_config(vec![5, 1])),
            ),
            (
                "RelPosEmbConfigEmpty",
                "rel_pos_emb_config is []",
                rejected(config(4).dim(8).rel_pos_emb_config(vec![])),
            ),
            ("Scale", "scale is NaN", rejected(config(4).scale(nan))),
            ("Scale", "scale is inf", rejected(config(4).scale(f64::INFINITY))),
            (
                "XposScaleBase",
                "xpos_scale_base is 0",
                rejected(config(4).dim(8).use_xpos(true).xpos_scale_base(0.0)),
            ),
            ("XposScaleBase", "window_size // 2", rejected(config(1).dim(8).use_xpos(true))),
            (
                "XposScaleBase",
                "xpos_scale_base is NaN",
                rejected(config(4).dim(8).use_xpos(true).xpos_scale_base(nan)),
            ),
        ],
    );
    // Only what is in effect is rejected.
    for accepted in [
        config(4).dim(3).use_rotary_pos_emb(false),
        config(4).rel_pos_emb_config(vec![]).use_rotary_pos_emb(false),
        config(4).dim(3).rel_pos_emb_config(vec![8]),
        config(4).dim(8).xpos_scale_base(0.0),
        config(1).use_xpos(true),
        config(4).dim(8).use_xpos(true).xpos_scale_base(-8.0),
        config(4).scale(0.0).dropout(0.999),
        config(4).causal(true).look_forward(0).look_backward(0),
    ] {
        LocalAttention::new(accepted).unwrap();
    }
}

#[test]
fn shapes() {
    let rejected = |config: LocalAttentionConfig, shape: AttentionShape| {
        LocalAttention::new(config).unwrap().problem(&shape).unwrap_err()
    };
    let shape = || AttentionShape::new([2, 3], 8, 4);
    let padded = || config(4).autopad(true);
    let zeros =
        |shape: &[usize]| HostTensor::<f32>::new(vec![0.0; shape.iter().product()], shape).unwrap();
    let inputs = |q: &[usize], k: &[usize], v: &[usize]| {
        AttentionShape::from_inputs(&HostInputs::new(zeros(q), zeros(k), zeros(v))).unwrap_err()
    };
    let all = [2, 8, 4];
    let with_mask = |mask: &[usize]| {
        let mask = HostTensor::new(vec![true; mask.iter().product()], mask).unwrap();
        let inputs = HostInputs::new(zeros(&all), zeros(&all), zeros(&all));
        AttentionShape::from_inputs(&inputs.with_input_mask(mask)).unwrap_err()
    };
    let with_bias = |bias: &[usize]| {
        let inputs = HostInputs::new(zeros(&all), zeros(&all), zeros(&all));
        AttentionShape::from_inputs(&inputs.with_attn_bias(zeros(bias))).unwrap_err()
    };
    let strided = |offset, shape: &[usize], strides: &[isize]| {
        HostTensor::strided(&[0.0_f32; 6][..], offset, shape, strides).unwrap_err()
    };
    let huge = 1_usize << 31;
    assert_rows(
        SHAPE,
        shape_variant,
        vec![
            ("Rank", "q has shape [8]", inputs(&[8], &all, &all)),
            ("Rank", "k has shape [8]", inputs(&all, &[8], &all)),
            ("Rank", "v has shape [8]", inputs(&all, &all, &[8])),
            ("Rank", "mask has shape [8]", with_mask(&[8])),
            ("Rank", "mask has shape [2, 3, 8]", with_mask(&[2, 3, 8])),
            ("Rank", "attn_bias has shape [4, 8]", with_bias(&[4, 8])),
            ("Rank", "attn_bias has shape [1, 1, 4, 8]", with_bias(&[1, 1, 4, 8])),
            ("DataLength", "exactly 6", HostTensor::new(&[0.0_f32; 5][..], [2, 3]).unwrap_err()),
            (
                "DataLength",
                "more than",
                HostTensor::new(&[0.0_f32; 5][..], [usize::MAX, 3]).unwrap_err(),
            ),
            ("Strides", "strides [3]", strided(0, &[2, 3], &[3])),
            ("Strides", "offset 1", strided(1, &[2, 3], &[3, 1])),
            ("Strides", "strides [-3, 1]", strided(2, &[2, 3], &[-3, 1])),
            ("Strides", "strides", strided(0, &[usize::MAX, usize::MAX], &[0, isize::MAX])),
            ("Zero", "seq_len is 0", rejected(config(4), AttentionShape::new([1], 0, 4))),
            ("Zero", "head_dim is 0", rejected(config(4), AttentionShape::new([1], 4, 0))),
            (
                "TooLarge",
                "batch of q",
                rejected(config(4), AttentionShape::new([1 << 31, 4], 4, 4)),
            ),
            (
                "TooLarge",
                "batch of k and v",
                rejected(config(4), shape().with_kv_leading([1 << 31, 4])),
            ),
            ("TooLarge", "sequence length", rejected(config(1), AttentionShape::new([1], huge, 4))),
            (
                "TooLarge",
                "sequence length",
                rejected(config(1), AttentionShape::new([1], usize::MAX, 4)),
            ),
            ("TooLarge", "window_size", rejected(config(1 << 30), shape())),
            ("TooLarge", "look_backward", rejected(config(4).look_backward(i64::MAX), shape())),
            (
                "TooLarge",
                "look_forward",
                rejected(config(i64::MAX).look_forward(i64::MAX).look_backward(i64::MAX), shape()),
            ),
            ("QueryRange", "query is 4..9", rejected(config(4), shape().with_query(4..9))),
            (
                "QueryRange",
                "query is 5..4",
                rejected(config(4), shape().with_query(std::ops::Range { start: 5, end: 4 })),
            ),
            (
                "Window",
                "window_size (of the call) is 0",
                rejected(config(4).use_xpos(true), shape().with_window(0)),
            ),
            ("Window", "is -4", rejected(config(4).use_xpos(true), shape().with_window(-4))),
            ("WindowNeedsXpos", "xpos", rejected(config(4), shape().with_window(4))),
            (
                "Indivisible",
                "sequence length 8 must be divisible by window size 3",
                rejected(config(3), shape()),
            ),
            (
                "Indivisible",
                "sequence length 12 must be divisible by window size 8",
                rejected(padded().use_xpos(true), AttentionShape::new([1], 9, 4).with_window(8)),
            ),
            (
                "RotaryDim",
                "head_dim is 4 with a rotary dim of 6",
                rejected(config(4).dim(6), shape()),
            ),
            ("KeyLength", "k has length 7", rejected(config(4), shape().with_key_len(7))),
            ("KeyLength", "k has length 4", rejected(padded(), shape().with_key_len(4))),
            ("KeyLength", "k has length 9", rejected(padded(), shape().with_key_len(9))),
            ("KeyLength", "k has length 0", rejected(padded(), shape().with_key_len(0))),
            ("Mismatch", "k has shape [2, 8, 5]", inputs(&all, &[2, 8, 5], &all)),
            ("Mismatch", "v has shape [2, 7, 4]", inputs(&all, &all, &[2, 7, 4])),
            ("Mismatch", "v has shape [1, 8, 4]", inputs(&all, &all, &[1, 8, 4])),
            ("KvBatch", "batch of 2", rejected(config(4), shape().with_kv_leading([2, 1]))),
            ("Rows", "mask has 4 rows", rejected(config(4), shape().with_mask(4, 8))),
            (
                "Rows",
                "mask has 0 rows",
                rejected(config(4), AttentionShape::new([0], 8, 4).with_mask(0, 8)),
            ),
            ("Rows", "attn_bias has 5 rows", rejected(config(4), shape().with_bias(5, 1, 1))),
            ("Rows", "attn_bias has 0 rows", rejected(config(4), shape().with_bias(0, 1, 1))),
            ("MaskLength", "mask has length 7", rejected(config(4), shape().with_mask(1, 7))),
            ("MaskLength", "5 to 8", rejected(padded(), shape().with_mask(1, 4))),
            ("MaskLength", "mask has length 0", rejected(padded(), shape().with_mask(1, 0))),
            (
                "MaskLength",
                "mask has length 5",
                rejected(
                    padded().use_xpos(true),
                    AttentionShape::new([1], 5, 4).with_window(2).with_mask(1, 5),
                ),
            ),
            ("BiasSize", "query axis", rejected(config(4), shape().with_bias(1, 3, 1))),
            ("BiasSize", "slot axis", rejected(config(4), shape().with_bias(1, 4, 8))),
            ("BiasSize", "1 or 12", rejected(config(4), shape().with_bias(1, 4, 0))),
        ],
    );
    // What must stay accepted.
    for (config, shape) in [
        (config(4), AttentionShape::new([0], 8, 4)),
        (config(4), AttentionShape::new([], 8, 4)),
        (config(4), shape().with_query(3..3).with_value_dim(0)),
        (padded(), shape().with_key_len(5)),
        (padded(), AttentionShape::new([1], 7, 4).with_key_len(8).with_mask(1, 8)),
        (config(1 << 40).use_xpos(true), shape().with_window(4)),
        (config(4), shape().with_bias(6, 4, 12).with_mask(6, 8)),
    ] {
        LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    }
}

#[test]
fn runs() {
    let shape = AttentionShape::new([2], 8, 4);
    let attention = LocalAttention::new(config(4)).unwrap();
    let t =
        |shape: &[usize]| HostTensor::<f32>::new(vec![0.5; shape.iter().product()], shape).unwrap();
    let mask =
        |shape: &[usize]| HostTensor::new(vec![true; shape.iter().product()], shape).unwrap();
    let all = [2, 8, 4];
    let good = || HostInputs::new(t(&all), t(&all), t(&all));
    // Every engine checks the same.
    let run = |shape: &AttentionShape, inputs: HostInputs<'_, f32>| {
        let problem = attention.problem(shape).unwrap();
        let errors = [
            Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap_err(),
            Reference::<f32>::new().forward(&problem, &inputs, &Call::default()).unwrap_err(),
            Cpu::new().weights(&problem, &inputs, 0..1).unwrap_err(),
            Reference::<f32>::new().weights(&problem, &inputs, 0..1).unwrap_err(),
        ];
        assert!(errors.iter().all(|e| *e == errors[0]), "{errors:?}");
        errors[0].clone()
    };
    let weights = |queries: std::ops::Range<usize>| {
        let problem = attention.problem(&shape.clone().with_query(2..6)).unwrap();
        let inputs = HostInputs::new(t(&[2, 4, 4]), t(&all), t(&all));
        let error = Cpu::new().weights(&problem, &inputs, queries.clone()).unwrap_err();
        let other = Reference::<f32>::new().weights(&problem, &inputs, queries).unwrap_err();
        assert_eq!(error, other);
        error
    };
    // Strides of 0 make a tensor that fits, and an output that does not.
    let vast = |value_dim: usize| {
        let shape = AttentionShape::new([1 << 20], 8, 4).with_value_dim(value_dim);
        let s =
            |d: usize| HostTensor::strided(&[0.0_f32][..], 0, [1 << 20, 8, d], [0, 0, 0]).unwrap();
        run_only(&attention, &shape, HostInputs::new(s(4), s(4), s(value_dim)))
    };
    let masked = shape.clone().with_mask(1, 8);
    let biased = shape.clone().with_bias(1, 4, 1);
    assert_rows(
        RUN,
        run_variant,
        vec![
            (
                "TensorShape",
                "q has shape [2, 7, 4]",
                run(&shape, HostInputs::new(t(&[2, 7, 4]), t(&all), t(&all))),
            ),
            (
                "TensorShape",
                "k has shape [1, 8, 4]",
                run(&shape, HostInputs::new(t(&all), t(&[1, 8, 4]), t(&all))),
            ),
            (
                "TensorShape",
                "v has shape [2, 8, 3]",
                run(&shape, HostInputs::new(t(&all), t(&all), t(&[2, 8, 3]))),
            ),
            ("TensorShape", "mask has shape [2, 8]", run(&masked, good().with_mask(mask(&[2, 8])))),
            ("TensorShape", "mask has shape [8]", run(&masked, good().with_input_mask(mask(&[8])))),
            (
                "TensorShape",
                "attn_bias has shape [1, 1, 1]",
                run(&biased, good().with_attn_bias(t(&[1, 1, 1]))),
            ),
            ("MissingTensor", "mask is missing", run(&masked, good())),
            ("MissingTensor", "attn_bias is missing", run(&biased, good())),
            ("UnexpectedTensor", "mask was given", run(&shape, good().with_mask(mask(&[1, 8])))),
            (
                "UnexpectedTensor",
                "attn_bias was given",
                run(&shape, good().with_attn_bias(t(&[1, 1, 1]))),
            ),
            ("Queries", "queries is 1..3", weights(1..3)),
            ("Queries", "queries is 3..7", weights(3..7)),
            ("Queries", "queries is 4..3", weights(std::ops::Range { start: 4, end: 3 })),
            ("OutOfMemory", "out of", vast(1 << 40)),
            ("OutOfMemory", "scratch of", scratch()),
            ("OutOfMemory", "attention weights of", many_weights()),
            ("Threads", "threads is 0", Cpu::with_threads(0).unwrap_err()),
            ("Isa", "isa is", missing_isa()),
        ],
    );
}

fn run_only(
    attention: &LocalAttention,
    shape: &AttentionShape,
    inputs: HostInputs<'_, f32>,
) -> RunError {
    let problem = attention.problem(shape).unwrap();
    Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap_err()
}

/// A head_dim whose tiles do not fit, of tensors that repeat one number.
fn scratch() -> RunError {
    let d = 1 << 44;
    let attention = LocalAttention::new(config(4)).unwrap();
    let s = |d: usize| HostTensor::strided(&[0.0_f32][..], 0, [8, d], [0, 0]).unwrap();
    let shape = AttentionShape::new([], 8, d).with_value_dim(1);
    run_only(&attention, &shape, HostInputs::new(s(d), s(d), s(1)))
}

/// More slots than memory, for a thousand rows of ten queries.
fn many_weights() -> RunError {
    let attention = LocalAttention::new(config(1 << 29).autopad(true)).unwrap();
    let s = || HostTensor::strided(&[0.0_f32][..], 0, [1 << 20, 10, 2], [0, 0, 0]).unwrap();
    let problem = attention.problem(&AttentionShape::new([1 << 20], 10, 2)).unwrap();
    let inputs = HostInputs::new(s(), s(), s());
    let error = Reference::<f32>::new().weights(&problem, &inputs, 0..10).unwrap_err();
    assert_eq!(Cpu::new().weights(&problem, &inputs, 0..10).unwrap_err(), error);
    error
}

/// What asking for an instruction set says on a machine without it.
fn missing_isa() -> RunError {
    let absent = Isa::ALL.into_iter().find(|isa| !Isa::available().contains(isa));
    match absent {
        Some(isa) => Cpu::new().with_isa(isa).unwrap_err(),
        // This machine has all: the message alone can be checked.
        None => RunError::Isa { isa: "avx512", available: "portable".to_owned() },
    }
}
