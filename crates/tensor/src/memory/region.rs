//! A long stretch of addresses of which the system puts memory behind what is written, and takes it back when told.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::places::{GRANULE, PAGE};

/// Addresses that are asked for: more than any machine of today has memory. They cost nothing until they are written.
const BYTES: usize = 1 << 40;

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: i32,
        flags: i32,
        file: i32,
        offset: i64,
    ) -> *mut c_void;
    fn madvise(address: *mut c_void, length: usize, advice: i32) -> i32;
}

const PROT_READ_WRITE: i32 = 1 | 2;
const MAP_PRIVATE_ANONYMOUS_NORESERVE: i32 = 0x02 | 0x20 | 0x4000;
const MADV_DONTNEED: i32 = 4;
const MADV_HUGEPAGE: i32 = 14;

/// Never given back: it lives as long as the program.
pub struct Region {
    base: NonNull<u8>,
}

// SAFETY: the region is memory that belongs to nobody else; who may touch which part of it is decided by `Places`, whose stretches never overlap
// (the test `stretches_never_overlap_and_all_is_counted`).
unsafe impl Send for Region {}

impl Region {
    pub const BYTES: usize = BYTES;

    /// Asks for the addresses; nothing where the system has none to give (a limit on addresses, strict accounting).
    pub fn reserve() -> Option<Region> {
        // SAFETY: the system's own function and constants; a new mapping touches nobody's memory, and failure is the address -1.
        // The test `blocks_are_their_own_and_come_back` writes and reads what comes of it.
        let base = unsafe {
            mmap(std::ptr::null_mut(), BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
        };
        if base as isize == -1 {
            return None;
        }
        // Pages are counted from the first whole one.
        let first = (base as usize).next_multiple_of(PAGE) - base as usize;
        // SAFETY: `first` is less than a page, and the mapping is many pages long. Advice changes neither what is in it nor who may use it; where
        // large pages are switched off, it does nothing.
        let base = unsafe {
            let base = base.cast::<u8>().add(first);
            madvise(base.cast(), BYTES - PAGE, MADV_HUGEPAGE);
            base
        };
        NonNull::new(base).map(|base| Region { base })
    }

    /// Bytes that can be used: whole pages.
    pub fn len(&self) -> usize {
        Self::BYTES - PAGE
    }

    /// The address of a granule, which must lie inside.
    pub fn address(&self, granule: usize) -> NonNull<f32> {
        assert!((granule + 1) * GRANULE <= self.len());
        // SAFETY: inside the mapping, as was just checked; so it is not null. Granules are aligned to 4 KiB.
        unsafe { self.base.add(granule * GRANULE).cast() }
    }

    /// Gives the memory behind a page back; it reads as zeros from then on. Nobody may be using any of it.
    pub fn forget(&mut self, page: usize) {
        assert!((page + 1) * PAGE <= self.len());
        // SAFETY: inside the mapping, as was just checked, and in no use: only pages that `Places` counts no granule of come here, so that no
        // reference to them exists. The test `blocks_are_their_own_and_come_back` does so between uses.
        unsafe { madvise(self.base.add(page * PAGE).as_ptr().cast(), PAGE, MADV_DONTNEED) };
    }
}
