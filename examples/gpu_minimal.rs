//! The smallest call of the GPU engine: tensors in host memory in and out.
//!
//! `cargo run --release --example gpu_minimal`

use local_attention::gpu::{Gpu, RequestOptions};
use local_attention::{
    AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The best adapter; a part of a name chooses another: RequestOptions::adapter("llvmpipe").
    let gpu = Gpu::request_blocking(&RequestOptions::default())?;
    println!("on {}", gpu.caps().info.name);

    // q, k, v: [batch 1, n 100, head_dim 32]
    let data: Vec<f32> = (0..100 * 32).map(|i| (i as f32 * 0.1).sin()).collect();
    let x = || HostTensor::new(&data[..], [1, 100, 32]);
    let inputs = HostInputs::new(x()?, x()?, x()?);

    let attention = LocalAttention::new(LocalAttentionConfig::new(5).causal(true).dim(32))?;
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
    let result = gpu.forward_blocking(&problem, &inputs, &Call::default())?;
    println!("out {:?}, {} dispatch", result.shape, gpu.dispatches());
    Ok(())
}
