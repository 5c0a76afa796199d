//! What moved between two runs, beyond the noise of both, and what more threads bring.

use super::row::Row;

/// One line a row: faster, slower, or within the noise where both have it, else who does; those that are gone from a
/// suite (`all`) too.
pub fn compare(old: &[Row], new: &[Row], all: bool) -> Vec<String> {
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
        // What moved may be the machine.
        let rate = row.floor_gflops.zip(before.floor_gflops).map(|(now, then)| now / then);
        let moved = rate.filter(|rate| !(0.9..1.1).contains(rate));
        let machine = moved.map(|rate| format!("; a matrix product: {:.2} times", 1.0 / rate));
        let noisy = if row.is_noisy() || before.is_noisy() { "; noisy" } else { "" };
        lines.push(format!(
            "{what:<8} {}: {:.3} ms, was {:.3} ({ratio:.2} times{}{noisy})",
            row.key(),
            row.median_ms,
            before.median_ms,
            machine.unwrap_or_default(),
        ));
    }
    let gone = old.iter().filter(|o| all && new.iter().all(|n| n.key() != o.key()));
    lines.extend(gone.map(|row| format!("gone     {}", row.key())));
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

#[cfg(test)]
mod tests {
    use super::{compare, threads};
    use crate::bench::row::Row;
    use crate::bench::row::tests::row;

    fn spread(lower: f64, median: f64, upper: f64) -> Row {
        Row { lower_ms: lower, upper_ms: upper, ..row(median) }
    }

    #[test]
    fn moved_is_what_middle_halves_do_not_share() {
        let old = spread(9.0, 10.0, 11.0);
        for (new, expected) in [
            (
                spread(7.5, 8.0, 8.9),
                "faster   cpu portable b1 h8 n4096 d64 w128 causal, 2 threads, some machine: 8.000 ms, was 10.000 (0.80 times)",
            ),
            (spread(11.1, 12.0, 13.0), "slower "),
            (spread(8.0, 8.5, 9.1), "same "),
            (spread(10.9, 11.5, 12.0), "same "),
        ] {
            let lines = compare(std::slice::from_ref(&old), &[new], true);
            assert!(lines.len() == 1 && lines[0].starts_with(expected), "{expected}: {lines:?}");
        }
    }

    #[test]
    fn rows_of_one_run_alone() {
        let lines = compare(&[row(1.0)], &[Row { threads: 1, ..row(1.0) }], true);
        let starts: Vec<_> = lines.iter().map(|l| &l[..8]).collect();
        assert_eq!(starts, ["new     ", "gone    "]);
        assert!(lines[0].contains("1 thread,") && lines[1].contains("2 threads"), "{lines:?}");
    }

    #[test]
    fn a_machine_that_moved_is_said_and_one_shape_is_no_suite() {
        let slow = Row { floor_gflops: Some(50.0), ..row(2.0) };
        let old = [row(1.0), Row { threads: 1, ..row(1.0) }];
        let lines = compare(&old, &[slow], false);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("(2.00 times; a matrix product: 2.00 times)"), "{lines:?}");
    }

    /// 1.5 times as fast where a matrix product gains 2.
    #[test]
    fn what_threads_gain() {
        let few = Row { threads: 1, floor_gflops: Some(50.0), ..row(3.0) };
        let lines = threads(&[few.clone(), row(2.0)]);
        assert!(lines.len() == 1, "{lines:?}");
        assert!(
            lines[0].ends_with("2 are 1.50 times as fast as 1, a matrix product 2.00: 0.75 of it"),
            "{lines:?}"
        );
        // Small calls that one thread computed, though two were offered.
        assert!(threads(&[few.clone(), few]).is_empty());
    }
}
