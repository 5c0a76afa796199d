//! `run`: one case file in, its result out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use local_attention::{Call, LocalAttention, Problem, ReferenceQuirks};
use serde_json::json;

use crate::args::{CaseArgs, JsonArg};
use crate::backend::{Backend, Computed};
use crate::case::{Case, CaseError, Dtype, Replace};
use crate::console::{Console, plain};
use crate::error::BadInput;
use crate::output::{check_writable, is_same_file, is_standard_output, write_tensors};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The case: a safetensors file with q, k, v and its configuration.
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// Where the result goes; appears whole or not at all.
    #[arg(short, long = "output", value_name = "OUT.safetensors")]
    output: PathBuf,
    /// Engine.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// Adapter of the GPU engine: a part of its name, or its number.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    #[command(flatten)]
    pub json: JsonArg,
    #[command(flatten)]
    case: CaseArgs,
    /// Dropout seed; without one nothing is dropped.
    #[arg(long, allow_negative_numbers = true, value_parser = parse_seed)]
    seed: Option<u64>,
    /// Type of the result instead of q's.
    #[arg(long, value_enum)]
    out_dtype: Option<OutDtype>,
    /// Constructor arguments in place of the file's: JSON, or a file that holds it.
    #[arg(long, value_name = "FILE|JSON")]
    config: Option<String>,
    /// Forward arguments in place of the file's: JSON, or a file that holds it.
    #[arg(long, value_name = "FILE|JSON")]
    forward: Option<String>,
}

fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("it must be a whole number from 0 to {}", u64::MAX))
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutDtype {
    F32,
}

pub fn run(args: &RunArgs, console: Console) -> Result<bool, BadInput> {
    let replace = Replace {
        config: args.config.as_deref().map(|x| json_or_file("--config", x)).transpose()?,
        forward: args.forward.as_deref().map(|x| json_or_file("--forward", x)).transpose()?,
    };
    let case = load(&args.input, &replace)?;
    let dtype = case.dtype();
    let engines = args.backend.open(args.adapter.as_deref())?;
    engines.choose(dtype, None)?;
    let out_dtype = match args.out_dtype {
        Some(OutDtype::F32) => Dtype::F32,
        None => dtype,
    };
    let in_file = |e: BadInput| BadInput::file(&args.input, e);
    let attention = LocalAttention::new(case.config.clone())
        .map_err(|e| in_file(e.into()))?
        .with_quirks(args.case.quirks);
    let call = args.seed.map_or_else(Call::default, Call::with_seed);
    let problem = case.problem(&attention).map_err(|e| in_file(e.into()))?;
    let (chosen, why) = engines.choose(dtype, Some(&problem))?;
    let output = &args.output;
    if is_same_file(output, &args.input) {
        return Err(BadInput::file(output, "cannot be written: it is the case itself"));
    }
    for (name, text) in [("--config", &args.config), ("--forward", &args.forward)] {
        if text.as_ref().is_some_and(|text| is_same_file(output, Path::new(text))) {
            return Err(BadInput::file(
                output,
                format!("cannot be written: {name} is read from it"),
            ));
        }
    }
    check_writable(output)?;
    // What is said must not land in what is written.
    let console = if is_standard_output(output) { console.beside_output() } else { console };

    console.say(format!("backend   {} ({why})", chosen.describe()));
    for line in describe(&case, &attention, &problem, &call) {
        console.say(line);
    }
    for name in &case.unknown {
        console.note(format!(
            "note      tensor {} was not read: its name means nothing here",
            plain(name)
        ));
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} computing, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let computed = chosen.compute(&case, &attention, &call, out_dtype).map_err(in_file);
    bar.finish_and_clear();
    let Computed { out, gradients } = computed?;
    let named = gradients.iter().map(|(name, x)| (*name, x));
    let all: Vec<_> = [("out", &out)].into_iter().chain(named).collect();
    write_tensors(&args.output, &all)?;
    let names: Vec<_> = gradients.iter().map(|(name, _)| *name).collect();
    let path = args.output.display().to_string();
    console.result(
        &json!({
            "output": path,
            "backend": chosen.name(),
            "adapter": chosen.adapter(),
            "rotary": attention.rotary(),
            "quirks": attention.quirks(),
            "dropout": call.dropout.is_some() && attention.config().dropout > 0.0,
            "unread": case.unknown,
            "gradients": names,
            "shape": out.shape,
            "dtype": out.dtype().name(),
        }),
        format!(
            "wrote     {}: out {:?} {}{}",
            plain(&path),
            out.shape,
            out.dtype().name(),
            names.iter().map(|name| format!(", {name}")).collect::<String>(),
        ),
    );
    Ok(true)
}

/// Reads a case file.
pub fn load(path: &Path, replace: &Replace) -> Result<Case, BadInput> {
    let bytes = read(path)?;
    Case::read(&bytes, replace)
        .map_err(|source: CaseError| BadInput::Case { path: path.display().to_string(), source })
}

/// The bytes of a regular file: a device could go on for ever.
fn read(path: &Path) -> Result<Vec<u8>, BadInput> {
    let fail = |e: std::io::Error| BadInput::file(path, format!("cannot be read: {e}"));
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(BadInput::file(path, "cannot be read: it is not a regular file"));
    }
    std::fs::read(path).map_err(fail)
}

fn json_or_file(argument: &str, text: &str) -> Result<String, BadInput> {
    if text.trim_start().starts_with('{') {
        return Ok(text.to_owned());
    }
    let path = PathBuf::from(text);
    if !path.exists() {
        let what = format!("{argument} '{text}': neither a JSON object nor a file that is there");
        return Err(BadInput::Usage(what));
    }
    String::from_utf8(read(&path)?).map_err(|_| BadInput::file(&path, "is not UTF-8 text"))
}

/// What will happen, for people.
fn describe(
    case: &Case,
    attention: &LocalAttention,
    problem: &Problem,
    call: &Call,
) -> Vec<String> {
    let (config, geometry) = (attention.config(), problem.geometry());
    let shape = |name: &str, s: &[usize]| format!("{name} {s:?}");
    let mut tensors =
        vec![shape("q", &case.q.shape), shape("k", &case.k.shape), shape("v", &case.v.shape)];
    tensors.extend(case.mask_shape().map(|s| shape("mask", s)));
    tensors.extend(case.bias_shape().map(|s| shape("attn_bias", s)));
    let rotary = match (attention.rotary(), config.use_rotary_pos_emb) {
        (true, _) if config.use_xpos => "on, with xpos",
        (true, _) => "on",
        (false, true) => "off (dim is null: as in the reference, that switches it off silently)",
        (false, false) => "off (use_rotary_pos_emb is false)",
    };
    let dropout = match (config.dropout > 0.0, call.dropout.is_some()) {
        (true, true) => format!("{} of the weights", config.dropout),
        (true, false) => "none: no --seed was given".to_owned(),
        (false, true) => "none: dropout is 0, the seed has no effect".to_owned(),
        (false, false) => "none".to_owned(),
    };
    let exact = if config.exact_windowsize { ", exact" } else { "" };
    let causal = if config.causal { ", causal" } else { "" };
    vec![
        format!("inputs    {} {}", tensors.join(", "), case.dtype().name()),
        format!(
            "windows   {} of {} positions, {} slots each{causal}{exact}{}",
            geometry.windows(),
            geometry.window(),
            geometry.slots(),
            if config.shared_qk { ", shared QK" } else { "" },
        ),
        format!("rotary    {rotary}"),
        format!("dropout   {dropout}"),
        format!("quirks    {}", quirk_names(attention.quirks())),
    ]
}

/// Quirks as `--quirks` takes them.
fn quirk_names(quirks: ReferenceQuirks) -> String {
    let names = [
        (quirks.tail_aligned_rotary, "tail_aligned_rotary"),
        (quirks.visible_autopad_keys, "visible_autopad_keys"),
        (quirks.uniform_masked_rows, "uniform_masked_rows"),
    ];
    match quirks {
        ReferenceQuirks::ALL => "all".to_owned(),
        ReferenceQuirks::NONE => "none".to_owned(),
        _ => names.iter().filter(|n| n.0).map(|n| n.1).collect::<Vec<_>>().join(","),
    }
}
