//! The columns of the table for people, on a terminal and on the page.

use super::row::Row;

/// Largest share of a median that the middle half of its runs may span before it is called noisy.
pub const NOISY: f64 = 0.2;

/// A column.
pub struct Column {
    pub name: &'static str,
    /// Characters on a terminal.
    width: usize,
    /// Words, and so aligned to the left.
    pub words: bool,
    pub cell: fn(&Row) -> String,
}

const fn words(name: &'static str, width: usize, cell: fn(&Row) -> String) -> Column {
    Column { name, width, words: true, cell }
}

const fn number(name: &'static str, width: usize, cell: fn(&Row) -> String) -> Column {
    Column { name, width, words: false, cell }
}

const GPU: &str = "gpu ms";
const SHAPE: &str = "shape";
const VARIANT: &str = "variant";

const COLUMNS: [Column; 13] = [
    words("engine", 15, |r| r.backend.clone()),
    words(VARIANT, 12, |r| r.variant.clone()),
    words(SHAPE, 0, |r| r.shape.to_string()),
    number("threads", 7, |r| r.threads.to_string()),
    number("median ms", 10, |r| format!("{:.3}", r.median_ms)),
    number(GPU, 10, |r| r.gpu_median_ms.map_or("-".to_owned(), |ms| format!("{ms:.3}"))),
    number("min ms", 10, |r| format!("{:.3}", r.min_ms)),
    number("p90 ms", 10, |r| format!("{:.3}", r.p90_ms)),
    number("GFLOP/s", 8, |r| format!("{:.1}", r.attended_gflops)),
    number("floor", 6, |r| format!("{:.0}%", r.floor_share * 100.0)),
    number("peak MiB", 8, |r| r.peak_rss_bytes.map_or("-".to_owned(), |b| (b >> 20).to_string())),
    number("runs", 4, |r| r.runs.to_string()),
    words("peer by ours", 0, |r| {
        let ratio = r.ratio_lower_quartile.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        // Nothing is faster than the machine: something else ran while its rate was measured.
        let above = r.floor_share > 1.05;
        let remarks = [(r.is_noisy(), " (noisy)"), (above, " (floor disturbed)")];
        remarks.into_iter().filter(|(on, _)| *on).fold(ratio, |text, (_, remark)| text + remark)
    }),
];

/// All columns; time on the GPU's own clock only where there is such.
pub fn columns(gpu: bool) -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(move |c| gpu || c.name != GPU)
}

/// The table on a terminal, which is printed as rows come.
pub struct Table {
    pub gpu: bool,
    /// Characters of the longest shape.
    pub shape: usize,
}

impl Table {
    pub fn header(&self) -> String {
        self.join(|c| c.name.to_owned())
    }

    pub fn line(&self, row: &Row) -> String {
        self.join(|c| (c.cell)(row))
    }

    fn join(&self, text: impl Fn(&Column) -> String) -> String {
        let padded = columns(self.gpu).map(|column| {
            let text = text(column);
            let width = match column.name {
                SHAPE => self.shape,
                // A kernel's key.
                VARIANT if self.gpu => 34,
                _ => column.width,
            };
            if column.words { format!("{text:<width$}") } else { format!("{text:>width$}") }
        });
        padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;
    use crate::bench::row::tests::row;

    #[test]
    fn time_on_the_gpu_is_shown_where_there_is_some() {
        let mut row = row(1.0);
        row.gpu_median_ms = Some(0.625);
        let [with, without] = [true, false].map(|gpu| Table { gpu, shape: 30 });
        assert!(with.header().contains("gpu ms") && with.line(&row).contains(" 0.625 "));
        assert!(!without.header().contains("gpu ms") && !without.line(&row).contains("0.625"));
        // Columns end where their names end.
        assert_eq!(
            with.header().find("gpu ms").map(|at| at + 6),
            with.line(&row).find("0.625").map(|at| at + 5)
        );
    }

    #[test]
    fn a_wide_spread_is_called_noisy() {
        let mut row = row(1.0);
        let table = Table { gpu: false, shape: 30 };
        assert!(!table.line(&row).contains("noisy"));
        (row.lower_ms, row.upper_ms) = (0.89, 1.1);
        assert!(table.line(&row).ends_with("(noisy)"));
    }
}
