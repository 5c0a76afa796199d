//! Compiling for other targets: with the toolchain at hand where it has or gets std for one, else with
//! Debian's, which builds std.

use std::path::Path;
use std::process::Command;

use crate::parts::{cargo as own_cargo, need, run};

/// Whether the toolchain at hand has std for a target, or now got it.
pub fn rustup_has(triple: &str) -> bool {
    has_std(triple)
        || Command::new("rustup").args(["target", "add", triple]).status().is_ok()
            && has_std(triple)
}

/// Cargo of the toolchain at hand, or Debian's.
pub fn cargo(rustup: bool, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    if rustup {
        return own_cargo(args, env);
    }
    let debian = [("RUSTC", "/usr/bin/rustc"), ("RUSTC_BOOTSTRAP", "1")];
    run("/usr/bin/cargo", args, &[env, &debian].concat())
}

/// Whether this toolchain can compile for a target.
fn has_std(triple: &str) -> bool {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    Command::new(rustc)
        .args(["--print", "target-libdir", "--target", triple])
        .output()
        .is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists())
}

/// Debian's rustc and cargo, with std in source.
pub fn debian_toolchain() -> Result<(), String> {
    for (file, package) in [
        ("/usr/bin/rustc", "rustc-web"),
        ("/usr/bin/cargo", "cargo-web"),
        ("/usr/lib/rustlib/src/rust", "rust-web-src"),
        ("/usr/bin/wasm-ld", "lld"),
    ] {
        need(file, &|| Path::new(file).exists(), package)?;
    }
    Ok(())
}
