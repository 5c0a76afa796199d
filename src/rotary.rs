//! Rotary position embedding (Su et al., "RoFormer", 2021) and xpos (Sun et al., "A
//! Length-Extrapolatable Transformer", 2022): the tables every engine reads.
//!
//! Frequencies are computed step by step in f32, as the reference's buffers are; angles, cosines,
//! sines and xpos factors in f64, rounded once to the table's type. No engine calls sin, cos or
//! pow: on GPUs their guaranteed accuracy is 2^-11.

use std::ops::Range;

use crate::engine::reserve;
use crate::{RunError, Scalar};

/// What is rotated, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RotarySpec {
    /// Rotary dimension, which is the head dimension; even.
    pub(crate) dim: usize,
    /// Positions an xpos power spans; `None` without xpos.
    pub(crate) xpos_scale_base: Option<f64>,
}

/// Tables larger than this are split into coarse and fine positions, where that makes them smaller.
const DIRECT_BYTES: usize = 4 << 20;

/// Fine positions of a split table.
const FINE: i64 = 256;

/// Rows up to which a split table would be no smaller.
const SPLIT_ROWS: usize = 2 * FINE as usize;

/// cos, sin and xpos factors at the positions some query or key takes.
#[derive(Debug)]
pub(crate) struct RotaryTables<T> {
    half: usize,
    angles: Levels<T>,
    xpos: Option<Levels<T>>,
}

impl<T: Scalar> RotaryTables<T> {
    /// Tables for these rotary positions and, with xpos, for these lags (differences of positions
    /// that a factor is taken of). Each list holds one or two ranges.
    pub(crate) fn new(
        spec: &RotarySpec,
        positions: &[Range<i64>],
        lags: &[Range<i64>],
    ) -> Result<Self, RunError> {
        Self::with_limit(spec, positions, lags, DIRECT_BYTES)
    }

    fn with_limit(
        spec: &RotarySpec,
        positions: &[Range<i64>],
        lags: &[Range<i64>],
        direct_bytes: usize,
    ) -> Result<Self, RunError> {
        let half = spec.dim / 2;
        let (mut frequencies, _) = reserve("rotary frequencies", &[half])?;
        frequencies.extend((0..half).map(|m| f64::from(inverse_frequency(spec.dim, m))));
        let angles = Levels::new(positions, 2 * half, direct_bytes, |position, column| {
            let angle = position as f64 * frequencies[column % half];
            if column < half { angle.cos() } else { angle.sin() }
        })?;
        let xpos = spec.xpos_scale_base.map(|base| {
            Levels::new(lags, half, direct_bytes, |lag, m| {
                f64::from(xpos_decay(spec.dim, m)).powf(lag as f64 / base)
            })
        });
        Ok(Self { half, angles, xpos: xpos.transpose()? })
    }

    /// Whether it is one table of angles, without xpos.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_plain(&self) -> bool {
        self.xpos.is_none() && matches!(self.angles, Levels::Direct(_))
    }

    /// The cosines and sines of neighbouring positions, `[position][2 * half]`, where one table has them all and there
    /// is no xpos.
    #[inline(always)]
    pub(crate) fn plain(&self, positions: Range<i64>) -> Option<&[T]> {
        match &self.angles {
            Levels::Direct(table) if self.xpos.is_none() => table.rows(positions),
            _ => None,
        }
    }

    /// The tables as they are, for engines that read them in other memory: cosines and sines,
    /// `[position][2 * half]`, and xpos factors, `[lag][half]`; each whole, or coarse and fine.
    #[cfg(feature = "gpu")]
    pub(crate) fn parts(&self) -> (Parts<'_, T>, Parts<'_, T>) {
        (self.angles.tables(), self.xpos.as_ref().map_or([None, None], Levels::tables))
    }

    /// The cosines and sines of a position, `half` of each. `buffer` is scratch of `2 * half`.
    #[inline(always)]
    pub(crate) fn angles<'a>(&'a self, position: i64, buffer: &'a mut [T]) -> (&'a [T], &'a [T]) {
        match &self.angles {
            Levels::Direct(table) => table.row(position).split_at(self.half),
            Levels::Split { coarse, fine } => {
                let (ca, sa) = coarse.row(position.div_euclid(FINE)).split_at(self.half);
                let (cb, sb) = fine.row(position.rem_euclid(FINE)).split_at(self.half);
                let (cos, sin) = buffer.split_at_mut(self.half);
                for m in 0..self.half {
                    cos[m] = ca[m] * cb[m] - sa[m] * sb[m];
                    sin[m] = sa[m] * cb[m] + ca[m] * sb[m];
                }
                (cos, sin)
            }
        }
    }

    /// Rotates one row of `2 * half` features to a position. `buffer` is scratch of that size.
    #[inline(always)]
    pub(crate) fn rotate(&self, x: &mut [T], position: i64, buffer: &mut [T]) {
        let (cos, sin) = self.angles(position, buffer);
        let (low, high) = x.split_at_mut(self.half);
        for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }

    /// Rotates one vector back: the transpose of [`rotate`](Self::rotate).
    #[inline(always)]
    pub(crate) fn rotate_back(&self, x: &mut [T], position: i64, buffer: &mut [T]) {
        let (cos, sin) = self.angles(position, buffer);
        let (low, high) = x.split_at_mut(self.half);
        for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
        }
    }

    /// The xpos factors `zeta[m]^(lag / base)`, one for each of the `half` frequencies and finite;
    /// `None` without xpos.
    #[inline(always)]
    pub(crate) fn xpos<'a>(&'a self, lag: i64, buffer: &'a mut [T]) -> Option<&'a [T]> {
        match self.xpos.as_ref()? {
            Levels::Direct(table) => Some(table.row(lag)),
            Levels::Split { coarse, fine } => {
                // Both parts have the lag's sign, so that neither overflows before the product.
                let (a, b) = (coarse.row(lag / FINE), fine.row(lag % FINE));
                for ((x, &a), &b) in buffer.iter_mut().zip(a).zip(b) {
                    *x = (a * b).min(T::max_value());
                }
                Some(&buffer[..self.half])
            }
        }
    }

    /// Multiplies both halves of a row by the xpos factors of a lag.
    #[inline(always)]
    pub(crate) fn decay(&self, x: &mut [T], lag: i64, buffer: &mut [T]) {
        if let Some(factors) = self.xpos(lag, buffer) {
            let (low, high) = x.split_at_mut(self.half);
            for ((a, b), &f) in low.iter_mut().zip(high).zip(factors) {
                *a = *a * f;
                *b = *b * f;
            }
        }
    }
}

/// `1 / 10000^(2m / dim)`, each step rounded to f32 as in the reference's buffer. The power is
/// taken in f64 so that it is rounded the same on every platform.
fn inverse_frequency(dim: usize, m: usize) -> f32 {
    let exponent = (2 * m) as f32 / dim as f32;
    1.0 / (10_000_f64.powf(f64::from(exponent)) as f32)
}

/// xpos' zeta: `(2m + 0.4 dim) / (1.4 dim)`, stepwise in f32.
fn xpos_decay(dim: usize, m: usize) -> f32 {
    let (offset, divisor) = ((0.4 * dim as f64) as f32, (1.4 * dim as f64) as f32);
    ((2 * m) as f32 + offset) / divisor
}

/// How far from its centre a query block may reach so that no xpos factor leaves f32 where the
/// product of a query's and a key's does not. A query's factor stays below e^40, the square root of
/// the largest f32. A key's grows with its distance from the centre, `ahead` at most on the side
/// where xpos grows (`behind` with a negative base), and may reach e^85; where the distance alone is
/// more, each query is a centre itself.
pub(crate) fn xpos_reach(spec: &RotarySpec, behind: usize, ahead: usize) -> usize {
    let Some(base) = spec.xpos_scale_base else {
        return usize::MAX;
    };
    let rate = f64::from(xpos_decay(spec.dim, 0)).ln().abs() / base.abs();
    let growing = if base > 0.0 { ahead } else { behind };
    // A negative distance, too far ahead, casts to 0.
    (40.0 / rate).min(85.0 / rate - growing as f64) as usize
}

/// A whole table, or a coarse and a fine one.
#[cfg(feature = "gpu")]
pub(crate) type Parts<'a, T> = [Option<&'a Table<T>>; 2];

#[derive(Debug)]
enum Levels<T> {
    Direct(Table<T>),
    Split { coarse: Table<T>, fine: Table<T> },
}

impl<T: Scalar> Levels<T> {
    /// The table, or the coarse and the fine one.
    #[cfg(feature = "gpu")]
    fn tables(&self) -> Parts<'_, T> {
        match self {
            Self::Direct(table) => [Some(table), None],
            Self::Split { coarse, fine } => [Some(coarse), Some(fine)],
        }
    }

    fn new(
        ranges: &[Range<i64>],
        width: usize,
        direct_bytes: usize,
        value: impl Fn(i64, usize) -> f64,
    ) -> Result<Self, RunError> {
        let runs = merge(ranges);
        let rows: usize = runs.iter().map(|r| (r.end - r.start) as usize).sum();
        let bytes = rows.saturating_mul(width).saturating_mul(size_of::<f32>());
        if bytes <= direct_bytes || rows <= SPLIT_ROWS {
            return Ok(Self::Direct(Table::new(&runs, width, value)?));
        }
        let coarse: Vec<_> =
            runs.iter().map(|r| (r.start / FINE - 1)..(r.end / FINE + 1)).collect();
        Ok(Self::Split {
            coarse: Table::new(&merge(&coarse), width, |p, column| value(p * FINE, column))?,
            fine: Table::new(std::slice::from_ref(&(1 - FINE..FINE)), width, value)?,
        })
    }
}

/// Rows at the integers of one or two ranges.
#[derive(Debug)]
pub(crate) struct Table<T> {
    pub(crate) width: usize,
    pub(crate) runs: Vec<Range<i64>>,
    pub(crate) values: Vec<T>,
}

impl<T: Scalar> Table<T> {
    fn new(
        runs: &[Range<i64>],
        width: usize,
        value: impl Fn(i64, usize) -> f64,
    ) -> Result<Self, RunError> {
        let rows = runs.iter().map(|r| (r.end - r.start) as usize).sum();
        let (mut values, _) = reserve("rotary tables", &[rows, width])?;
        for position in runs.iter().cloned().flatten() {
            let row = (0..width).map(|column| value(position, column));
            values.extend(row.map(|x| T::of(x).min(T::max_value())));
        }
        Ok(Self { width, runs: runs.to_vec(), values })
    }

    #[inline(always)]
    fn row(&self, position: i64) -> &[T] {
        match self.rows(position..position + 1) {
            Some(row) => row,
            None => unreachable!("rotary position {position} is in none of {:?}", self.runs),
        }
    }

    /// The rows of neighbouring positions, if they are in one run.
    #[inline(always)]
    fn rows(&self, positions: Range<i64>) -> Option<&[T]> {
        let mut first = 0;
        for run in &self.runs {
            if run.start <= positions.start && positions.end <= run.end {
                let row = first + (positions.start - run.start) as usize;
                let rows = (positions.end - positions.start) as usize;
                return Some(&self.values[row * self.width..(row + rows) * self.width]);
            }
            first += (run.end - run.start) as usize;
        }
        None
    }
}

/// The same integers as ranges that do not overlap.
fn merge(ranges: &[Range<i64>]) -> Vec<Range<i64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|r| !r.is_empty()).cloned().collect();
    sorted.sort_by_key(|r| r.start);
    let mut merged: Vec<Range<i64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: RotarySpec = RotarySpec { dim: 8, xpos_scale_base: Some(64.0) };

    #[test]
    fn frequencies_are_the_buffers_of_the_reference() {
        // torch: 1 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        assert_eq!([0, 1, 2, 3].map(|m| inverse_frequency(8, m)), [1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn split_tables_are_within_four_roundings() {
        let far = 1_000_000;
        let runs = [0..700, far..far + 700];
        let lags = -700..700;
        let direct = RotaryTables::<f64>::new(&SPEC, &runs, std::slice::from_ref(&lags)).unwrap();
        let split =
            RotaryTables::<f32>::with_limit(&SPEC, &runs, std::slice::from_ref(&lags), 0).unwrap();
        let mut worst = 0.0_f64;
        for position in runs.into_iter().flatten() {
            for feature in 0..8 {
                let (mut x, mut y) = ([0.0_f64; 8], [0.0_f32; 8]);
                (x[feature], y[feature]) = (1.0, 1.0);
                direct.rotate(&mut x, position, &mut [0.0; 8]);
                split.rotate(&mut y, position, &mut [0.0; 8]);
                for (x, y) in x.iter().zip(y) {
                    worst = worst.max((x - f64::from(y)).abs());
                }
            }
        }
        assert!(worst <= 4.0 * 2_f64.powi(-24), "{worst}");
        for lag in lags {
            let (mut a, mut b) = ([0.0; 8], [0.0; 8]);
            let exact = direct.xpos(lag, &mut a).unwrap();
            for (&x, &y) in exact.iter().zip(split.xpos(lag, &mut b).unwrap()) {
                assert!((f64::from(y) / x - 1.0).abs() <= 4.0 * 2_f64.powi(-24), "{lag}: {x} {y}");
            }
        }
    }

    #[test]
    fn ranges_merge() {
        assert_eq!(merge(&[5..9, 0..6]), std::slice::from_ref(&(0..9)));
        assert_eq!(merge(&[5..9, 0..0]), std::slice::from_ref(&(5..9)));
        assert_eq!(merge(&[7..9, 0..2]), [0..2, 7..9]);
    }
}
