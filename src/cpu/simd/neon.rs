//! NEON, of 64-bit ARM.

use std::arch::aarch64::*;

use super::{EXP2, Op, Simd};

#[derive(Clone, Copy)]
struct Neon;

/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run::<Neon, 8>()
}

// SAFETY (every block below): the functions are reached only through `run`, so the processor has
// the instructions; loads and stores are as safe as their caller promises.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Simd for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;

    #[inline(always)]
    fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: float32x4_t) {
        unsafe { vst1q_f32(p, x) }
    }
    #[inline(always)]
    fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Of a number and a NaN, the number.
        unsafe { vmaxnmq_f32(a, b) }
    }
    #[inline(always)]
    fn within(x: float32x4_t, low: i32, high: i32) -> float32x4_t {
        unsafe {
            let lanes = vld1q_s32([0, 1, 2, 3].as_ptr());
            let kept =
                vandq_u32(vcgeq_s32(lanes, vdupq_n_s32(low)), vcltq_s32(lanes, vdupq_n_s32(high)));
            vbslq_f32(kept, x, vdupq_n_f32(f32::NEG_INFINITY))
        }
    }
    #[inline(always)]
    fn exp2(x: float32x4_t) -> float32x4_t {
        unsafe {
            // At -127 the exponent bits are 0 and so is the result; this maximum keeps NaN.
            let x = vmaxq_f32(vdupq_n_f32(-127.0), x);
            let n = vrndnq_f32(x);
            let f = vsubq_f32(x, n);
            let mut p = vdupq_n_f32(EXP2[6]);
            for c in EXP2[..6].iter().rev() {
                p = vfmaq_f32(vdupq_n_f32(*c), p, f);
            }
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn sum(x: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(x) }
    }
    #[inline(always)]
    fn largest(x: float32x4_t) -> f32 {
        unsafe { vmaxnmvq_f32(x) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe {
            let row = |i: usize| vld1q_f32(from.add(i * from_row));
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let wide = |x| vreinterpretq_f64_f32(x);
            let (ab_even, ab_odd) = (wide(vtrn1q_f32(a, b)), wide(vtrn2q_f32(a, b)));
            let (cd_even, cd_odd) = (wide(vtrn1q_f32(c, d)), wide(vtrn2q_f32(c, d)));
            let columns = [
                vtrn1q_f64(ab_even, cd_even),
                vtrn1q_f64(ab_odd, cd_odd),
                vtrn2q_f64(ab_even, cd_even),
                vtrn2q_f64(ab_odd, cd_odd),
            ];
            for (i, x) in columns.into_iter().enumerate() {
                vst1q_f32(to.add(i * to_row), vreinterpretq_f32_f64(x));
            }
        }
    }
}
