//! The CPU engine's inner loops, each where it weighs most, with every instruction set, on one thread.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use local_attention::cpu::{Cpu, Isa};
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

fn kernels(c: &mut Criterion) {
    let causal = LocalAttentionConfig::new(128).causal(true);
    let whole = LocalAttentionConfig::new(256).look_backward(0).look_forward(0);
    for (name, config, n, d) in [
        // One block that sees all of itself: products and softmax, no edge, keys packed once.
        ("inside", whole.clone(), 256, 64),
        // Half of all tiles are on an edge.
        ("edges", LocalAttentionConfig::new(64).causal(true).look_backward(0), 1024, 64),
        // Few features: softmax.
        ("softmax", whole, 256, 4),
        // Few queries a key: packing and rotation.
        ("packing", LocalAttentionConfig::new(4).causal(true).dim(128), 1024, 128),
        ("typical", causal.dim(64), 1024, 64),
    ] {
        let mut group = c.benchmark_group(name);
        let data: Vec<f32> = (0..n * d).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = || HostTensor::new(&data[..], [1, n, d]).unwrap();
        let inputs = HostInputs::new(x(), x(), x());
        let shape = AttentionShape::from_inputs(&inputs).unwrap();
        let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
        // Elements: floating-point operations on pairs that attend.
        group.throughput(Throughput::Elements(problem.geometry().visible_pairs() * 4 * d as u64));
        for isa in Isa::available() {
            let engine = Cpu::with_threads(1).unwrap().with_isa(isa).unwrap();
            group.bench_function(BenchmarkId::from_parameter(isa), |b| {
                b.iter(|| engine.forward(&problem, &inputs, &Call::default()).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
