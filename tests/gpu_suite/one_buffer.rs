//! Tensors of a pool: some or all of them in the buffer of the output.

use half::f16;
use libtest_mimic::Failed;
use local_attention::gpu::{
    Dtype, ForwardTensors, Gpu, GpuElement, GpuOptions, Layouts, TensorView, Workspace, wgpu,
};
use local_attention::{
    AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

use super::buffers::{read_bytes, upload_bytes};
use super::share::Share;
use super::{fail, is_whole};
use crate::common::Noise;

const H: usize = 3;
const N: usize = 40;
const NAMES: [&str; 6] = ["q", "k", "v", "mask", "attn_bias", "lse"];

/// Each tensor apart in turn, none apart, all but `lse` apart; with mask and bias and without, with
/// either type, features in fours and not, and cut into parts; in a share of the suite each type with the features of one
/// kind.
pub fn all(gpu: &Gpu) -> Result<(), Failed> {
    let whole = is_whole(Share::from_env()?);
    let mut few = GpuOptions::default();
    few.max_workgroups = Some(1);
    for gpu in [gpu.clone(), gpu.with_options(few)] {
        for d in [8, 6] {
            for apart in NAMES
                .map(|name| vec![name])
                .into_iter()
                .chain([vec![], vec!["q", "k", "v", "mask", "attn_bias"]])
            {
                for bare in [false, true] {
                    // Kernels without mask and bias differ in nothing else.
                    if bare && !matches!(apart[..], [] | ["k"]) {
                        continue;
                    }
                    if whole || d == 6 {
                        one(&gpu, d, bare, &apart, |x| x, |x: f32| x.to_le_bytes().to_vec())?;
                    }
                    if whole || d == 8 {
                        let bytes = |x: f16| x.to_le_bytes().to_vec();
                        one(&gpu, d, bare, &apart, f16::from_f32, bytes)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn one<T: GpuElement>(
    gpu: &Gpu,
    d: usize,
    bare: bool,
    apart: &[&str],
    from: impl Fn(f32) -> T,
    bytes: impl Fn(T) -> Vec<u8>,
) -> Result<(), Failed> {
    let config = LocalAttentionConfig::new(8).causal(true).dim(d as i64);
    let attention = LocalAttention::new(config).map_err(fail)?;
    let mut noise = Noise::new(7);
    let mut tensor = |shape: &[usize]| {
        let data = noise.normals(shape.iter().product());
        let data: Vec<T> = data.into_iter().map(&from).collect();
        HostTensor::new(data, shape)
    };
    let qkv = [[H, N, d]; 3].map(|shape| tensor(&shape).unwrap());
    let bias = tensor(&[1, 8, 16]).map_err(fail)?;
    let bits: Vec<bool> = (0..N).map(|i| i % 5 != 2).collect();
    let mask = HostTensor::new(bits.clone(), [1, N]).map_err(fail)?;
    let [q, k, v] = qkv.clone();
    let mut inputs = HostInputs::new(q, k, v);
    if !bare {
        inputs = inputs.with_mask(mask).with_attn_bias(bias.clone());
    }
    let shape = AttentionShape::from_inputs(&inputs).map_err(fail)?.with_lse();
    let problem = attention.problem(&shape).map_err(fail)?;
    let expected = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;

    // One after the other, at multiples of 16 bytes that are no multiples of 256.
    let mut pool: Vec<u8> = vec![0xff; 48];
    let mut own: Vec<(&str, wgpu::Buffer)> = Vec::new();
    let mut at = Vec::new();
    let mut place = |name: &'static str, data: Vec<u8>| {
        if apart.contains(&name) {
            own.push((name, upload_bytes(gpu, &data)));
            return at.push((name, 0));
        }
        at.push((name, pool.len() as u64));
        pool.extend(data);
        pool.resize(pool.len().next_multiple_of(16) + 16, 0xff);
    };
    for (name, t) in ["q", "k", "v"].into_iter().zip(&qkv).chain([("attn_bias", &bias)]) {
        place(name, t.iter().flat_map(&bytes).collect());
    }
    place("lse", vec![0xff; H * N * 4]);
    let element = T::STORAGE.bytes() as usize;
    place("out", vec![0xff; H * N * d * element]);
    place("mask", bits.iter().map(|&b| u8::from(b)).collect());
    // The buffer ends with its last tensor, wherever a vector would.
    let (name, last) = at[at.len() - 1];
    if name == "mask" && last > 0 {
        pool.truncate(last as usize + N);
    }
    let before = pool.clone();
    let pool = upload_bytes(gpu, &pool);

    let view = |name: &str, dtype, shape: &[usize]| {
        let buffer = own.iter().find(|(n, _)| *n == name).map_or(&pool, |(_, b)| b);
        let offset = at.iter().find(|(n, _)| *n == name).map_or(0, |(_, offset)| *offset);
        TensorView::contiguous(buffer, dtype, shape).with_offset_bytes(offset)
    };
    let dtype = Dtype::from(T::STORAGE);
    let [q, k, v, out] = ["q", "k", "v", "out"].map(|name| view(name, dtype, &[H, N, d]));
    let lse = view("lse", Dtype::F32, &[H, N]);
    let mut tensors = ForwardTensors::new(q, k, v, out.clone()).with_lse(lse.clone());
    if !bare {
        tensors = tensors.with_mask(view("mask", Dtype::U8, &[1, N])).with_attn_bias(view(
            "attn_bias",
            dtype,
            &[1, 8, 16],
        ));
    }
    let plan =
        gpu.plan_blocking(&problem, &Layouts::contiguous(T::STORAGE, &problem)).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 64).map_err(fail)?;
    let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
    super::submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());

    let case = format!("d {d}, {:?}, apart {apart:?}, bare {bare}", T::STORAGE);
    let part = |t: &TensorView<'_>, len: usize| {
        read_bytes(gpu, t.buffer)[t.offset_bytes as usize..][..len].to_vec()
    };
    let same = part(&out, expected.out.len() * element);
    if same != expected.out.iter().flat_map(|&x| bytes(x)).collect::<Vec<_>>() {
        return Err(format!("{case}: out differs").into());
    }
    let lses = expected.lse.unwrap_or_default();
    if part(&lse, 4 * lses.len()) != lses.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>() {
        return Err(format!("{case}: lse differs").into());
    }
    // Nothing else is touched.
    let mut after = read_bytes(gpu, &pool);
    for (t, len) in [(&out, same.len()), (&lse, 4 * lses.len())] {
        if t.buffer == &pool {
            after[t.offset_bytes as usize..][..len].fill(0xff);
        }
    }
    match after[..before.len()] == before[..] {
        true => Ok(()),
        false => Err(format!("{case}: written outside the results").into()),
    }
}
