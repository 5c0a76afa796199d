//! What a model needs beside attention: parameters with Adam, normalisation, and a source of numbers.

use ndarray::{Array2, ArrayView2, Axis};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform on [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A matrix that is trained (Kingma and Ba, "Adam", 2015).
pub struct Param {
    pub value: Array2<f32>,
    pub gradient: Array2<f32>,
    mean: Array2<f32>,
    square: Array2<f32>,
}

impl Param {
    /// Uniform, with the variance 1 / rows.
    pub fn new(rows: usize, columns: usize, random: &mut Random) -> Self {
        let scale = (3.0 / rows as f32).sqrt();
        let zeros = Array2::zeros((rows, columns));
        Self {
            value: Array2::from_shape_simple_fn((rows, columns), || {
                scale * (2.0 * random.unit() - 1.0)
            }),
            gradient: zeros.clone(),
            mean: zeros.clone(),
            square: zeros,
        }
    }

    /// The gradient by the input of `y = x w`; adds that by w.
    pub fn back(&mut self, x: &Array2<f32>, dy: &Array2<f32>) -> Array2<f32> {
        ndarray::linalg::general_mat_mul(1.0, &x.t(), dy, 1.0, &mut self.gradient);
        dy.dot(&self.value.t())
    }

    /// Step number `step`, from 1 on.
    pub fn update(&mut self, rate: f32, step: i32) {
        let (a, b) = (0.9_f32, 0.98_f32);
        let correct = (1.0 - b.powi(step)).sqrt() / (1.0 - a.powi(step));
        ndarray::Zip::from(&mut self.value)
            .and(&mut self.gradient)
            .and(&mut self.mean)
            .and(&mut self.square)
            .for_each(|w, g, m, s| {
                *m = a * *m + (1.0 - a) * *g;
                *s = b * *s + (1.0 - b) * *g * *g;
                *w -= rate * correct * *m / (s.sqrt() + 1e-8);
                *g = 0.0;
            });
    }
}

/// Rows divided by their root mean square (Zhang and Sennrich, "RMSNorm", 2019), and the divisors.
pub fn normalise(x: &Array2<f32>) -> (Array2<f32>, Vec<f32>) {
    let mut y = x.clone();
    let sizes = y.axis_iter_mut(Axis(0)).map(|mut row| {
        let size = (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32 + 1e-6).sqrt();
        row /= size;
        size
    });
    let sizes = sizes.collect();
    (y, sizes)
}

/// The gradient by x of `y = x / size`.
pub fn normalise_back(y: &Array2<f32>, sizes: &[f32], mut dy: Array2<f32>) -> Array2<f32> {
    for ((mut g, y), size) in dy.axis_iter_mut(Axis(0)).zip(y.axis_iter(Axis(0))).zip(sizes) {
        let along = g.dot(&y) / y.len() as f32;
        ndarray::Zip::from(&mut g).and(&y).for_each(|g, &y| *g = (*g - y * along) / size);
    }
    dy
}

/// Turns logits into probabilities, and gives the mean of -log of those of the targets.
pub fn cross_entropy(logits: &mut Array2<f32>, targets: &[usize]) -> f32 {
    let mut loss = 0.0_f64;
    for (mut row, &target) in logits.axis_iter_mut(Axis(0)).zip(targets) {
        let top = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        row.mapv_inplace(|x| (x - top).exp());
        let sum = row.sum();
        row /= sum;
        loss -= f64::from(row[target].max(1e-30).ln());
    }
    (loss / targets.len() as f64) as f32
}

/// A copy of some rows.
pub fn rows(table: ArrayView2<'_, f32>, of: &[usize]) -> Array2<f32> {
    table.select(Axis(0), of)
}
