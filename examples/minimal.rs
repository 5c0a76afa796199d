//! Causal local attention over one head: the snippet of the README.

use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // q, k, v: [batch 1, n 100, head_dim 32], row-major.
    let shape = [1, 100, 32];
    let data: Vec<f32> = (0..100 * 32).map(|i| (i as f32 * 0.1).sin()).collect();
    let x = || HostTensor::new(&data[..], shape);
    let inputs = HostInputs::new(x()?, x()?, x()?);

    // LocalAttention(window_size = 5, causal = True, dim = 32): each query sees its own window of
    // 5 up to itself and the window before; dim switches rotary embeddings on.
    let attention = LocalAttention::new(LocalAttentionConfig::new(5).causal(true).dim(32))?;
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;

    // out: [1, 100, 32]
    let result = Cpu::new().forward(&problem, &inputs, &Call::default())?;
    println!("out {:?}, first row starts {:.4?}", result.shape, &result.out[..4]);
    Ok(())
}
