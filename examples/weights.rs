//! Which keys one query attends to, and how much: no hook into a module is needed.

use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Two heads of 12 positions with 4 features; shape [heads, n, head_dim].
    let shape = [2, 12, 4];
    let wave = |f: f32| -> Vec<f32> { (0..96).map(|i| (i as f32 * f).cos()).collect() };
    let (q, k, v) = (wave(0.7), wave(0.5), wave(0.3));
    let inputs = HostInputs::new(
        HostTensor::new(q, shape)?,
        HostTensor::new(k, shape)?,
        HostTensor::new(v, shape)?,
    );
    let attention = LocalAttention::new(LocalAttentionConfig::new(3).causal(true))?;
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;

    // Queries 7 and 8 of both heads: weights [heads, queries, slots], keys [queries, slots].
    let weights = Cpu::new().weights(&problem, &inputs, 7..9)?;
    let [heads, queries, slots] = weights.shape;
    for head in 0..heads {
        for i in 0..queries {
            println!("head {head}, query {}:", 7 + i);
            let row = &weights.weights[(head * queries + i) * slots..][..slots];
            for (weight, key) in row.iter().zip(&weights.keys[i * slots..]) {
                let name = key.map_or("outside".to_owned(), |u| format!("key {u}"));
                let bar = "#".repeat((weight * 40.0).round() as usize);
                println!("  {name:<8} {weight:.3} {bar}");
            }
        }
    }
    Ok(())
}
