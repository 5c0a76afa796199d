//! Every kernel, without a GPU: accepted by naga and translated to SPIR-V, MSL and HLSL. Where
//! `spirv-val` is installed (`LOCAL_ATTENTION_SPIRV_VAL=require` insists), it checks the SPIR-V.

#[path = "shader_suite/branches.rs"]
mod branches;

use std::process::{Command, Stdio};

use local_attention::gpu::PipelineKey;
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use rayon::prelude::*;

fn module(key: &PipelineKey) -> (naga::Module, naga::valid::ModuleInfo) {
    let text = key.wgsl();
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{key}: {}", e.emit_to_string(&text)));
    // Nothing beyond WebGPU's baseline, to which unpacking halves belongs, but what the key says.
    let baseline = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let mut needed = baseline;
    if key.f16_out || key.matrix.is_some() {
        needed |= Capabilities::SHADER_FLOAT16;
    }
    if key.matrix.is_some() {
        needed |= Capabilities::COOPERATIVE_MATRIX;
    }
    if key.broadcast {
        needed |= Capabilities::SUBGROUP;
    }
    let mut validator = Validator::new(ValidationFlags::all(), needed);
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{key}: {}", e.emit_to_string(&text)));
    (module, info)
}

#[test]
fn branches_that_uniforms_decide_are_found() {
    let found = |body: &str| {
        let text = format!(
            "struct Params {{ n: u32, flag: u32 }}
             @group(0) @binding(0) var<uniform> params: Params;
             @group(0) @binding(1) var<storage, read_write> data: array<u32>;
             fn zero() -> u32 {{ return u32(arrayLength(&data) == 0u); }}
             fn is(flag: u32, bit: u32) -> bool {{ return (flag & bit) != 0u; }}
             @compute @workgroup_size(1) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
                 {body}
             }}"
        );
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        branches::decided_by_uniforms(&module).len()
    };
    for (body, branches) in [
        ("if params.flag == 1u { data[0] = 1u; }", 1),
        ("if is(params.flag, 2u) { data[0] = 1u; }", 1),
        ("switch params.flag & 3u { case 1u: { data[0] = 1u; } default: {} }", 1),
        ("for (var i = 0u; i < params.n / 4u; i++) { data[i] = 1u; }", 1),
        ("for (var i = params.n; i < params.flag; i++) { data[i] = 1u; }", 1),
        ("for (var i = params.n; i < 8u; i += 2u) { data[i] = 1u; }", 1),
        ("for (var i = 0u; i < 8u; i += params.n) { data[i] = 1u; }", 1),
        ("var n = params.n; if n == 1u { data[0] = 1u; }", 1),
        ("for (var i = id.x; i < params.n; i++) { data[i] = 1u; }", 0),
        ("for (var i = 0u; i < params.n + zero(); i++) { data[i] = 1u; }", 0),
        ("if is(params.flag | zero(), 2u) { data[0] = 1u; }", 0),
        ("if id.x < params.n { data[0] = 1u; }", 0),
        ("for (var i = 0u; i < 4u; i++) { data[i] = params.n; }", 0),
    ] {
        assert_eq!(found(body), branches, "{body}");
    }
}

#[test]
fn every_key_translates() {
    let validated = spirv_val();
    PipelineKey::all().into_par_iter().for_each(|key| translates(&key, validated));
}

fn translates(key: &PipelineKey, validated: bool) {
    // As the engine compiles them: without checks.
    let policies = BoundsCheckPolicies {
        index: BoundsCheckPolicy::Unchecked,
        buffer: BoundsCheckPolicy::Unchecked,
        image_load: BoundsCheckPolicy::Unchecked,
        binding_array: BoundsCheckPolicy::Unchecked,
    };
    let (module, info) = module(key);
    let decided = branches::decided_by_uniforms(&module);
    assert!(decided.is_empty(), "{key}: uniforms alone decide\n{}", decided.join("\n"));
    let mut options = spv::Options { bounds_check_policies: policies, ..spv::Options::default() };
    if key.broadcast {
        // The first version with subgroup operations.
        options.lang_version = (1, 3);
    }
    let words = spv::write_vec(&module, &info, &options, None).unwrap();
    if validated {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel.spv");
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let out = Command::new("spirv-val")
            .args(["--target-env", "vulkan1.1"])
            .arg(&path)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        // Validators of before 2023 do not know this capability by its number.
        let unknown = key.matrix.is_some() && errors.contains("Invalid capability operand: 6022");
        assert!(out.status.success() || unknown, "{key}: {errors}");
    }
    let mut options = msl::Options {
        bounds_check_policies: policies,
        fake_missing_bindings: true,
        ..msl::Options::default()
    };
    if key.matrix.is_some() {
        // The first version with matrices.
        options.lang_version = (2, 3);
    }
    // Metal has no larger matrices.
    if key.matrix.is_none_or(|matrix| matrix.side == 8) {
        let (text, _) =
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
        assert!(text.contains("kernel void"), "{key}");
    }
    // DX12 has none.
    if key.matrix.is_some() {
        return;
    }
    let mut text = String::new();
    let shader_model = match (key.f16_out, key.broadcast) {
        (true, _) => hlsl::ShaderModel::V6_2,
        (false, true) => hlsl::ShaderModel::V6_0,
        (false, false) => hlsl::ShaderModel::V5_1,
    };
    let options =
        hlsl::Options { fake_missing_bindings: true, shader_model, ..hlsl::Options::default() };
    let pipeline = hlsl::PipelineOptions::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|e| panic!("{key}: {e}"));
    let threads = format!("numthreads({}, 1, 1)", key.threads());
    assert!(text.contains(&threads), "{key}");
}

/// Whether `spirv-val` is there.
fn spirv_val() -> bool {
    let present = Command::new("spirv-val")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    let required = std::env::var("LOCAL_ATTENTION_SPIRV_VAL").is_ok_and(|v| v == "require");
    assert!(present || !required, "spirv-val is not installed");
    present
}
