//! `cargo xtask test`: everything that has to pass, on a fresh machine; and the browser package.

mod cross;
mod package;
mod parts;
mod serve;
mod simd;
mod web;

use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: cargo xtask test [--install] [PART ...]   tests, all or some parts
       cargo xtask web [--install]               builds the browser package: web/dist
       cargo xtask serve [PORT]                  serves it on this machine
       cargo xtask bench-web [--n 1024] [--backend wasm] [--pairs 7] [--json FILE]
                                                 times it against onnxruntime-web in headless Chromium";

fn main() -> ExitCode {
    // --install is read where something is missing.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--install").collect();
    let (command, names) = match args.split_first() {
        Some((command, names)) => (command.as_str(), names),
        None => ("", &[][..]),
    };
    let done = match (command, names) {
        ("web", []) => Some(web::build()),
        ("bench-web", args) => Some(web::bench(args)),
        ("serve", []) => Some(serve::serve(None)),
        ("serve", [port]) => Some(serve::serve(Some(port))),
        _ => None,
    };
    if let Some(result) = done {
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("xtask: {command} failed: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let known: Vec<&str> = parts::ALL.iter().map(|part| part.name).collect();
    if command != "test" || names.iter().any(|name| !known.contains(&name.as_str())) {
        eprintln!("{USAGE}\nparts: {}", known.join(", "));
        return ExitCode::from(2);
    }
    let mut summary = Vec::new();
    for part in parts::ALL {
        let named = names.iter().any(|name| name == part.name);
        let wanted = if names.is_empty() { part.default } else { named };
        if !wanted {
            continue;
        }
        println!("\n=== {}: {}", part.name, part.what);
        let start = Instant::now();
        let result = (part.run)();
        let seconds = start.elapsed().as_secs();
        if let Err(why) = result {
            eprintln!("\nxtask: {} failed after {seconds} s: {why}", part.name);
            return ExitCode::FAILURE;
        }
        summary.push(format!("{} {seconds} s", part.name));
    }
    println!("\nxtask: passed: {}", summary.join(", "));
    ExitCode::SUCCESS
}
