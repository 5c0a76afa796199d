//! A window that covers the sequence is full attention, computed here with nothing of the library.

mod common;

use common::Noise;
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    Reference,
};

/// softmax(q k^T / sqrt(d), causal or not) v of one head.
fn full(q: &[f64], k: &[f64], v: &[f64], d: usize, causal: bool) -> Vec<f64> {
    let n = q.len() / d;
    let mut out = vec![0.0; n * d];
    for t in 0..n {
        let seen = if causal { t + 1 } else { n };
        let dot = |u: usize| -> f64 { (0..d).map(|c| q[t * d + c] * k[u * d + c]).sum() };
        let scores: Vec<f64> = (0..seen).map(|u| (dot(u) / (d as f64).sqrt()).exp()).collect();
        let sum: f64 = scores.iter().sum();
        for (u, score) in scores.iter().enumerate() {
            for c in 0..d {
                out[t * d + c] += score / sum * v[u * d + c];
            }
        }
    }
    out
}

#[test]
fn covering_window_is_full_attention() {
    for (n, d) in [(1, 4), (5, 3), (48, 16), (100, 32), (300, 8)] {
        for causal in [false, true] {
            for exact in [false, true] {
                // One window for all, and two windows that see each other. An exact window reaches
                // window_size * look_backward: as far as the sequence in both.
                let halves = n % 2 == 0;
                for window in [n, if halves { n / 2 } else { n }] {
                    let forward = if causal { 0 } else { 2 };
                    let config = LocalAttentionConfig::new(window as i64)
                        .causal(causal)
                        .look_backward(2)
                        .look_forward(forward)
                        .exact_windowsize(exact);
                    let mut noise = Noise::new(n * 7 + d);
                    let [q, k, v] = [(); 3].map(|()| noise.normals(n * d));
                    let t = |x: &[f32]| HostTensor::new(x.to_vec(), [n, d]).unwrap();
                    let inputs = HostInputs::new(t(&q), t(&k), t(&v));
                    let shape = AttentionShape::from_inputs(&inputs).unwrap();
                    let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
                    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                    let expected = full(&wide(&q), &wide(&k), &wide(&v), d, causal);

                    let oracle = Reference::<f64>::new()
                        .forward(&problem, &inputs.map(f64::from), &Call::default())
                        .unwrap();
                    let fast = Cpu::new().forward(&problem, &inputs, &Call::default()).unwrap();
                    for ((o, f), e) in oracle.out.iter().zip(&fast.out).zip(&expected) {
                        assert!((o - e).abs() < 1e-13);
                        assert!((f64::from(*f) - e).abs() < 3e-6);
                    }
                }
            }
        }
    }
}
