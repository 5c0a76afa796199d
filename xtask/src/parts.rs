//! The parts of the test suite, each a list of cargo commands.

use std::path::Path;
use std::process::Command;

/// A part that can be run by name.
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// What it shows, in a line.
    pub what: &'static str,
    /// Runs it.
    pub run: fn() -> Result<(), String>,
}

/// All parts, in the order they run.
pub const ALL: &[Part] = &[
    Part {
        name: "lint",
        what: "formatting and clippy, for each set of features, warnings denied",
        run: lint,
    },
    Part {
        name: "docs",
        what: "documentation without warnings, and packages that build",
        run: docs,
    },
    Part {
        name: "cpu",
        what: "every test, the golden data on every backend, the examples",
        run: cpu,
    },
];

fn lint() -> Result<(), String> {
    for component in ["fmt", "clippy"] {
        if cargo(&[component, "--version"], &[]).is_err() {
            return Err(format!(
                "cargo {component} is missing: rustup component add {}",
                if component == "fmt" { "rustfmt" } else { component }
            ));
        }
    }
    cargo(&["fmt", "--all", "--check"], &[])?;
    for features in
        [&["--all-features"][..], &["--no-default-features"], &["--features", "ndarray"]]
    {
        let mut args = vec!["clippy", "--workspace", "--all-targets"];
        args.extend(features);
        args.extend(["--", "-D", "warnings"]);
        cargo(&args, &[])?;
    }
    // Outside the workspace, so that nothing else would notice.
    cargo(
        &["check", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features"],
        &[("CARGO_TARGET_DIR", "target")],
    )
}

fn docs() -> Result<(), String> {
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    cargo(&["doc", "--workspace", "--all-features", "--no-deps"], &deny)?;
    // Packages of a work tree, committed or not.
    let package =
        ["package", "-p", "local-attention", "-p", "local-attention-cli", "--allow-dirty"];
    cargo(&package, &[])
}

fn cpu() -> Result<(), String> {
    cargo(&["test", "--workspace", "--all-features"], &[])?;
    cargo(
        &[
            "test",
            "-p",
            "local-attention",
            "--no-default-features",
            "--lib",
            "--test",
            "properties",
        ],
        &[],
    )
}

/// Runs cargo in the workspace; what it prints goes where ours goes.
fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    println!("$ cargo {}", args.join(" "));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(env!("CARGO"))
        .args(args)
        .envs(env.iter().copied())
        .current_dir(root)
        .status()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo {} ended with {status}", args.join(" ")))
    }
}
