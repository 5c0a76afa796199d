//! Results by key, which blocks of queries add to.

use std::marker::PhantomData;

use super::ahead::ask;
use crate::gradients::SharedRows;

/// dk or dv, `[row, key, feature]`.
pub(super) struct KeyRows<'a> {
    at: *mut f32,
    len: usize,
    keys: usize,
    width: usize,
    rows: &'a SharedRows,
    all: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads reach elements through `of` alone, whose callers promise not to meet.
unsafe impl Sync for KeyRows<'_> {}

impl<'a> KeyRows<'a> {
    pub(super) fn new(all: &'a mut [f32], rows: &'a SharedRows, keys: usize, width: usize) -> Self {
        Self { at: all.as_mut_ptr(), len: all.len(), keys, width, rows, all: PhantomData }
    }

    fn start(&self, kv_row: usize, key: usize) -> usize {
        (self.rows.of(kv_row) * self.keys + key) * self.width
    }

    /// Asks for the memory of a key's gradient.
    #[inline(always)]
    pub(super) fn ask(&self, kv_row: usize, key: usize) {
        ask(self.at.wrapping_add(self.start(kv_row, key)), self.width);
    }

    /// The gradient of one key, of a packed row of k or v.
    ///
    /// # Safety
    /// No other thread has the same key of a row that shares its gradient, and no other slice of it is alive.
    #[expect(clippy::mut_from_ref, reason = "keys of different blocks do not overlap")]
    #[inline]
    pub(super) unsafe fn of(&self, kv_row: usize, key: usize) -> &mut [f32] {
        let start = self.start(kv_row, key);
        assert!(key < self.keys && start + self.width <= self.len);
        // SAFETY: inside the slice this was made of, and nobody else's as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), self.width) }
    }
}
