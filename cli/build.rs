//! Puts the compiler's version and the commit into the binary, for benchmark records.

use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    println!("cargo::rustc-env=BUILT_BY={}", first_line(Command::new(rustc).arg("-V")));
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12"]);
    println!("cargo::rustc-env=BUILT_FROM={}", first_line(&mut git));
    println!("cargo::rerun-if-changed=../.git/HEAD");
    println!("cargo::rerun-if-changed=../.git/refs/heads");
    println!("cargo::rerun-if-changed=build.rs");
}

/// What a command prints first, or `unknown`: a package is built outside a repository too.
fn first_line(command: &mut Command) -> String {
    let out = command.output().ok().filter(|out| out.status.success());
    let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    text.as_deref().and_then(|t| t.lines().next()).unwrap_or("unknown").to_owned()
}
