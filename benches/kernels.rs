//! The CPU engine's inner loops by themselves, out of the first cache, with every instruction set: a block of
//! 64 features, or of 256 keys, as the engine cuts them. Elements: floating-point operations, or floats.

// Private to the library, and the same files here.
#[allow(dead_code, reason = "the library uses the rest")]
#[path = "../src/cpu/kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "the library uses the rest")]
#[path = "../src/cpu/simd/mod.rs"]
mod simd;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
// What the modules call their crate's.
use local_attention::RunError;

use kernel::{Lhs, Rhs, RowState};
use simd::{Isa, Op, Simd};

const DEPTH: usize = 64;
const KEYS: usize = 256;
/// The tallest tile is 8 rows.
const ROWS: usize = 8;

#[derive(Clone, Copy)]
enum Kernel {
    /// Scores: rows of queries by packed keys, two vectors at a time.
    Scores,
    /// Weights by values, added to what is there.
    Values,
    /// A row of logits to weights.
    Softmax,
    /// A row of logits to weights and to gradients by logits.
    Weights,
    /// Keys to columns.
    Transpose,
}

const KERNELS: [(&str, Kernel); 5] = [
    ("scores", Kernel::Scores),
    ("values", Kernel::Values),
    ("softmax", Kernel::Softmax),
    ("weights", Kernel::Weights),
    ("transpose", Kernel::Transpose),
];

struct Data {
    rows: Vec<f32>,
    keys: Vec<f32>,
    logits: Vec<f32>,
    out: Vec<f32>,
}

/// One pass of a kernel, and what it computed: floating-point operations or floats.
struct Pass<'a>(Kernel, &'a mut Data);

impl Op for Pass<'_> {
    type Output = u64;
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self) -> u64 {
        let Self(kernel, data) = self;
        let width = 2 * S::LANES;
        let flops = (2 * MR * KEYS * DEPTH) as u64;
        match kernel {
            Kernel::Scores => {
                for first in (0..KEYS).step_by(width) {
                    let a = Lhs { at: data.rows.as_ptr(), row: DEPTH, step: 1 };
                    let keys = data.keys[first * DEPTH..][..width * DEPTH].as_ptr();
                    let b = Rhs { at: keys, row: S::LANES, vector: S::LANES * DEPTH };
                    let c = data.logits[first..].as_mut_ptr();
                    // SAFETY: `MR` rows of `DEPTH` and of `KEYS` floats are there, and two vectors
                    // of `DEPTH` floats a key.
                    unsafe { kernel::tile::<S, MR, 2, false>(DEPTH, a, b, c, KEYS) };
                }
                flops
            }
            Kernel::Values => {
                for first in (0..DEPTH).step_by(width) {
                    let a = Lhs { at: data.logits.as_ptr(), row: KEYS, step: 1 };
                    let b = Rhs { at: data.keys[first..].as_ptr(), row: DEPTH, vector: S::LANES };
                    let c = data.out[first..].as_mut_ptr();
                    // SAFETY: `MR` rows of `KEYS` and of `DEPTH` floats are there, and `KEYS` rows of
                    // `DEPTH`.
                    unsafe { kernel::tile::<S, MR, 2, true>(KEYS, a, b, c, DEPTH) };
                }
                flops
            }
            Kernel::Softmax => {
                let mut state = RowState::EMPTY;
                kernel::softmax_step::<S>(&mut data.logits[..KEYS], &mut state);
                std::hint::black_box(state);
                KEYS as u64
            }
            Kernel::Weights => {
                let (logits, by_weight) = data.logits.split_at_mut(KEYS);
                let (logits, by_weight) = (&mut logits[..KEYS], &mut by_weight[..KEYS]);
                kernel::weight_step::<S>(logits, by_weight, (1.0, 0.5), 0.25, false);
                KEYS as u64
            }
            Kernel::Transpose => {
                for feature in (0..DEPTH).step_by(S::LANES) {
                    let from = data.keys[feature..].as_ptr();
                    let to = data.out[feature * S::LANES..].as_mut_ptr();
                    // SAFETY: `LANES` rows of `DEPTH` floats are read, and as many columns written.
                    unsafe { S::transpose(from, DEPTH, to, S::LANES) };
                }
                (S::LANES * DEPTH) as u64
            }
        }
    }
}

fn kernels(c: &mut Criterion) {
    let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut data = Data {
        rows: numbers(ROWS * DEPTH),
        keys: numbers(KEYS * DEPTH),
        logits: numbers(ROWS * KEYS),
        out: vec![0.0; 16 * DEPTH],
    };
    for (name, kernel) in KERNELS {
        let mut group = c.benchmark_group(name);
        for isa in Isa::available() {
            let Ok(isa) = isa.check() else { continue };
            group.throughput(Throughput::Elements(isa.run(Pass(kernel, &mut data))));
            group.bench_function(BenchmarkId::from_parameter(isa.isa()), |b| {
                b.iter(|| isa.run(Pass(kernel, &mut data)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
