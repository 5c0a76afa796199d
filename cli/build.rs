//! Puts the compiler's version and the commit into the binary, for benchmark records.

use std::path::Path;
use std::process::Command;

/// What the binary is made of, in the repository.
const SOURCES: [&str; 8] = [
    "src",
    "shaders",
    "cli/src",
    "cli/build.rs",
    "cli/Cargo.toml",
    "benches/peers",
    "Cargo.toml",
    "Cargo.lock",
];

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = first_line(Command::new(rustc).arg("-V"));
    println!("cargo::rustc-env=BUILT_BY={}", compiler.as_deref().unwrap_or("unknown"));
    // A package is built outside a repository too.
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat());
    let dirty = if changed.is_some() { "-dirty" } else { "" };
    println!("cargo::rustc-env=BUILT_FROM={commit}{dirty}");

    // The sources tell when something is changed, git's own files when it is committed. Not its index:
    // looking at the state of a repository writes that. A path that is not there would make every
    // build a new one.
    let branch = git(&["symbolic-ref", "HEAD"]).unwrap_or_default();
    let state = ["HEAD", "logs/HEAD", "packed-refs", &branch];
    let place = |name| git(&["rev-parse", "--path-format=absolute", "--git-path", name]);
    let sources = SOURCES.iter().map(|name| format!("../{name}"));
    let paths = sources.chain(state.into_iter().filter_map(place));
    for path in paths.filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// The first line git prints of this repository, if there is one. It must not write what
/// another git may be writing.
fn git(args: &[&str]) -> Option<String> {
    first_line(Command::new("git").arg("--no-optional-locks").args(args).current_dir(".."))
}

fn first_line(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|out| out.status.success())?;
    String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned)
}
