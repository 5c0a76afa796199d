//! A self-contained page: the machine, the plots, the table.

use super::chart;
use super::columns::{NOISY, columns};
use super::floor::Floor;
use super::machine::Machine;
use super::row::Row;
use crate::error::BadInput;

const STYLE: &str = "
:root { color-scheme: light dark; --text: #20262e; --back: #ffffff; --line: #d5dbe3; --soft: #5a6472; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --back: #16191e; --line: #363d47; --soft: #9aa5b3; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, caption { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { color: var(--soft); margin-bottom: .4rem; }
figure svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
.words { text-align: left; }
";

pub fn page(rows: &[Row], floors: &[Floor], machine: &Machine) -> Result<String, BadInput> {
    let plot = |chart: Result<String, _>| {
        chart.map_err(|e: Box<dyn std::error::Error>| BadInput::Usage(format!("--html: {e}")))
    };
    let time = plot(chart::time_against_n(rows))?;
    let roof = plot(chart::roofline(rows, floors))?;
    let share = plot(chart::floor_share(rows))?;
    let head: String = machine
        .lines()
        .iter()
        .cloned()
        .chain(floors.iter().map(|f| f.line()))
        .map(|l| format!("{}<br>", escape(&l)))
        .collect();
    let gpu = rows.iter().any(|r| r.gpu_median_ms.is_some());
    let names: String = columns(gpu).map(|c| cell("th", c.words, c.name)).collect();
    let table_row = |row: &Row| {
        let cells: String = columns(gpu).map(|c| cell("td", c.words, &(c.cell)(row))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let noisy = 100.0 * NOISY;
    let body: String = rows.iter().map(table_row).collect();
    Ok(format!(
        "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>local-attention: benchmark</title><style>{STYLE}</style></head><body>
<h1>local-attention: benchmark</h1>
<p>{head}</p>
<div class=\"plots\">
<figure><figcaption>Time against length</figcaption>{time}</figure>
<figure><figcaption>Roofline: rate on attended pairs against what memory and arithmetic allow</figcaption>{roof}</figure>
</div>
<h2>Share of the floor</h2>
<p>The floor is the longer of two times: attended FLOP at the rate of a matrix product, on a GPU at that of
fused multiply-adds, and each input and output once at the rate of copying; both measured in the same run
on the same threads or adapter.</p>
<figure>{share}</figure>
<h2>All figures</h2>
<p>Peer by ours: the lower quartile of the ratios of runs in turn. Noisy: the middle half of the runs spans
more than {noisy} % of their median.</p>
<div class=\"scroll\"><table><thead><tr>{names}</tr></thead><tbody>
{body}</tbody></table></div>
</body></html>
"
    ))
}

fn cell(tag: &str, words: bool, text: &str) -> String {
    let class = if words { " class=\"words\"" } else { "" };
    format!("<{tag}{class}>{}", escape(text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
