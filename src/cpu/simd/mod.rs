//! Instruction sets: a few vector operations, each named once, and the choice at run time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;

use std::fmt;

use crate::RunError;

/// An instruction set the CPU engine has kernels for.
///
/// ```
/// use local_attention::cpu::{Cpu, Isa};
///
/// // The best one is taken unless another is asked for.
/// assert_eq!(Cpu::new().isa(), Isa::available()[0]);
/// let portable = Cpu::new().with_isa(Isa::Portable)?;
/// assert_eq!(portable.isa().to_string(), "portable");
/// # Ok::<(), local_attention::RunError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512F: 16 lanes, tiles of 8 queries by 32 keys.
    Avx512,
    /// AVX2 and FMA: 8 lanes, tiles of 6 queries by 16 keys.
    Avx2,
    /// NEON, of 64-bit ARM: 4 lanes, tiles of 8 queries by 8 keys.
    Neon,
    /// WebAssembly's 128-bit SIMD: 4 lanes, tiles of 6 queries by 8 keys. There only in builds with
    /// the target feature `simd128`.
    Simd128,
    /// Whatever the compiler makes of plain arrays: 8 lanes, tiles of 4 queries by 16 keys.
    Portable,
}

impl Isa {
    /// Every instruction set, best first.
    pub const ALL: [Self; 5] =
        [Self::Avx512, Self::Avx2, Self::Neon, Self::Simd128, Self::Portable];

    /// Its name: `avx512`, `avx2`, `neon`, `simd128` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Simd128 => "simd128",
            Self::Portable => "portable",
        }
    }

    /// Those this machine has, best first; `portable` is the last of them, but where `simd128` is the only one.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f") && Self::Avx2.is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::Simd128 => true,
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Self::Portable => true,
            // Of another machine.
            _ => false,
        }
    }

    /// Leave to use it, or an error where this machine does not have it.
    pub(super) fn check(self) -> Result<Available, RunError> {
        if self.is_available() {
            return Ok(Available(self));
        }
        let names: Vec<_> = Self::available().into_iter().map(Self::name).collect();
        Err(RunError::Isa { isa: self.name(), available: names.join(", ") })
    }
}

/// An instruction set that this machine was asked for and has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Available(Isa);

impl Available {
    /// The best one.
    pub(super) fn best() -> Self {
        Self(Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable))
    }

    pub(super) fn isa(self) -> Isa {
        self.0
    }

    /// Runs an operation compiled for this instruction set.
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        match self.0 {
            // SAFETY: this value was made only after the processor was asked for these features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::run(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::run(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon::run(op) },
            // There is no other: a module is compiled for machines that have it, and half as large so.
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            _ => simd128::run(op),
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            _ => op.run::<portable::Portable, 4>(),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Work that is compiled once for each instruction set. `MR`: query rows a register tile has.
pub(super) trait Op {
    type Output;
    /// Must be `#[inline(always)]`, so that it takes on the caller's target features.
    fn run<S: Simd, const MR: usize>(self) -> Self::Output;
}

/// Vectors of f32. All functions are inlined into a caller with the right target features.
pub(super) trait Simd: Copy {
    /// f32s in a vector.
    const LANES: usize;
    type V: Copy;
    fn splat(x: f32) -> Self::V;
    /// # Safety
    /// `LANES` floats can be read at `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` floats can be written at `p`.
    unsafe fn store(p: *mut f32, x: Self::V);
    /// `a * b + c`, rounded once where the machine can.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lanes from `low` to before `high`, and minus infinity in the others.
    fn within(x: Self::V, low: i32, high: i32) -> Self::V;
    /// 2^x for x <= 0: exactly 0 for minus infinity, NaN for NaN.
    fn exp2(x: Self::V) -> Self::V;
    fn sum(x: Self::V) -> f32;
    fn largest(x: Self::V) -> f32;
    /// Writes a square of `LANES` by `LANES` floats transposed: row `i` of `from`, `from_row`
    /// floats after the one before, becomes column `i` of `to`.
    /// # Safety
    /// Both squares can be accessed.
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize);
}

/// 2^f on [-0.5, 0.5] to 2e-9 before rounding, lowest power first: least squares on Chebyshev
/// nodes, reweighted towards the smallest largest relative error.
const EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_46,
    0.055_503_286,
    0.009_618_489,
    0.001_339_993_1,
    0.000_153_458_11,
];

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials<'a>(&'a [f32], &'a mut [f32]);

    impl Op for Exponentials<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self) {
            for (x, y) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact_mut(S::LANES)) {
                // SAFETY: both chunks hold `LANES` floats.
                unsafe { S::store(y.as_mut_ptr(), S::exp2(S::load(x.as_ptr()))) };
            }
        }
    }

    struct Within<'a>(&'a mut [f32], i32, i32);

    impl Op for Within<'_> {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self) -> usize {
            let Self(x, low, high) = self;
            // SAFETY: there are 16 floats, and no set has more lanes.
            unsafe { S::store(x.as_mut_ptr(), S::within(S::load(x.as_ptr()), low, high)) };
            S::LANES
        }
    }

    #[test]
    fn within_on_every_instruction_set() {
        for isa in Isa::available() {
            for (low, high) in (-2..19).flat_map(|low| (-2..300).map(move |high| (low, high))) {
                let mut x: [f32; 16] =
                    std::array::from_fn(|i| if i == 2 { f32::NAN } else { i as f32 });
                let before = x;
                let lanes = isa.check().unwrap().run(Within(&mut x, low, high));
                for i in 0..lanes {
                    let kept = low <= i as i32 && (i as i32) < high;
                    let expected = if kept { before[i] } else { f32::NEG_INFINITY };
                    assert_eq!(x[i].to_bits(), expected.to_bits(), "{isa}: {i} in {low}..{high}");
                }
            }
        }
    }

    struct Transposed<'a>(&'a [f32], &'a mut [f32]);

    impl Op for Transposed<'_> {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd, const MR: usize>(self) -> usize {
            // SAFETY: both hold 16 rows of 20 and 18 floats, and no set has more lanes.
            unsafe { S::transpose(self.0.as_ptr(), 20, self.1.as_mut_ptr(), 18) };
            S::LANES
        }
    }

    #[test]
    fn transpose_on_every_instruction_set() {
        let from: Vec<f32> = (0..16 * 20).map(|i| i as f32).collect();
        for isa in Isa::available() {
            let mut to = vec![-1.0; 16 * 18];
            let lanes = isa.check().unwrap().run(Transposed(&from, &mut to));
            for i in 0..16 {
                for j in 0..18 {
                    let inside = i < lanes && j < lanes;
                    let expected = if inside { from[j * 20 + i] } else { -1.0 };
                    assert_eq!(to[i * 18 + j], expected, "{isa}: [{i}, {j}]");
                }
            }
        }
    }

    #[test]
    fn exp2_on_every_instruction_set() {
        let mut x: Vec<f32> = (0..160_000).map(|i| -(i as f32) * 125.9 / 160_000.0).collect();
        x.extend([f32::NEG_INFINITY, f32::NAN, -1e30, -0.0, -151.0, -0.5, -1.5, -127.0]);
        x.resize(x.len().next_multiple_of(16), 0.0);
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            isa.check().unwrap().run(Exponentials(&x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                if x.is_nan() {
                    assert!(y.is_nan(), "{isa}: 2^NaN = {y}");
                } else if x <= -151.0 {
                    assert_eq!(y, 0.0, "{isa}: 2^{x}");
                } else if x > -126.0 {
                    let error = (f64::from(y) / f64::from(x).exp2() - 1.0).abs();
                    assert!(error < 1.2e-7, "{isa}: 2^{x} = {y}, off by {error:e}");
                }
            }
        }
    }
}
