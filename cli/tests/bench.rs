//! `bench`: the files it writes and the names other programs read.

mod common;

use common::{Folder, run};
use serde_json::Value;

/// Names that other programs read.
const NAMES: [&str; 23] = [
    "backend",
    "adapter",
    "variant",
    "pass",
    "batch",
    "heads",
    "n",
    "head_dim",
    "window_size",
    "look_backward",
    "look_forward",
    "causal",
    "exact",
    "rotary",
    "dtype",
    "threads",
    "median_ms",
    "min_ms",
    "p90_ms",
    "gpu_median_ms",
    "attended_gflops",
    "floor_share",
    "peak_rss_bytes",
];

#[test]
fn one_shape_into_every_file() {
    let folder = Folder::new();
    let [json, csv, html] = ["r.json", "r.csv", "r.html"].map(|n| folder.path(n));
    let args = [
        "bench",
        "--n",
        "256",
        "--window",
        "32",
        "--heads",
        "2",
        "--threads",
        "2",
        "--isa",
        "portable",
        "--seconds",
        "0",
        "--json",
        &json,
        "--csv",
        &csv,
        "--html",
        &html,
    ];
    let out = run(&args);
    assert_eq!(out.status, 0, "{}", out.stderr);
    for part in ["machine  ", "build    ", "floor    gemm", "b1 h2 n256 d64 w32 causal"] {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
    let text = std::fs::read_to_string(&json).unwrap();
    let row: Value = serde_json::from_str(text.trim()).unwrap();
    for name in NAMES {
        assert!(row.get(name).is_some(), "{name}: {row}");
    }
    assert_eq!((&row["variant"], &row["threads"]), (&"portable".into(), &2.into()));
    assert!(row["gpu_median_ms"].is_null());
    let ms = |name: &str| row[name].as_f64().unwrap();
    assert!(
        0.0 < ms("min_ms") && ms("min_ms") <= ms("median_ms") && ms("median_ms") <= ms("p90_ms")
    );
    // Pairs of 256 causal queries in windows of 32: 32 * 33 / 2 in each of 8 windows, and a whole
    // window before 7 of them.
    let pairs = 8 * 32 * 33 / 2 + 7 * 32 * 32;
    let flops = f64::from(2 * 4 * 64 * pairs);
    assert!((ms("attended_gflops") * ms("median_ms") * 1e6 / flops - 1.0).abs() < 1e-9);

    let csv = std::fs::read_to_string(&csv).unwrap();
    let lines: Vec<_> = csv.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("backend,adapter,variant,pass,batch"),
        "{csv}"
    );
    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(
        !page.contains("http://")
            || page.matches("http://").count()
                == page.matches("http://www.w3.org/2000/svg").count()
    );

    // Against itself, with the file as the earlier run.
    let out = run(&[&args[..13], &["--json", "-", "--compare", &json]].concat());
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert_eq!(out.stdout.lines().count(), 1);
    assert!(
        ["same", "faster", "slower"].iter().any(|w| out.stderr.starts_with(w)),
        "{}",
        out.stderr
    );
}

/// A row for each number of threads, and what they gain beside a matrix product.
#[test]
fn numbers_of_threads() {
    let args = ["bench", "--backend", "cpu", "--n", "512", "--seconds", "0", "--threads", "1,2"];
    let out = run(&[&args[..], &["--json", "-"]].concat());
    assert_eq!(out.status, 0, "{}", out.stderr);
    let rows: Vec<serde_json::Value> =
        out.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let threads: Vec<_> = rows.iter().map(|r| r["threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, [1, 2]);
    assert!(rows.iter().all(|r| r["floor_gflops"].as_f64().unwrap() > 0.0));
    let notes: Vec<_> = out.stderr.lines().filter(|l| l.starts_with("threads ")).collect();
    assert!(notes.len() == 1 && notes[0].contains("2 are"), "{}", out.stderr);
}

#[test]
fn bad_input() {
    let folder = Folder::new();
    let old = folder.text("old.json", "{}\n");
    let empty = folder.text("empty.json", "\n");
    for (args, part) in [
        (&["--n", "100", "--window", "128"][..], "divisible"),
        (&["--n", "128", "--heads", "0"], "at least 1"),
        (&["--n", "128", "--causal", "--look-forward", "1"], "look_forward is 1"),
        (&["--n", "128", "--head-dim", "7"], "dim is 7"),
        (&["--suite", "banana"], "banana"),
        (&["--suite", "quick", "--n", "128"], "cannot be used with"),
        (&["--backend", "gpu"], "none is present"),
        (&["--adapter", "x"], "none is present"),
        (&["--threads", "0"], "threads is 0"),
        (&["--heads", "4", "--suite", "quick"], "cannot be used with"),
        (&["--window", "64"], "--n"),
        (&["--n", "1048576", "--heads", "1024"], "does not fit into memory: its tensors take"),
        (&["--compare", &empty], "holds no rows"),
        (&["--threads", "1,1", "--backend", "cpu"], "--threads 1,1: each number"),
        (&["--tile", "small", "--backend", "cpu"], "only the GPU engine has tiles"),
        (&["--tile", "huge"], "small, large, short, tall, fastest"),
        (&["--threads", "1,2", "--backend", "reference"], "only the CPU engine has threads"),
        (
            &["--threads", "1,2", "--backend", "cpu", "--peer", "torch-flex"],
            "with --peer one number is allowed",
        ),
        (&["--n", "1048576", "--heads", "65536", "--head-dim", "1024"], "does not fit into memory"),
        (
            &[
                "--batch",
                "4294967295",
                "--heads",
                "1",
                "--n",
                "256",
                "--rotary",
                "false",
                "--head-dim",
                "1152921504606846976",
            ],
            "does not fit into memory",
        ),
        (&["--isa", "mmx"], "avx512, avx2, neon, simd128, portable"),
        (&["--seconds=-1"], "--seconds"),
        (&["--compare", "/no/such.json"], "/no/such.json"),
        (&["--compare", &old], "line 1 is no row"),
        (&["--peer", "tensorflow"], "tensorflow"),
        (
            &["--n", "128", "--peer", "torch-reference", "--python", "/no/python"],
            "/no/python could not be started",
        ),
    ] {
        let out = run(&[&["bench"], args].concat());
        assert_eq!(out.status, 2, "{args:?}\n{}{}", out.stdout, out.stderr);
        assert_eq!(out.stderr.trim_end().lines().count(), 1, "{args:?}\n{}", out.stderr);
        assert!(out.stderr.contains(part), "{args:?} does not say {part}: {}", out.stderr);
    }
}

/// A Python without PyTorch: one line that says what is missing.
#[cfg(unix)]
#[test]
fn a_peer_without_its_packages() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let script = "#!/bin/sh\necho '{\"error\": \"torch is not installed for sh\"}'\n";
    let python = folder.text("python", script);
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let out = run(&["bench", "--n", "128", "--peer", "torch-flex", "--python", &python]);
    assert_eq!(out.status, 2, "{}", out.stdout);
    assert!(
        out.stderr.contains("torch is not installed") && out.stderr.contains("requirements.txt"),
        "{}",
        out.stderr
    );
}
