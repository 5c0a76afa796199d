use super::*;

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
    let with_mask = |alias: bool, mask: &[usize]| {
        let mask = HostTensor::new(vec![true; mask.iter().product()], mask).unwrap();
        let inputs = HostInputs::new(zeros(&all), zeros(&all), zeros(&all));
        let inputs = if alias { inputs.with_input_mask(mask) } else { inputs.with_mask(mask) };
        AttentionShape::from_inputs(&inputs).unwrap_err()
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
            ("Rank", "mask has shape [8]", with_mask(false, &[8])),
            ("Rank", "mask has shape [2, 3, 8]", with_mask(false, &[2, 3, 8])),
            ("Rank", "input_mask has shape [8]", with_mask(true, &[8])),
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
            (
                "Rows",
                "mask (or input_mask) has 4 rows",
                rejected(config(4), shape().with_mask(4, 8)),
            ),
            (
                "Rows",
                "mask (or input_mask) has 0 rows",
                rejected(config(4), AttentionShape::new([0], 8, 4).with_mask(0, 8)),
            ),
            ("Rows", "attn_bias has 5 rows", rejected(config(4), shape().with_bias(5, 1, 1))),
            ("Rows", "attn_bias has 0 rows", rejected(config(4), shape().with_bias(0, 1, 1))),
            (
                "MaskLength",
                "mask (or input_mask) has length 7",
                rejected(config(4), shape().with_mask(1, 7)),
            ),
            ("MaskLength", "5 to 8", rejected(padded(), shape().with_mask(1, 4))),
            (
                "MaskLength",
                "mask (or input_mask) has length 0",
                rejected(padded(), shape().with_mask(1, 0)),
            ),
            (
                "MaskLength",
                "mask (or input_mask) has length 5",
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
