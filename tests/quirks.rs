//! Each artefact of the reference, on and off, on every engine, by what it promises.

mod common;

use common::Noise;
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, Forward, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, Reference, ReferenceQuirks,
};

const D: usize = 8;

fn tensor(data: &[f32]) -> HostTensor<'static, f32> {
    HostTensor::new(data.to_vec(), [1, data.len() / D, D]).unwrap()
}

/// The result of both f32 engines, which must agree.
fn forward(
    config: LocalAttentionConfig,
    quirks: ReferenceQuirks,
    inputs: &HostInputs<'_, f32>,
) -> Forward<f32> {
    let attention = LocalAttention::new(config).unwrap().with_quirks(quirks);
    let shape = AttentionShape::from_inputs(inputs).unwrap().with_lse();
    let problem = attention.problem(&shape).unwrap();
    let fast = Cpu::new().forward(&problem, inputs, &Call::default()).unwrap();
    let plain = Reference::<f32>::new().forward(&problem, inputs, &Call::default()).unwrap();
    assert!(close(&fast.out, &plain.out), "{:?} {:?}", fast.out, plain.out);
    fast
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-5)
}

fn random(n: usize, seed: usize) -> HostInputs<'static, f32> {
    let mut noise = Noise::new(seed);
    let [q, k, v] = [(); 3].map(|()| noise.normals(n * D));
    HostInputs::new(tensor(&q), tensor(&k), tensor(&v))
}

fn without(change: impl Fn(&mut ReferenceQuirks)) -> ReferenceQuirks {
    let mut quirks = ReferenceQuirks::ALL;
    change(&mut quirks);
    quirks
}

#[test]
fn tail_aligned_rotary() {
    // With the true distance, where windows lie does not matter: a window of 8 that looks one
    // window around gives what windows of 4 that look as far give, where both see everything.
    let inputs = random(8, 1);
    let off = without(|q| q.tail_aligned_rotary = false);
    let wide = LocalAttentionConfig::new(8).dim(D as i64);
    let narrow = LocalAttentionConfig::new(4).dim(D as i64).look_backward(2).look_forward(2);
    let true_wide = forward(wide.clone(), off, &inputs).out;
    assert!(close(&true_wide, &forward(narrow.clone(), off, &inputs).out));
    // The reference shifts queries by look_forward * window: here 8 in both, so they agree with
    // each other, but not with the true distance.
    let shifted = forward(wide, ReferenceQuirks::ALL, &inputs).out;
    assert!(!close(&true_wide, &shifted));
    assert!(close(&shifted, &forward(narrow, ReferenceQuirks::ALL, &inputs).out));
    // Without windows ahead there is nothing to shift.
    let causal = LocalAttentionConfig::new(4).dim(D as i64).causal(true);
    assert_eq!(
        forward(causal.clone(), off, &inputs),
        forward(causal, ReferenceQuirks::ALL, &inputs)
    );
}

#[test]
fn visible_autopad_keys() {
    let config = LocalAttentionConfig::new(8).autopad(true);
    let inputs = random(5, 2);
    let visible = forward(config.clone(), ReferenceQuirks::ALL, &inputs);
    let hidden = forward(config.clone(), without(|q| q.visible_autopad_keys = false), &inputs);
    assert!(!close(&visible.out, &hidden.out));
    // Hidden is what an all-true mask gives, and what the sequence alone gives.
    let mask = HostTensor::new(vec![true; 5], [1, 5]).unwrap();
    let masked = forward(config, ReferenceQuirks::ALL, &inputs.clone().with_mask(mask));
    assert!(close(&masked.out, &hidden.out));
    assert!(close(
        &forward(LocalAttentionConfig::new(5), ReferenceQuirks::ALL, &inputs).out,
        &hidden.out
    ));
    // Visible is what zeros appended by hand give: keys 0, values 0.
    let append =
        |t: &HostTensor<'_, f32>| tensor(&t.iter().chain([0.0; 3 * D]).collect::<Vec<_>>());
    let by_hand = HostInputs::new(append(&inputs.q), append(&inputs.k), append(&inputs.v));
    let by_hand = forward(LocalAttentionConfig::new(8), ReferenceQuirks::ALL, &by_hand);
    assert!(close(&by_hand.out[..5 * D], &visible.out));
}

#[test]
fn uniform_masked_rows() {
    // Windows of 2, causal: the first window gathers 2 slots before the sequence and its own keys.
    let config = LocalAttentionConfig::new(2).causal(true);
    let mut mask = vec![true; 6];
    mask[..2].fill(false);
    let inputs = random(6, 3).with_mask(HostTensor::new(mask, [1, 6]).unwrap());
    let on = forward(config.clone(), ReferenceQuirks::ALL, &inputs);
    let off = forward(config.clone(), without(|q| q.uniform_masked_rows = false), &inputs);
    let v: Vec<_> = inputs.v.iter().collect();
    for t in 0..2 {
        let mean: Vec<f32> = (0..D).map(|c| (v[c] + v[D + c] - 2.0) / 4.0).collect();
        assert!(close(&on.out[t * D..][..D], &mean));
        assert_eq!(off.out[t * D..][..D], [0.0; D]);
        assert_eq!(on.lse.as_ref().unwrap()[t], -f32::MAX);
        assert_eq!(off.lse.as_ref().unwrap()[t], -f32::MAX);
    }
    assert_eq!(on.out[2 * D..], off.out[2 * D..]);
}

#[test]
fn rows_whose_bias_is_minus_infinity() {
    // A bias of -inf on all that a query sees sends its weight to what it does not see.
    let config = LocalAttentionConfig::new(2).causal(true);
    for floor in [f32::NEG_INFINITY, -1e35, f32::MIN] {
        let bias = HostTensor::new(vec![floor; 1], [1, 1, 1]).unwrap();
        let inputs = random(4, 4).with_attn_bias(bias);
        let v: Vec<_> = inputs.v.iter().collect();
        let out = forward(config.clone(), ReferenceQuirks::ALL, &inputs).out;
        // Query 0 sees key 0; hidden are two slots of -1 and key 1.
        let first: Vec<f32> = (0..D).map(|c| (v[D + c] - 2.0) / 3.0).collect();
        assert!(close(&out[..D], &first));
        // Query 3 sees all its slots: nothing is left, and the row is 0.
        assert_eq!(out[3 * D..], [0.0; D]);
        let off = without(|q| q.uniform_masked_rows = false);
        assert_eq!(forward(config.clone(), off, &inputs).out, [0.0; 4 * D]);
    }
    // -1e30 itself is a finite bias: the same for all keys, it takes the logits' place. So says the
    // oracle in f64 too.
    let bias = || HostTensor::new(vec![-1e30_f32; 1], [1, 1, 1]).unwrap();
    let inputs = random(4, 4).with_attn_bias(bias());
    let out = forward(config.clone(), ReferenceQuirks::ALL, &inputs).out;
    let v: Vec<_> = inputs.v.iter().collect();
    assert!(close(&out[..D], &v[..D]), "query 0 sees itself alone");
    let shape = AttentionShape::from_inputs(&inputs).unwrap();
    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
    let truth = Reference::<f64>::new()
        .forward(&problem, &inputs.map(f64::from), &Call::default())
        .unwrap();
    let narrow: Vec<f32> = truth.out.iter().map(|&x| x as f32).collect();
    assert!(close(&narrow[..D], &v[..D]));
}

/// What a mask hides may have any bias, and what f32 can hold stays finite.
#[test]
fn biases_at_the_end_of_f32() {
    let config = LocalAttentionConfig::new(2).causal(true);
    let plain = forward(config.clone(), ReferenceQuirks::ALL, &random(4, 5)).out;
    let bias = HostTensor::new(vec![3e38_f32; 1], [1, 1, 1]).unwrap();
    let inputs = random(4, 5).with_attn_bias(bias);
    // All logits are 3e38: the mean of what is seen.
    let out = forward(config.clone(), ReferenceQuirks::ALL, &inputs).out;
    assert!(out.iter().all(|x| x.is_finite()));
    assert!(close(&out[..D], &plain[..D]));
    for hidden in [f32::INFINITY, f32::NAN] {
        // Slot 0 of the second window is key 0, which the mask hides.
        let bias = HostTensor::new(vec![hidden, 0.0, 0.0, 0.0], [1, 1, 4]).unwrap();
        let mask = HostTensor::new(vec![false, true, true, true], [1, 4]).unwrap();
        let inputs = random(4, 5).with_attn_bias(bias).with_mask(mask);
        let out = forward(config.clone(), ReferenceQuirks::ALL, &inputs).out;
        assert!(out[2 * D..].iter().all(|x| x.is_finite()), "{out:?}");
    }
}

/// Few keys, hidden padding, and a window of the call far below the constructor's: queries past the
/// last key see nothing, however far past it they are.
#[test]
fn queries_far_past_the_last_key() {
    for (window, n, keys) in [(2000, 2000, 1), (2000, 1999, 3), (600, 600, 2)] {
        for bits in 0..32 {
            let on = |bit: u32| bits >> bit & 1 == 1;
            let config = LocalAttentionConfig::new(window)
                .causal(on(0))
                .exact_windowsize(on(1))
                .look_backward(i64::from(on(2)))
                .autopad(true)
                .dim(2)
                .use_xpos(true);
            let mut quirks = ReferenceQuirks::NONE;
            quirks.uniform_masked_rows = on(3);
            quirks.tail_aligned_rotary = on(4);
            let data: Vec<f32> = (0..n * 2).map(|i| (i as f32 * 0.37).sin()).collect();
            let t = |n: usize| HostTensor::new(&data[..n * 2], [n, 2]).unwrap();
            let inputs = HostInputs::new(t(n), t(keys), t(keys));
            let attention = LocalAttention::new(config).unwrap().with_quirks(quirks);
            let shape = AttentionShape::new([], n, 2).with_key_len(keys).with_window(1);
            let problem = attention.problem(&shape).unwrap();
            let call = Call::default();
            let fast = Cpu::new().forward(&problem, &inputs, &call).unwrap();
            let plain = Reference::<f32>::new().forward(&problem, &inputs, &call).unwrap();
            assert!(close(&fast.out, &plain.out), "n {n}, {keys} keys, options {bits:#b}");
        }
    }
}
