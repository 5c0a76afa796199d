//! One line of results, as JSON and CSV. Other programs read the names.

use std::path::Path;

use local_attention::Problem;
use serde::{Deserialize, Serialize};

use super::columns::NOISY;
use super::floor::Floor;
use super::machine::Machine;
use super::measure::Measured;
use super::runner::Runner;
use super::shape::BenchShape;
use super::times::{Times, quantile};
use crate::console::count;
use crate::error::BadInput;

/// One engine on one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub backend: String,
    pub adapter: String,
    pub variant: String,
    #[serde(flatten)]
    pub shape: BenchShape,
    pub threads: usize,
    pub runs: usize,
    pub median_ms: f64,
    pub min_ms: f64,
    pub p90_ms: f64,
    /// The middle half of the runs: what differences are held against.
    pub lower_ms: f64,
    pub upper_ms: f64,
    /// Time on the GPU, from its own timestamps.
    pub gpu_median_ms: Option<f64>,
    pub attended_gflops: f64,
    pub least_bytes: f64,
    /// The least time the machine's rates allow, by the median.
    pub floor_share: f64,
    /// The rate of the matrix product, or of fused multiply-adds, that the floor is of.
    #[serde(default)]
    pub floor_gflops: Option<f64>,
    pub peak_rss_bytes: Option<u64>,
    /// For a peer: its time by ours, the lower quartile over the pairs.
    pub ratio_lower_quartile: Option<f64>,
}

/// What a row is of.
struct What<'a> {
    backend: &'a str,
    adapter: &'a str,
    variant: &'a str,
    shape: BenchShape,
    threads: usize,
    floor: &'a Floor,
    times: &'a Times,
}

/// Rates that ours and peers are held against.
pub struct Floors {
    pub ours: Floor,
    pub peers: Floor,
}

/// The rows of a shape: ours, then the peers that could run; and why others could not.
pub fn rows(
    runner: &Runner,
    shape: &BenchShape,
    measured: &Measured,
    floors: &Floors,
    machine: &Machine,
) -> Result<(Vec<Row>, Vec<String>), BadInput> {
    let problem = shape.problem()?;
    let mut rows = vec![Row::new(
        What {
            backend: runner.chosen.name(),
            adapter: &runner.adapter(machine),
            variant: &measured.variant,
            shape: shape.clone(),
            threads: measured.threads,
            floor: &floors.ours,
            times: &measured.ours,
        },
        &problem,
        None,
    )];
    let mut failed = Vec::new();
    for (peer, ran) in &measured.peers {
        let ran = match ran {
            Ok(ran) => ran,
            Err(why) => {
                failed.push(format!("{} on {shape}: {why}", peer.name()));
                continue;
            }
        };
        let pairs = ran.times.seconds.iter().zip(&measured.ours.seconds);
        let ratios: Vec<f64> = pairs.map(|(theirs, ours)| theirs / ours).collect();
        rows.push(Row::new(
            What {
                backend: peer.name(),
                adapter: &machine.cpu,
                variant: &ran.version,
                shape: BenchShape { rotary: ran.rotary, ..shape.clone() },
                threads: ran.threads,
                floor: &floors.peers,
                times: &ran.times,
            },
            &problem,
            Some(quantile(&ratios, 0.25)),
        ));
    }
    Ok((rows, failed))
}

impl Row {
    fn new(what: What<'_>, problem: &Problem, ratio_lower_quartile: Option<f64>) -> Self {
        let What { backend, adapter, variant, shape, threads, floor, times } = what;
        let (flops, bytes) = (shape.flops(problem), shape.least_bytes());
        let ms = |share: f64| times.quantile(share) * 1e3;
        let gpu = (!times.gpu_seconds.is_empty()).then(|| quantile(&times.gpu_seconds, 0.5) * 1e3);
        Self {
            backend: backend.to_owned(),
            adapter: adapter.to_owned(),
            variant: variant.to_owned(),
            shape,
            threads,
            runs: times.seconds.len(),
            median_ms: ms(0.5),
            min_ms: ms(0.0),
            p90_ms: ms(0.9),
            lower_ms: ms(0.25),
            upper_ms: ms(0.75),
            gpu_median_ms: gpu,
            attended_gflops: flops / times.quantile(0.5) / 1e9,
            least_bytes: bytes,
            floor_share: floor.seconds(flops, bytes) / times.quantile(0.5),
            floor_gflops: Some(floor.gemm_flops / 1e9),
            peak_rss_bytes: times.peak_rss_bytes,
            ratio_lower_quartile,
        }
    }

    pub fn json(&self) -> serde_json::Value {
        // A row holds strings, numbers and booleans: it always has a JSON form.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Whether the middle half of its runs spans much of their median.
    pub fn is_noisy(&self) -> bool {
        self.upper_ms - self.lower_ms > NOISY * self.median_ms
    }

    /// What makes two rows measurements of the same thing.
    pub fn key(&self) -> String {
        let Self { backend, adapter, variant, shape, threads, .. } = self;
        format!("{backend} {variant} {shape}, {}, {adapter}", count(*threads, "thread"))
    }
}

/// A CSV file: a head line, then a line a row.
pub fn csv(rows: &[Row]) -> Vec<String> {
    let cell = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(s) if s.contains([',', '"', '\n']) => {
            format!("\"{}\"", s.replace('"', "\"\""))
        }
        serde_json::Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let objects: Vec<_> = rows.iter().filter_map(|r| r.json().as_object().cloned()).collect();
    let head = objects.first().map(|o| o.keys().cloned().collect::<Vec<_>>().join(","));
    let lines = objects.iter().map(|o| o.values().map(cell).collect::<Vec<_>>().join(","));
    head.into_iter().chain(lines).collect()
}

/// Rows of an earlier `--json` file.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, BadInput> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| BadInput::file(path, format!("cannot be read: {e}")))?;
    let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if rows.clone().next().is_none() {
        return Err(BadInput::file(path, "holds no rows of a bench --json file"));
    }
    rows.map(|(i, line)| {
        let fail = |why: &dyn std::fmt::Display| {
            BadInput::file(path, format!("line {} is no row of a bench --json file: {why}", i + 1))
        };
        let row: Row = serde_json::from_str(line).map_err(|e| fail(&e))?;
        match row.median_ms {
            ms if ms > 0.0 && ms.is_finite() => Ok(row),
            ms => Err(fail(&format!("median_ms is {ms}: it must be above 0"))),
        }
    })
    .collect()
}

#[cfg(test)]
pub mod tests {
    use super::{Row, csv};
    use crate::bench::shape::BenchShape;

    /// A row whose runs all took this long.
    pub fn row(ms: f64) -> Row {
        Row {
            backend: "cpu".to_owned(),
            adapter: "some machine".to_owned(),
            variant: "portable".to_owned(),
            shape: BenchShape::causal(8, 4096, 128, 64),
            threads: 2,
            runs: 7,
            median_ms: ms,
            min_ms: ms,
            p90_ms: ms,
            lower_ms: ms,
            upper_ms: ms,
            gpu_median_ms: None,
            attended_gflops: 1.0,
            least_bytes: 1.0,
            floor_share: 0.5,
            floor_gflops: Some(100.0),
            peak_rss_bytes: None,
            ratio_lower_quartile: None,
        }
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let mut row = row(1.0);
        row.adapter = r#"a "fast", cheap one"#.to_owned();
        let lines = csv(&[row]);
        assert!(lines[0].starts_with("backend,adapter,variant,pass,"), "{}", lines[0]);
        assert!(
            lines[1].starts_with(r#"cpu,"a ""fast"", cheap one",portable,forward,"#),
            "{}",
            lines[1]
        );
        // None is an empty cell.
        assert!(lines[1].ends_with(",,"), "{}", lines[1]);
    }
}
