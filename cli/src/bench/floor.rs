//! What the machine can do at best: the rate of a matrix product and of copying, measured on the
//! same threads in the same run.

use std::time::Instant;

use rayon::prelude::*;

use super::machine::cores;
use crate::console::count;
use crate::error::BadInput;

/// Rates of the machine.
#[derive(Debug, Clone)]
pub struct Floor {
    /// f32 matrix product of 1024 cubed by the `gemm` crate, or fused multiply-adds on a GPU, in
    /// FLOP/s.
    pub gemm_flops: f64,
    /// Bytes read and written a second by copying 128 MiB.
    pub copy_bytes: f64,
    /// What was measured.
    pub what: String,
}

const SIZE: usize = 1024;
const COPY_ELEMS: usize = 32 << 20;

impl Floor {
    /// Of as many threads, or one a core where those are fewer: more have nothing to run on.
    pub fn measure(threads: usize) -> Result<Self, BadInput> {
        let threads = threads.min(cores());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| BadInput::Usage(format!("--threads {threads}: {e}")))?;
        let what = format!("gemm {SIZE}^3, {}", count(threads, "thread"));
        Ok(pool.install(|| Self { gemm_flops: gemm(threads), copy_bytes: copy(threads), what }))
    }

    /// The better rates of two measurements.
    pub fn best(&self, other: &Self) -> Self {
        Self {
            gemm_flops: self.gemm_flops.max(other.gemm_flops),
            copy_bytes: self.copy_bytes.max(other.copy_bytes),
            what: self.what.clone(),
        }
    }

    /// Whether products took a fifth longer in one of the two.
    pub fn is_apart(&self, other: &Self) -> bool {
        self.gemm_flops.max(other.gemm_flops) > 1.2 * self.gemm_flops.min(other.gemm_flops)
    }

    /// The least time for this much work, in seconds.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.gemm_flops).max(bytes / self.copy_bytes)
    }

    pub fn line(&self) -> String {
        format!(
            "floor    {}: {:.1} GFLOP/s, copy {:.1} GB/s",
            self.what,
            self.gemm_flops / 1e9,
            self.copy_bytes / 1e9,
        )
    }
}

/// The best of each kind.
pub fn best_of_each(floors: impl IntoIterator<Item = Floor>) -> Vec<Floor> {
    let mut all: Vec<Floor> = Vec::new();
    for floor in floors {
        match all.iter_mut().find(|earlier| earlier.what == floor.what) {
            Some(earlier) => *earlier = earlier.best(&floor),
            None => all.push(floor),
        }
    }
    all
}

/// The best of several runs: other load can only slow a run down.
fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

fn gemm(threads: usize) -> f64 {
    let a: Vec<f32> = (0..SIZE * SIZE).map(|i| (i % 17) as f32 * 0.1).collect();
    let b: Vec<f32> = (0..SIZE * SIZE).map(|i| (i % 13) as f32 * 0.1).collect();
    let mut c = vec![0.0_f32; SIZE * SIZE];
    let row = SIZE as isize;
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    let seconds = best(15, || {
        // SAFETY: all three are SIZE by SIZE with these strides.
        unsafe {
            gemm::gemm(
                SIZE,
                SIZE,
                SIZE,
                c.as_mut_ptr(),
                1,
                row,
                false,
                a.as_ptr(),
                1,
                row,
                b.as_ptr(),
                1,
                row,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    });
    std::hint::black_box(&c);
    2.0 * (SIZE * SIZE * SIZE) as f64 / seconds
}

fn copy(threads: usize) -> f64 {
    let from = vec![1.0_f32; COPY_ELEMS];
    let mut to = vec![0.0_f32; COPY_ELEMS];
    let part = COPY_ELEMS.div_ceil(threads);
    let seconds = best(7, || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(t, f)| t.copy_from_slice(f));
    });
    std::hint::black_box(&to);
    (2 * COPY_ELEMS * size_of::<f32>()) as f64 / seconds
}
