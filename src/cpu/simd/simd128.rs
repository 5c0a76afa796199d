//! WebAssembly's 128-bit SIMD. There is no question to ask at run time: a module that uses it does
//! not load where it is missing.

use std::arch::wasm32::*;

use super::{EXP2, Op, Simd};

#[derive(Clone, Copy)]
struct Simd128;

pub(super) fn run<O: Op>(op: O) -> O::Output {
    op.run::<Simd128, 6>()
}

impl Simd for Simd128 {
    const LANES: usize = 4;
    type V = v128;

    #[inline(always)]
    fn splat(x: f32) -> v128 {
        f32x4_splat(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> v128 {
        // SAFETY: as the caller promises; any alignment will do.
        unsafe { v128_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: v128) {
        // SAFETY: as the caller promises; any alignment will do.
        unsafe { v128_store(p.cast(), x) }
    }
    #[inline(always)]
    fn fma(a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(f32x4_mul(a, b), c)
    }
    #[inline(always)]
    fn add(a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }
    #[inline(always)]
    fn sub(a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }
    #[inline(always)]
    fn mul(a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }
    #[inline(always)]
    fn max(a: v128, b: v128) -> v128 {
        // `b < a ? a : b`: where one is NaN, b.
        f32x4_pmax(b, a)
    }
    #[inline(always)]
    fn within(x: v128, low: i32, high: i32) -> v128 {
        let lanes = i32x4(0, 1, 2, 3);
        let kept = v128_and(i32x4_ge(lanes, i32x4_splat(low)), i32x4_lt(lanes, i32x4_splat(high)));
        v128_bitselect(x, f32x4_splat(f32::NEG_INFINITY), kept)
    }
    #[inline(always)]
    fn exp2(x: v128) -> v128 {
        // At -127 the exponent bits are 0 and so is the result; this maximum keeps NaN.
        let x = f32x4_max(f32x4_splat(-127.0), x);
        let n = f32x4_nearest(x);
        let f = f32x4_sub(x, n);
        let mut p = f32x4_splat(EXP2[6]);
        for c in EXP2[..6].iter().rev() {
            p = Self::fma(p, f, f32x4_splat(*c));
        }
        let exponent = i32x4_add(i32x4_trunc_sat_f32x4(n), i32x4_splat(127));
        f32x4_mul(p, i32x4_shl(exponent, 23))
    }
    #[inline(always)]
    fn sum(x: v128) -> f32 {
        let x = f32x4_add(x, i32x4_shuffle::<2, 3, 0, 1>(x, x));
        f32x4_extract_lane::<0>(x) + f32x4_extract_lane::<1>(x)
    }
    #[inline(always)]
    fn largest(x: v128) -> f32 {
        let x = Self::max(x, i32x4_shuffle::<2, 3, 0, 1>(x, x));
        f32x4_extract_lane::<0>(x).max(f32x4_extract_lane::<1>(x))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let row = |i: usize| v128_load(from.add(i * from_row).cast());
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (ab, ab_high) =
                (i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
            let (cd, cd_high) =
                (i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
            let columns = [
                i32x4_shuffle::<0, 1, 4, 5>(ab, cd),
                i32x4_shuffle::<2, 3, 6, 7>(ab, cd),
                i32x4_shuffle::<0, 1, 4, 5>(ab_high, cd_high),
                i32x4_shuffle::<2, 3, 6, 7>(ab_high, cd_high),
            ];
            for (i, x) in columns.into_iter().enumerate() {
                v128_store(to.add(i * to_row).cast(), x);
            }
        }
    }
}
