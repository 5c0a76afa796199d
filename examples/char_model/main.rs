//! Trains a small character model whose only mixing layer is local attention, on two cores in about a minute:
//! `cargo run --release --example char_model [STEPS] [CURVE.svg] [cpu|gpu]`.
//!
//! The text is Genesis in the King James Version of 1611 (public domain).

mod engine;
mod layers;
mod model;

use std::io::{IsTerminal, Write};

use model::{Batch, Model, SEQ};
use plotters::prelude::*;

const TEXT: &str = include_str!("genesis.txt");
const BATCH: usize = 8;
/// A tenth of the text, which is not trained on.
const HELD_OUT: usize = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let steps: usize = args.next().map_or(Ok(1500), |x| x.parse())?;
    let path = args.next().unwrap_or_else(|| "target/char_model.svg".to_owned());
    let engine = engine::Engine::named(&args.next().unwrap_or_else(|| "cpu".to_owned()))?;

    let mut alphabet: Vec<char> = TEXT.chars().collect();
    alphabet.sort_unstable();
    alphabet.dedup();
    let ids: Vec<usize> = TEXT.chars().filter_map(|c| alphabet.binary_search(&c).ok()).collect();
    let (trained, held_out) = ids.split_at(ids.len() - ids.len() / HELD_OUT);
    let bigram = bigram_entropy(&ids, alphabet.len());
    println!(
        "{} characters, {} different; bigram entropy {bigram:.3} nats",
        ids.len(),
        alphabet.len()
    );

    let mut model = Model::new(alphabet.len(), engine)?;
    let mut random = layers::Random::new(1);
    let (mut curve, mut checks) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let batch = Batch::random(trained, BATCH, &mut random);
        let loss = model.train(&batch, rate(step, steps))?;
        curve.push((step, loss));
        if step % 50 == 49 || step + 1 == steps {
            checks.push((step, validate(&model, held_out)?));
        }
        if std::io::stdout().is_terminal() {
            print!("\rstep {:>4} of {steps}, loss {loss:.3}", step + 1);
            std::io::stdout().flush()?;
        } else if step < 50 || step % 50 == 0 {
            println!("step {step}, loss {loss:.6}");
        }
    }
    let last = checks.last().map_or(f32::NAN, |c| c.1);
    println!("\nvalidation loss {last:.3} nats, bigram entropy {bigram:.3}; curve in {path}");
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    draw(&path, &curve, &checks, bigram)?;
    println!(
        "{}",
        model
            .sample(&ids[..SEQ], 300, &mut random)?
            .iter()
            .map(|&i| alphabet[i])
            .collect::<String>()
    );
    Ok(())
}

/// Warm-up, then down to a tenth along a cosine.
fn rate(step: usize, steps: usize) -> f32 {
    let warm = ((step + 1) as f32 / 20.0).min(1.0);
    let share = step as f32 / steps as f32;
    4e-3 * warm * (0.55 + 0.45 * (std::f32::consts::PI * share).cos())
}

fn validate(model: &Model, text: &[usize]) -> Result<f32, Box<dyn std::error::Error>> {
    let batches = Batch::all(text, BATCH);
    let losses = batches.iter().map(|b| model.loss(b)).collect::<Result<Vec<_>, _>>()?;
    Ok(losses.iter().sum::<f32>() / losses.len() as f32)
}

/// The entropy of a character given the one before it: what a table of pairs can do at best.
fn bigram_entropy(ids: &[usize], letters: usize) -> f64 {
    let mut pairs = vec![0.0_f64; letters * letters];
    ids.windows(2).for_each(|w| pairs[w[0] * letters + w[1]] += 1.0);
    let all = (ids.len() - 1) as f64;
    let rows = pairs.chunks(letters).map(|row| {
        let sum: f64 = row.iter().sum();
        let seen = row.iter().filter(|n| **n > 0.0);
        -seen.map(|n| n / all * (n / sum).ln()).sum::<f64>()
    });
    rows.sum()
}

fn draw(
    path: &str,
    curve: &[(usize, f32)],
    checks: &[(usize, f32)],
    bigram: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (760, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    let top = curve.iter().map(|c| f64::from(c.1)).fold(bigram, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&area)
        .caption("A character model with local attention", ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..curve.len().max(1) as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("step")
        .y_desc("loss in nats")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    let line = |points: &[(usize, f32)]| -> Vec<(f64, f64)> {
        points.iter().map(|&(x, y)| (x as f64, f64::from(y))).collect()
    };
    let (blue, red, grey) =
        (RGBColor(47, 111, 181), RGBColor(200, 70, 50), RGBColor(110, 118, 128));
    let legend =
        |(x, y), colour: RGBColor| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
    chart
        .draw_series(LineSeries::new(line(curve), blue.mix(0.6)))?
        .label("training")
        .legend(move |at| legend(at, blue));
    chart
        .draw_series(LineSeries::new(line(checks), red.stroke_width(3)))?
        .label("validation")
        .legend(move |at| legend(at, red));
    chart
        .draw_series(LineSeries::new([(0.0, bigram), (curve.len() as f64, bigram)], grey))?
        .label("bigram entropy")
        .legend(move |at| legend(at, grey));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(grey.mix(0.4))
        .draw()?;
    area.present()?;
    Ok(())
}
