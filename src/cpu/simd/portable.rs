//! Plain arrays, for processors without a kernel of their own.

use super::{EXP2, Simd};

#[derive(Clone, Copy)]
pub(super) struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const LANES: usize = LANES;
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller promises `LANES` floats at `p`; an array of them has their alignment.
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::V) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<Self::V>().write(x) }
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a call for every lane.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn within(x: Self::V, low: i32, high: i32) -> Self::V {
        std::array::from_fn(|i| {
            if (low..high).contains(&(i as i32)) { x[i] } else { f32::NEG_INFINITY }
        })
    }
    #[inline(always)]
    fn exp2(x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
        const ROUND: f32 = 12_582_912.0;
        x.map(|x| {
            // At -127 the exponent bits are 0 and so is the result. A NaN stays.
            let x = if x < -127.0 { -127.0 } else { x };
            let n = x + ROUND;
            let f = x - (n - ROUND);
            let p = EXP2[..6].iter().rev().fold(EXP2[6], |p, c| p * f + c);
            p * f32::from_bits(n.to_bits().wrapping_add(127) << 23)
        })
    }
    #[inline(always)]
    fn sum(x: Self::V) -> f32 {
        x.iter().sum()
    }
    #[inline(always)]
    fn largest(x: Self::V) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        for i in 0..LANES {
            for j in 0..LANES {
                // SAFETY: the caller promises both squares.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) };
            }
        }
    }
}
