//! `check`: case files against what they say the result should be.

use std::path::{Path, PathBuf};

use clap::Args;
use half::f16;
use indicatif::{ProgressBar, ProgressStyle};
use local_attention::{Call, ErrorBudget, LocalAttention};
use serde_json::json;

use crate::args::CaseArgs;
use crate::backend::{Backend, Chosen, NO_GPU};
use crate::case::{Array, Case, Dtype, Replace, Want};
use crate::console::Console;
use crate::error::BadInput;
use crate::run::load;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Case files, or folders of them.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// Engine; all: every one that is there.
    #[arg(long, default_value = "auto", value_parser = parse_backends)]
    backend: Backends,
    /// Largest error allowed, times max(1, largest |out|).
    #[arg(long, default_value_t = 1e-5, value_parser = parse_tolerance)]
    tolerance: f64,
    #[command(flatten)]
    case: CaseArgs,
}

#[derive(Debug, Clone, Copy)]
enum Backends {
    All,
    One(Backend),
}

fn parse_backends(text: &str) -> Result<Backends, String> {
    if text == "all" {
        return Ok(Backends::All);
    }
    clap::ValueEnum::from_str(text, false)
        .map(Backends::One)
        .map_err(|_| "it must be auto, gpu, cpu, reference, reference-f32 or all".to_owned())
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("it must be a finite number of at least 0".to_owned()),
    }
}

pub fn check(args: &CheckArgs, console: Console) -> Result<bool, BadInput> {
    let mut files = Vec::new();
    for path in &args.path {
        find_cases(path, &mut files)?;
    }
    if files.is_empty() {
        let paths: Vec<_> = args.path.iter().map(|p| p.display().to_string()).collect();
        return Err(BadInput::Usage(format!(
            "no case file (*.safetensors) in {}",
            paths.join(", ")
        )));
    }
    if matches!(args.backend, Backends::All) {
        console.note(format!("gpu: absent, {NO_GPU}"));
    }
    let bar = ProgressBar::new(files.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    let (mut results, mut failed, mut gradients) = (0, 0, 0);
    for file in &files {
        let name = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        bar.set_message(name.clone());
        let in_file = |e: BadInput| BadInput::file(file, e);
        let case = load(file, &Replace::default())?;
        gradients += usize::from(case.expected.contains_key("dout"));
        let engines = match args.backend {
            Backends::All => Chosen::ALL.into_iter().filter(|c| c.takes(case.dtype())).collect(),
            Backends::One(backend) => vec![backend.choose(case.dtype()).map_err(in_file)?.0],
        };
        for engine in engines {
            let verdict = verdict(&case, engine, args).map_err(in_file)?;
            results += 1;
            failed += usize::from(!verdict.passed);
            bar.suspend(|| report(&verdict, &name, engine, console));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if gradients > 0 {
        console.note(format!(
            "gradients of {gradients} cases were not computed: this build has no backward pass"
        ));
    }
    console.say(format!(
        "{} cases, {results} results: {} passed, {failed} failed",
        files.len(),
        results - failed
    ));
    Ok(failed == 0)
}

/// Case files below a path, in order of their names.
fn find_cases(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), BadInput> {
    let fail = |e: std::io::Error| BadInput::file(path, format!("cannot be read: {e}"));
    if !std::fs::metadata(path).map_err(fail)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)
        .map_err(fail)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    entries.sort();
    for entry in entries {
        // A folder that links to one above it would never end.
        if entry.is_dir() && !entry.is_symlink() {
            find_cases(&entry, files)?;
        } else if entry.extension().is_some_and(|e| e == "safetensors") && entry.is_file() {
            files.push(entry);
        }
    }
    Ok(())
}

struct Verdict {
    error: f64,
    allowed: f64,
    passed: bool,
    budget: &'static str,
}

fn verdict(case: &Case, engine: Chosen, args: &CheckArgs) -> Result<Verdict, BadInput> {
    let expected = case.expected.get("out").ok_or_else(|| {
        BadInput::Usage("tensor out is missing: there is nothing to compare with".to_owned())
    })?;
    let attention = LocalAttention::new(case.config.clone())?.with_quirks(args.case.quirks);
    let got = engine.compute(case, &attention, &Call::default(), case.dtype())?;
    let expected_wide = f64::of(&expected.data);
    let largest = expected_wide.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
    let mut allowed = args.tolerance * largest;
    let mut budget = "tolerance";
    if case.dtype() == Dtype::F16 {
        let (problem, inputs) = case.prepare::<f16>(&attention, false)?;
        allowed = ErrorBudget::measure(&problem, &inputs)?.allowed();
        budget = "f16 budget";
    }
    let error = largest_error(&got, expected);
    Ok(Verdict { error, allowed, passed: error <= allowed, budget })
}

/// The largest absolute difference; infinite for another shape or where a NaN is.
pub fn largest_error(got: &Array, expected: &Array) -> f64 {
    if got.shape != expected.shape {
        return f64::INFINITY;
    }
    let (got, expected) = (f64::of(&got.data), f64::of(&expected.data));
    got.iter().zip(expected.iter()).fold(0.0, |worst, (a, b)| {
        let error = (a - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

fn report(verdict: &Verdict, name: &str, engine: Chosen, console: Console) {
    let Verdict { error, allowed, passed, budget } = *verdict;
    console.result(
        &json!({
            "case": name,
            "backend": engine.name(),
            // JSON has no infinity: null.
            "error": error,
            "allowed": allowed,
            "budget": budget,
            "passed": passed,
        }),
        format!(
            "{} {name:<36} {:<13} error {error:.2e}, allowed {allowed:.2e} ({budget})",
            if passed { "ok    " } else { "FAILED" },
            engine.name(),
        ),
    );
}
