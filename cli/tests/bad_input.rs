//! Bad input on the command line: exit status 2, one line on standard error that names what is
//! wrong, nothing on standard output but what was announced, no file left behind.

mod common;

use common::{Folder, Tensor, metadata, raw, run, tensor};
use safetensors::Dtype;

/// Runs and expects one line of error that says all of `parts`.
fn rejected(args: &[&str], parts: &[&str]) {
    let out = run(args);
    assert_eq!(out.status, 2, "{args:?}\n{}{}", out.stdout, out.stderr);
    assert_eq!(out.stderr.trim_end().lines().count(), 1, "{args:?}\n{}", out.stderr);
    for part in parts {
        assert!(out.stderr.contains(part), "{args:?} does not say {part}: {}", out.stderr);
    }
}

fn qkv() -> Vec<Tensor> {
    let x: Vec<f32> = (0..16).map(|i| i as f32 * 0.1).collect();
    ["q", "k", "v"].map(|name| tensor(name, &[2, 4, 2], &x)).to_vec()
}

const WINDOW: &str = r#"{"window_size": 2}"#;

#[test]
fn arguments() {
    for (args, part) in [
        (&["--banana"][..], "--banana"),
        (&["banana"], "banana"),
        (&["run"], "IN.safetensors"),
        (&["run", "x"], "--output"),
        (&["run", "x", "-o", "y", "--backend", "tpu"], "tpu"),
        (&["run", "x", "-o", "y", "--quirks", "odd"], "'odd'"),
        (&["run", "x", "-o", "y", "--quirks", ""], "''"),
        (&["run", "x", "-o", "y", "--seed", "-1"], "-1"),
        (&["run", "x", "-o", "y", "--seed", "18446744073709551616"], "18446744073709551616"),
        (&["run", "x", "-o", "y", "--out-dtype", "f16"], "f16"),
        (&["check"], "PATH"),
        (&["check", "x", "--backend", "tpu"], "tpu"),
        (&["check", "x", "--tolerance", "nan"], "finite"),
        (&["check", "x", "--tolerance", "-1"], "-1"),
        (&["pattern", "--n", "4"], "--window"),
        (&["pattern", "--window", "4"], "--n"),
        (&["pattern", "--window", "0", "--n", "4"], "window_size is 0"),
        (&["pattern", "--window", "-3", "--n", "4"], "window_size is -3"),
        (&["pattern", "--window", "3", "--n", "4"], "divisible"),
        (&["pattern", "--window", "2", "--n", "0"], "seq_len is 0"),
        (&["pattern", "--window", "2", "--n", "4", "--look-backward", "-1"], "look_backward is -1"),
        (
            &["pattern", "--window", "2", "--n", "4", "--causal", "--look-forward", "1"],
            "look_forward is 1",
        ),
        (&["pattern", "--window", "2", "--n", "4", "--keys", "3"], "k has length 3"),
        (&["pattern", "--window", "1", "--n", "100000"], "512"),
        (&["pattern", "--window", "1", "--n", "100000", "--svg", "/tmp/never.svg"], "8192"),
        (
            &["pattern", "--window", "1", "--n", "4", "--svg", "/no/such/folder/x.svg"],
            "/no/such/folder",
        ),
    ] {
        rejected(args, &[part]);
    }
}

#[test]
fn files() {
    let folder = Folder::new();
    let to = folder.path("out.safetensors");
    let good = folder.write("good.safetensors", &qkv(), &metadata(WINDOW));
    let whole = std::fs::read(&good).unwrap();
    let case = |name: &str, bytes: &[u8]| folder.bytes(name, bytes);
    let hostile = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes
    };
    let mut vast = (1_u64 << 60).to_le_bytes().to_vec();
    vast.extend(b"{}");
    for (name, bytes, part) in [
        ("empty", &[][..], "safetensors"),
        ("short", &whole[..4], "safetensors"),
        ("cut header", &whole[..40], "safetensors"),
        ("cut data", &whole[..whole.len() - 1], "safetensors"),
        ("more data", &[&whole[..], &[0]].concat(), "safetensors"),
        ("vast header", &vast, "safetensors"),
        ("largest header", &[0xFF; 64], "safetensors"),
        ("no json", &hostile("banana"), "safetensors"),
        ("deep json", &hostile(&"[".repeat(100_000)), "safetensors"),
        (
            "offsets",
            &hostile(r#"{"q":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#),
            "safetensors",
        ),
        (
            "shape",
            &hostile(
                r#"{"q":{"dtype":"F32","shape":[18446744073709551615,8],"data_offsets":[0,0]}}"#,
            ),
            "safetensors",
        ),
        (
            "negative",
            &hostile(r#"{"q":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#),
            "safetensors",
        ),
        ("nothing", &hostile("{}"), "config is missing"),
        (
            "no tensors",
            &hostile(r#"{"__metadata__":{"config":"{\"window_size\":2}"}}"#),
            "tensor q is missing",
        ),
    ] {
        let path = case(name, bytes);
        rejected(&["run", &path, "-o", &to], &[name, part]);
        rejected(&["check", &path], &[name, part]);
    }
    rejected(&["run", &folder.path("absent"), "-o", &to], &["absent", "cannot be read"]);
    rejected(&["check", &folder.path("absent")], &["absent", "cannot be read"]);
    rejected(&["run", &folder.path(""), "-o", &to], &["not a regular file"]);
    rejected(&["run", &good, "-o", &folder.path("no/folder/out")], &["cannot be written"]);
    rejected(&["run", &good, "-o", &folder.path("")], &["it is a folder"]);
    rejected(&["run", &good, "-o", &to, "--config", "/no/such.json"], &["/no/such.json"]);
    rejected(&["run", &good, "-o", &to, "--backend", "gpu"], &["--backend gpu", "none is present"]);
    rejected(&["check", &good, &good, "--backend", "gpu"], &["--backend gpu", "none is present"]);
    rejected(&["run", &good, "-o", &to, "--adapter", "x"], &["--adapter", "none is present"]);
    rejected(&["check", &good], &["tensor out is missing"]);
    rejected(&["run", &good, "-o", &good], &["it is the case itself"]);
    #[cfg(unix)]
    {
        let link = folder.path("link");
        std::os::unix::fs::symlink(folder.path("nowhere"), &link).unwrap();
        rejected(&["run", &good, "-o", &link], &["a link to nothing"]);
        std::os::unix::fs::symlink(&good, folder.path("case")).unwrap();
        rejected(&["run", &good, "-o", &folder.path("case")], &["it is the case itself"]);
        let read_only = folder.text("read only", "older");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        std::fs::set_permissions(&read_only, mode).unwrap();
        rejected(&["run", &good, "-o", &read_only], &["it is read-only"]);
    }
    let empty = Folder::new();
    rejected(&["check", &empty.path("")], &["no case file"]);
    #[cfg(target_os = "linux")]
    {
        rejected(&["run", "/dev/zero", "-o", &to], &["/dev/zero", "not a regular file"]);
        rejected(&["run", &good, "-o", "/dev/full"], &["/dev/full", "cannot be written"]);
        rejected(&["run", &good, "-o", "/proc/nothing"], &["cannot be written"]);
    }
    assert!(!folder.names().contains(&"out.safetensors".to_owned()));
    assert!(folder.names().iter().all(|n| !n.starts_with('.')), "{:?}", folder.names());
}

#[test]
fn configurations() {
    let folder = Folder::new();
    let to = folder.path("out.safetensors");
    let good = folder.write("good.safetensors", &qkv(), &metadata(WINDOW));
    for (config, part) in [
        ("{}", "window_size"),
        ("{", "config is not valid"),
        (r#"{"window_size": 2, "banana": 1}"#, "banana"),
        (r#"{"window_size": "2"}"#, "config is not valid: window_size: invalid type"),
        (r#"{"window_size": 2.0}"#, "config is not valid"),
        (r#" {"window_size": 2, }"#, "--config is not valid"),
        (r#"{"window_size": null}"#, "config is not valid"),
        (r#"{"window_size": 9223372036854775808}"#, "config is not valid"),
        (r#"{"window_size": 2, "window_size": 2}"#, "duplicate field"),
        (r#"{"window_size": -1}"#, "window_size is -1"),
        (r#"{"window_size": 0}"#, "window_size is 0"),
        (r#"{"window_size": 2, "look_backward": -1}"#, "look_backward is -1"),
        (r#"{"window_size": 2, "look_forward": -1}"#, "look_forward is -1"),
        (r#"{"window_size": 2, "causal": true, "look_forward": 1}"#, "cannot look forward"),
        (r#"{"window_size": 2, "dropout": 1}"#, "dropout is 1"),
        (r#"{"window_size": 2, "dropout": -0.5}"#, "dropout is -0.5"),
        (r#"{"window_size": 2, "scale": 1e400}"#, "config is not valid"),
        (r#"{"window_size": 2, "dim": 3}"#, "dim is 3"),
        (r#"{"window_size": 2, "dim": 4}"#, "head_dim is 2 with a rotary dim of 4"),
        (r#"{"window_size": 2, "rel_pos_emb_config": []}"#, "rel_pos_emb_config is []"),
        (
            r#"{"window_size": 2, "dim": 2, "use_xpos": true, "xpos_scale_base": 0}"#,
            "xpos_scale_base is 0",
        ),
        (r#"{"window_size": 1, "dim": 2, "use_xpos": true}"#, "window_size // 2"),
        (r#"{"window_size": 3}"#, "sequence length 4 must be divisible by window size 3"),
        (r#"{"window_size": 2000000000}"#, "at most 2147483647"),
        (
            r#"{"window_size": 9223372036854775807, "look_backward": 9223372036854775807}"#,
            "at most",
        ),
    ] {
        rejected(&["run", &good, "-o", &to, "--config", config], &[part]);
    }
    for (forward, part) in [
        (r#"{"window_size": 2}"#, "xpos"),
        (r#"{"window": 2}"#, "window"),
        (r#"{"window_size": 2.5}"#, "forward is not valid"),
    ] {
        rejected(&["run", &good, "-o", &to, "--forward", forward], &[part]);
    }
    let xpos = r#"{"window_size": 2, "use_xpos": true}"#;
    rejected(
        &["run", &good, "-o", &to, "--config", xpos, "--forward", r#"{"window_size": 0}"#],
        &["is 0"],
    );
    rejected(
        &["run", &good, "-o", &to, "--config", xpos, "--forward", r#"{"window_size": 3}"#],
        &["divisible"],
    );
    let list = folder.text("list.json", "[2]");
    rejected(&["run", &good, "-o", &to, "--config", &list], &["must be a JSON object"]);
    rejected(&["run", &good, "-o", &to, "--forward", &list], &["must be a JSON object"]);
    // A remark about a config that is a whole file of the wrong kind stays on one line.
    rejected(&["run", &good, "-o", &to, "--config", &good], &["good.safetensors"]);
}

#[test]
fn tensors() {
    let folder = Folder::new();
    let to = folder.path("out.safetensors");
    let refuse = |tensors: &[Tensor], config: &str, parts: &[&str]| {
        let path = folder.write("case.safetensors", tensors, &metadata(config));
        rejected(&["run", &path, "-o", &to], parts);
    };
    let replace = |t: Tensor| {
        let mut tensors = qkv();
        tensors.retain(|x| x.name != t.name);
        tensors.push(t);
        tensors
    };
    for name in ["q", "k", "v"] {
        let without: Vec<_> = qkv().into_iter().filter(|t| t.name != name).collect();
        refuse(&without, WINDOW, &[&format!("tensor {name} is missing")]);
        refuse(
            &replace(tensor(name, &[4], &[0.0; 4])),
            WINDOW,
            &[&format!("{name} has shape [4]")],
        );
        refuse(&replace(raw(name, Dtype::BF16, &[2, 4, 2], vec![0; 32])), WINDOW, &[name, "BF16"]);
        refuse(&replace(raw(name, Dtype::I32, &[2, 4, 2], vec![0; 64])), WINDOW, &[name, "I32"]);
    }
    // One of another type than the rest.
    for name in ["k", "v"] {
        let zeros = tensor(name, &[2, 4, 2], &[0.0; 16]);
        refuse(&replace(zeros.to_f16()), WINDOW, &[name, "F16", "that of q"]);
        refuse(&replace(zeros.to_f64()), WINDOW, &[name, "F64", "that of q"]);
    }
    let doubles: Vec<_> = qkv().iter().map(Tensor::to_f64).collect();
    let path = folder.write("double.safetensors", &doubles, &metadata(WINDOW));
    for backend in ["cpu", "reference-f32"] {
        rejected(&["run", &path, "-o", &to, "--backend", backend], &[backend, "F64"]);
    }
    // Lengths and sizes.
    let no_queries = ["q", "k", "v"].map(|n| tensor(n, &[2, 0, 2], &[]));
    refuse(&no_queries, WINDOW, &["seq_len is 0"]);
    let no_features = ["q", "k", "v"].map(|n| tensor(n, &[2, 4, 0], &[]));
    refuse(&no_features, WINDOW, &["head_dim is 0"]);
    refuse(&replace(tensor("k", &[2, 2, 2], &[0.0; 8])), WINDOW, &["k has length 2"]);
    refuse(&replace(tensor("v", &[2, 2, 2], &[0.0; 8])), WINDOW, &["v has length 2"]);
    refuse(&replace(tensor("k", &[2, 4, 3], &[0.0; 24])), WINDOW, &["k has shape [2, 4, 3]"]);
    refuse(&replace(tensor("k", &[3, 4, 2], &[0.0; 24])), WINDOW, &["batch of 3"]);
    refuse(&replace(tensor("v", &[4, 4, 2], &[0.0; 32])), WINDOW, &["batch of 4"]);
    // Masks.
    let mask = |shape: &[usize]| raw("mask", Dtype::BOOL, shape, vec![1; shape.iter().product()]);
    refuse(&replace(mask(&[4])), WINDOW, &["mask has shape [4]"]);
    refuse(&replace(mask(&[3, 4])), WINDOW, &["mask (or input_mask) has 3 rows"]);
    refuse(&replace(mask(&[2, 5])), WINDOW, &["mask (or input_mask) has length 5"]);
    refuse(&replace(mask(&[1, 2, 4])), WINDOW, &["mask has shape [1, 2, 4]"]);
    refuse(
        &replace(raw("mask", Dtype::U8, &[1, 4], vec![0, 1, 2, 1])),
        WINDOW,
        &["mask", "byte 2 at 2"],
    );
    refuse(&replace(raw("mask", Dtype::BOOL, &[1, 4], vec![0, 1, 255, 1])), WINDOW, &["byte 255"]);
    refuse(
        &replace(raw("input_mask", Dtype::U8, &[1, 4], vec![7; 4])),
        WINDOW,
        &["input_mask", "byte 7"],
    );
    refuse(&replace(raw("mask", Dtype::I64, &[1, 4], vec![0; 32])), WINDOW, &["mask", "I64"]);
    refuse(&replace(tensor("mask", &[1, 4], &[1.0; 4])), WINDOW, &["mask", "F32"]);
    // Biases.
    refuse(
        &replace(tensor("attn_bias", &[2, 6], &[0.0; 12])),
        WINDOW,
        &["attn_bias has shape [2, 6]"],
    );
    refuse(&replace(tensor("attn_bias", &[3, 1, 1], &[0.0; 3])), WINDOW, &["attn_bias has 3 rows"]);
    refuse(&replace(tensor("attn_bias", &[1, 3, 6], &[0.0; 18])), WINDOW, &["query axis"]);
    refuse(&replace(tensor("attn_bias", &[1, 2, 4], &[0.0; 8])), WINDOW, &["slot axis"]);
    let double = tensor("attn_bias", &[1, 1, 1], &[0.0]).to_f64();
    refuse(&replace(double), WINDOW, &["attn_bias", "F64"]);
    let mut halves: Vec<_> = qkv().iter().map(Tensor::to_f16).collect();
    halves.push(tensor("attn_bias", &[1, 1, 1], &[0.0]));
    refuse(&halves, WINDOW, &["attn_bias has dtype F32"]);
    assert!(!folder.names().contains(&"out.safetensors".to_owned()));
}

/// A 1-D mask where the packed batch happens to equal n: the reference takes it, by accident.
#[test]
fn a_mask_without_a_batch() {
    let folder = Folder::new();
    let x = [0.5; 32];
    let mut tensors = ["q", "k", "v"].map(|n| tensor(n, &[4, 4, 2], &x)).to_vec();
    tensors.push(raw("mask", Dtype::BOOL, &[4], vec![1, 0, 1, 1]));
    let path = folder.write("case.safetensors", &tensors, &metadata(WINDOW));
    rejected(&["run", &path, "-o", &folder.path("o")], &["mask has shape [4]"]);
}

/// A result that exists already stays as it is when something goes wrong.
#[test]
fn an_older_result_survives() {
    let folder = Folder::new();
    let to = folder.text("out.safetensors", "older");
    let path = folder.write("case.safetensors", &qkv(), &metadata(r#"{"window_size": 3}"#));
    rejected(&["run", &path, "-o", &to], &["divisible"]);
    assert_eq!(std::fs::read_to_string(&to).unwrap(), "older");
}

#[test]
fn a_reader_that_goes_away() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_local-attention"))
        .args(["pattern", "--window", "1", "--n", "512"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{:?}", out.status);
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

/// A name that is no text is refused like any other.
#[cfg(unix)]
#[test]
fn arguments_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    for bytes in [&b"\xff"[..], b"\xffrun"] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_local-attention"))
            .arg(std::ffi::OsStr::from_bytes(bytes))
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert_eq!(String::from_utf8_lossy(&out.stderr).lines().count(), 1);
    }
}
