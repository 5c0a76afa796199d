//! The browser package: compiled to WebAssembly, bound, tested and timed in headless Chromium.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cross;
use crate::parts::{cargo, need, root, run_in, which};

/// What the package is compiled for.
pub const TRIPLE: &str = "wasm32-unknown-unknown";

/// Builds the package's generated half, `web/dist`, and puts the licences beside it.
pub fn build() -> Result<(), String> {
    let mut args =
        vec!["build", "--profile", "web", "-p", "local-attention-web", "--target", TRIPLE];
    let rustup = cross::rustup_has(TRIPLE);
    // Messages of panics hold paths: not those of who built it.
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME")).unwrap_or_default();
    // Flags end at spaces.
    let remap = match home.is_empty() || home.contains(' ') {
        true => String::new(),
        false => format!(" --remap-path-prefix={home}="),
    };
    let flags = format!("-Ctarget-feature=+simd128{remap}");
    let mut env = vec![("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags.as_str())];
    if !rustup {
        cross::debian_toolchain()?;
        args.push("-Zbuild-std=std,panic_abort");
        env.push(("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld"));
    }
    cross::cargo(rustup, &args, &env)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let module = root().join(target).join(TRIPLE).join("web/local_attention_web.wasm");
    cargo(&["run", "-q", "-p", "bindgen", "--", &text(module)?, &text(web("dist"))?], &[])?;
    // What the page shows attention on.
    let genesis = root().join("examples/char_model/genesis.txt");
    fs::copy(&genesis, web("dist/text.txt")).map_err(|e| format!("{}: {e}", genesis.display()))?;
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root().join(name), web(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// Builds the package and runs its tests.
pub fn test() -> Result<(), String> {
    prepare()?;
    let args = ["--test", "--test-reporter=spec", "test/index.mjs"];
    run_in(&web(""), "node", &args, &[])
}

/// Builds the package and times it against onnxruntime-web.
pub fn bench(args: &[String]) -> Result<(), String> {
    prepare()?;
    install("bench")?;
    // Where files are named from.
    let script = text(web("bench/index.mjs"))?;
    let args: Vec<&str> =
        [script.as_str()].into_iter().chain(args.iter().map(String::as_str)).collect();
    run_in(Path::new("."), "node", &args, &[])
}

/// The package, and what its tests need.
fn prepare() -> Result<(), String> {
    // The variable names another one.
    let chromium = || std::env::var_os("CHROMIUM").is_some() || which("chromium");
    need("Chromium", &chromium, "chromium")?;
    need("Node", &|| which("node"), "nodejs")?;
    need("npm", &|| which("npm"), "npm")?;
    build()?;
    install("")
}

/// Installs what a folder of the package locks: once, until that changes.
fn install(folder: &str) -> Result<(), String> {
    let folder = web(folder);
    let changed = |name: &str| fs::metadata(folder.join(name)).and_then(|m| m.modified()).ok();
    if changed("node_modules/.package-lock.json") < changed("package-lock.json") {
        let args = ["ci", "--no-audit", "--no-fund", "--prefer-offline"];
        run_in(&folder, "npm", &args, &[])?;
    }
    Ok(())
}

/// Clippy on what is only compiled for browsers, where rustup has the target.
pub fn lint() -> Result<(), String> {
    if !cross::rustup_has(TRIPLE) {
        println!("not linted for browsers: rustup target add {TRIPLE}");
        return Ok(());
    }
    let args = ["clippy", "-p", "local-attention-web", "--target", TRIPLE, "--", "-D", "warnings"];
    let flags = ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", "-Ctarget-feature=+simd128");
    cargo(&args, &[flags])
}

fn text(path: PathBuf) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| "a path that is no text".to_owned())
}

/// Below the package's folder.
pub fn web(path: &str) -> PathBuf {
    root().join("web").join(path)
}
