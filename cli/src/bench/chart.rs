//! Plots of results, as SVG.

use std::error::Error;
use std::ops::Range;

use plotters::coord::combinators::{BindKeyPoints, LogCoord, WithKeyPoints};
use plotters::prelude::*;

use super::floor::Floor;
use super::row::Row;
use super::shape::{BenchShape, Pass};
use crate::console::count;

type Chart = Result<String, Box<dyn Error>>;

const SIZE: (u32, u32) = (720, 400);
const FONT: (&str, u32) = ("sans-serif", 15);
const COLOURS: [RGBColor; 6] = [
    RGBColor(47, 111, 181),
    RGBColor(224, 138, 32),
    RGBColor(58, 145, 86),
    RGBColor(176, 58, 92),
    RGBColor(110, 90, 170),
    RGBColor(90, 98, 110),
];

/// Rows of one engine.
struct Series<'a> {
    name: String,
    rows: Vec<&'a Row>,
}

fn series(rows: &[Row], name: impl Fn(&Row) -> String) -> Vec<Series<'_>> {
    let mut all: Vec<Series<'_>> = Vec::new();
    for row in rows {
        let name = name(row);
        match all.iter_mut().find(|s| s.name == name) {
            Some(series) => series.rows.push(row),
            None => all.push(Series { name, rows: vec![row] }),
        }
    }
    all
}

fn engine(row: &Row) -> String {
    let Row { backend, variant, threads, .. } = row;
    let name = format!("{backend} {variant}");
    format!("{}, {}", name.trim(), count(*threads, "thread"))
}

/// An engine, and the pass where it is not the forward one: their times differ by design.
fn engine_and_pass(row: &Row) -> String {
    match row.shape.pass {
        Pass::Forward => engine(row),
        pass => format!("{}, {}", engine(row), pass.name()),
    }
}

/// Rows of shapes that differ in length and window alone, by length: what a line may join.
fn lines<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let alike = |a: &Row, b: &Row| {
        let BenchShape { n, window_size, .. } = a.shape;
        a.shape == BenchShape { n, window_size, ..b.shape.clone() }
    };
    let mut lines: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match lines.iter_mut().find(|line| line.first().is_some_and(|first| alike(first, row))) {
            Some(line) => line.push(row),
            None => lines.push(vec![row]),
        }
    }
    for line in &mut lines {
        line.sort_by_key(|row| row.shape.n);
    }
    lines
}

/// The range of some positive numbers, widened by a factor.
fn range(values: impl Iterator<Item = f64>, by: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(l, h), x| (l.min(x), h.max(x)));
    if low > high { 0.1..1.0 } else { low / by..high * by }
}

type Plane<'a> =
    ChartContext<'a, SVGBackend<'a>, Cartesian2d<WithKeyPoints<LogCoord<f64>>, LogCoord<f64>>>;

/// Some of these numbers: those that have room beside each other on an axis of this range.
fn ticks(mut numbers: Vec<f64>, range: &Range<f64>) -> Vec<f64> {
    let apart = (range.end / range.start).powf(1.0 / 12.0);
    numbers.sort_by(f64::total_cmp);
    let mut kept: Vec<f64> = Vec::new();
    for x in numbers.into_iter().filter(|x| range.contains(x)) {
        if kept.last().is_none_or(|last| x >= last * apart) {
            kept.push(x);
        }
    }
    kept
}

/// A number of an axis, without what powers of ten leave of roundings.
fn number(x: &f64) -> String {
    ((x * 1e6).round() / 1e6).to_string()
}

/// A chart with two logarithmic axes, numbers on the first at `marks`, and a legend of what `draw` gives a label.
fn logarithmic(
    [x_desc, y_desc]: [&str; 2],
    [x, y]: [Range<f64>; 2],
    marks: Vec<f64>,
    legend: SeriesLabelPosition,
    draw: impl FnOnce(&mut Plane<'_>) -> Result<(), Box<dyn Error>>,
) -> Chart {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(
                LogCoord::from(x.clone().log_scale()).with_key_points(ticks(marks, &x)),
                LogCoord::from(y.log_scale()),
            )?;
        chart
            .configure_mesh()
            .x_desc(x_desc)
            .y_desc(y_desc)
            .label_style(FONT)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(RGBColor(240, 242, 245))
            .draw()?;
        draw(&mut chart)?;
        chart
            .configure_series_labels()
            .position(legend)
            .label_font(FONT)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 208, 218))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Draws the points of some rows under the name of their engine.
fn points(
    chart: &mut Plane<'_>,
    series: &Series<'_>,
    colour: RGBColor,
    at: impl Fn(&Row) -> (f64, f64),
) -> Result<(), Box<dyn Error>> {
    chart
        .draw_series(series.rows.iter().map(|r| Circle::new(at(r), 4, colour.filled())))?
        .label(series.name.clone())
        .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
    Ok(())
}

/// Median time against the length, both logarithmic: points, and lines through those that differ in
/// length and window alone.
pub fn time_against_n(rows: &[Row]) -> Chart {
    let x = range(rows.iter().map(|r| r.shape.n as f64), 1.4);
    let mut y = range(rows.iter().map(|r| r.median_ms), 1.8);
    // Room for the legend above the points.
    y.end *= 6.0;
    let names = ["n, positions", "median, ms"];
    let marks = rows.iter().map(|r| r.shape.n as f64).collect();
    logarithmic(names, [x, y], marks, SeriesLabelPosition::UpperLeft, |chart| {
        for (series, colour) in
            series(rows, engine_and_pass).iter().zip(COLOURS.into_iter().cycle())
        {
            let at = |r: &Row| (r.shape.n as f64, r.median_ms);
            for line in lines(&series.rows) {
                let line = line.into_iter().map(at);
                chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            }
            points(chart, series, colour, at)?;
        }
        Ok(())
    })
}

/// Attended rate against arithmetic intensity, under the machine's two limits.
pub fn roofline(rows: &[Row], floors: &[Floor]) -> Chart {
    let intensity = |r: &Row| r.attended_gflops * 1e6 * r.median_ms / r.least_bytes;
    let rates: Vec<_> = floors.iter().map(|f| (f.gemm_flops / 1e9, f.copy_bytes / 1e9)).collect();
    let ridges = rates.iter().map(|(peak, copy)| peak / copy);
    let peaks = rates.iter().map(|(peak, _)| *peak);
    let x = range(rows.iter().map(intensity).chain(ridges), 2.0);
    let mut y = range(rows.iter().map(|r| r.attended_gflops).chain(peaks), 1.6);
    // Room for the legend below the points.
    y.start /= 6.0;
    let names = ["FLOP for each byte that must move", "attended GFLOP/s"];
    let decades = (-3..9).map(|power| 10_f64.powi(power));
    let marks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * decade)).collect();
    logarithmic(names, [x.clone(), y], marks, SeriesLabelPosition::LowerRight, |chart| {
        for (i, (&(peak, copy), floor)) in rates.iter().zip(floors).enumerate() {
            let corners =
                [(x.start, (x.start * copy).min(peak)), (peak / copy, peak), (x.end, peak)];
            let grey = BLACK.mix(0.7 / (i + 1) as f64).stroke_width(2);
            chart
                .draw_series(LineSeries::new(corners, grey))?
                .label(format!("{}; copying", floor.what))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], grey));
        }
        for (series, colour) in
            series(rows, engine_and_pass).iter().zip(COLOURS.into_iter().cycle())
        {
            points(chart, series, colour, |r| (intensity(r), r.attended_gflops))?;
        }
        Ok(())
    })
}

/// Share of the floor, one bar a row.
pub fn floor_share(rows: &[Row]) -> Chart {
    let mut svg = String::new();
    let height = 70 + 30 * rows.len() as u32;
    {
        let area = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let longest = rows.iter().map(|r| r.floor_share).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            .margin_right(30)
            .x_label_area_size(40)
            .y_label_area_size(8)
            .build_cartesian_2d(0.0..longest * 100.0, 0.0..rows.len() as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("share of the floor, %")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .label_style(FONT)
            .light_line_style(WHITE)
            .draw()?;
        let names: Vec<_> = series(rows, engine).into_iter().map(|s| s.name).collect();
        for (i, row) in rows.iter().enumerate() {
            let name = engine(row);
            let colour =
                COLOURS[names.iter().position(|n| *n == name).unwrap_or(0) % COLOURS.len()];
            let top = (rows.len() - i) as f64;
            let bar = [(0.0, top - 0.85), (row.floor_share * 100.0, top - 0.15)];
            chart.draw_series([Rectangle::new(bar, colour.mix(0.35).filled())])?;
            let text = format!("{name}: {} ({:.0} %)", row.shape, row.floor_share * 100.0);
            let at = (longest * 0.8, top - 0.5);
            let style = TextStyle::from(FONT).pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Left,
                plotters::style::text_anchor::VPos::Center,
            ));
            chart.draw_series([Text::new(text, at, style)])?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::lines;
    use crate::bench::row::Row;
    use crate::bench::row::tests::row;
    use crate::bench::shape::{BenchShape, Pass};

    /// A small problem and a window that looks ahead stand among rows of one line.
    #[test]
    fn lines_join_what_differs_in_length_and_window_alone() {
        let base = BenchShape::causal(8, 4096, 128, 64);
        let shapes = [
            BenchShape::causal(4, 128, 16, 32),
            BenchShape::causal(8, 16384, 256, 64),
            BenchShape { causal: false, look_forward: 1, ..base.clone() },
            BenchShape { pass: Pass::Both, ..base.clone() },
            BenchShape { batch: 2, ..base.clone() },
            BenchShape { look_backward: 2, ..base.clone() },
            base,
        ];
        let rows: Vec<_> = shapes.map(|shape| Row { shape, ..row(1.0) }).into();
        let lines = lines(&rows.iter().collect::<Vec<_>>());
        let mut lengths: Vec<Vec<_>> =
            lines.iter().map(|line| line.iter().map(|r| r.shape.n).collect()).collect();
        lengths.sort();
        assert_eq!(lengths, [&[128][..], &[4096], &[4096], &[4096], &[4096], &[4096, 16384]]);
    }
}
