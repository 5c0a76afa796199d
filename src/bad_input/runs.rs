use super::*;
use crate::BackwardInputs;
use crate::cpu::{Cpu, GradientsMut, Isa};

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
    let into = |shape: &AttentionShape, out: usize, lse: usize| {
        let problem = attention.problem(shape).unwrap();
        let (mut out, mut lse) = (vec![0.0; out], vec![0.0; lse]);
        Cpu::new()
            .forward_into(&problem, &good(), &Call::default(), &mut out, &mut lse)
            .unwrap_err()
    };
    // Of a backward pass: shapes of out, lse and dout.
    let back = |shapes: [&[usize]; 3]| {
        let problem = attention.problem(&shape).unwrap();
        let [out, lse, dout] = shapes.map(t);
        let saved = BackwardInputs::from_tensors(out, lse, dout);
        let call = Call::default();
        let error = Cpu::new().backward(&problem, &good(), &saved, &call).unwrap_err();
        let other = Reference::<f32>::new().backward(&problem, &good(), &saved, &call);
        assert_eq!(other.unwrap_err(), error);
        error
    };
    let no_lse = || {
        let problem = attention.problem(&shape).unwrap();
        let forward = Cpu::new().forward(&problem, &good(), &Call::default()).unwrap();
        BackwardInputs::new(&problem, &forward, t(&all)).unwrap_err()
    };
    // Into memory of these lengths.
    let back_into = |with_bias: bool, lengths: [usize; 3], bias: Option<usize>| {
        let inputs = if with_bias { good().with_attn_bias(t(&[1, 4, 1])) } else { good() };
        let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
        let saved = BackwardInputs::from_tensors(t(&all), t(&[2, 8]), t(&all));
        let [mut dq, mut dk, mut dv] = lengths.map(|n| vec![0.0; n]);
        let mut bias = bias.map(|n| vec![0.0; n]);
        let dattn_bias = bias.as_deref_mut();
        let to = GradientsMut { dq: &mut dq, dk: &mut dk, dv: &mut dv, dattn_bias };
        Cpu::new().backward_into(&problem, &inputs, &saved, &Call::default(), to).unwrap_err()
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
            (
                "TensorShape",
                "input_mask has shape [8]",
                run(&masked, good().with_input_mask(mask(&[8]))),
            ),
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
                "input_mask was given",
                run(&shape, good().with_input_mask(mask(&[1, 8]))),
            ),
            (
                "UnexpectedTensor",
                "attn_bias was given",
                run(&shape, good().with_attn_bias(t(&[1, 1, 1]))),
            ),
            ("ResultLength", "out has room for 63", into(&shape, 63, 0)),
            ("ResultLength", "lse has room for 1 elements", into(&shape, 64, 1)),
            ("ResultLength", "lse has room for 0", into(&shape.clone().with_lse(), 64, 0)),
            ("TensorShape", "out has shape [2, 8, 3]", back([&[2, 8, 3], &[2, 8], &all])),
            ("TensorShape", "lse has shape [2, 8, 1]", back([&all, &[2, 8, 1], &all])),
            ("TensorShape", "dout has shape [16, 4]", back([&all, &[2, 8], &[16, 4]])),
            ("MissingTensor", "lse is missing", no_lse()),
            ("MissingTensor", "dattn_bias is missing", back_into(true, [64, 64, 64], None)),
            ("UnexpectedTensor", "dattn_bias was given", back_into(false, [64, 64, 64], Some(4))),
            ("ResultLength", "dq has room for 63", back_into(false, [63, 64, 64], None)),
            ("ResultLength", "dk has room for 0", back_into(false, [64, 0, 64], None)),
            ("ResultLength", "dv has room for 65", back_into(false, [64, 64, 65], None)),
            ("ResultLength", "dattn_bias has room for 3", back_into(true, [64, 64, 64], Some(3))),
            ("Queries", "queries is 1..3", weights(1..3)),
            ("Queries", "queries is 3..7", weights(3..7)),
            ("Queries", "queries is 4..3", weights(std::ops::Range { start: 4, end: 3 })),
            ("OutOfMemory", "out of", vast(1 << 40)),
            ("OutOfMemory", "lse of", vast_lse()),
            ("OutOfMemory", "scratch of", vast_features(false)[0].clone()),
            ("OutOfMemory", "keys of a window of", vast_features(false)[1].clone()),
            ("OutOfMemory", "rotary frequencies of", vast_features(true)[0].clone()),
            ("OutOfMemory", "rotary frequencies of", vast_features(true)[1].clone()),
            ("OutOfMemory", "attention weights of", many_weights()),
            ("OutOfMemory", "the pattern of", vast_pattern()),
            ("Threads", "threads is 0", Cpu::with_threads(0).unwrap_err()),
            ("Threads", "1 to 1024", Cpu::with_threads(usize::MAX).unwrap_err()),
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

/// A head_dim that no memory holds, of tensors that repeat one number: on the engine and the oracle.
fn vast_features(rotary: bool) -> [RunError; 2] {
    let d = 1 << 44;
    let config = if rotary { config(4).dim(d as i64) } else { config(4) };
    let attention = LocalAttention::new(config).unwrap();
    let s = |d: usize| HostTensor::strided(&[0.0_f32][..], 0, [8, d], [0, 0]).unwrap();
    let problem = attention.problem(&AttentionShape::new([], 8, d).with_value_dim(1)).unwrap();
    let inputs = HostInputs::new(s(d), s(d), s(1));
    let oracle = Reference::<f32>::new();
    let errors = [
        Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap_err(),
        oracle.forward(&problem, &inputs, &Call::default()).unwrap_err(),
    ];
    assert_eq!(Cpu::new().weights(&problem, &inputs, 0..1).unwrap_err(), errors[0]);
    assert_eq!(oracle.weights(&problem, &inputs, 0..1).unwrap_err(), errors[1]);
    errors
}

/// Rows without values: nothing to compute, unless their lse is asked for.
fn vast_lse() -> RunError {
    let attention = LocalAttention::new(config(4)).unwrap();
    let rows = u32::MAX as usize;
    let s = |d: usize| HostTensor::strided(&[0.0_f32][..], 0, [rows, 1 << 12, d], [0; 3]).unwrap();
    let inputs = HostInputs::new(s(4), s(4), s(0));
    let shape = AttentionShape::new([rows], 1 << 12, 4).with_value_dim(0);
    let problem = attention.problem(&shape).unwrap();
    let oracle = Reference::<f32>::new();
    assert_eq!(Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap().out, [0.0; 0]);
    assert_eq!(oracle.forward(&problem, &inputs, &Call::default()).unwrap().out, [0.0; 0]);
    assert_eq!(Cpu::new().weights(&problem, &inputs, 3..3).unwrap().weights, [0.0; 0]);
    let problem = attention.problem(&shape.with_lse()).unwrap();
    let error = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap_err();
    assert_eq!(oracle.forward(&problem, &inputs, &Call::default()).unwrap_err(), error);
    error
}

/// A picture of two thousand million queries.
fn vast_pattern() -> RunError {
    let attention = LocalAttention::new(config(1)).unwrap();
    let problem = attention.problem(&AttentionShape::new([1], MAX_POSITIONS, 1)).unwrap();
    problem.geometry().pattern_svg().unwrap_err();
    problem.geometry().pattern_text(0..MAX_POSITIONS).unwrap_err()
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
