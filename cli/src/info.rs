//! `info`: what this machine offers.

use local_attention::cpu::{Cpu, Isa};
use serde_json::json;

use crate::backend::{Backend, NO_GPU};
use crate::case::Dtype;
use crate::console::Console;
use crate::error::BadInput;

pub fn info(console: Console) -> Result<bool, BadInput> {
    let cpu = Cpu::new();
    let sets: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    let (chosen, why) = Backend::Auto.choose(Dtype::F32)?;
    console.result(
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": { "threads": cpu.threads(), "isa": cpu.isa().name(), "available": sets },
            "gpu": null,
            "auto": chosen.name(),
        }),
        format!(
            "local-attention {}\n\
             cpu        {} threads, {} (available: {})\n\
             gpu        {NO_GPU}\n\
             reference  plain loops, f64 or f32\n\
             auto       {} ({why})",
            env!("CARGO_PKG_VERSION"),
            cpu.threads(),
            cpu.isa(),
            sets.join(", "),
            chosen.name(),
        ),
    );
    Ok(true)
}
