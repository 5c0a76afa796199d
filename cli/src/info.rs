//! `info`: what this machine offers.

use local_attention::cpu::{Cpu, Isa};
use local_attention::gpu::{self, AdapterCaps, Features, Kernel, PipelineKey, wgpu};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::case::Dtype;
use crate::console::Console;
use crate::error::BadInput;

pub fn info(console: Console) -> Result<bool, BadInput> {
    let cpu = Cpu::new();
    let sets: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    let (chosen, why) = Backend::Auto.open(None)?.choose(Dtype::F32, None)?;
    let adapters = gpu::adapters_blocking();
    let described: Vec<Value> = adapters.iter().map(describe).collect();
    let mut lines = vec![
        format!("local-attention {}", env!("CARGO_PKG_VERSION")),
        format!(
            "cpu        {} threads, {} (available: {})",
            cpu.threads(),
            cpu.isa(),
            sets.join(", ")
        ),
    ];
    if adapters.is_empty() {
        lines.push("gpu        no adapter".to_owned());
    }
    for (i, adapter) in described.iter().enumerate() {
        let text = |name: &str| adapter[name].as_str().unwrap_or_default().to_owned();
        lines.push(format!(
            "gpu {i}      {} ({}, {}, {})",
            text("name"),
            text("backend"),
            text("type"),
            text("driver")
        ));
        let limits = adapter["limits"].as_object();
        for (name, value) in limits.into_iter().flatten() {
            lines.push(format!("           {name} {value}"));
        }
        let list = |name: &str| {
            let all = adapter[name].as_array().into_iter().flatten();
            all.filter_map(Value::as_str).collect::<Vec<_>>()
        };
        lines.push(format!("           features {}", list("features").join(", ")));
        if let Some(matrix) = adapter["matrix"].as_object() {
            let (side, lanes) = (&matrix["side"], &matrix["lanes"]);
            lines.push(format!(
                "           matrix units {side}x{side}, f16 with sums in f32, subgroups of {lanes}"
            ));
        }
        lines
            .extend(kernels(&list("kernels")).into_iter().map(|line| format!("           {line}")));
    }
    lines.push("reference  plain loops, f64 or f32".to_owned());
    lines.push(format!("auto       {} ({why})", chosen.name()));
    console.result(
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": { "threads": cpu.threads(), "isa": cpu.isa().name(), "available": sets },
            "gpu": described,
            "auto": chosen.name(),
        }),
        lines.join("\n"),
    );
    Ok(true)
}

/// The names of kernels, a line for each type of numbers and class of head sizes, with the tiles it comes in.
fn kernels(names: &[&str]) -> Vec<String> {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for name in names {
        let mut parts = name.split('-');
        let (Some(_), Some(dtype), Some(size), Some(tile)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let tile = match parts.next() {
            Some("broadcast") => format!("{tile} (broadcast)"),
            _ => tile.to_owned(),
        };
        let head = format!("kernels {dtype}, head_dim up to {}:", size.trim_start_matches('d'));
        match lines.iter_mut().find(|(known, _)| *known == head) {
            Some((_, tiles)) if tiles.contains(&tile) => {}
            Some((_, tiles)) => tiles.push(tile),
            None => lines.push((head, vec![tile])),
        }
    }
    lines.into_iter().map(|(head, tiles)| format!("{head} {}", tiles.join(", "))).collect()
}

/// An adapter: who it is, the limits and features that kernels ask for, the kernels it can run.
fn describe(adapter: &wgpu::Adapter) -> Value {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let features = [
        ("SHADER_F16", wgpu::Features::SHADER_F16),
        ("SUBGROUP", wgpu::Features::SUBGROUP),
        ("EXPERIMENTAL_COOPERATIVE_MATRIX", wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        ("TIMESTAMP_QUERY", wgpu::Features::TIMESTAMP_QUERY),
    ];
    let features = features.iter().filter(|(_, f)| adapter.features().contains(*f));
    // As reported: a device that is made is tested first.
    let caps = AdapterCaps::of(adapter);
    let matrix = caps.matrix;
    let broadcasts = caps.broadcasts() && adapter.features().contains(wgpu::Features::SUBGROUP);
    let runs = |key: &PipelineKey| {
        key.check_limits(&limits).is_ok()
            && limits.max_storage_buffers_per_shader_stage >= 8
            && (key.matrix.is_none() || key.matrix == matrix)
            && (!key.broadcast || broadcasts)
            && (!key.f16_out || adapter.features().contains(wgpu::Features::SHADER_F16))
            // Options that change no tile are no variants.
            && !key.dropout && key.features == Features::Plain && key.kernel == Kernel::Forward
    };
    let kernels = PipelineKey::all();
    json!({
        "name": info.name,
        "backend": format!("{:?}", info.backend),
        "type": format!("{:?}", info.device_type),
        "driver": info.driver_info,
        "features": features.map(|(name, _)| *name).collect::<Vec<_>>(),
        "matrix": matrix.map(|m| json!({ "side": m.side, "lanes": m.lanes })),
        "limits": {
            "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
            "max_compute_workgroup_storage_size": limits.max_compute_workgroup_storage_size,
            "max_compute_invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
            "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
            "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
        },
        "kernels": kernels.iter().filter(|k| runs(k)).map(ToString::to_string).collect::<Vec<_>>(),
    })
}
