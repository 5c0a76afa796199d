#![no_main]
//! Five bytes of shape, then JSON: what is accepted must compute without a panic.

use libfuzzer_sys::fuzz_target;
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, ErrorBudget, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, ReferenceQuirks,
};

fuzz_target!(|data: &[u8]| {
    let [batch, n, keys, d, bits, json @ ..] = data else { return };
    let Ok(config) = serde_json::from_slice::<LocalAttentionConfig>(json) else { return };
    // What is read is written back the same.
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<LocalAttentionConfig>(&text).unwrap(), config);
    let Ok(attention) = LocalAttention::new(config) else { return };
    let attention = attention.with_quirks(if bits & 1 == 1 { ReferenceQuirks::NONE } else { ReferenceQuirks::ALL });
    let (batch, n, d) = (usize::from(batch % 4), usize::from(n % 40), usize::from(d % 20));
    let keys = usize::from(keys % 40);
    let mut shape = AttentionShape::new([batch], n, d).with_key_len(keys);
    if bits & 2 != 0 {
        shape = shape.with_window(i64::from(bits >> 4));
    }
    if bits & 4 != 0 {
        shape = shape.with_mask(1, n);
    }
    let Ok(problem) = attention.problem(&shape) else { return };
    let x: Vec<f32> = (0..batch * n.max(keys) * d).map(|i| (i as f32 * 0.7).sin()).collect();
    let t = |n: usize| HostTensor::new(&x[..batch * n * d], [batch, n, d]).unwrap();
    let mut inputs = HostInputs::new(t(n), t(keys), t(keys));
    if bits & 4 != 0 {
        let mask: Vec<bool> = (0..n).map(|u| u % 3 != usize::from(bits >> 6)).collect();
        inputs = inputs.with_mask(HostTensor::new(mask, [1, n]).unwrap());
    }
    let call = if bits & 8 != 0 { Call::with_seed(1) } else { Call::default() };
    let fast = Cpu::new().forward(&problem, &inputs, &call).unwrap();
    let wide = inputs.map(f64::from);
    let budget = ErrorBudget::measure_call(&problem, &wide, &call).unwrap();
    let finite = budget.oracle.iter().all(|x| x.is_finite());
    // A scale or decay beyond f32 may overflow; what stays small must be right.
    if finite && budget.max_logit < 100.0 {
        for (a, b) in fast.out.iter().zip(&budget.oracle) {
            assert!((f64::from(*a) - b).abs() < 1e-3, "{a} {b} {problem:?}");
        }
    }
});
