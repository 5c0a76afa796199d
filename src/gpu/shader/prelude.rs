//! What a shader begins with: constants of its key, bindings, and how elements are read and written.

use std::fmt::Write;

use super::{PipelineKey, Storage};
use crate::gpu::bindings::Slot;

/// The text before the sources.
pub(super) fn render(key: &PipelineKey) -> String {
    let mut text = format!(
        "// {key}\nconst TQ = {}u;\nconst TK = {}u;\nconst CHUNKS = {}u;\n",
        key.thread_queries(),
        key.thread_keys(),
        key.chunks
    );
    for slot in Slot::ALL {
        let (name, binding) = (slot.name(), slot as u32);
        let (space, element) = match slot {
            Slot::Params => {
                let _ =
                    writeln!(text, "@group(0) @binding({binding}) var<uniform> {name}: Params;");
                continue;
            }
            Slot::Q | Slot::K | Slot::V => ("read", vector(key)),
            Slot::Out => ("read_write", vector(key)),
            Slot::Bias => ("read", scalar(key)),
            Slot::Mask => ("read", "u32"),
            Slot::Tables => ("read", "vec4<f32>"),
            Slot::Lse => ("read_write", "f32"),
        };
        let _ = writeln!(
            text,
            "@group(0) @binding({binding}) var<storage, {space}> {name}: array<{element}>;"
        );
    }
    for tensor in ["q", "k", "v"] {
        text.push_str(&load(key, tensor));
    }
    text.push_str(match key.storage {
        Storage::F32 => "fn load_bias(at: u32) -> f32 { return bias_data[at]; }\n",
        Storage::F16 => {
            "fn load_bias(at: u32) -> f32 { return unpack2x16float(bias_data[at / 2u])[at % 2u]; }\n"
        }
    });
    text.push_str(&store(key));
    text
}

/// One element of a binding that holds single numbers.
fn scalar(key: &PipelineKey) -> &'static str {
    match key.storage {
        Storage::F32 => "f32",
        // Two in a word: no feature of the device is needed.
        Storage::F16 => "u32",
    }
}

/// One element of a binding that holds features.
fn vector(key: &PipelineKey) -> &'static str {
    match (key.vec4, key.storage) {
        (true, Storage::F32) => "vec4<f32>",
        (true, Storage::F16) => "vec2<u32>",
        (false, _) => scalar(key),
    }
}

/// Four neighbouring features from element `at` on, of which `valid` are there.
fn load(key: &PipelineKey, tensor: &str) -> String {
    let body = match (key.vec4, key.storage) {
        (true, Storage::F32) => format!("    return {tensor}_data[at / 4u];\n"),
        (true, Storage::F16) => format!(
            "    let words = {tensor}_data[at / 4u];\n    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));\n"
        ),
        (false, _) => {
            let element = match key.storage {
                Storage::F32 => format!("{tensor}_data[e]"),
                Storage::F16 => format!("unpack2x16float({tensor}_data[e / 2u])[e % 2u]"),
            };
            format!(
                "    var x = vec4<f32>(0.0);\n    for (var i = 0u; i < min(valid, 4u); i++) {{\n        let e = at + i * params.{tensor}.feature;\n        x[i] = {element};\n    }}\n    return x;\n"
            )
        }
    };
    format!("fn load_{tensor}(at: u32, valid: u32) -> vec4<f32> {{\n{body}}}\n")
}

/// Writes four neighbouring features.
fn store(key: &PipelineKey) -> String {
    let body = match (key.vec4, key.storage) {
        (true, Storage::F32) => "    out_data[at / 4u] = x;\n",
        (true, Storage::F16) => {
            "    out_data[at / 4u] = vec2<u32>(pack2x16float(x.xy), pack2x16float(x.zw));\n"
        }
        (false, Storage::F32) => {
            "    for (var i = 0u; i < min(valid, 4u); i++) {\n        out_data[at + i * params.out.feature] = x[i];\n    }\n"
        }
        // Rows are an even number of elements apart: a word belongs to one row, and to one thread.
        // The half past the last feature is not ours.
        (false, Storage::F16) => {
            "    for (var i = 0u; i < min(valid, 4u); i += 2u) {
        let word = at / 2u + i / 2u;
        let pair = pack2x16float(vec2<f32>(x[i], x[i + 1u]));
        if i + 1u < valid {
            out_data[word] = pair;
        } else {
            out_data[word] = (out_data[word] & 0xffff0000u) | (pair & 0xffffu);
        }
    }
"
        }
    };
    format!("fn store_out(at: u32, valid: u32, x: vec4<f32>) {{\n{body}}}\n")
}
