//! AVX-512F.

use std::arch::x86_64::*;

use super::{EXP2, Op, Simd};

#[derive(Clone, Copy)]
struct Avx512;

/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run::<Avx512, 8>()
}

// SAFETY (every block below): the functions are reached only through `run`, so the processor has
// the instructions; loads and stores are as safe as their caller promises.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;

    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn within(x: __m512, low: i32, high: i32) -> __m512 {
        // Lanes below a bound, as bits.
        let below = |bound: i32| (1_u32 << bound.clamp(0, 16)) - 1;
        let kept = (below(high) & !below(low)) as __mmask16;
        unsafe { _mm512_mask_blend_ps(kept, _mm512_set1_ps(f32::NEG_INFINITY), x) }
    }
    #[inline(always)]
    fn exp2(x: __m512) -> __m512 {
        unsafe {
            // Results below the normal numbers are 0, and not computed: they would cost an assist
            // of the processor each, and every hidden key has one. A NaN is not less: it stays.
            let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let f = _mm512_sub_ps(x, n);
            let mut p = _mm512_set1_ps(EXP2[6]);
            for c in EXP2[..6].iter().rev() {
                p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
            }
            _mm512_maskz_scalef_ps(normal, p, n)
        }
    }
    #[inline(always)]
    fn sum(x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    fn largest(x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe {
            // Rows that lie 4 apart go into one vector, 4 floats each, so that what is left is a
            // transpose of 4 by 4 inside each quarter.
            let quarter = |row: usize, column: usize| {
                let at = from.add(row * from_row + column);
                _mm_loadu_ps(at)
            };
            for column in [0, 4, 8, 12] {
                let gather = |i: usize| {
                    let x = _mm512_castps128_ps512(quarter(i, column));
                    let x = _mm512_insertf32x4::<1>(x, quarter(i + 4, column));
                    let x = _mm512_insertf32x4::<2>(x, quarter(i + 8, column));
                    _mm512_insertf32x4::<3>(x, quarter(i + 12, column))
                };
                let (a, b, c, d) = (gather(0), gather(1), gather(2), gather(3));
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                let columns = [
                    _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
                    _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
                    _mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
                    _mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
                ];
                for (i, x) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(to.add((column + i) * to_row), x);
                }
            }
        }
    }
}
