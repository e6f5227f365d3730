//! What the heap held at most, between any two moments: one allocator knows what is held, the other the peak since it was asked.

use std::alloc::System;
use std::sync::atomic::{AtomicUsize, Ordering};

use peakmem_alloc::{PeakMemAlloc, PeakMemAllocTrait};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// To be the test's global allocator.
pub type Heap = PeakMemAlloc<&'static StatsAlloc<System>>;

pub const fn heap() -> Heap {
    PeakMemAlloc::new(&INSTRUMENTED_SYSTEM)
}

/// What was held when the peak was asked for last.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// What is held now.
pub fn held() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// The most bytes that the heap held since this was asked last.
pub fn peak_since(heap: &Heap) -> usize {
    let before = BEFORE.swap(held(), Ordering::Relaxed);
    let peak = before + heap.get_peak_memory();
    heap.reset_peak_memory();
    peak
}
