//! AVX2 with FMA.

use std::arch::x86_64::*;

use super::{EXP2, Op, Simd};

#[derive(Clone, Copy)]
struct Avx2;

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run::<Avx2, 6>()
}

/// Folds eight lanes into one.
#[inline(always)]
fn fold(x: __m256, with: impl Fn(__m128, __m128) -> __m128) -> f32 {
    // SAFETY: reached only through `run`.
    unsafe {
        let x = with(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = with(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(with(x, _mm_movehdup_ps(x)))
    }
}

// SAFETY (every block below): the functions are reached only through `run`, so the processor has
// the instructions; loads and stores are as safe as their caller promises.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;

    #[inline(always)]
    fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn within(x: __m256, low: i32, high: i32) -> __m256 {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lanes);
            let kept =
                _mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lanes));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), x, _mm256_castsi256_ps(kept))
        }
    }
    #[inline(always)]
    fn exp2(x: __m256) -> __m256 {
        unsafe {
            // At -127 the exponent bits are 0 and so is the result; where x is NaN, max gives its
            // second operand.
            let x = _mm256_max_ps(_mm256_set1_ps(-127.0), x);
            let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let f = _mm256_sub_ps(x, n);
            let mut p = _mm256_set1_ps(EXP2[6]);
            for c in EXP2[..6].iter().rev() {
                p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(*c));
            }
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn sum(x: __m256) -> f32 {
        fold(x, |a, b| unsafe { _mm_add_ps(a, b) })
    }
    #[inline(always)]
    fn largest(x: __m256) -> f32 {
        fold(x, |a, b| unsafe { _mm_max_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe {
            // Rows that lie 4 apart go into one vector, 4 floats each, so that what is left is a
            // transpose of 4 by 4 inside each half.
            for column in [0, 4] {
                let gather = |i: usize| {
                    let half = |row: usize| _mm_loadu_ps(from.add(row * from_row + column));
                    _mm256_set_m128(half(i + 4), half(i))
                };
                let (a, b, c, d) = (gather(0), gather(1), gather(2), gather(3));
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                let columns = [
                    _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                    _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
                    _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
                    _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
                ];
                for (i, x) in columns.into_iter().enumerate() {
                    _mm256_storeu_ps(to.add((column + i) * to_row), x);
                }
            }
        }
    }
}
