//! xpos far outside what f32 can hold: a decay by many powers over one window.

mod common;

use common::Noise;
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, ErrorBudget, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, ReferenceQuirks,
};

#[test]
fn steep_decay_stays_finite() {
    // zeta^(distance / base) down to 0.29^768: each factor alone leaves f32, their product is
    // between 0 and 1 wherever a causal query sees a key.
    for (window, base) in [(256, 1.0), (256, 0.25), (64, 0.01), (300, 3.0)] {
        let (n, d) = (2 * window, 16);
        let mut noise = Noise::new(window);
        let [q, k, v] = [(); 3].map(|()| HostTensor::new(noise.normals(n * d), [1, n, d]).unwrap());
        let inputs = HostInputs::new(q, k, v);
        let config = LocalAttentionConfig::new(window as i64)
            .causal(true)
            .look_backward(2)
            .dim(d as i64)
            .use_xpos(true)
            .xpos_scale_base(base);
        let shape = AttentionShape::from_inputs(&inputs).unwrap();
        let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
        let budget = ErrorBudget::measure(&problem, &inputs).unwrap();
        let out = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap().out;
        for (i, (&x, &y)) in out.iter().zip(&budget.oracle).enumerate() {
            let error = (f64::from(x) - y).abs();
            assert!(error <= budget.allowed(), "base {base}, element {i}: {x} for {y}");
        }
    }
}

#[test]
fn growth_ahead_stays_finite_where_the_product_does() {
    // Keys up to 7 windows ahead grow by e^70; counted from the middle of a block of several windows
    // they would leave f32.
    let (window, n, d) = (16, 512, 16);
    for (base, quirks) in [(2.0, false), (2.0, true), (-4.0, true)] {
        let mut noise = Noise::new(7);
        let [q, k, v] = [(); 3].map(|()| HostTensor::new(noise.normals(n * d), [1, n, d]).unwrap());
        let inputs = HostInputs::new(q, k, v);
        let config = LocalAttentionConfig::new(window)
            .look_backward(0)
            .look_forward(7)
            .dim(d as i64)
            .use_xpos(true)
            .xpos_scale_base(base);
        let mut on = ReferenceQuirks::ALL;
        on.tail_aligned_rotary = quirks;
        let attention = LocalAttention::new(config).unwrap().with_quirks(on);
        let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
        let budget = ErrorBudget::measure(&problem, &inputs).unwrap();
        let out = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap().out;
        assert!(budget.max_logit < 1e37, "{}", budget.max_logit);
        assert!(out.iter().all(|x| x.is_finite()), "base {base}");
        for (&x, &y) in out.iter().zip(&budget.oracle) {
            assert!((f64::from(x) - y).abs() <= budget.allowed(), "base {base}: {x} for {y}");
        }
    }
}
