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
    // It loads nothing: the one address is the name of SVG.
    let own = page.replace("http://www.w3.org/2000/svg", "");
    for part in ["//", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!own.contains(part), "{part}");
    }
    assert!(own.contains("floor") && own.contains("portable") && !own.contains("gpu ms"));

    // Against an earlier run that took a thousand times as long, or as short, and held another row.
    for (factor, word) in [(1e3, "faster"), (1e-3, "slower")] {
        let mut old = row.clone();
        for name in ["median_ms", "lower_ms", "upper_ms"] {
            old[name] = (ms(name) * factor).into();
        }
        let mut other = old.clone();
        other["n"] = 512.into();
        let old = folder.text("old.json", &format!("{old}\n{other}\n"));
        let out = run(&[&args[..13], &["--json", "-", "--compare", &old]].concat());
        assert_eq!(out.status, 0, "{}", out.stderr);
        assert_eq!(out.stdout.lines().count(), 1);
        let lines: Vec<_> = out.stderr.lines().collect();
        // What one shape leaves out is not gone.
        assert!(lines.len() == 1 && lines[0].starts_with(word), "{}", out.stderr);
    }
}

/// Standard output holds rows alone, whatever name it is given.
#[cfg(unix)]
#[test]
fn standard_output_is_a_file() {
    let args = ["bench", "--n", "128", "--heads", "1", "--seconds", "0"];
    let out = run(&[&args[..], &["--json", "/dev/stdout"]].concat());
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert_eq!(out.stdout.lines().count(), 1, "{}", out.stdout);
    assert!(out.stdout.starts_with("{\"backend\":\"cpu\""), "{}", out.stdout);
    let out = run(&[&args[..], &["--csv", "/dev/stdout"]].concat());
    assert_eq!(out.stdout.lines().count(), 2, "{}", out.stdout);
    assert!(out.stdout.starts_with("backend,") && out.stderr.contains("machine  "));
}

/// A call too small to wake a second thread is said to be of one.
#[cfg(target_os = "linux")]
#[test]
fn a_small_call_is_of_one_thread() {
    let args = ["bench", "--backend", "cpu", "--window", "16", "--heads", "1", "--seconds", "0"];
    for (n, threads) in [("64", 1), ("16384", 2)] {
        let out = run(&[&args[..], &["--threads", "2", "--n", n, "--json", "-"]].concat());
        let row: Value = serde_json::from_str(out.stdout.trim()).unwrap();
        assert_eq!(row["threads"], threads, "n {n}: {row}");
    }
}

/// A row for each number of threads, and what they gain beside a matrix product.
#[test]
fn numbers_of_threads() {
    let args = ["bench", "--backend", "cpu", "--n", "2048", "--seconds", "0", "--threads", "1,2"];
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
    let [same, dotted] = ["a", "./a"].map(|name| folder.path(name));
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
        (&["--tile", "huge"], "small, large, short, tall, matrix, fastest"),
        (&["--threads", "1,2", "--backend", "reference"], "only the CPU engine has threads"),
        (&["--threads", "2", "--backend", "reference"], "only the CPU engine has threads"),
        (&["--isa", "portable", "--backend", "reference"], "only the CPU engine has a choice"),
        (&["--suite", "standard", "--backend", "reference"], "f16: the oracle is timed on f32"),
        (
            &["--n", "128", "--bias", "--look-backward", "18446744073709551615"],
            "at most 2147483647",
        ),
        (&["--n", "128", "--json", &same, "--csv", &dotted], "asked for twice"),
        (&["--n", "128", "--json", "-", "--html", "/dev/stdout"], "asked for twice"),
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
        (&["--peer-timeout", "0"], "--peer-timeout"),
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

/// Peers that shell scripts play.
#[cfg(unix)]
mod peers {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A run beside a peer that says its first line and then goes through its answers.
    fn beside(script: &str) -> common::Ran {
        beside_on("cpu", script)
    }

    fn beside_on(backend: &str, script: &str) -> common::Ran {
        beside_with(backend, script, &[])
    }

    fn beside_with(backend: &str, script: &str, options: &[&str]) -> common::Ran {
        let folder = Folder::new();
        let python = folder.text("python", &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        let args = ["bench", "--backend", backend, "--n", "128", "--heads", "1", "--seconds", "0"];
        let more = ["--threads", "2", "--json", "-", "--peer", "torch-flex", "--python", &python];
        run(&[&args[..], &more, options].concat())
    }

    fn rows(out: &common::Ran) -> Vec<Value> {
        out.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn one_without_its_packages() {
        let out = beside(r#"echo '{"error": "torch is not installed for sh"}'"#);
        assert_eq!(out.status, 2, "{}", out.stdout);
        assert!(out.stderr.contains("--peer torch-flex: torch is not installed"), "{}", out.stderr);
    }

    /// It is waited for as long as is asked, and no longer; what starts is said.
    #[test]
    fn one_that_does_not_answer() {
        let out = beside_with("cpu", "read never", &["--peer-timeout", "0.2"]);
        assert_eq!((out.status, out.stdout.as_str()), (2, ""));
        let why = "--peer torch-flex: no answer in 0.2 s (--peer-timeout)";
        assert!(out.stderr.contains(why) && out.stderr.lines().count() == 1, "{}", out.stderr);
        // Ours is measured though it falls silent later, and a late answer is not taken for another's.
        let script =
            r#"echo '{"torch": "9"}'; read shape; sleep 2; echo '{"rotary": false}'; read run"#;
        let out = beside_with("cpu", script, &["--peer-timeout", "0.5"]);
        assert_eq!(out.status, 1, "{}", out.stderr);
        assert_eq!(rows(&out).len(), 1, "{}", out.stdout);
        assert!(out.stderr.contains("no answer in 0.5 s"), "{}", out.stderr);
    }

    /// Its last words are said.
    #[test]
    fn one_that_cannot_start() {
        let out = beside("echo 'Traceback:' >&2; echo 'OSError: libgomp.so.1 is gone' >&2; exit 1");
        let why = "it ended without an answer: OSError: libgomp.so.1 is gone";
        assert_eq!((out.status, out.stdout.as_str()), (2, ""));
        assert!(out.stderr.contains(why) && out.stderr.lines().count() == 1, "{}", out.stderr);
    }

    /// Times of 2 to 8 seconds in turn: its row says what it ran on, and what the times come to.
    #[test]
    fn one_that_answers() {
        let out = beside(
            r#"echo "{\"torch\": \"9.9+$3\"}"; read shape; echo '{"rotary": false}'
            for s in 2 3 4 5 6 7 8; do read run; echo "{\"seconds\": $s, \"peak_rss_bytes\": ${s}000}"; done
            read more && echo '{"error": "an eighth pair"}'"#,
        );
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        let rows = rows(&out);
        assert_eq!(rows.len(), 2, "{}", out.stdout);
        let [ours, peer] = [&rows[0], &rows[1]];
        assert_eq!((&ours["rotary"], &ours["runs"]), (&true.into(), &7.into()));
        for (name, value) in [
            ("backend", Value::from("torch-flex")),
            // The number of threads is an argument of the script.
            ("variant", "9.9+2".into()),
            ("rotary", false.into()),
            ("threads", 2.into()),
            ("runs", 7.into()),
            ("median_ms", 5000.0.into()),
            ("min_ms", 2000.0.into()),
            ("lower_ms", 3500.0.into()),
            ("peak_rss_bytes", 8000.into()),
        ] {
            assert_eq!(peer[name], value, "{name}: {peer}");
        }
        let ratio = peer["ratio_lower_quartile"].as_f64().unwrap();
        let most = 5000.0 / ours["min_ms"].as_f64().unwrap();
        assert!(1.0 < ratio && ratio < most, "{ratio}, {most}");
    }

    /// Its threads are asked for, whatever ours has.
    #[test]
    fn one_beside_the_oracle() {
        let out = beside_on(
            "reference",
            r#"echo "{\"torch\": \"9\"}"; read shape; echo '{"rotary": true}'
            for s in 1 1 1 1 1 1 1; do read run; echo '{"seconds": 1}'; done; read more"#,
        );
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        let rows = rows(&out);
        assert_eq!((&rows[0]["threads"], &rows[1]["threads"]), (&1.into(), &2.into()));
    }

    /// It is said, by the exit status too, and ours is measured to the end.
    #[test]
    fn one_that_dies() {
        for (script, why) in [
            (
                r#"read shape; echo '{"rotary": false}'; read run; echo '{"seconds": 1}'; read run"#,
                "it ended without an answer",
            ),
            (r#"read shape; echo '{"error": "no such shape"}'; read end"#, "no such shape"),
            (r#"read shape; echo '{}'; read end"#, "it answered {}"),
            (
                r#"read shape; echo '{"rotary": false}'; read run; echo '{"seconds": 0}'; read end"#,
                "it answered {\"seconds\":0}",
            ),
        ] {
            let out = beside(&format!("echo '{{\"torch\": \"9\"}}'; {script}"));
            assert_eq!(out.status, 1, "{}", out.stderr);
            let rows = rows(&out);
            assert!(rows.len() == 1 && rows[0]["runs"] == 7, "{}", out.stdout);
            assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
            assert!(
                out.stderr.contains("torch-flex on b1 h1 n128") && out.stderr.contains(why),
                "{why}: {}",
                out.stderr
            );
        }
    }
}
