//! Measuring every shape, and what is kept of it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::columns::Table;
use super::floor::Floor;
use super::machine::Machine;
use super::row::{self, Row};
use super::setup::Setup;
use super::shape::BenchShape;
use super::{BenchArgs, html};
use crate::console::{Console, complain, ended};
use crate::error::BadInput;
use crate::output::{is_standard_output, write_whole};

/// What was measured.
pub struct Results {
    pub rows: Vec<Row>,
    /// Shapes that could not be.
    pub failed: usize,
}

/// Each shape on each setup, said as it comes. One that fails ends no list of many: it is said, and the
/// others go on. `files`: whether what is printed is not all that comes of it.
pub fn measure_all(
    shapes: &[BenchShape],
    setups: &mut [Setup],
    seconds: f64,
    machine: &Machine,
    (console, files): (Console, bool),
) -> Result<Results, BadInput> {
    let count = shapes.len() * setups.len();
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar.set_message("measuring the machine");
    for setup in &mut *setups {
        let floor = setup.measure_floor()?;
        bar.suspend(|| console.say(floor.line()));
    }
    // Peers say that they have no rotary.
    let rotary = !setups.iter().any(Setup::has_peers);
    let longest = |shape: &BenchShape| {
        BenchShape { rotary: rotary && shape.rotary, ..shape.clone() }.to_string().len()
    };
    let table = Table {
        gpu: setups.iter().any(|setup| setup.runner.has_timestamps()),
        shape: shapes.iter().map(longest).max().unwrap_or(0),
    };
    bar.suspend(|| console.say(table.header()));
    let mut results = Results { rows: Vec::new(), failed: 0 };
    for shape in shapes {
        for setup in &mut *setups {
            if ended().is_some() && !files {
                // Nobody reads on.
                return Ok(results);
            }
            bar.set_message(shape.to_string());
            match setup.measure(shape, seconds, machine) {
                Ok((rows, peers_failed)) => bar.suspend(|| {
                    peers_failed.iter().for_each(|why| complain(why));
                    for row in rows {
                        if is_known(&row, &results.rows) {
                            continue;
                        }
                        console.result(&row.json(), table.line(&row));
                        results.rows.push(row);
                    }
                }),
                Err(why) if count == 1 => return Err(why),
                Err(why) => {
                    let name = setup.runner.chosen.name();
                    bar.suspend(|| complain(&format!("{name} on {shape}: {why}")));
                    results.failed += 1;
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

/// A small call has one row, however many threads are left alone. A peer has one beside each of ours, of one shape where it
/// has no rotary.
fn is_known(row: &Row, rows: &[Row]) -> bool {
    row.ratio_lower_quartile.is_none() && rows.iter().any(|earlier| earlier.key() == row.key())
}

/// The files that were asked for.
pub fn write_files(
    args: &BenchArgs,
    rows: &[Row],
    floors: &[Floor],
    machine: &Machine,
) -> Result<(), BadInput> {
    let text = |lines: Vec<String>| lines.join("\n") + "\n";
    // Where they were printed as they came, they are there.
    let json = args.json.as_deref().filter(|p| !is_standard_output(p)).map(|path| {
        write_whole(path, text(rows.iter().map(|r| r.json().to_string()).collect()).as_bytes())
    });
    let csv = args.csv.as_ref().map(|path| write_whole(path, text(row::csv(rows)).as_bytes()));
    let html = args.html.as_ref().map(|path| {
        html::page(rows, floors, machine).and_then(|page| write_whole(path, page.as_bytes()))
    });
    // One that cannot be written takes none of the others along.
    [json, csv, html].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Chosen;
    use crate::bench::row::tests::row;
    use clap::Parser;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn ours_has_one_row_and_a_peer_one_beside_each() {
        let ours = row(1.0);
        let peer = Row { ratio_lower_quartile: Some(2.0), ..ours.clone() };
        assert!(is_known(&ours, std::slice::from_ref(&ours)));
        assert!(!is_known(&peer, std::slice::from_ref(&peer)));
    }

    #[test]
    fn a_shape_that_fails_is_passed_over() {
        let args = Args::parse_from(["bench", "--threads", "1"]).bench;
        let mut setups = Setup::all(&args, &Chosen::Cpu, |_| ()).unwrap();
        let machine = Machine::read(&Chosen::Cpu);
        let good = BenchShape::causal(1, 64, 16, 8);
        let bad = BenchShape { n: 63, ..good.clone() };
        let mut measure = |shapes: &[BenchShape]| {
            measure_all(shapes, &mut setups, 0.0, &machine, (Console::new(true), false))
        };
        let results = measure(&[bad.clone(), good.clone()]).unwrap();
        assert_eq!((results.rows.len(), results.failed), (1, 1));
        assert_eq!(results.rows[0].shape, good);
        // Alone it is bad input.
        assert!(measure(&[bad]).is_err());
    }
}
