//! What is read is not written, standard output is not replaced, and nothing that a case says goes unread.

mod common;

use common::{Folder, Tensor, metadata, raw, run, tensor};
use safetensors::tensor::Dtype;

const CONFIG: &str = r#"{"window_size": 2}"#;

/// q, k, v and dout of shape [1, 4, 2], with what they give.
fn with_gradients(folder: &Folder) -> Vec<Tensor> {
    let x: Vec<f32> = (0..8).map(|i| i as f32 * 0.25 - 1.0).collect();
    let mut all = ["q", "k", "v", "dout"].map(|name| tensor(name, &[1, 4, 2], &x)).to_vec();
    let case = folder.write("case.safetensors", &all, &metadata(CONFIG));
    let to = folder.path("results");
    assert_eq!(run(&["run", &case, "-o", &to, "--backend", "cpu"]).status, 0);
    for name in ["out", "dq", "dk", "dv"] {
        let (shape, data) = common::read(&to, name);
        all.push(tensor(name, &shape, &data));
    }
    all
}

#[test]
fn every_gradient_that_a_case_says_is_compared() {
    let folder = Folder::new();
    let good = with_gradients(&folder);
    let check = |tensors: &[Tensor]| {
        let case = folder.write("case.safetensors", tensors, &metadata(CONFIG));
        run(&["check", &case, "--backend", "cpu"])
    };
    let out = check(&good);
    assert!(out.status == 0 && out.stdout.contains("the worst of 4)"), "{}", out.stdout);
    // Another name: said.
    let mut other = good.clone();
    other[5].name = "d_q".to_owned();
    let out = check(&other);
    assert!(out.stdout.contains("worst of 3)"), "{}", out.stdout);
    let said = [out.stdout, out.stderr].concat();
    assert!(said.contains("tensor d_q was not read"), "{said}");
    // Without dout, or of a type that is not read, or of something that there is none of.
    let without: Vec<_> = good.iter().filter(|t| t.name != "dout").cloned().collect();
    let bfloat = |name: &str| -> Vec<_> {
        let of = |t: &Tensor| match t.name == name {
            true => raw(name, Dtype::BF16, &t.shape, vec![0; t.bytes.len() / 2]),
            false => t.clone(),
        };
        good.iter().map(of).collect()
    };
    let mut more = good.clone();
    more.push(tensor("dattn_bias", &[1, 2, 4], &[0.0; 8]));
    for (tensors, says) in [
        (&without, "tensor dq cannot be compared: gradients need dout"),
        (&bfloat("dout"), "dout has dtype BF16"),
        (&bfloat("dq"), "dq has dtype BF16"),
        (&more, "tensor dattn_bias cannot be compared"),
    ] {
        let out = check(tensors);
        assert!(out.status == 2 && out.stderr.contains(says), "{says}: {}", out.stderr);
    }
}

#[test]
fn what_is_read_is_not_written() {
    let folder = Folder::new();
    let case = folder.write("case.safetensors", &with_gradients(&folder), &metadata(CONFIG));
    let config = folder.text("config.json", CONFIG);
    let out = run(&["run", &case, "-o", &config, "--config", &config]);
    assert!(out.status == 2 && out.stderr.contains("--config is read from it"), "{}", out.stderr);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), CONFIG);
    let bench = ["bench", "--n", "128", "--heads", "1", "--seconds", "0", "--backend", "cpu"];
    let row = run(&[&bench[..], &["--json", "-"]].concat()).stdout;
    let old = folder.text("old.json", &row);
    for option in ["--json", "--csv", "--html"] {
        let out = run(&[&bench[..], &["--compare", &old, option, &old]].concat());
        assert!(out.status == 2 && out.stderr.contains("--compare reads it"), "{}", out.stderr);
        assert_eq!(std::fs::read_to_string(&old).unwrap(), row);
    }
}

/// Standard output, by either name, goes on where it was.
#[cfg(unix)]
#[test]
fn standard_output_is_not_replaced() {
    use std::process::Command;
    let folder = Folder::new();
    let case = folder.write("case.safetensors", &with_gradients(&folder), &metadata(CONFIG));
    let expected = std::fs::read(folder.path("results")).unwrap();
    for name in ["-", "/dev/stdout"] {
        let all = folder.path("all");
        let program = env!("CARGO_BIN_EXE_local-attention");
        let script = r#"(printf before; "$1" run "$2" --backend cpu -o "$3"; printf after) > "$4""#;
        let args = ["-c", script, "sh", program, &case, name, &all];
        let out = Command::new("sh").args(args).current_dir(folder.path("")).output().unwrap();
        assert!(out.status.success());
        let all = std::fs::read(all).unwrap();
        assert_eq!(all, [b"before", &expected[..], b"after"].concat(), "{name}");
    }
    let svg = run(&["pattern", "--window", "2", "--n", "4", "--svg", "-"]).stdout;
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert!(!folder.names().contains(&"-".to_owned()));
}
