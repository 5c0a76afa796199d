//! Times of one engine on one shape, and what is quoted of them.

/// Times of one engine on one shape.
pub struct Times {
    /// In seconds, in the order they were measured.
    pub seconds: Vec<f64>,
    /// On a GPU, by its own timestamps.
    pub gpu_seconds: Vec<f64>,
    pub peak_rss_bytes: Option<u64>,
}

impl Times {
    /// The value below which this share of the runs lies.
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.seconds, share)
    }
}

/// The value below which a share of these, from 0 to 1, lies: on the line between the two nearest.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * sorted.len().saturating_sub(1) as f64;
    let below = at.floor() as usize;
    match (sorted.get(below), sorted.get(below + 1)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract(),
        (Some(last), None) => *last,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    /// Against numpy.quantile.
    #[test]
    fn quantiles_lie_between_values() {
        let seven = [7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0];
        let eight = [8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0];
        for (values, share, expected) in [
            (&seven[..], 0.0, 1.0),
            (&seven, 0.25, 2.5),
            (&seven, 0.5, 4.0),
            (&seven, 0.75, 5.5),
            (&seven, 0.9, 6.4),
            (&seven, 1.0, 7.0),
            (&eight, 0.25, 2.75),
            (&eight, 0.5, 4.5),
            (&eight, 0.75, 6.25),
            (&eight, 0.9, 7.3),
            (&[3.0], 0.9, 3.0),
        ] {
            let got = quantile(values, share);
            assert!((got - expected).abs() < 1e-12, "{values:?} at {share}: {got}");
        }
        assert!(quantile(&[], 0.5).is_nan());
    }
}
