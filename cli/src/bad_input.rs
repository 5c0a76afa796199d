//! Every variant of the command line's errors, caused by a row here. The lists are exhaustive
//! matches: a new variant does not build until it stands here, and does not pass until a row causes
//! it. `tests/bad_input.rs` goes through the arguments and files themselves.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use local_attention::gpu::{GpuError, PlanError};
use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
use safetensors::tensor::{Dtype, TensorView};

use crate::case::{Case, CaseError, Replace};
use crate::error::BadInput;
use crate::run::load;

macro_rules! variants {
    ($of:ident, $all:ident, $type:ident: $($variant:ident),*) => {
        fn $of(error: &$type) -> &'static str {
            match error {
                $($type::$variant { .. } => stringify!($variant),)*
            }
        }
        const $all: &[&str] = &[$(stringify!($variant)),*];
    };
}

variants!(case_variant, CASE, CaseError: Format, MissingTensor, MissingConfig, Json, Dtype, MaskByte);
variants!(input_variant, INPUT, BadInput: Usage, Case, File, Config, Shape, Run, Gpu);

fn file(config: Option<&str>, tensors: &[(&str, Dtype, &[u8])]) -> Vec<u8> {
    let metadata = config.map(|c| HashMap::from([("config".to_owned(), c.to_owned())]));
    let views = tensors.iter().map(|(name, dtype, bytes)| {
        let size = dtype.bitsize() / 8;
        let view = TensorView::new(*dtype, vec![bytes.len() / size, 1], bytes).unwrap();
        (*name, view)
    });
    safetensors::serialize(views, metadata).unwrap()
}

#[test]
fn case_errors() {
    const WINDOW: &str = r#"{"window_size": 1}"#;
    let x = &[0; 4][..];
    let qkv = [("q", Dtype::F32, x), ("k", Dtype::F32, x), ("v", Dtype::F32, x)];
    let with = |extra| file(Some(WINDOW), &[&qkv[..], &[extra]].concat());
    let rows = [
        ("Format", b"banana".to_vec()),
        ("MissingTensor", file(Some(WINDOW), &qkv[..2])),
        ("MissingConfig", file(None, &qkv)),
        ("Json", file(Some("{}"), &qkv)),
        ("Dtype", with(("attn_bias", Dtype::I32, x))),
        ("Dtype", with(("mask", Dtype::F32, x))),
        ("Dtype", with(("attn_bias", Dtype::F64, &[0; 8]))),
        ("MaskByte", with(("mask", Dtype::BOOL, &[2]))),
        ("MaskByte", with(("input_mask", Dtype::U8, &[2]))),
    ];
    let mut seen = BTreeSet::new();
    for (expected, bytes) in rows {
        let error = Case::from_bytes(&bytes).unwrap_err();
        assert_eq!(case_variant(&error), expected, "{error}");
        seen.insert(expected);
    }
    assert!(CASE.iter().all(|v| seen.contains(v)), "{seen:?}");
    Case::from_bytes(&file(Some(WINDOW), &qkv)).unwrap();
}

#[test]
fn bad_input() {
    let shape = LocalAttention::new(LocalAttentionConfig::new(3)).unwrap();
    let no_features = PlanError::HeadDim { got: 257, max: 256 };
    let rows: [BadInput; 7] = [
        BadInput::Usage("x".to_owned()),
        BadInput::Case { path: "x".to_owned(), source: Case::from_bytes(b"").unwrap_err() },
        load(Path::new("/no/such/file"), &Replace::default()).unwrap_err(),
        LocalAttention::new(LocalAttentionConfig::new(0)).unwrap_err().into(),
        shape.problem(&AttentionShape::new([1], 4, 1)).unwrap_err().into(),
        local_attention::cpu::Cpu::with_threads(0).unwrap_err().into(),
        GpuError::Plan(no_features).into(),
    ];
    let seen: Vec<_> = rows.iter().map(input_variant).collect();
    assert_eq!(seen, INPUT);
}
