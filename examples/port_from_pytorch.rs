//! Checks a port: reads a call that PyTorch made (see `tests/goldens`), repeats it, compares, and
//! shows what each quirk of the reference does to it.
//!
//! `cargo run --features serde --example port_from_pytorch [CASE.safetensors]`

use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    ReferenceQuirks,
};
use safetensors::{Dtype, SafeTensors};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DEFAULT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/goldens/attention/autopad_noncausal_mask_rotary.safetensors"
);

fn main() -> Result<()> {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap_or(DEFAULT.to_owned()))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();

    // The constructor arguments of the PyTorch module, as JSON, under its own names.
    let config = metadata.get("config").ok_or("the metadata has no config")?;
    let attention = LocalAttention::new(serde_json::from_str::<LocalAttentionConfig>(config)?)?;
    println!("{:#?}\nrotary embeddings: {}", attention.config(), attention.rotary());

    let tensor = |name: &str| -> Result<HostTensor<'_, f32>> {
        let view = tensors.tensor(name)?;
        if view.dtype() != Dtype::F32 {
            return Err(format!("{name} is {}: this example reads F32", view.dtype()).into());
        }
        let floats = view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
        Ok(HostTensor::new(floats.collect::<Vec<_>>(), view.shape())?)
    };
    let mut inputs = HostInputs::new(tensor("q")?, tensor("k")?, tensor("v")?);
    if let Ok(mask) = tensors.tensor("mask").or(tensors.tensor("input_mask")) {
        let data: Vec<bool> = mask.data().iter().map(|&b| b != 0).collect();
        inputs = inputs.with_mask(HostTensor::new(data, mask.shape())?);
    }
    if tensors.tensor("attn_bias").is_ok() {
        inputs = inputs.with_attn_bias(tensor("attn_bias")?);
    }
    let mut shape = AttentionShape::from_inputs(&inputs)?;
    // The forward arguments, as JSON too.
    if let Some(forward) = metadata.get("forward") {
        let forward: serde_json::Value = serde_json::from_str(forward)?;
        shape.window = forward["window_size"].as_i64();
    }
    let expected: Vec<f32> = tensor("out")?.iter().collect();
    let error = |change: fn(&mut ReferenceQuirks)| -> Result<f32> {
        let mut quirks = ReferenceQuirks::ALL;
        change(&mut quirks);
        let problem = attention.clone().with_quirks(quirks).problem(&shape)?;
        let out = Cpu::new().forward(&problem, &inputs, &Call::default())?.out;
        let errors = out.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        // Not `max`, which drops NaN.
        Ok(errors.fold(0.0, |m, e| if m.is_nan() || e <= m { m } else { e }))
    };
    // By default every artefact of the reference is reproduced: the numbers are PyTorch's.
    println!("difference to PyTorch:              {:.1e}", error(|_| {})?);
    let distance = error(|q| q.tail_aligned_rotary = false)?;
    println!("with rotary at the true distance:   {distance:.1e}");
    let hidden = error(|q| q.visible_autopad_keys = false)?;
    println!("with autopad's zeros hidden:        {hidden:.1e}");
    let zero = error(|q| q.uniform_masked_rows = false)?;
    println!("with rows that see nothing at zero: {zero:.1e}");
    Ok(())
}
