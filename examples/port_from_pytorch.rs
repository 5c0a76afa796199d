//! Checks a port: reads a call that PyTorch made (see `tests/goldens`), repeats it, compares, and
//! shows what each quirk of the reference does to it.
//!
//! `cargo run --features serde --example port_from_pytorch [CASE.safetensors]`

use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    ReferenceQuirks,
};
use safetensors::{SafeTensors, tensor::TensorView};

const DEFAULT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/goldens/attention/autopad_noncausal_mask_rotary.safetensors"
);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = std::fs::read(std::env::args().nth(1).unwrap_or(DEFAULT.to_owned()))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().as_ref().ok_or("the case has no metadata")?;

    // The constructor arguments of the PyTorch module, as JSON, under its own names.
    let config: LocalAttentionConfig = serde_json::from_str(&metadata["config"])?;
    println!("{config:#?}");

    let read = |view: TensorView<'_>| -> Vec<f32> {
        let floats = view.data().as_chunks::<4>().0.iter();
        floats.map(|&b| f32::from_le_bytes(b)).collect()
    };
    let tensor = |name: &str| -> Result<HostTensor<'_, f32>, Box<dyn std::error::Error>> {
        let view = tensors.tensor(name)?;
        let shape = view.shape().to_vec();
        Ok(HostTensor::new(read(view), shape)?)
    };
    let mut inputs = HostInputs::new(tensor("q")?, tensor("k")?, tensor("v")?);
    if let Ok(mask) = tensors.tensor("mask") {
        let data: Vec<bool> = mask.data().iter().map(|&b| b != 0).collect();
        inputs = inputs.with_mask(HostTensor::new(data, mask.shape())?);
    }
    let expected = read(tensors.tensor("out")?);

    let attention = LocalAttention::new(config)?;
    println!("rotary embeddings: {}", if attention.rotary() { "on" } else { "off (dim is unset)" });
    let shape = AttentionShape::from_inputs(&inputs)?;
    let error = |quirks: ReferenceQuirks| -> Result<f32, Box<dyn std::error::Error>> {
        let problem = attention.clone().with_quirks(quirks).problem(&shape)?;
        let out = Cpu::new().forward(&problem, &inputs, &Call::default())?.out;
        Ok(out.iter().zip(&expected).fold(0.0, |m, (a, b)| (a - b).abs().max(m)))
    };
    // By default every artefact of the reference is reproduced: the numbers are PyTorch's.
    println!("difference to PyTorch:              {:.1e}", error(ReferenceQuirks::ALL)?);
    let mut quirks = ReferenceQuirks::ALL;
    quirks.tail_aligned_rotary = false;
    println!("with rotary at the true distance:   {:.1e}", error(quirks)?);
    quirks = ReferenceQuirks::ALL;
    quirks.visible_autopad_keys = false;
    println!("with autopad's zeros hidden:        {:.1e}", error(quirks)?);
    quirks = ReferenceQuirks::ALL;
    quirks.uniform_masked_rows = false;
    println!("with rows that see nothing at zero: {:.1e}", error(quirks)?);
    Ok(())
}
