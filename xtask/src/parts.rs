//! The parts of the test suite, each a list of cargo commands.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Instant;

use crate::{package, simd, web};

/// A part that can be run by name.
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// What it shows, in a line.
    pub what: &'static str,
    /// Whether it runs without being named.
    pub default: bool,
    /// Runs it.
    pub run: fn() -> Result<(), String>,
}

/// All parts, in the order they run.
pub const ALL: &[Part] = &[
    Part {
        name: "lint",
        what: "formatting and clippy, with all features and with none, warnings denied",
        default: true,
        run: lint,
    },
    Part {
        name: "docs",
        what: "documentation without warnings, and packages that build",
        default: true,
        run: docs,
    },
    Part {
        name: "cpu",
        what: "every test that needs no GPU, the golden data on every backend, the examples, every shader",
        default: true,
        run: cpu,
    },
    Part {
        name: "simd",
        what: "the CPU engine's kernels for ARM and WebAssembly, emulated",
        default: true,
        run: simd::test,
    },
    Part {
        name: "gpu",
        what: "every test of the GPU engine, the dearest of them dealt out to lavapipe and SwiftShader",
        default: true,
        run: || gpu([Some("1/2"), Some("2/2")]),
    },
    Part {
        name: "gpu-full",
        what: "every test of the GPU engine, whole on lavapipe and on SwiftShader",
        default: false,
        run: || gpu([None, None]),
    },
    Part {
        name: "web",
        what: "the browser package, built and tested in headless Chromium",
        default: true,
        run: web::test,
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
    // Other members of the workspace ask for features of the library: alone it has those that are named.
    for features in [
        &["--workspace", "--all-features"][..],
        &["-p", "local-attention", "--no-default-features"],
    ] {
        let args = [&["clippy", "--all-targets"], features, &["--", "-D", "warnings"]].concat();
        cargo(&args, &[])?;
    }
    web::lint()?;
    // Outside the workspace, so that nothing else would notice.
    cargo(
        &["check", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features"],
        &[("CARGO_TARGET_DIR", "target")],
    )
}

fn docs() -> Result<(), String> {
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    cargo(&["doc", "--workspace", "--all-features", "--no-deps"], &deny)?;
    package::check()
}

fn cpu() -> Result<(), String> {
    need("spirv-val", &|| which("spirv-val"), "spirv-tools")?;
    let env = [("LOCAL_ATTENTION_GPU", "off"), ("LOCAL_ATTENTION_SPIRV_VAL", "require")];
    cargo(&["test", "--workspace", "--all-features"], &env)
}

/// The shares of lavapipe and of SwiftShader.
fn gpu(shares: [Option<&str>; 2]) -> Result<(), String> {
    let lavapipe = || driver("/usr/share/vulkan/icd.d", "lvp_icd");
    need("a Vulkan driver", &|| lavapipe().is_some(), "mesa-vulkan-drivers")?;
    // SwiftShader comes with Chromium.
    let swiftshader = || driver("/usr/lib/chromium", "vk_swiftshader_icd");
    need("SwiftShader", &|| swiftshader().is_some(), "chromium")?;
    need(
        "the Vulkan loader",
        &|| {
            driver("/usr/lib/x86_64-linux-gnu", "libvulkan.so.1").is_some()
                || driver("/usr/lib/aarch64-linux-gnu", "libvulkan.so.1").is_some()
        },
        "libvulkan1",
    )?;
    // The same packages and features everywhere: others would build wgpu again.
    let all = ["--workspace", "--all-features"];
    let with = |words: &[&'static str]| [&words[..1], &all, &words[1..]].concat();
    cargo(&with(&["build", "--examples", "--profile", "test"]), &[])?;
    cargo(&with(&["test", "--test", "gpu", "--no-run"]), &[])?;
    // At the same time: both spend most of it compiling shaders, each on one thread.
    std::thread::scope(|scope| {
        let drivers = [("lavapipe", lavapipe()), ("SwiftShader", swiftshader())];
        let runs = drivers.into_iter().zip(shares).map(|((name, file), share)| {
            let args = with(&["test", "--test", "gpu"]);
            scope.spawn(move || {
                let file = file.ok_or_else(|| format!("the driver of {name} is gone"))?;
                let mut env = vec![
                    ("LOCAL_ATTENTION_GPU", "require"),
                    ("VK_DRIVER_FILES", file.as_str()),
                    // Mesa looks for a display server otherwise, and complains.
                    ("XDG_RUNTIME_DIR", "/tmp"),
                ];
                env.extend(share.map(|share| ("LOCAL_ATTENTION_SHARE", share)));
                run_named(name, env!("CARGO"), &args, &env)
            })
        });
        // All are started before one is waited for.
        let runs: Vec<_> = runs.collect();
        runs.into_iter().try_for_each(|run| run.join().unwrap_or(Err("it panicked".to_owned())))
    })
}

/// The first file of a folder whose name begins so.
fn driver(folder: &str, name: &str) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    files.sort();
    let begins = |p: &&std::path::PathBuf| {
        p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name))
    };
    files.iter().find(begins).and_then(|p| p.to_str()).map(str::to_owned)
}

/// Whether a program is there.
pub fn which(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Installs a Debian package where what it brings is missing: as root, or with `--install`.
pub fn need(what: &str, present: &dyn Fn() -> bool, package: &str) -> Result<(), String> {
    if present() {
        return Ok(());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    let asked = std::env::args().any(|arg| arg == "--install");
    let sudo: &[&str] = if root { &[] } else { &["sudo"] };
    let install = ["apt-get", "install", "-y", "--no-install-recommends", package];
    let line = [sudo, &install].concat().join(" ");
    if !root && !asked {
        return Err(format!("{what} is missing: {line} (or add --install)"));
    }
    for attempt in 1..=2 {
        for words in [&["apt-get", "update"][..], &install] {
            let words = [sudo, words].concat();
            println!("$ {}", words.join(" "));
            let _ = Command::new(words[0])
                .args(&words[1..])
                .env("DEBIAN_FRONTEND", "noninteractive")
                .status();
        }
        if present() {
            return Ok(());
        }
        println!("{what} is still missing after attempt {attempt}");
    }
    Err(format!("{what} is missing, and this did not bring it: {line}"))
}

/// The folder of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs cargo in the workspace; what it prints goes where ours goes.
pub fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    run(env!("CARGO"), args, env)
}

/// Runs a program in the workspace; what it prints goes where ours goes.
pub fn run(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    run_in(&root(), program, args, env)
}

/// The same in another folder.
pub fn run_in(
    folder: &Path,
    program: &str,
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<(), String> {
    let (mut command, line) = prepare(program, args, env);
    println!("$ {line}");
    let start = Instant::now();
    ended(command.current_dir(folder).status(), &line)?;
    println!("# {} s: {line}", start.elapsed().as_secs());
    Ok(())
}

/// The same for one of several that run at the same time: each line begins with a name.
fn run_named(name: &str, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    let (mut command, line) = prepare(program, args, env);
    println!("{name}: $ {line}");
    let (reader, writer) = std::io::pipe().map_err(|e| format!("no pipe for {line}: {e}"))?;
    let copy = || writer.try_clone().map_err(|e| format!("no pipe for {line}: {e}"));
    command.stdout(copy()?).stderr(copy()?);
    let child = command.spawn();
    // Else they would hold the pipe open.
    drop((command, writer));
    for text in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        println!("{name}: {}", String::from_utf8_lossy(&text));
    }
    ended(child.and_then(|mut child| child.wait()), &format!("{name}: {line}"))
}

/// A program in the workspace, and what it is called in messages.
fn prepare(program: &str, args: &[&str], env: &[(&str, &str)]) -> (Command, String) {
    let name = if program == env!("CARGO") { "cargo" } else { program };
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).current_dir(root());
    (command, format!("{name} {}", args.join(" ")))
}

fn ended(status: std::io::Result<ExitStatus>, line: &str) -> Result<(), String> {
    let status = status.map_err(|e| format!("{line} could not be started: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{line} ended with {status}")) }
}
