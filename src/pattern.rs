//! The pattern of who sees whom, as text and as an SVG picture.

use std::fmt::Write;
use std::ops::Range;

use crate::engine::reserve;
use crate::{RunError, WindowGeometry};

impl WindowGeometry {
    /// The pattern as text, a line a query and a column a key: `#` seen, `o` a zero of autopad that
    /// is seen, `.` hidden. Windows stand apart.
    ///
    /// ```
    /// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
    ///
    /// let attention = LocalAttention::new(LocalAttentionConfig::new(2).causal(true))?;
    /// let problem = attention.problem(&AttentionShape::new([1], 6, 8))?;
    /// assert_eq!(problem.geometry().pattern_text(0..6)?, "\
    /// query 0  #. .. ..
    /// query 1  ## .. ..
    /// query 2  ## #. ..
    /// query 3  ## ## ..
    /// query 4  .. ## #.
    /// query 5  .. ## ##
    /// ");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`]: a character for each query and key, padding included.
    pub fn pattern_text(&self, queries: Range<usize>) -> Result<String, RunError> {
        let last = self.seq_len().saturating_sub(1);
        let width = last.to_string().len();
        let rows = queries.start..queries.end.min(self.seq_len());
        let line = self.padded_len().saturating_mul(2).saturating_add(width + 9);
        let mut text = reserve_text(&[rows.len(), line])?;
        for query in rows {
            let _ = write!(text, "query {query:>width$} ");
            let visible = self.visible_range(query);
            for key in 0..self.padded_len() {
                if key % self.window() == 0 {
                    text.push(' ');
                }
                text.push(match (visible.contains(&key), key < self.key_len()) {
                    (true, true) => '#',
                    (true, false) => 'o',
                    (false, _) => '.',
                });
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// The pattern as an SVG picture: queries down, keys across, one bar a query, windows ruled.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`]: about 200 bytes for each query.
    pub fn pattern_svg(&self) -> Result<String, RunError> {
        const MARGIN: f64 = 48.0;
        let columns = self.padded_len() as f64;
        let rows = self.seq_len() as f64;
        let cell = (640.0 / columns).clamp(0.05, 24.0);
        let (across, down) = (columns * cell, rows * cell);
        let (width, height) = (across + MARGIN + 16.0, down + MARGIN + 40.0);
        // Rules and labels are thinned out: there are fewer of them than a thousand.
        let mut svg = reserve_text(&[self.seq_len() + 1000, 200])?;
        let _ = write!(
            svg,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" font-family="system-ui, sans-serif" font-size="12">
<title>Which keys each query sees</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<g transform="translate({MARGIN} {MARGIN})">
<rect width="{across:.2}" height="{down:.2}" fill="#eef1f5"/>
<g shape-rendering="crispEdges">
"##
        );
        for query in 0..self.seq_len() {
            let visible = self.visible_range(query);
            let real = visible.start..visible.end.min(self.key_len()).max(visible.start);
            let zeros = real.end..visible.end;
            bar(&mut svg, query, real, cell, "#2f6fb5");
            bar(&mut svg, query, zeros, cell, "#e0a030");
        }
        svg.push_str("</g>\n");
        // Lines between windows, thinned out where they would touch.
        let thin = |step: usize, apart: f64| {
            let least = (apart / (step as f64 * cell)).ceil() as usize;
            // Where cells are at their smallest, by number.
            step * least.max(self.padded_len().div_ceil(step.saturating_mul(400))).max(1)
        };
        let every = thin(self.window(), 4.0);
        let label_every = thin(every, 28.0);
        for start in (0..=self.padded_len()).step_by(every) {
            let at = start as f64 * cell;
            let _ = writeln!(
                svg,
                r##"<path d="M{at:.2} 0V{down:.2}" stroke="#ffffff" stroke-opacity="0.8"/>"##
            );
            if at <= down {
                let _ = writeln!(
                    svg,
                    r##"<path d="M0 {at:.2}H{across:.2}" stroke="#ffffff" stroke-opacity="0.8"/>"##
                );
            }
        }
        for start in (0..self.padded_len()).step_by(label_every) {
            let at = (start as f64 + 0.5) * cell;
            let _ = writeln!(
                svg,
                r##"<text x="{at:.2}" y="-6" text-anchor="middle" fill="#5a6472">{start}</text>"##
            );
            if start < self.seq_len() {
                let _ = writeln!(
                    svg,
                    r##"<text x="-6" y="{:.2}" text-anchor="end" fill="#5a6472">{start}</text>"##,
                    at + 4.0
                );
            }
        }
        let _ = writeln!(
            svg,
            r##"<text x="{:.2}" y="-26" text-anchor="middle" fill="#20262e">key</text>
<text transform="translate(-36 {:.2}) rotate(-90)" text-anchor="middle" fill="#20262e">query</text>"##,
            across / 2.0,
            down / 2.0
        );
        let mut legend = vec![("#2f6fb5", "seen"), ("#eef1f5", "hidden")];
        if (0..self.seq_len()).any(|t| self.visible_range(t).end > self.key_len()) {
            legend.insert(1, ("#e0a030", "autopad's zero, seen"));
        }
        let mut x = 0.0;
        for (colour, name) in legend {
            let y = down + 14.0;
            let _ = writeln!(
                svg,
                r##"<rect x="{x}" y="{y:.2}" width="12" height="12" fill="{colour}" stroke="#c8d0da"/><text x="{:.0}" y="{:.2}" fill="#20262e">{name}</text>"##,
                x + 17.0,
                y + 10.5
            );
            x += 36.0 + 6.3 * name.len() as f64;
        }
        svg.push_str("</g>\n</svg>\n");
        Ok(svg)
    }
}

/// An empty text with room for this many bytes.
fn reserve_text(bytes: &[usize]) -> Result<String, RunError> {
    let (room, _) = reserve("the pattern", bytes)?;
    // Empty, so valid UTF-8.
    Ok(String::from_utf8(room).unwrap_or_default())
}

/// The keys of one query.
fn bar(svg: &mut String, query: usize, keys: Range<usize>, cell: f64, colour: &str) {
    if !keys.is_empty() {
        let _ = writeln!(
            svg,
            r#"<rect x="{:.2}" y="{:.2}" width="{:.2}" height="{:.2}" fill="{colour}"/>"#,
            keys.start as f64 * cell,
            query as f64 * cell,
            keys.len() as f64 * cell,
            // Bars of neighbours touch; a gap tells them apart where there is room.
            if cell > 6.0 { cell - 1.0 } else { cell }
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::{AttentionShape, LocalAttention, LocalAttentionConfig};

    /// Of one query among two billion padded positions, in windows of one.
    #[test]
    fn rules_are_few_however_many_windows() {
        let config = LocalAttentionConfig::new(i64::from(i32::MAX)).autopad(true).use_xpos(true);
        let shape = AttentionShape::new([1], 1, 8).with_window(1);
        let problem = LocalAttention::new(config).unwrap().problem(&shape).unwrap();
        let svg = problem.geometry().pattern_svg().unwrap();
        assert!((100..1500).contains(&svg.lines().count()), "{}", svg.lines().count());
    }
}
