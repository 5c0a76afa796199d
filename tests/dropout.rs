//! Dropout: only with a seed, the same elements on every engine, right on average.

mod common;

use common::Noise;
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Dropout, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, Reference,
};

#[test]
fn dropout_is_seeded_and_unbiased() {
    let (n, d) = (32, 4);
    let mut noise = Noise::new(5);
    let [q, k, v] = [(); 3].map(|()| HostTensor::new(noise.normals(n * d), [1, n, d]).unwrap());
    let inputs = HostInputs::new(q, k, v);
    let shape = AttentionShape::from_inputs(&inputs).unwrap();
    let problem = |p: f64| {
        LocalAttention::new(LocalAttentionConfig::new(8).dropout(p))
            .unwrap()
            .problem(&shape)
            .unwrap()
    };
    let cpu = Cpu::new();
    let run = |p: f64, call: Call| cpu.forward(&problem(p), &inputs, &call).unwrap().out;
    let kept = run(0.0, Call::default());
    assert_eq!(run(0.4, Call::default()), kept, "without a seed nothing is dropped");
    assert_eq!(run(0.0, Call::with_seed(1)), kept, "with p = 0 nothing is dropped");
    assert_eq!(run(0.4, Call::with_seed(1)), run(0.4, Call::with_seed(1)));
    assert_ne!(run(0.4, Call::with_seed(1)), run(0.4, Call::with_seed(2)));
    let offset = |offset| Call::with_dropout(Dropout { seed: 1, offset });
    assert_eq!(run(0.4, Call::with_seed(1)), run(0.4, offset(0)));
    assert_ne!(run(0.4, offset(1)), run(0.4, offset(0)));

    // The mean over many seeds is the output without dropout.
    let seeds = 4000;
    let mut mean = vec![0.0_f64; kept.len()];
    for seed in 0..seeds {
        for (m, x) in mean.iter_mut().zip(run(0.4, Call::with_seed(seed))) {
            *m += f64::from(x) / seeds as f64;
        }
    }
    for (m, x) in mean.iter().zip(&kept) {
        assert!((m - f64::from(*x)).abs() < 0.05, "{m} {x}");
    }

    // The oracle drops the same elements, also in rows that see nothing and average over slots.
    let mask = HostTensor::new(vec![false; n], [1, n]).unwrap();
    let masked = inputs.clone().with_mask(mask);
    let problem = LocalAttention::new(LocalAttentionConfig::new(8).dropout(0.4))
        .unwrap()
        .problem(&shape.clone().with_mask(1, n))
        .unwrap();
    let a = cpu.forward(&problem, &masked, &Call::with_seed(9)).unwrap().out;
    let b = Reference::<f32>::new().forward(&problem, &masked, &Call::with_seed(9)).unwrap().out;
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    // Rows of one window differ now: each drops its own slots.
    assert_ne!(a[..d], a[d..2 * d]);
}
