//! `check`: case files against what they say the result should be.

use std::path::{Path, PathBuf};

use clap::Args;
use half::f16;
use indicatif::{ProgressBar, ProgressStyle};
use local_attention::{Call, ErrorBudget, LocalAttention};
use serde_json::json;

use crate::args::{CaseArgs, JsonArg};
use crate::backend::{Backend, Chosen, Engines};
use crate::case::{Array, Case, Dtype, GRADIENTS, Replace, Want};
use crate::console::{Console, complain, count, plain};
use crate::error::BadInput;
use crate::run::load;

/// Largest error allowed by default, times [`magnitude`].
pub const TOLERANCE: f64 = 1e-5;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Case files, or folders of them.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// Engine; all: every one that is there.
    #[arg(long, default_value = "auto", value_parser = parse_backends)]
    backend: Backends,
    /// Adapter of the GPU engine: a part of its name, or its number.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Largest error allowed, times max(1, largest |x|) of each tensor.
    #[arg(long, default_value_t = TOLERANCE, value_parser = parse_tolerance, allow_negative_numbers = true)]
    tolerance: f64,
    #[command(flatten)]
    case: CaseArgs,
    #[command(flatten)]
    pub json: JsonArg,
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
    let mut unusable = Vec::new();
    for path in &args.path {
        find_cases(path, &mut files, &mut unusable);
    }
    if files.is_empty() && unusable.is_empty() {
        let paths: Vec<_> = args.path.iter().map(|p| p.display().to_string()).collect();
        return Err(BadInput::Usage(format!(
            "no case file (*.safetensors) in {}",
            paths.join(", ")
        )));
    }
    if files.is_empty() {
        return ended(unusable, console, true);
    }
    // Absent whatever the cases hold: said once.
    let engines = match args.backend {
        Backends::All => Engines::all(args.adapter.as_deref())?,
        Backends::One(backend) => backend.open(args.adapter.as_deref())?,
    };
    if let (Backends::All, Some(why)) = (args.backend, engines.absent_gpu()) {
        console.note(format!("gpu: absent, {why}"));
    }
    let bar = ProgressBar::new(files.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    let mut tally = Tally::default();
    for file in &files {
        let name = case_name(file, &args.path);
        bar.set_message(name.clone());
        // A file that is no case is said, and the others are checked all the same.
        if let Err(error) = check_file(file, &name, args, &engines, console, &bar, &mut tally) {
            unusable.push((name, error));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for (count, what) in [
        (tally.lse, "lse was not compared: out alone is"),
        (tally.wide, "all but the reference were left out: F64 is computed by the reference alone"),
    ] {
        if count > 0 {
            console.note(format!("note: in {count} of {} cases {what}", files.len()));
        }
    }
    console.say(format!(
        "{}, {}: {} passed, {} failed",
        count(files.len(), "case"),
        count(tally.results, "result"),
        tally.results - tally.failed,
        tally.failed
    ));
    ended(unusable, console, tally.failed == 0)
}

/// What comes of it, once what could not be used is said.
fn ended(
    mut unusable: Vec<(String, BadInput)>,
    console: Console,
    passed: bool,
) -> Result<bool, BadInput> {
    if console.json() {
        for (name, error) in &unusable {
            let reason = error.to_string();
            console.result(&json!({ "case": name, "passed": false, "reason": reason }), "");
        }
    }
    let last = unusable.pop();
    unusable.iter().for_each(|(_, error)| complain(&error.to_string()));
    match last {
        Some((_, error)) => Err(error),
        None => Ok(passed),
    }
}

/// A case's path as given, or below the folder given: no two are the same unless given twice.
fn case_name(file: &Path, given: &[PathBuf]) -> String {
    let below = match given {
        [folder] => file.strip_prefix(folder).ok().filter(|p| !p.as_os_str().is_empty()),
        _ => None,
    };
    below.unwrap_or(file).with_extension("").display().to_string()
}

/// Counts over all cases.
#[derive(Default)]
struct Tally {
    results: usize,
    failed: usize,
    lse: usize,
    /// Cases in F64, of which `all` leaves out engines.
    wide: usize,
}

fn check_file(
    file: &Path,
    name: &str,
    args: &CheckArgs,
    engines: &Engines,
    console: Console,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Result<(), BadInput> {
    let in_file = |e: BadInput| BadInput::file(file, e);
    let case = load(file, &Replace::default())?;
    for tensor in &case.unknown {
        let (tensor, name) = (plain(tensor), plain(name));
        bar.suspend(|| {
            console.note(format!(
                "note: {name}: tensor {tensor} was not read: its name means nothing here"
            ));
        });
    }
    let chosen = match args.backend {
        Backends::All => engines.present(case.dtype()),
        Backends::One(_) => {
            let attention =
                LocalAttention::new(case.config.clone()).map_err(|e| in_file(e.into()))?;
            let problem = case.problem(&attention).map_err(|e| in_file(e.into()))?;
            vec![engines.choose(case.dtype(), Some(&problem)).map_err(in_file)?.0]
        }
    };
    for engine in &chosen {
        let verdict = verdict(&case, engine, args).map_err(in_file)?;
        tally.results += 1;
        tally.failed += usize::from(!verdict.passed);
        bar.suspend(|| report(&verdict, name, engine, console));
    }
    tally.lse += usize::from(case.expected.contains_key("lse"));
    let left_out = matches!(args.backend, Backends::All) && case.dtype() == Dtype::F64;
    tally.wide += usize::from(left_out);
    Ok(())
}

/// Case files below a path, in order of their names, and what cannot be read of it.
fn find_cases(path: &Path, files: &mut Vec<PathBuf>, unusable: &mut Vec<(String, BadInput)>) {
    let fail = |e: std::io::Error| {
        let error = BadInput::file(path, format!("cannot be read: {e}"));
        (path.display().to_string(), error)
    };
    let entries = match std::fs::metadata(path) {
        Err(e) => return unusable.push(fail(e)),
        Ok(m) if !m.is_dir() => return files.push(path.to_owned()),
        Ok(_) => std::fs::read_dir(path).and_then(|all| {
            all.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()
        }),
    };
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(e) => return unusable.push(fail(e)),
    };
    entries.sort();
    for entry in entries {
        // A folder that links to one above it would never end.
        if entry.is_dir() && !entry.is_symlink() {
            find_cases(&entry, files, unusable);
        } else if entry.extension().is_some_and(|e| e == "safetensors") && entry.is_file() {
            files.push(entry);
        }
    }
}

struct Verdict {
    /// The tensor that is nearest to failing, or fails most.
    tensor: &'static str,
    /// Tensors that were compared.
    compared: usize,
    error: f64,
    allowed: f64,
    passed: bool,
    budget: &'static str,
    /// Why the error is infinite.
    reason: Option<String>,
}

impl Verdict {
    fn share(&self) -> f64 {
        if self.passed { self.error / self.allowed.max(f64::MIN_POSITIVE) } else { f64::INFINITY }
    }
}

/// The worst tensor of those that a case says and an engine gives.
fn verdict(case: &Case, engine: &Chosen, args: &CheckArgs) -> Result<Verdict, BadInput> {
    let expected = case.expected.get("out").ok_or_else(|| {
        BadInput::Usage("tensor out is missing: there is nothing to compare with".to_owned())
    })?;
    let attention = LocalAttention::new(case.config.clone())?.with_quirks(args.case.quirks);
    let got = engine.compute(case, &attention, &Call::default(), case.dtype())?;
    let given = |name: &str| got.gradients.iter().any(|(given, _)| *given == name);
    let missing = |name: &&&str| case.expected.contains_key(**name) && !given(name);
    if let Some(name) = GRADIENTS.iter().find(missing) {
        let needs = "gradients need dout, and dattn_bias an attn_bias";
        return Err(BadInput::Usage(format!("tensor {name} cannot be compared: {needs}")));
    }
    let mut worst = compare("out", &got.out, expected, args.tolerance * magnitude(expected));
    let mut gradient_share = args.tolerance;
    if case.dtype() == Dtype::F16 {
        let (problem, inputs) = case.prepare::<f16>(&attention)?;
        let matrices = engine.uses_matrices(&problem)?;
        let budget = match matrices {
            true => ErrorBudget::measure_f16_products(&problem, &inputs, &Call::default()),
            false => ErrorBudget::measure(&problem, &inputs),
        }?;
        worst = compare("out", &got.out, expected, budget.allowed());
        // Of gradients: what rounding the output to f16 makes of its product with dout.
        let features = problem.shape().value_dim as f64;
        gradient_share = 2_f64.powi(-10) * (1.0 + features.sqrt()) * (1.0 + budget.max_logit);
        worst.budget = if matrices { "f16 budget of matrix units" } else { "f16 budget" };
    }
    for (name, gradient) in &got.gradients {
        let Some(expected) = case.expected.get(*name) else { continue };
        let mut next = compare(name, gradient, expected, gradient_share * magnitude(expected));
        next.budget = worst.budget;
        if next.share() > worst.share() {
            worst = next;
        }
    }
    worst.compared =
        got.gradients.iter().filter(|(name, _)| case.expected.contains_key(*name)).count() + 1;
    Ok(worst)
}

fn compare(tensor: &'static str, got: &Array, expected: &Array, allowed: f64) -> Verdict {
    let error = largest_error(got, expected);
    let reason = if got.shape != expected.shape {
        Some(format!("{tensor} has shape {:?}, in the file {:?}", got.shape, expected.shape))
    } else {
        let finite = f64::of(&got.data).iter().all(|x| x.is_finite());
        let whose = if finite { "the file's " } else { "" };
        (!error.is_finite()).then(|| format!("a NaN or an infinity in {whose}{tensor}"))
    };
    let passed = error.is_finite() && error <= allowed;
    Verdict { tensor, compared: 1, error, allowed, passed, budget: "tolerance", reason }
}

/// What a tolerance is multiplied by: the largest finite |x|, 1 at least.
pub fn magnitude(expected: &Array) -> f64 {
    let wide = f64::of(&expected.data);
    wide.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(1.0, f64::max)
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

fn report(verdict: &Verdict, name: &str, engine: &Chosen, console: Console) {
    let Verdict { tensor, compared, error, allowed, passed, budget, reason } = verdict;
    console.result(
        &json!({
            "case": name,
            "backend": engine.name(),
            "adapter": engine.adapter(),
            "tensor": tensor,
            "compared": compared,
            // JSON has no infinity: null.
            "error": error,
            "allowed": allowed,
            "budget": budget,
            "passed": passed,
            "reason": reason,
        }),
        format!(
            "{} {:<36} {:<13} {tensor:<10} error {error:.2e}, allowed {allowed:.2e} ({budget}{}){}",
            if *passed { "ok    " } else { "FAILED" },
            plain(name),
            engine.name(),
            if *compared > 1 { format!(", the worst of {compared}") } else { String::new() },
            reason.as_ref().map_or(String::new(), |r| format!(": {r}")),
        ),
    );
}
