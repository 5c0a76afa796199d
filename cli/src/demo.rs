//! Without a subcommand: pick an engine, check it, time it.

use indicatif::{ProgressBar, ProgressStyle};
use local_attention::{Call, LocalAttention};
use serde_json::json;

use crate::backend::Backend;
use crate::bench::{BenchShape, Runner, median_and_gflops};
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
/// To spend on each.
const SECONDS: f64 = 0.5;

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
    let runner = Runner::new((chosen.clone(), false), None, None)?;
    for (n, window) in SHAPES {
        bar.set_message(n.to_string());
        let shape = BenchShape::causal(HEADS, n, window, HEAD_DIM);
        let (median, gflops) = median_and_gflops(&runner, &shape, SECONDS)?;
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
    // As it was started.
    let (program, dashes) = match std::env::var_os("CARGO") {
        Some(_) => ("cargo run --release --", "-- "),
        None => ("local-attention", ""),
    };
    console.say(format!(
        "next     {program} run IN.safetensors -o OUT.safetensors, or {dashes}--help"
    ));
    Ok(passed)
}
