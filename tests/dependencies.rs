//! The library without its default features depends on nothing of the GPU.

use std::process::Command;

#[test]
fn no_wgpu_without_default_features() {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-e",
            "normal",
            "--no-default-features",
            "--offline",
            "-p",
            "local-attention",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(tree.starts_with("local-attention v"), "{tree}");
    assert!(!tree.contains("wgpu") && !tree.contains("naga"), "{tree}");
}
