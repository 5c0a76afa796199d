//! A window far larger than the sequence costs what the sequence costs.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use local_attention::gpu::Gpu;
use local_attention::{
    AttentionShape, BackwardInputs, Call, Engine, HostInputs, HostTensor, LocalAttention,
    LocalAttentionConfig, Reference,
};

use super::{fail, worst};
use crate::common::Noise;

const N: usize = 10;
const D: usize = 8;

/// Against the oracle's.
fn gradients(
    gpu: &Gpu,
    attention: &LocalAttention,
    inputs: &HostInputs<'_, f32>,
) -> Result<(), Failed> {
    let shape = AttentionShape::from_inputs(inputs).map_err(fail)?.with_lse();
    let (problem, call) = (attention.problem(&shape).map_err(fail)?, Call::default());
    let dout = HostTensor::new(vec![0.5_f32; N * D], problem.out_shape()).map_err(fail)?;
    let (wide, oracle) = (inputs.map(f64::from), Reference::<f64>::new());
    let forward = oracle.forward(&problem, &wide, &call).map_err(fail)?;
    // As many numbers as a bias has slots are no gradient to ask for here.
    let saved = BackwardInputs::new(&problem, &forward, dout.map(f64::from)).map_err(fail)?;
    let saved = saved.with_bias_gradient(false);
    let truth = oracle.backward(&problem, &wide, &saved, &call).map_err(fail)?;
    let forward = gpu.forward_blocking(&problem, inputs, &call).map_err(fail)?;
    let saved = BackwardInputs::new(&problem, &forward, dout).map_err(fail)?;
    let saved = saved.with_bias_gradient(false);
    let got = gpu.backward_blocking(&problem, inputs, &saved, &call).map_err(fail)?;
    for (got, truth) in [(got.dq, truth.dq), (got.dk, truth.dk), (got.dv, truth.dv)] {
        let error = worst(got.data.into_iter(), &truth.data);
        if error > 1e-5 {
            return Err(format!("a gradient is off by {error:e}").into());
        }
    }
    Ok(())
}

/// Windows of 10 and of a million, causal or not, with and without rotary embedding, mask, and bias
/// rows of one number for each query or each slot.
pub fn large_window(gpu: &Gpu) -> Result<(), Failed> {
    let data = Noise::new(3).normals(N * D);
    let x = || HostTensor::new(&data[..], [1, N, D]).unwrap();
    let mut times = [Duration::ZERO; 2];
    for options in 0..32 {
        let on = |bit: u32| options >> bit & 1 == 1;
        for (time, window) in times.iter_mut().zip([N, 1_000_000]) {
            let mut config = LocalAttentionConfig::new(window as i64).autopad(true).causal(on(0));
            if on(1) {
                config = config.dim(D as i64);
            }
            let mut inputs = HostInputs::new(x(), x(), x());
            if on(2) {
                let mask: Vec<bool> = (0..N).map(|u| u % 3 != 0).collect();
                inputs = inputs.with_mask(HostTensor::new(mask, [1, N]).unwrap());
            }
            if on(3) {
                let slots = (2 + usize::from(!on(0))) * window;
                let shape = if on(4) { [1, 1, slots] } else { [1, window, 1] };
                let one = HostTensor::strided(&[0.5_f32][..], 0, shape, [0, 0, 0]);
                inputs = inputs.with_attn_bias(one.unwrap());
            }
            let attention = LocalAttention::new(config).map_err(fail)?;
            let shape = AttentionShape::from_inputs(&inputs).map_err(fail)?;
            let problem = attention.problem(&shape).map_err(fail)?;
            let call = Call::default();
            // Once, to compile.
            gpu.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
            let start = Instant::now();
            let got = gpu.forward_blocking(&problem, &inputs, &call).map_err(fail)?;
            *time += start.elapsed();
            let wide = inputs.map(f64::from);
            let truth = Reference::<f64>::new().forward(&problem, &wide, &call).map_err(fail)?.out;
            let error = worst(got.out.into_iter(), &truth);
            let at = || format!("window {window}, options {options:#b}");
            if error > 1e-5 {
                return Err(format!("{}: off by {error:e}", at()).into());
            }
            // Kernels of gradients with all options have a loop that counts hidden slots. (A bias is uploaded whole
            // there, and each zero that it tells apart visited.)
            if options % 16 == 7 {
                gradients(gpu, &attention, &inputs)
                    .map_err(|e| format!("{}: {}", at(), e.message().unwrap_or_default()))?;
            }
        }
    }
    // Visiting slots would be a hundred thousand times as much: this is no measurement.
    assert!(times[1] < 20 * times[0], "{times:?} for two windows");
    Ok(())
}
