//! One line of results, as text, JSON and CSV. Other programs read the names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::NOISY;
use super::floor::Floor;
use super::machine::Machine;
use super::measure::{Measured, Runner};
use super::shape::BenchShape;
use super::times::{Times, quantile};
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

/// The rows of a shape: ours, then the peers that could run.
pub fn rows(
    runner: &Runner,
    shape: &BenchShape,
    measured: &Measured,
    floor: &Floor,
    machine: &Machine,
) -> Vec<Row> {
    let Ok(problem) = shape.problem() else { return Vec::new() };
    let (flops, bytes) = (shape.flops(&problem), shape.least_bytes());
    let row = |backend: &str, adapter: &str, variant: &str, times: &Times, ratio| Row {
        backend: backend.to_owned(),
        adapter: adapter.to_owned(),
        variant: variant.to_owned(),
        shape: shape.clone(),
        threads: runner.threads(),
        runs: times.seconds.len(),
        median_ms: times.quantile(0.5) * 1e3,
        min_ms: times.quantile(0.0) * 1e3,
        p90_ms: times.quantile(0.9) * 1e3,
        lower_ms: times.quantile(0.25) * 1e3,
        upper_ms: times.quantile(0.75) * 1e3,
        gpu_median_ms: (!times.gpu_seconds.is_empty())
            .then(|| quantile(&times.gpu_seconds, 0.5) * 1e3),
        attended_gflops: flops / times.quantile(0.5) / 1e9,
        least_bytes: bytes,
        floor_share: floor.seconds(flops, bytes) / times.quantile(0.5),
        floor_gflops: Some(floor.gemm_flops / 1e9),
        peak_rss_bytes: times.peak_rss_bytes,
        ratio_lower_quartile: ratio,
    };
    let mut rows = vec![row(
        runner.chosen.name(),
        &runner.adapter(machine),
        &measured.variant,
        &measured.ours,
        None,
    )];
    for (peer, times) in &measured.peers {
        match times {
            Ok(times) => {
                let pairs = times.seconds.iter().zip(&measured.ours.seconds);
                let ratios: Vec<f64> = pairs.map(|(theirs, ours)| theirs / ours).collect();
                let ratio = Some(quantile(&ratios, 0.25));
                rows.push(row(peer.name(), &machine.cpu, "", times, ratio));
            }
            Err(why) => crate::console::complain(&format!("{} on {shape}: {why}", peer.name())),
        }
    }
    rows
}

impl Row {
    pub fn header() -> String {
        format!(
            "{:<16} {:<9} {:<34} {:>3} {:>10} {:>10} {:>10} {:>8} {:>6} {:>8}  {}",
            "backend",
            "variant",
            "shape",
            "thr",
            "median ms",
            "min ms",
            "p90 ms",
            "GFLOP/s",
            "floor",
            "peak MiB",
            "peer by ours (lower quartile)"
        )
    }

    pub fn line(&self) -> String {
        let peak = self.peak_rss_bytes.map_or("-".to_owned(), |b| (b >> 20).to_string());
        let noisy = self.upper_ms - self.lower_ms > NOISY * self.median_ms;
        format!(
            "{:<16} {:<9} {:<34} {:>3} {:>10.3} {:>10.3} {:>10.3} {:>8.1} {:>5.0}% {peak:>8}  {}{}",
            self.backend,
            self.variant,
            self.shape.to_string(),
            self.threads,
            self.median_ms,
            self.min_ms,
            self.p90_ms,
            self.attended_gflops,
            self.floor_share * 100.0,
            self.ratio_lower_quartile.map_or(String::new(), |r| format!("{r:.2}")),
            if noisy { " (noisy)" } else { "" },
        )
    }

    pub fn json(&self) -> serde_json::Value {
        // A row holds strings, numbers and booleans: it always has a JSON form.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// What makes two rows measurements of the same thing.
    pub fn key(&self) -> String {
        let Self { backend, adapter, variant, shape, threads, .. } = self;
        format!("{backend} {variant} {shape}, {threads} threads, {adapter}")
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
        return Err(BadInput::file(path, "holds no rows of bench --json"));
    }
    rows.map(|(i, line)| {
        serde_json::from_str(line).map_err(|e| {
            BadInput::file(path, format!("line {} is no row of bench --json: {e}", i + 1))
        })
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
