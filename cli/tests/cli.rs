//! The command line as other programs call it: what it prints, writes and exits with.

mod common;

use common::{Folder, GOLDENS, metadata, read, run, tensor};
use serde_json::Value;

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn every_golden_case_on_every_backend() {
    let out = run(&["check", GOLDENS, "--backend", "all", "--json"]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    let results = objects(&out.stdout);
    for backend in ["reference", "reference-f32", "cpu"] {
        let cases = results.iter().filter(|r| r["backend"] == backend).count();
        assert_eq!(cases, 217, "cases on {backend}");
        // out, dq, dk and dv at least.
        let with_gradients = |r: &&Value| {
            r["backend"] == backend
                && r["case"].as_str().unwrap().starts_with("attention")
                && r["compared"].as_u64().unwrap() >= 4
        };
        assert_eq!(results.iter().filter(with_gradients).count(), 166, "gradients on {backend}");
    }
    assert!(results.iter().all(|r| r["passed"] == true));
    assert!(out.stderr.contains("gpu: absent"), "{}", out.stderr);
}

#[test]
fn no_arguments() {
    let out = run(&[]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    for part in ["engine   cpu", "there is no GPU adapter", "all within 1e-5", "GFLOP/s"] {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
    let results = objects(&run(&["--json"]).stdout);
    assert_eq!(results[0]["passed"], true);
    assert!(results[1]["median_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn info() {
    let out = run(&["info"]);
    assert!(out.status == 0 && out.stdout.contains("threads"), "{}", out.stdout);
    let info = &objects(&run(&["info", "--json"]).stdout)[0];
    assert_eq!(info["auto"], "cpu");
    assert!(info["cpu"]["available"].as_array().unwrap().contains(&"portable".into()));
}

#[test]
fn pattern() {
    let out = run(&["pattern", "--window", "2", "--n", "4", "--causal"]);
    assert!(
        out.stdout.starts_with("query 0  #. ..\nquery 1  ## ..\nquery 2  ## #.\n"),
        "{}",
        out.stdout
    );
    let rows = objects(&run(&["pattern", "--window", "2", "--n", "4", "--json"]).stdout);
    assert_eq!(rows[3], serde_json::json!({ "query": 3, "start": 0, "end": 4, "key_len": 4 }));
    let folder = Folder::new();
    let svg = folder.path("p.svg");
    assert_eq!(run(&["pattern", "--window", "4", "--n", "16", "--svg", &svg]).status, 0);
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
}

/// q, k and v of shape [1, 4, 2].
fn qkv() -> Vec<common::Tensor> {
    let x: Vec<f32> = (0..8).map(|i| i as f32 * 0.25 - 1.0).collect();
    ["q", "k", "v"].map(|name| tensor(name, &[1, 4, 2], &x)).to_vec()
}

#[test]
fn run_writes_the_result_and_says_what_it_does() {
    let folder = Folder::new();
    let case = folder.write(
        "case.safetensors",
        &qkv(),
        &metadata(r#"{"window_size": 2, "causal": true}"#),
    );
    let to = folder.path("out.safetensors");
    let out = run(&["run", &case, "-o", &to]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(out.stdout.contains("rotary    off (dim is null"), "{}", out.stdout);
    let (shape, auto) = read(&to, "out");
    assert_eq!(shape, [1, 4, 2]);
    // The first query of a causal sequence sees itself alone.
    assert_eq!(auto[..2], [-1.0, -0.75]);
    for backend in ["cpu", "reference", "reference-f32"] {
        let out = run(&["run", &case, "-o", &to, "--backend", backend, "--json"]);
        let said = &objects(&out.stdout)[0];
        assert_eq!((out.status, said["backend"].as_str()), (0, Some(backend)));
        assert_eq!(said.get("adapter"), Some(&Value::Null));
        let (_, x) = read(&to, "out");
        assert!(x.iter().zip(&auto).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    // Other constructor arguments, given as JSON and as a file.
    let json = r#"{"window_size": 4, "dim": 2}"#;
    let file = folder.text("config.json", json);
    for config in [json, &file] {
        let out = run(&["run", &case, "-o", &to, "--config", config]);
        assert!(
            out.status == 0 && out.stdout.contains("rotary    on"),
            "{}{}",
            out.stdout,
            out.stderr
        );
    }
    // Nothing but the result is left in the folder.
    assert_eq!(folder.names(), ["case.safetensors", "config.json", "out.safetensors"]);
}

#[test]
fn quirks_seed_and_types() {
    let folder = Folder::new();
    let to = folder.path("out.safetensors");
    let result = |case: &str, args: &[&str]| {
        let out = run(&[&["run", case, "-o", &to], args].concat());
        assert_eq!(out.status, 0, "{args:?}: {}", out.stderr);
        read(&to, "out").1
    };
    let case = folder.write(
        "case.safetensors",
        &qkv(),
        &metadata(r#"{"window_size": 3, "autopad": true, "dropout": 0.5, "dim": 2}"#),
    );
    let all = result(&case, &[]);
    assert_eq!(result(&case, &["--quirks", "all"]), all);
    let none = result(&case, &["--quirks", "none"]);
    let one = result(&case, &["--quirks", "visible_autopad_keys"]);
    let two = result(&case, &["--quirks", "visible_autopad_keys,tail_aligned_rotary"]);
    assert!(all != none && one != none && one != all);
    assert_eq!(two, all);
    // Dropout needs a seed, and the oracle drops the same elements.
    let dropped = result(&case, &["--seed", "7"]);
    assert_ne!(dropped, all);
    let oracle = result(&case, &["--seed", "7", "--backend", "reference"]);
    assert!(oracle.iter().zip(&dropped).all(|(a, b)| (a - b).abs() < 1e-5));

    let halves: Vec<_> = qkv().iter().map(common::Tensor::to_f16).collect();
    let case16 = folder.write("half.safetensors", &halves, &metadata(r#"{"window_size": 2}"#));
    let half = result(&case16, &[]);
    assert_eq!(common::dtype(&to, "out"), safetensors::Dtype::F16);
    let single = result(&case16, &["--out-dtype", "f32"]);
    assert_eq!(common::dtype(&to, "out"), safetensors::Dtype::F32);
    assert!(single.iter().zip(&half).all(|(a, b)| (a - b).abs() < 1e-3));

    let doubles: Vec<_> = qkv().iter().map(common::Tensor::to_f64).collect();
    let case64 = folder.write("double.safetensors", &doubles, &metadata(r#"{"window_size": 2}"#));
    result(&case64, &["--backend", "reference"]);
    assert_eq!(common::dtype(&to, "out"), safetensors::Dtype::F64);
}

/// The reference packs the leading dimensions of q, k and v each on its own, and pads their
/// lengths: a case may hold any that agree in the end.
#[test]
fn independent_packing() {
    let folder = Folder::new();
    let to = folder.path("out.safetensors");
    let x: Vec<f32> = (0..48).map(|i| (i as f32).sin()).collect();
    let config = metadata(r#"{"window_size": 4, "autopad": true, "causal": true}"#);
    let result = |name: &str, tensors: &[common::Tensor]| {
        let case = folder.write(name, tensors, &config);
        let out = run(&["run", &case, "-o", &to]);
        assert_eq!(out.status, 0, "{name}: {}", out.stderr);
        read(&to, "out")
    };
    let plain = result(
        "a",
        &[
            tensor("q", &[2, 3, 4, 2], &x),
            tensor("k", &[2, 3, 4, 2], &x),
            tensor("v", &[2, 3, 4, 2], &x),
        ],
    );
    let packed = result(
        "b",
        &[
            tensor("q", &[2, 3, 4, 2], &x),
            tensor("k", &[6, 4, 2], &x),
            tensor("v", &[3, 2, 4, 2], &x),
        ],
    );
    assert_eq!(packed, plain);
    // k for all, v for each.
    let mixed = result(
        "c",
        &[
            tensor("q", &[2, 3, 4, 2], &x),
            tensor("k", &[1, 4, 2], &x[..8]),
            tensor("v", &[2, 3, 4, 2], &x),
        ],
    );
    assert_eq!(mixed.0, [2, 3, 4, 2]);
    // 3 keys and 2 values, padded to 4 each on its own.
    let shorter = result(
        "d",
        &[
            tensor("q", &[1, 4, 2], &x[..8]),
            tensor("k", &[1, 3, 2], &x[..6]),
            tensor("v", &[1, 2, 2], &x[..4]),
        ],
    );
    let padded = result(
        "e",
        &[
            tensor("q", &[1, 4, 2], &x[..8]),
            tensor("k", &[1, 4, 2], &[&x[..6], &[0.0, 0.0]].concat()),
            tensor("v", &[1, 4, 2], &[&x[..4], &[0.0; 4]].concat()),
        ],
    );
    assert!(shorter.1.iter().zip(&padded.1).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn gradients_come_with_dout() {
    let folder = Folder::new();
    let x: Vec<f32> = (0..8).map(|i| (i * i % 7) as f32 - 3.0).collect();
    let mut tensors = vec![
        tensor("q", &[1, 4, 2], &x),
        // Fewer keys than values, and one row for both of q's.
        tensor("k", &[1, 3, 2], &x[..6]),
        tensor("v", &[1, 4, 2], &x),
        tensor("attn_bias", &[1, 1, 4], &x[..4]),
    ];
    tensors.push(tensor("dout", &[1, 4, 2], &[1.0; 8]));
    tensors.push(tensor("banana", &[1], &[1.0]));
    let config = metadata(r#"{"window_size": 2, "causal": true, "autopad": true}"#);
    let case = folder.write("case.safetensors", &tensors, &config);
    let mut all = Vec::new();
    for backend in ["cpu", "reference", "reference-f32"] {
        let path = folder.path("o");
        let out = run(&["run", &case, "-o", &path, "--backend", backend]);
        assert_eq!(out.status, 0, "{}", out.stderr);
        assert!(out.stdout.contains("F32, dq, dk, dv, dattn_bias"), "{}", out.stdout);
        assert!(out.stdout.contains("tensor banana was not read"));
        let names = ["dq", "dk", "dv", "dattn_bias"];
        all.push(names.map(|name| read(&path, name)));
    }
    let shapes = all[0].each_ref().map(|(shape, _)| &shape[..]);
    assert_eq!(shapes, [&[1, 4, 2][..], &[1, 3, 2], &[1, 4, 2], &[1, 1, 4]]);
    for other in &all[1..] {
        for ((_, a), (_, b)) in all[0].iter().zip(other) {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
        }
    }
    // Every query gives each feature of dout away.
    assert!((all[0][2].1.iter().sum::<f32>() - 8.0).abs() < 1e-5);

    tensors[4] = tensor("dout", &[1, 4, 3], &[1.0; 12]);
    let case = folder.write("case.safetensors", &tensors, &config);
    let out = run(&["run", &case, "-o", &folder.path("p")]);
    assert_eq!(out.status, 2);
    assert!(out.stderr.contains("dout has shape [1, 4, 3]: it must be"), "{}", out.stderr);
}

#[test]
fn a_wrong_gradient_fails_a_check() {
    let folder = Folder::new();
    let mut tensors = qkv();
    tensors.push(tensor("dout", &[1, 4, 2], &[1.0; 8]));
    let config = metadata(r#"{"window_size": 2}"#);
    let case = folder.write("case.safetensors", &tensors, &config);
    let path = folder.path("o");
    assert_eq!(run(&["run", &case, "-o", &path]).status, 0);
    for wrong in [0.0, 0.5] {
        let mut tensors = tensors.clone();
        for name in ["out", "dq", "dk", "dv"] {
            let (shape, mut data) = read(&path, name);
            data[3] += if name == "dk" { wrong } else { 0.0 };
            tensors.push(tensor(name, &shape, &data));
        }
        let case = folder.write("case.safetensors", &tensors, &config);
        let out = run(&["check", &case, "--backend", "cpu"]);
        assert_eq!(out.status, i32::from(wrong != 0.0), "{}", out.stdout);
        assert!(wrong == 0.0 || out.stdout.contains(" dk "), "{}", out.stdout);
    }
}

#[test]
fn a_check_that_fails() {
    let folder = Folder::new();
    let mut tensors = qkv();
    tensors.push(tensor("out", &[1, 4, 2], &[0.5; 8]));
    let case = folder.write("wrong.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    let out = run(&["check", &case]);
    assert_eq!(out.status, 1);
    assert!(
        out.stdout.contains("FAILED") && out.stdout.contains("0 passed, 1 failed"),
        "{}",
        out.stdout
    );
    assert_eq!(run(&["check", &case, "--tolerance", "10"]).status, 0);
    // Another shape, and NaN, are infinite errors.
    for out in [tensor("out", &[4, 2], &[0.0; 8]), tensor("out", &[1, 4, 2], &[f32::NAN; 8])] {
        *tensors.last_mut().unwrap() = out;
        folder.write("wrong.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
        let out = run(&["check", &case, "--tolerance", "1e300"]);
        assert!(out.status == 1 && out.stdout.contains("error inf"), "{}", out.stdout);
    }
}

/// One infinity in what is expected must not make everything pass.
#[test]
fn infinities_prove_nothing() {
    let folder = Folder::new();
    let mut tensors = qkv();
    let mut wrong = [0.0; 8];
    wrong[3] = f32::INFINITY;
    tensors.push(tensor("out", &[1, 4, 2], &wrong));
    let case = folder.write("inf.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    let out = run(&["check", &case]);
    assert!(out.status == 1 && out.stdout.contains("an infinity"), "{}", out.stdout);
}

/// A folder is checked to its end; what is no case is said, in a line each.
#[test]
fn an_unusable_file_among_others() {
    let folder = Folder::new();
    let mut tensors = qkv();
    folder.write("b.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    folder.text("c.safetensors", "banana");
    tensors.push(tensor("out", &[1, 4, 2], &[9.0; 8]));
    folder.write("d.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    let out = run(&["check", &folder.path("")]);
    assert_eq!((out.status, out.stderr.lines().count()), (2, 2), "{}", out.stderr);
    assert!(
        out.stdout.contains("FAILED d") && out.stdout.contains("3 cases, 1 result:"),
        "{}",
        out.stdout
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    use std::process::Command;
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-attention"));
    let out = command.arg("info").stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("standard output cannot be written"));
}

#[test]
fn f16_cases_use_their_own_budget() {
    let folder = Folder::new();
    let mut tensors: Vec<_> = qkv().iter().map(common::Tensor::to_f16).collect();
    let case = folder.write("half.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    let to = folder.path("o");
    assert_eq!(run(&["run", &case, "-o", &to, "--backend", "reference"]).status, 0);
    tensors.push(tensor("out", &[1, 4, 2], &read(&to, "out").1).to_f16());
    let case = folder.write("half.safetensors", &tensors, &metadata(r#"{"window_size": 2}"#));
    let out = run(&["check", &case, "--backend", "all"]);
    assert_eq!(out.status, 0, "{}{}", out.stdout, out.stderr);
    assert_eq!(out.stdout.matches("(f16 budget)").count(), 3, "{}", out.stdout);
}

/// What is written to standard output is the file alone.
#[cfg(unix)]
#[test]
fn run_to_standard_output() {
    use std::process::Command;
    let folder = Folder::new();
    let case = folder.write("case.safetensors", &qkv(), &metadata(r#"{"window_size": 2}"#));
    let to = folder.path("out.safetensors");
    assert_eq!(run(&["run", &case, "-o", &to]).status, 0);
    let out = Command::new(env!("CARGO_BIN_EXE_local-attention"))
        .args(["run", &case, "-o", "/dev/stdout"])
        .output()
        .unwrap();
    assert!(out.status.success());
    assert_eq!(out.stdout, std::fs::read(&to).unwrap());
    assert!(String::from_utf8(out.stderr).unwrap().contains("windows   2 of 2"));
}

#[test]
fn check_tells_cases_of_one_name_apart() {
    let folder = Folder::new();
    for name in ["a", "b"] {
        std::fs::create_dir(folder.path(name)).unwrap();
        let case = [&qkv()[..], &[tensor("out", &[1, 4, 2], &[9.0; 8])]].concat();
        folder.write(
            &format!("{name}/same.safetensors"),
            &case,
            &metadata(r#"{"window_size": 2}"#),
        );
    }
    let out = run(&["check", &folder.path("."), "--json"]);
    assert_eq!(out.status, 1, "{}", out.stderr);
    let names: Vec<_> = objects(&out.stdout).iter().map(|o| o["case"].clone()).collect();
    assert_eq!(names, ["a/same", "b/same"]);
}

#[test]
fn pattern_of_an_overridden_window() {
    let out = run(&["pattern", "--window", "4", "--override-window", "2", "--n", "4", "--causal"]);
    assert!(out.stdout.starts_with("query 0  #. ..\n"), "{}{}", out.stdout, out.stderr);
    // A causal query sees no zero of autopad: the legend does not explain what is not there.
    let out = run(&["pattern", "--window", "4", "--n", "3", "--causal", "--autopad"]);
    assert!(!out.stdout.contains("autopad"), "{}", out.stdout);
}
