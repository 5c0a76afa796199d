//! What moved between two runs, beyond the noise of both.

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
