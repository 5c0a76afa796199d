//! Memory that is needed next is asked for while a block computes, a little with every query: asked for all at once it
//! would keep loads waiting, and not asked for at all it costs long calls a tenth.

use std::ops::Range;

use super::pack::RowInputs;
use crate::Element;
use crate::tensor::RowView;

/// The part of `all` that is the turn of row `r` of `rows`.
pub(super) fn turn(all: &Range<usize>, r: usize, rows: usize) -> Range<usize> {
    let at = |r: usize| all.start + all.len() * r / rows;
    at(r)..at(r + 1)
}

impl<T: Element<Accumulator = f32>> RowInputs<'_, T> {
    /// Asks for keys and values.
    #[inline(always)]
    pub(super) fn ask_keys(&self, keys: Range<usize>) {
        for u in keys {
            ask_row(&self.k, u, self.head_dim());
            ask_row(&self.v, u, self.problem().shape.value_dim);
        }
    }

    /// Asks for a query, if it is one of the call's.
    #[inline(always)]
    pub(super) fn ask_query(&self, t: usize) {
        let queries = &self.problem().shape.query;
        if queries.contains(&t) {
            ask_row(&self.q, t - queries.start, self.head_dim());
        }
    }
}

/// Asks for a row of a tensor whose elements are neighbours.
#[inline(always)]
fn ask_row<T: Element>(view: &RowView<'_, T>, row: usize, len: usize) {
    if let Some(row) = view.slice(row, len) {
        ask(row.as_ptr(), len);
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Asks for the memory of `len` elements, to be read or written.
#[inline(always)]
pub(super) fn ask<T>(at: *const T, len: usize) {
    for byte in (0..len * size_of::<T>()).step_by(LINE) {
        let line = at.wrapping_byte_add(byte);
        // SAFETY: that changes nothing but what is in the caches, whatever the address.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        // Elsewhere stable Rust has no word for it.
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}
