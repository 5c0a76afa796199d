//! What would be published builds.

use std::fs;

use crate::parts::{cargo, root, run};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PACKAGES: [&str; 2] = ["local-attention", "local-attention-cli"];

/// Packs the packages of the work tree, committed or not, and builds what was packed.
///
/// `cargo package` would build it too, but keeps what it unpacked of the library in the user's cargo
/// folder, under a name made of the path and the version: the command line of the next commit would
/// be built against the library of the last one.
pub fn check() -> Result<(), String> {
    let failed = |what: &str, e: std::io::Error| format!("{what}: {e}");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target = root().join(target).display().to_string();
    let mut package = vec!["package", "--no-verify", "--allow-dirty"];
    package.extend(PACKAGES.iter().flat_map(|name| ["-p", *name]));
    cargo(&package, &[])?;

    // A workspace of what was packed, with the versions of ours, so that little is built again.
    let unpacked = format!("{target}/packed");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked).map_err(|e| failed(&unpacked, e))?;
    for name in PACKAGES {
        let file = format!("{target}/package/{name}-{VERSION}.crate");
        run("tar", &["-xzf", &file, "-C", &unpacked], &[])?;
    }
    let members = PACKAGES.map(|name| format!("\"{name}-{VERSION}\"")).join(", ");
    let manifest = format!(
        "[workspace]\nmembers = [{members}]\nresolver = \"3\"\n\n\
         [patch.crates-io]\nlocal-attention = {{ path = \"local-attention-{VERSION}\" }}\n"
    );
    let path = format!("{unpacked}/Cargo.toml");
    fs::write(&path, manifest).map_err(|e| failed(&path, e))?;
    let lock = format!("{unpacked}/Cargo.lock");
    fs::copy(root().join("Cargo.lock"), &lock).map_err(|e| failed(&lock, e))?;
    let check = ["check", "--workspace", "--manifest-path", &path, "--lib", "--bins", "--examples"];
    cargo(&check, &[("CARGO_TARGET_DIR", &target)])
}
