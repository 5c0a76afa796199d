//! What moved between two runs, beyond the noise of both, and what more threads bring.

use super::row::Row;

/// One line a row that both have: faster, slower, or within the noise.
pub fn compare(old: &[Row], new: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in new {
        let Some(before) = old.iter().find(|o| o.key() == row.key()) else {
            lines.push(format!("new      {}", row.key()));
            continue;
        };
        let ratio = row.median_ms / before.median_ms;
        // Moved where the middle halves of the runs do not meet.
        let what = if row.upper_ms < before.lower_ms {
            "faster"
        } else if row.lower_ms > before.upper_ms {
            "slower"
        } else {
            "same"
        };
        lines.push(format!(
            "{what:<8} {}: {:.3} ms, was {:.3} ({ratio:.2} times)",
            row.key(),
            row.median_ms,
            before.median_ms
        ));
    }
    lines
}

/// For shapes that were measured with several numbers of threads, one line for each but the fewest:
/// how much faster it is, beside what a matrix product gains in the same run.
pub fn threads(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for many in rows {
        let alike = |r: &&Row| {
            (&r.backend, &r.variant, &r.shape) == (&many.backend, &many.variant, &many.shape)
        };
        let Some(few) = rows.iter().filter(alike).min_by_key(|r| r.threads) else { continue };
        let (Some(floor), Some(alone)) = (many.floor_gflops, few.floor_gflops) else { continue };
        if few.threads == many.threads {
            continue;
        }
        let (gain, ideal) = (few.median_ms / many.median_ms, floor / alone);
        lines.push(format!(
            "threads  {} {}: {} are {gain:.2} times as fast as {}, a matrix product {ideal:.2}: {:.2} of it",
            many.backend,
            many.shape,
            many.threads,
            few.threads,
            gain / ideal,
        ));
    }
    lines
}
