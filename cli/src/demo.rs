//! Without a subcommand: pick an engine, check it, time it.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use local_attention::cpu::Cpu;
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};
use serde_json::json;

use crate::backend::{Backend, Chosen};
use crate::bench::{Pass, Resident, Tensors, quantile};
use crate::case::{Case, Dtype};
use crate::check::{TOLERANCE, largest_error, magnitude};
use crate::console::Console;
use crate::error::BadInput;

/// Golden cases of the reference, one for each part of it.
const GOLDENS: [(&str, &[u8]); 6] = [
    ("causal, exact, rotary", include_bytes!("../goldens/causal_lb3_exact_rotary.safetensors")),
    ("both ways, rotary", include_bytes!("../goldens/noncausal_lb1_lf2_rotary.safetensors")),
    ("autopad with a mask", include_bytes!("../goldens/autopad_noncausal_mask_rotary.safetensors")),
    ("bias and mask", include_bytes!("../goldens/bias_mask_noncausal_shared.safetensors")),
    ("shared QK", include_bytes!("../goldens/shared_qk_noncausal.safetensors")),
    ("xpos", include_bytes!("../goldens/xpos_noncausal.safetensors")),
];

/// Sequence lengths and windows that are timed, with 8 heads of 64 features.
const SHAPES: [(usize, usize); 3] = [(1024, 128), (4096, 128), (16384, 256)];
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;

pub fn demo(console: Console) -> Result<bool, BadInput> {
    let (chosen, why) = Backend::Auto.open(None)?.choose(Dtype::F32, None)?;
    console.say(format!("local-attention {}", env!("CARGO_PKG_VERSION")));
    console.say(format!("engine   {}: {why}", chosen.describe()));

    let (mut passed, mut worst) = (true, 0.0_f64);
    for (name, bytes) in GOLDENS {
        let case = Case::from_bytes(bytes)
            .map_err(|e| BadInput::Usage(format!("built-in case '{name}': {e}")))?;
        let attention = LocalAttention::new(case.config.clone())?;
        let got = chosen.compute(&case, &attention, &Call::default(), Dtype::F32)?;
        let expected = &case.expected["out"];
        let error = largest_error(&got.out, expected) / magnitude(expected);
        worst = worst.max(error);
        passed &= error <= TOLERANCE;
        if error > TOLERANCE {
            console.say(format!("check    FAILED: {name}, error {error:.1e}"));
        }
    }
    console.result(
        &json!({ "check": "goldens", "cases": GOLDENS.len(), "passed": passed, "error": worst }),
        format!(
            "check    {} cases of the PyTorch module: {}, largest error {worst:.1e}",
            GOLDENS.len(),
            if passed {
                format!("all within {TOLERANCE:e}")
            } else {
                format!("NOT all within {TOLERANCE:e}")
            },
        ),
    );
    console.say(format!("speed    forward, b=1 h={HEADS} d={HEAD_DIM}, causal, rotary, f32"));
    console.say("              n  window    median    tokens/s   attended GFLOP/s");
    let bar = ProgressBar::new(SHAPES.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} timing n={msg}") {
        bar.set_style(style);
    }
    for (n, window) in SHAPES {
        bar.set_message(n.to_string());
        let (median, gflops) = time(&chosen, n, window)?;
        bar.suspend(|| {
            let ms = median * 1e3;
            let tokens = n as f64 / median;
            console.result(
                &json!({
                    "n": n, "window_size": window, "heads": HEADS, "head_dim": HEAD_DIM,
                    "backend": chosen.name(), "median_ms": ms, "attended_gflops": gflops,
                }),
                format!("         {n:>6}  {window:>6} {ms:>6.2} ms {tokens:>11.0} {gflops:>18.1}"),
            );
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    console
        .say("next     cargo run --release -- run IN.safetensors -o OUT.safetensors, or -- --help");
    Ok(passed)
}

/// Median time of a forward pass of the engine in seconds, of tensors on the device where it has one, and the rate on the pairs
/// that attend.
fn time(chosen: &Chosen, n: usize, window: usize) -> Result<(f64, f64), BadInput> {
    let config = LocalAttentionConfig::new(window as i64).causal(true).dim(HEAD_DIM as i64);
    let attention = LocalAttention::new(config)?;
    let shape = AttentionShape::new([1, HEADS], n, HEAD_DIM);
    let problem = attention.problem(&shape)?;
    let len = HEADS * n * HEAD_DIM;
    let data = |seed: u32| -> Vec<f32> {
        // Weyl's sequence: even over [-1, 1), which is all that timing needs.
        (0..len as u32)
            .map(|i| {
                ((i.wrapping_mul(2_654_435_769).wrapping_add(seed)) >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    };
    let dims = [1, HEADS, n, HEAD_DIM];
    let inputs = HostInputs::new(
        HostTensor::new(data(1), dims)?,
        HostTensor::new(data(1 << 30), dims)?,
        HostTensor::new(data(3 << 29), dims)?,
    );
    let mut run: Box<dyn FnMut() -> Result<f64, BadInput>> = match chosen {
        Chosen::Gpu(gpu) => {
            let mut resident =
                Resident::new(gpu, &problem, &Tensors::F32(inputs, Vec::new()), Pass::Forward)?;
            Box::new(move || resident.run().map(|ran| ran.seconds))
        }
        _ => {
            let (engine, problem) = (Cpu::new(), &problem);
            Box::new(move || {
                let start = Instant::now();
                std::hint::black_box(engine.forward(problem, &inputs, &Call::default())?);
                Ok(start.elapsed().as_secs_f64())
            })
        }
    };
    let mut times = Vec::new();
    let start = Instant::now();
    run()?;
    while times.len() < 3 || (start.elapsed() < Duration::from_millis(700) && times.len() < 200) {
        times.push(run()?);
    }
    let median = quantile(&times, 0.5);
    let flops = problem.geometry().visible_pairs() as f64 * (HEADS * 4 * HEAD_DIM) as f64;
    Ok((median, flops / median / 1e9))
}
