//! The CPU engine's kernels for other processors than this one: NEON under qemu, WebAssembly's SIMD
//! in Node.

use std::path::Path;

use crate::cross;
use crate::parts::{need, root, which};

const WASI_LIBC: &str = "/usr/lib/wasm32-wasi/libc.a";

/// A target the tests are compiled for and an emulator that runs them.
struct Target {
    triple: &'static str,
    /// The instruction set that has to be found there.
    isa: &'static str,
    /// How std ends on a panic there.
    panic: &'static str,
    tests: &'static [&'static str],
    /// Variables for cargo, the part after `CARGO_TARGET_<TRIPLE>_`.
    settings: Vec<(&'static str, String)>,
    /// What else Debian's toolchain is told.
    debian: &'static [(&'static str, &'static str)],
}

/// Compiles the property tests for each, and runs them.
pub fn test() -> Result<(), String> {
    if !cfg!(target_arch = "aarch64") {
        need("an ARM linker", &|| which("aarch64-linux-gnu-gcc"), "gcc-aarch64-linux-gnu")?;
        // Its headers too: a dependency of the benchmarks is C.
        let libc = || Path::new("/usr/aarch64-linux-gnu/include/stdint.h").exists();
        need("the C library for ARM", &libc, "libc6-dev-arm64-cross")?;
        need("an ARM emulator", &|| which("qemu-aarch64"), "qemu-user")?;
        Target {
            triple: "aarch64-unknown-linux-gnu",
            isa: "neon",
            panic: "panic_unwind",
            tests: &["--lib", "--test", "properties", "--test", "gradients"],
            settings: vec![
                ("LINKER", "aarch64-linux-gnu-gcc".to_owned()),
                ("RUNNER", "qemu-aarch64 -L /usr/aarch64-linux-gnu".to_owned()),
            ],
            debian: &[],
        }
        .test()?;
    }
    need("Node", &|| which("node"), "nodejs")?;
    let runner = root().join("xtask/wasi.mjs");
    Target {
        triple: "wasm32-wasip1",
        isa: "simd128",
        panic: "panic_abort",
        tests: &["--test", "properties", "--test", "gradients"],
        settings: vec![
            ("RUNNER", format!("node {}", runner.display())),
            ("RUSTFLAGS", "-Ctarget-feature=+simd128".to_owned()),
        ],
        debian: &[
            ("LINKER", "wasm-ld"),
            (
                "RUSTFLAGS",
                "-Ctarget-feature=+simd128 -Clink-self-contained=no -L/usr/lib/wasm32-wasi \
                 -Clink-arg=/usr/lib/wasm32-wasi/crt1-command.o",
            ),
        ],
    }
    .test()
}

impl Target {
    /// With the toolchain at hand where it has or gets std for this target, else with Debian's, which
    /// builds std.
    fn test(&self) -> Result<(), String> {
        let triple = self.triple;
        let mut args =
            vec!["test", "-p", "local-attention", "--no-default-features", "--target", triple];
        // No test of these uses it.
        args.extend(["--config", "profile.test.package.naga.opt-level=0"]);
        let std = format!("-Zbuild-std=std,{},test", self.panic);
        let rustup = cross::rustup_has(triple);
        let mut settings = self.settings.clone();
        if !rustup {
            cross::debian_toolchain()?;
            need(WASI_LIBC, &|| Path::new(WASI_LIBC).exists(), "wasi-libc")?;
            args.push(&std);
            settings.extend(self.debian.iter().map(|&(name, value)| (name, value.to_owned())));
        }
        args.extend(self.tests);
        // Natively run, and the same there: no instruction set is used.
        args.extend(["--", "--skip", "the_oracle_matches_central_differences"]);
        let prefix = format!("CARGO_TARGET_{}_", triple.replace('-', "_").to_uppercase());
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| (format!("{prefix}{name}"), value)).collect();
        let mut env: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // Emulated: a tenth of the cases unless more are asked for, and kernels that are worth optimising.
        let cases = std::env::var("LOCAL_ATTENTION_CASES").unwrap_or_else(|_| "100".to_owned());
        env.extend([
            ("LOCAL_ATTENTION_ISA", self.isa),
            ("LOCAL_ATTENTION_CASES", &cases),
            ("CARGO_PROFILE_TEST_OPT_LEVEL", "2"),
        ]);
        cross::cargo(rustup, &args, &env)
    }
}
