//! `bench`: the headless benchmark runner.

mod chart;
mod compare;
mod floor;
mod gpu;
mod gpu_floor;
mod html;
mod machine;
mod measure;
mod peer;
mod row;
mod shape;
mod shape_args;
mod suite;
mod tile;
mod times;
mod training;

pub use gpu::Resident;
pub use measure::Tensors;
pub use shape::Pass;

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::{Backend, Chosen};
use crate::console::Console;
use crate::error::BadInput;
use crate::output::{check_writable, is_same_file, is_standard_output, write_whole};
use floor::Floor;
use machine::Machine;
use peer::{Peer, PeerProcess};
use row::Row;
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
    /// Tile of the GPU kernels, or fastest: measured once, and kept in the user's cache directory [default: by rules].
    #[arg(long, value_parser = tile::parse_tile, value_name = "NAME")]
    tile: Option<tile::TileChoice>,
    /// Threads of the CPU engine; several numbers compare them [default: all].
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    threads: Vec<usize>,
    /// Instruction set of the CPU engine [default: the best].
    #[arg(long, value_parser = measure::parse_isa)]
    isa: Option<local_attention::cpu::Isa>,
    /// Seconds to spend on a shape, at least 7 runs whatever it says.
    #[arg(long, default_value_t = 1.5, value_parser = parse_seconds, allow_negative_numbers = true)]
    seconds: f64,
    /// Also time a PyTorch peer on the same shapes, in turn with ours.
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    /// Python that has the peers' packages (benches/peers/requirements.txt).
    #[arg(long, default_value = "python3", value_name = "PATH")]
    python: PathBuf,
    /// One JSON object a line into a file, or to standard output for -.
    #[arg(long, value_name = "FILE|-", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// A CSV file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// A self-contained page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say what moved since an earlier --json file.
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=3600.0).contains(&x) => Ok(x),
        _ => Err("it must be a number from 0 to 3600".to_owned()),
    }
}

/// The files that are asked for, each its own, and where standard output goes.
fn check_files(args: &BenchArgs, json: bool) -> Result<Console, BadInput> {
    let dash = args.json.as_deref().is_some_and(|p| p.as_os_str() == "-");
    let json_file = args.json.as_ref().filter(|_| !dash);
    let json_is_output = json || dash || json_file.is_some_and(|p| is_standard_output(p));
    let files: Vec<_> =
        [json_file, args.csv.as_ref(), args.html.as_ref()].into_iter().flatten().collect();
    for (i, path) in files.iter().enumerate() {
        let of_json = json_file.is_some_and(|json| json == *path);
        if files[..i].iter().any(|other| is_same_file(other, path))
            || (json_is_output && !of_json && is_standard_output(path))
        {
            return Err(BadInput::file(path, "is asked for twice: each result needs its own file"));
        }
        check_writable(path)?;
    }
    let console = Console::new(json_is_output);
    let mut others = [&args.csv, &args.html].into_iter().flatten();
    // What is said must not land in what is written.
    Ok(if others.any(|p| is_standard_output(p)) { console.beside_output() } else { console })
}

/// Largest share of a median that the middle half of its runs may span before it is called noisy.
const NOISY: f64 = 0.2;

/// Several numbers of threads are of the CPU engine, differ, and have no peers: those keep their threads
/// and memory between their turns.
fn check_counts(threads: &[usize], chosen: &Chosen, peers: bool) -> Result<(), BadInput> {
    let text = threads.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let refuse = |why: &str| Err(BadInput::Usage(format!("--threads {text}: {why}")));
    if !matches!(chosen, Chosen::Cpu) {
        return refuse("only the CPU engine has threads: add --backend cpu, or give one number");
    }
    if threads.iter().enumerate().any(|(i, n)| threads[..i].contains(n)) {
        return refuse("each number must be there once");
    }
    if peers {
        return refuse("with --peer one number is allowed");
    }
    Ok(())
}

/// An engine with its threads, and the peers that run on as many.
struct Setup {
    runner: measure::Runner,
    peers: Vec<PeerProcess>,
    /// What the machine could do, before the first shape and after each.
    floors: Vec<Floor>,
}

impl Setup {
    /// The rows of a shape. Their floor is the better of before and after: what a shared machine can
    /// do changes.
    fn measure(
        &mut self,
        shape: &shape::BenchShape,
        seconds: f64,
        machine: &Machine,
    ) -> Result<Vec<Row>, BadInput> {
        let measured = measure::measure(&self.runner, shape, &mut self.peers, seconds)?;
        let after = self.runner.floor()?;
        let best = self.floors.last().map_or_else(|| after.clone(), |before| before.best(&after));
        self.floors.push(after);
        Ok(row::rows(&self.runner, shape, &measured, &best, machine))
    }

    /// What the machine could do at best in this run.
    fn best(&self) -> Option<Floor> {
        self.floors.iter().cloned().reduce(|a, b| a.best(&b))
    }
}

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
    let tunes = args.tile == Some(tile::TileChoice::Fastest);
    // Everything that can be refused is refused before the first measurement.
    let console = check_files(args, json)?;
    shapes.iter().try_for_each(shape::BenchShape::check_memory)?;
    let old = args.compare.as_deref().map(row::read_rows).transpose()?;
    if args.threads.len() > 1 {
        check_counts(&args.threads, &chosen, !args.peer.is_empty())?;
    }
    let counts = match args.threads.len() {
        0 => vec![None],
        _ => args.threads.iter().copied().map(Some).collect(),
    };
    let mut setups = counts
        .into_iter()
        .map(|threads| {
            let runner = measure::Runner::new((chosen.clone(), tunes), threads, args.isa)?;
            let start = |&peer| PeerProcess::start(peer, &args.python, runner.threads());
            let peers = args.peer.iter().map(start).collect::<Result<_, _>>()?;
            Ok(Setup { runner, peers, floors: Vec::new() })
        })
        .collect::<Result<Vec<_>, BadInput>>()?;

    let machine = Machine::read(&chosen);
    for line in machine.lines() {
        console.say(line);
    }
    let bar = ProgressBar::new((shapes.len() * setups.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    bar.set_message("measuring the machine");
    for setup in &mut setups {
        let floor = bar.suspend(|| setup.runner.floor())?;
        bar.suspend(|| console.say(floor.line()));
        setup.floors.push(floor);
    }
    bar.suspend(|| console.say(Row::header()));
    let mut rows: Vec<Row> = Vec::new();
    for shape in &shapes {
        for setup in &mut setups {
            bar.set_message(shape.to_string());
            for row in setup.measure(shape, args.seconds, &machine)? {
                bar.suspend(|| console.result(&row.json(), row.line()));
                rows.push(row);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let floors: Vec<Floor> = setups.iter().filter_map(Setup::best).collect();
    for best in &floors {
        console.say(format!("best {}", best.line()));
    }
    for line in compare::threads(&rows) {
        console.note(line);
    }
    if let Some(old) = old {
        for line in compare::compare(&old, &rows) {
            console.note(line);
        }
    }
    let text = |lines: Vec<String>| lines.join("\n") + "\n";
    // Where they were printed as they came, they are there.
    let json_file = args.json.as_deref().filter(|p| p.as_os_str() != "-" && !is_standard_output(p));
    if let Some(path) = json_file {
        write_whole(path, text(rows.iter().map(|r| r.json().to_string()).collect()).as_bytes())?;
    }
    if let Some(path) = &args.csv {
        write_whole(path, text(row::csv(&rows)).as_bytes())?;
    }
    if let Some(path) = &args.html {
        write_whole(path, html::page(&rows, &floors, &machine)?.as_bytes())?;
    }
    Ok(true)
}
