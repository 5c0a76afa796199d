//! Memory of large results in large pages. A fresh result is made of zeroed pages, one by one as they
//! are first written: of 4 KiB each that took an eighth of a call.

use std::mem::MaybeUninit;

/// Bytes of a large page: 2 MiB on x86-64 and, with 4 KiB pages, on ARM.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Asks for large pages where whole ones fit. Systems that have none, or give none, are as they were.
#[cfg(target_os = "linux")]
pub(super) fn prefer_large<T>(memory: &mut [MaybeUninit<T>]) {
    let start = memory.as_mut_ptr().cast::<u8>();
    let skip = start.align_offset(LARGE);
    let len = size_of_val(memory).saturating_sub(skip) / LARGE * LARGE;
    if len > 0 {
        // SAFETY: the range is inside the slice. The advice changes no byte of it, only the pages that
        // hold it, and failing is as if it had not been given.
        unsafe { libc::madvise(start.add(skip).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn prefer_large<T>(_: &mut [MaybeUninit<T>]) {}
