//! `bench`: the headless benchmark runner.

mod chart;
mod columns;
mod compare;
mod floor;
mod gpu;
mod gpu_floor;
mod html;
mod inputs;
mod machine;
mod measure;
mod peer;
mod results;
mod row;
mod runner;
mod setup;
mod shape;
mod shape_args;
mod suite;
mod tile;
mod times;
mod training;

pub use runner::Runner;
pub use shape::BenchShape;

use std::path::PathBuf;

use clap::Args;

use crate::backend::Backend;
use crate::console::Console;
use crate::error::BadInput;
use crate::output::{check_writable, is_same_file, is_standard_output};
use floor::best_of_each;
use machine::Machine;
use peer::Peer;
use results::{measure_all, write_files};
use setup::Setup;
use suite::Suite;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A list of shapes; without it and without --n, quick.
    #[arg(long, value_enum, conflicts_with = "ShapeArgs")]
    suite: Option<Suite>,
    #[command(flatten)]
    shape: shape_args::ShapeArgs,
    /// Engine.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// Adapter of the GPU engine: a part of its name, or its number.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Tile of the GPU kernels, or matrix: on matrix units, of f16 tensors; or fastest: measured once, and kept in the user's cache directory [default: by rules].
    #[arg(long, value_parser = tile::parse_tile, value_name = "NAME")]
    tile: Option<tile::TileChoice>,
    /// Threads of the CPU engine and of peers; several numbers, without --peer, compare them [default: all].
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    threads: Vec<usize>,
    /// Instruction set of the CPU engine [default: the best].
    #[arg(long, value_parser = runner::parse_isa)]
    isa: Option<local_attention::cpu::Isa>,
    #[arg(long, help = measure::seconds_help(), default_value_t = 1.5, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Also time a PyTorch peer on the same shapes, in turn with ours (once for each peer): peer by ours is the
    /// lower quartile of their ratios.
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    /// Python that has the peers' packages (benches/peers/requirements.txt).
    #[arg(long, requires = "peer", default_value = "python3", value_name = "PATH")]
    python: PathBuf,
    /// Seconds that a peer may take to answer, to start and to compile included.
    #[arg(long, requires = "peer", default_value_t = 600.0, value_parser = parse_patience, allow_negative_numbers = true, value_name = "SECONDS")]
    peer_timeout: f64,
    /// One JSON object a line into a file once all is measured, or to standard output, as they come, for - or no value.
    #[arg(long, value_name = "FILE|-", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// A CSV file, written once all is measured.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// A self-contained page with plots, written once all is measured.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say what moved since an earlier run: its --json file.
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=3600.0).contains(&x) => Ok(x),
        _ => Err("it must be a number from 0 to 3600".to_owned()),
    }
}

fn parse_patience(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 86_400.0 => Ok(x),
        _ => Err("it must be a number above 0, at most 86400".to_owned()),
    }
}

/// The files that are asked for, each its own, and where standard output goes.
fn check_files(args: &BenchArgs, json: bool) -> Result<Console, BadInput> {
    let json_file = args.json.as_ref();
    let json_is_output = json || json_file.is_some_and(|p| is_standard_output(p));
    let files: Vec<_> =
        [json_file, args.csv.as_ref(), args.html.as_ref()].into_iter().flatten().collect();
    for (i, path) in files.iter().enumerate() {
        let of_json = json_file.is_some_and(|json| json == *path);
        if files[..i].iter().any(|other| is_same_file(other, path))
            || (json_is_output && !of_json && is_standard_output(path))
        {
            return Err(BadInput::file(path, "is asked for twice: each result needs its own file"));
        }
        if args.compare.as_ref().is_some_and(|old| is_same_file(old, path)) {
            return Err(BadInput::file(path, "cannot be written: --compare reads it"));
        }
        check_writable(path)?;
    }
    let console = Console::new(json_is_output);
    let mut others = [&args.csv, &args.html].into_iter().flatten();
    // What is said must not land in what is written.
    Ok(if others.any(|p| is_standard_output(p)) { console.beside_output() } else { console })
}

/// Median time of an engine on a shape, in seconds, and the rate on pairs that attend.
pub fn median_and_gflops(
    runner: &Runner,
    shape: &BenchShape,
    seconds: f64,
) -> Result<(f64, f64), BadInput> {
    let median = measure::measure(runner, shape, &mut [], seconds)?.ours.quantile(0.5);
    Ok((median, shape.flops(&shape.problem()?) / median / 1e9))
}

/// Whether every shape could be measured, and one of them beside each peer.
pub fn bench(args: &BenchArgs, json: bool) -> Result<bool, BadInput> {
    let shapes = match (args.suite, args.shape.shape()?) {
        (None, Some(shape)) => vec![shape],
        (suite, _) => suite.unwrap_or(Suite::Quick).shapes(),
    };
    let engines = args.backend.open(args.adapter.as_deref())?;
    let (chosen, _) = engines.choose(crate::case::Dtype::F32, None)?;
    let chosen = match args.tile {
        None => chosen,
        Some(choice) => choice.of(chosen)?,
    };
    // Everything that can be refused is refused before the first measurement.
    let console = check_files(args, json)?;
    let old = args.compare.as_deref().map(row::read_rows).transpose()?;
    for shape in &shapes {
        runner::check_shape(&chosen, shape)?;
        shape.check_memory(&chosen)?;
    }
    // Before what is started here computes.
    if let Some(line) = machine::others() {
        console.say(line);
    }
    let starts = |peer: Peer| console.say(format!("starting {}", peer.name()));
    let mut setups = Setup::all(args, &chosen, starts)?;

    let machine = Machine::read(&chosen);
    for line in machine.lines() {
        console.say(line);
    }
    let mut asked = [&args.json, &args.csv, &args.html].into_iter().flatten();
    let files = asked.any(|path| !is_standard_output(path));
    let results = measure_all(&shapes, &mut setups, args.seconds, &machine, (console, files))?;
    let floors = best_of_each(setups.iter().flat_map(Setup::best));
    for best in &floors {
        console.say(format!("best {}", best.line()));
    }
    for line in compare::threads(&results.rows) {
        console.note(line);
    }
    if let Some(old) = old {
        for line in compare::compare(&old, &results.rows, !args.shape.is_given()) {
            console.note(line);
        }
    }
    if !results.rows.is_empty() {
        write_files(args, &results.rows, &floors, &machine)?;
    }
    let ran = |peer: &Peer| results.rows.iter().any(|row| row.backend == peer.name());
    Ok(results.failed == 0 && args.peer.iter().all(ran))
}
