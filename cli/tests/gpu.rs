//! The command line on an adapter. `LOCAL_ATTENTION_GPU`, `LOCAL_ATTENTION_ADAPTER` and `LOCAL_ATTENTION_SHARE` as in
//! the library's `tests/gpu.rs`.

mod common;
#[path = "../../tests/gpu_suite/share.rs"]
mod share;

use std::fs;
use std::process::ExitCode;

use common::{Folder, GOLDENS, metadata, run_with, tensor};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn gpu(args: &[&str]) -> common::Ran {
    let adapter = std::env::var("LOCAL_ATTENTION_ADAPTER").unwrap_or_else(|_| "0".to_owned());
    run_with(&[args, &["--backend", "gpu", "--adapter", &adapter]].concat(), &[])
}

/// In two processes at the same time: software adapters spend it compiling, each on one thread.
fn goldens() -> Result<(), Failed> {
    let mut files = Vec::new();
    for folder in ["attention", "extra"] {
        for entry in fs::read_dir(format!("{GOLDENS}/{folder}"))? {
            files.push(entry?.path().display().to_string());
        }
    }
    files.sort();
    let check = |files: &[String]| -> Result<usize, Failed> {
        let paths = files.iter().map(String::as_str);
        let out = gpu(&["check", "--json"].into_iter().chain(paths).collect::<Vec<_>>());
        let results: Vec<Value> =
            out.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let failed: Vec<_> = results.iter().filter(|r| r["passed"] != true).collect();
        let here = results.iter().all(|r| r["backend"] == "gpu" && r["adapter"].is_string());
        match (out.status, failed.is_empty() && here) {
            (0, true) => Ok(results.len()),
            _ => Err(format!("{failed:#?}\n{}", out.stderr).into()),
        }
    };
    // Neighbours are alike, and take the same kernels.
    let (one, other) = files.split_at(files.len() / 2);
    let checked = std::thread::scope(|scope| {
        let one = scope.spawn(|| check(one));
        Ok::<_, Failed>(check(other)? + one.join().map_err(|_| "it panicked")??)
    })?;
    assert_eq!(checked, 217);
    Ok(())
}

/// Software on the CPU is no reason to leave the CPU engine.
fn info_of_adapters() -> Result<(), Failed> {
    let out = run_with(&["info"], &[]);
    let says = |what: &str| out.stdout.lines().any(|line| line.trim_start().starts_with(what));
    assert!(says("gpu 0") && says("kernels f32, head_dim up to 64: small"), "{}", out.stdout);
    let info: Value = serde_json::from_str(&run_with(&["info", "--json"], &[]).stdout)?;
    let all = info["gpu"].as_array().ok_or("no list of adapters")?;
    let real = all.iter().any(|adapter| adapter["type"] != "Cpu");
    assert_eq!(info["auto"], if real { "gpu" } else { "cpu" }, "{info}");
    Ok(())
}

fn bench() -> Result<(), Failed> {
    let out = gpu(&["bench", "--n", "256", "--heads", "1", "--seconds", "0", "--json", "-"]);
    let row: Value = serde_json::from_str(out.stdout.trim())
        .map_err(|e| format!("{e}: {}{}", out.stdout, out.stderr))?;
    assert_eq!((row["backend"].as_str(), out.status), (Some("gpu"), 0));
    assert!(row["variant"].as_str().unwrap().starts_with("forward-f32-d64"), "{row}");
    let info: Value = serde_json::from_str(&run_with(&["info", "--json"], &[]).stdout)?;
    let adapters = info["gpu"].as_array().ok_or("no list of adapters")?;
    let of = adapters.iter().find(|a| a["name"] == row["adapter"]).ok_or("another adapter")?;
    match of["features"].to_string().contains("TIMESTAMP_QUERY") {
        true => assert!(row["gpu_median_ms"].as_f64().unwrap() > 0.0, "{row}"),
        false => assert!(row["gpu_median_ms"].is_null(), "{row}"),
    }
    Ok(())
}

fn too_many_features() -> Result<(), Failed> {
    let folder = Folder::new();
    let x = vec![0.5; 4 * 300];
    let qkv = ["q", "k", "v"].map(|name| tensor(name, &[4, 300], &x));
    let case = folder.write("case.safetensors", &qkv, &metadata(r#"{"window_size": 2}"#));
    let out = gpu(&["run", &case, "-o", &folder.path("out.safetensors")]);
    assert_eq!(out.status, 2);
    assert!(
        out.stderr.contains("head_dim is 300: the GPU engine takes at most 256"),
        "{}",
        out.stderr
    );
    assert_eq!(folder.names(), ["case.safetensors"]);
    Ok(())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let setting = std::env::var("LOCAL_ATTENTION_GPU").unwrap_or_else(|_| "auto".to_owned());
    let info: Option<Value> = serde_json::from_str(&run_with(&["info", "--json"], &[]).stdout).ok();
    let present = info.is_some_and(|i| i["gpu"].as_array().is_some_and(|all| !all.is_empty()));
    if setting == "require" && !present {
        eprintln!("LOCAL_ATTENTION_GPU=require: no adapter");
        return ExitCode::FAILURE;
    }
    let share = match share::Share::from_env() {
        Ok(share) => share,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let ignored = setting == "off" || !present;
    type Test = fn() -> Result<(), Failed>;
    // The first share's: of the other adapters, SwiftShader has the golden cases in a browser too.
    let tests: [(&str, Test, bool); 4] = [
        ("info_and_what_auto_is", info_of_adapters, false),
        ("every_golden_case", goldens, !share.has(0)),
        ("bench_on_the_device", bench, false),
        ("too_many_features_are_an_error", too_many_features, false),
    ];
    let trials = tests
        .map(|(name, test, others)| Trial::test(name, test).with_ignored_flag(ignored || others));
    libtest_mimic::run(&args, trials.into()).exit_code()
}
