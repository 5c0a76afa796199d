//! Arguments, and what each subcommand is called with.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use local_attention::ReferenceQuirks;

use crate::console::{Console, complain, ended};
use crate::error::BadInput;
use crate::{bench, check, demo, info, pattern, run};

/// Windowed attention with the semantics of the PyTorch module LocalAttention.
///
/// Without a subcommand: picks the best engine of this machine, checks it against golden data and
/// times it.
#[derive(Debug, Parser)]
#[command(name = "local-attention", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object a result instead of text.
    #[arg(long)]
    json: bool,
}

/// Whether a subcommand prints for people or for programs.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print one JSON object a result instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what this machine offers and what would be used.
    Info(JsonArg),
    /// Compute one case file.
    Run(run::RunArgs),
    /// Compare case files with what they say the result should be.
    Check(check::CheckArgs),
    /// Show who sees whom.
    Pattern(pattern::PatternArgs),
    /// Time engines, and PyTorch beside them.
    Bench(Box<bench::BenchArgs>),
}

/// Options of every subcommand that computes a case.
#[derive(Debug, Args)]
pub struct CaseArgs {
    /// Artefacts of the reference to reproduce: all, none, or names separated by commas out of
    /// tail_aligned_rotary, visible_autopad_keys, uniform_masked_rows.
    #[arg(long, default_value = "all", value_parser = parse_quirks)]
    pub quirks: ReferenceQuirks,
}

fn parse_quirks(text: &str) -> Result<ReferenceQuirks, String> {
    match text {
        "all" => return Ok(ReferenceQuirks::ALL),
        "none" => return Ok(ReferenceQuirks::NONE),
        _ => {}
    }
    let mut quirks = ReferenceQuirks::NONE;
    for name in text.split(',') {
        match name {
            "tail_aligned_rotary" => quirks.tail_aligned_rotary = true,
            "visible_autopad_keys" => quirks.visible_autopad_keys = true,
            "uniform_masked_rows" => quirks.uniform_masked_rows = true,
            _ => {
                return Err(format!(
                    "'{name}' is none of all, none, tail_aligned_rotary, visible_autopad_keys, uniform_masked_rows"
                ));
            }
        }
    }
    Ok(quirks)
}

/// Runs the program. Exit status: 0 fine, 1 a check failed, 2 bad input.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            // Help or the version; a closed pipe is nobody's error.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            let text = e.render().to_string();
            // The first paragraph says what is wrong; usage would be more lines.
            let first = text.split("\n\n").next().unwrap_or_default();
            let what = first.strip_prefix("error: ").unwrap_or(first);
            let command = std::env::args_os()
                .nth(1)
                .and_then(|name| name.into_string().ok())
                .filter(|name| Cli::command().get_subcommands().any(|c| c.get_name() == name));
            let command = command.map_or(String::new(), |name| format!(" {name}"));
            complain(&format!("{what} (see local-attention{command} --help)"));
            return ExitCode::from(2);
        }
    };
    let console = |arg: &JsonArg| Console::new(cli.json || arg.json);
    let result: Result<bool, BadInput> = match cli.command {
        None => demo::demo(Console::new(cli.json)),
        Some(Command::Info(json)) => info::info(console(&json)),
        Some(Command::Run(args)) => run::run(&args, console(&args.json)),
        Some(Command::Check(args)) => check::check(&args, console(&args.json)),
        Some(Command::Pattern(args)) => pattern::pattern(&args, console(&args.json)),
        Some(Command::Bench(args)) => bench::bench(&args, cli.json),
    };
    // A reader that goes away ends output, not the program; a full disk loses results.
    let result = match (result, ended()) {
        (Ok(_), Some(kind)) if kind != ErrorKind::BrokenPipe => {
            Err(BadInput::Usage(format!("standard output cannot be written: {kind}")))
        }
        (result, _) => result,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            complain(&e.to_string());
            ExitCode::from(2)
        }
    }
}
