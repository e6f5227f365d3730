//! Buffers that are reused instead of reallocated, and the count of the bytes they hold.
//!
//! A fresh large allocation costs a page fault every 4 KiB; a training step would take thousands of them.
//! Freed buffers wait in a pool, sorted by size class (eight classes an octave, so at most 12.5 % is wasted).
//! The pool never raises the peak: when an allocation misses and `live + pooled` would exceed the highest
//! `live` seen so far, a larger pooled buffer is cut to size, or those that waited longest are given back to the system first.
//!
//! [`trace`] is the dry run of a memory plan: it notes what a piece of work takes and gives back, while products (where all
//! the time goes) do nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

/// Below this many elements a buffer is not worth pooling.
const POOL_MIN: usize = 4096;

/// A buffer in the pool, and when it came there.
struct Waiting {
    data: Vec<f32>,
    since: u64,
}

#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, VecDeque<Waiting>>,
    /// Buffers that were kept so far.
    kept: u64,
    live: usize,
    pooled: usize,
    peak_live: usize,
    peak_held: usize,
}

static POOL: Mutex<Pool> =
    Mutex::new(Pool { free: BTreeMap::new(), kept: 0, live: 0, pooled: 0, peak_live: 0, peak_held: 0 });

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    // A panic while holding the lock leaves plain counters behind: still usable.
    POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Rounds up to the next size class: eight steps an octave.
fn class_of(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.div_ceil(step) * step
}

/// Bytes that a buffer of `len` elements holds: what a memory plan has to count.
pub fn held_bytes(len: usize) -> usize {
    4 * if len < POOL_MIN { len } else { class_of(len) }
}

impl Pool {
    /// Gives the buffers that waited longest back to the system until `bytes` more stay below the peak.
    fn make_room(&mut self, bytes: usize) {
        while self.pooled > 0 && self.live + self.pooled + bytes > self.peak_live.max(self.live + bytes) {
            let oldest = |(class, list): (&usize, &VecDeque<Waiting>)| Some((list.front()?.since, *class));
            let Some((_, class)) = self.free.iter().filter_map(oldest).min() else { break };
            self.remove(class, VecDeque::pop_front);
        }
    }

    /// Takes a buffer of a class out of the pool: the last or the first that came.
    fn remove(
        &mut self,
        class: usize,
        end: fn(&mut VecDeque<Waiting>) -> Option<Waiting>,
    ) -> Option<Vec<f32>> {
        let list = self.free.get_mut(&class)?;
        let found = end(list)?;
        if list.is_empty() {
            self.free.remove(&class);
        }
        self.pooled -= 4 * class;
        Some(found.data)
    }

    /// A pooled buffer of a class. Where a fresh one would drive others out, a larger one is cut to size and its rest goes back to the system: the
    /// pages that it keeps need not be cleared again. (glibc cuts where the buffer lies, and copies nothing.)
    fn reuse(&mut self, class: usize) -> Option<Vec<f32>> {
        if let Some(data) = self.remove(class, VecDeque::pop_back) {
            return Some(data);
        }
        if self.live + self.pooled + 4 * class <= self.peak_live {
            return None;
        }
        let larger = *self.free.range(class..).next()?.0;
        let mut data = self.remove(larger, VecDeque::pop_back)?;
        data.truncate(class);
        data.shrink_to_fit();
        Some(data)
    }

    /// Lets a buffer, of the length of a class, wait for its next use.
    fn keep(&mut self, data: Vec<f32>) {
        self.pooled += 4 * data.len();
        self.kept += 1;
        let since = self.kept;
        self.free.entry(data.len()).or_default().push_back(Waiting { data, since });
    }

    fn count(&mut self, bytes: usize) {
        self.live += bytes;
        self.peak_live = self.peak_live.max(self.live);
        self.peak_held = self.peak_held.max(self.live + self.pooled);
    }
}

/// Makes the system's allocator give freed buffers of this size and above back at once. Called when a program starts.
///
/// glibc raises the size from which it does so to that of any such buffer that is freed, up to 32 MiB; buffers of a
/// training step below that then lie scattered in its heap, and the process holds a sixth more than its tensors.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: glibc's own signature and parameters; it may be called at any time, and only changes how memory is taken.
        // The test `large_buffers_are_given_back` calls it and allocates afterwards.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, 256 << 10);
            // Said once, glibc stops to adapt the other: at its 128 KiB, the end of the heap would come and go with every few small buffers,
            // which takes an eighth of a training step on texts.
            mallopt(M_TRIM_THRESHOLD, 256 << 20);
        }
    }
}

/// So many zeros of the system. A large run of them asks for large pages: of pages of 4 KiB, a step of a convolution network takes
/// hundreds of thousands, and a fifth of its time to get them.
fn fresh(len: usize) -> Vec<f32> {
    let data = vec![0.0; len];
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    if len * 4 >= LARGE {
        unsafe extern "C" {
            fn madvise(address: *mut std::ffi::c_void, length: usize, advice: i32) -> i32;
        }
        const MADV_HUGEPAGE: i32 = 14;
        // Whole pages inside the buffer, so that nobody else's memory is meant.
        let first = (data.as_ptr() as usize).next_multiple_of(PAGE);
        let bytes = (data.as_ptr() as usize + len * 4 - first) / PAGE * PAGE;
        // SAFETY: the system's own function and constant; the range lies within `data`, which lives, and the advice changes neither what is in it
        // nor who may use it. Where large pages are switched off it does nothing. The test `large_buffers_are_zeros` writes and reads such a buffer.
        unsafe { madvise(first as *mut std::ffi::c_void, bytes, MADV_HUGEPAGE) };
    }
    data
}

/// Bytes from which on a buffer asks for large pages (of 2 MiB), and the most that a page of this machine may have.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
const LARGE: usize = 1 << 20;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
const PAGE: usize = 64 << 10;

/// What a piece of work did with buffers, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traced {
    /// The next buffer, of so many elements, was taken.
    Take(usize),
    /// The buffer of this number (they count from 0) was given back.
    Free(usize),
    /// [`mark`] was called.
    Mark,
}

#[derive(Default)]
struct Trace {
    events: Vec<Traced>,
    taken: usize,
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Runs `work` on this thread and tells what it took and gave back. Meanwhile products and sums of gradients on this
/// thread do nothing: what comes out of them is never written, so its memory is never touched. Values are meaningless, shapes are right.
///
/// Buffers that are taken meanwhile must not be used afterwards.
pub fn trace(work: impl FnOnce()) -> Vec<Traced> {
    /// Ends the trace also when `work` panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            TRACE.with(|trace| trace.take());
        }
    }
    TRACE.with(|trace| trace.replace(Some(Trace::default())));
    let end = End;
    work();
    let events = TRACE.with(|trace| trace.take()).map(|trace| trace.events);
    drop(end);
    events.unwrap_or_default()
}

/// Whether this thread's work is being traced.
pub fn is_tracing() -> bool {
    TRACE.with(|trace| trace.borrow().is_some())
}

/// Notes a moment in the trace, if there is one.
pub fn mark() {
    note(|_| Traced::Mark);
}

/// Adds to the trace, if there is one; returns the number of the next buffer.
fn note(event: impl FnOnce(&Trace) -> Traced) -> Option<usize> {
    TRACE.with(|trace| {
        let mut trace = trace.borrow_mut();
        let trace = trace.as_mut()?;
        let (event, taken) = (event(trace), trace.taken);
        trace.taken += usize::from(matches!(event, Traced::Take(_)));
        trace.events.push(event);
        Some(taken)
    })
}

/// A run of f32 that returns to the pool when dropped.
pub struct Buffer {
    data: Vec<f32>,
    len: usize,
    /// Its number in a trace: then it is not counted, and does not return to the pool.
    traced: Option<usize>,
}

impl Buffer {
    /// `len` elements of unspecified (but initialised) content.
    pub fn scratch(len: usize) -> Buffer {
        Self::take(len, false)
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        Self::take(len, true)
    }

    /// Takes over a vector; it joins the pool when dropped.
    pub fn from_vec(data: Vec<f32>) -> Buffer {
        let len = data.len();
        let traced = note(|_| Traced::Take(len));
        if traced.is_none() {
            let mut guard = pool();
            guard.make_room(len * 4);
            guard.count(len * 4);
        }
        Buffer { data, len, traced }
    }

    fn take(len: usize, zero: bool) -> Buffer {
        if let Some(number) = note(|_| Traced::Take(len)) {
            // Zeros that nobody writes to take no memory.
            return Buffer { data: vec![0.0; len], len, traced: Some(number) };
        }
        let class = held_bytes(len) / 4;
        let mut guard = pool();
        let reused = if len >= POOL_MIN { guard.reuse(class) } else { None };
        if reused.is_none() {
            guard.make_room(class * 4);
        }
        guard.count(class * 4);
        drop(guard);
        match reused {
            Some(mut data) => {
                if zero {
                    data[..len].fill(0.0);
                }
                Buffer { data, len, traced: None }
            }
            None => Buffer { data: fresh(class), len, traced: None },
        }
    }

    /// Bytes that it holds.
    pub(crate) fn held_bytes(&self) -> usize {
        4 * self.data.len()
    }

    pub fn as_slice(&self) -> &[f32] {
        &self.data[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if let Some(number) = self.traced {
            note(|_| Traced::Free(number));
            return;
        }
        let bytes = data.len() * 4;
        let mut guard = pool();
        guard.live = guard.live.saturating_sub(bytes);
        if data.len() >= POOL_MIN && class_of(data.len()) == data.len() {
            guard.keep(data);
        }
    }
}

/// Counts bytes that live outside buffers (a storage's encoded weights), for as long as the value exists.
pub struct Counted(usize);

impl Counted {
    pub fn new(bytes: usize) -> Counted {
        pool().count(bytes);
        Counted(bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut guard = pool();
        guard.live = guard.live.saturating_sub(self.0);
    }
}

/// Bytes in use by tensors and storages now.
pub fn live_bytes() -> usize {
    pool().live
}

/// The most bytes ever held (in use and pooled) since the last [`reset_peak`].
pub fn peak_bytes() -> usize {
    pool().peak_held
}

/// Starts a new measurement of the peak at what is held now.
pub fn reset_peak() {
    let mut guard = pool();
    guard.peak_live = guard.live;
    guard.peak_held = guard.live + guard.pooled;
}

/// Gives every pooled buffer back to the system.
pub fn trim() {
    let mut guard = pool();
    guard.free.clear();
    guard.pooled = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_zeros() {
        for len in [1 << 20, (1 << 20) + 1, 5 << 20] {
            let mut data = super::fresh(len);
            assert!(data.iter().all(|x| *x == 0.0));
            data.iter_mut().zip(0u32..).for_each(|(x, i)| *x = i as f32);
            assert!(data.iter().zip(0u32..).all(|(x, i)| *x == i as f32));
        }
    }

    #[test]
    fn classes_round_up_by_at_most_an_eighth() {
        for len in [4096, 5000, 65_537, 1_000_000, 1 << 24] {
            let class = class_of(len);
            assert!(class >= len && class <= len + len / 8 + 1, "{len} -> {class}");
            assert_eq!(class_of(class), class);
        }
    }

    #[test]
    fn a_trace_tells_takes_frees_and_marks_of_its_thread_and_counts_nothing() {
        let live = || pool().live;
        let before = live();
        let events = trace(|| {
            let first = Buffer::scratch(5_000_000);
            mark();
            let second = Buffer::from_vec(vec![1.0; 10]);
            drop(first);
            drop(second);
            assert!(is_tracing());
        });
        use Traced::{Free, Mark, Take};
        assert_eq!(events, [Take(5_000_000), Mark, Take(10), Free(0), Free(1)]);
        assert!(
            !is_tracing()
                && live() < before + 5_000_000
                && std::panic::catch_unwind(|| trace(|| panic!())).is_err()
        );
        assert!(!is_tracing());
    }

    #[test]
    fn large_buffers_are_given_back() {
        give_back_large_buffers();
        let buffers: Vec<Buffer> = (1..6).map(|i| Buffer::zeros(i << 16)).collect();
        assert!(buffers.iter().all(|buffer| buffer.as_slice().iter().all(|&x| x == 0.0)));
    }

    #[test]
    fn those_that_waited_longest_make_room() {
        let mut pool = Pool { peak_live: 4 * 40_000, ..Pool::default() };
        for len in [16_384, 8_192, 8_192] {
            pool.keep(vec![1.0; len]);
        }
        pool.live = 4 * 4_000;
        pool.make_room(4 * 3_000);
        assert_eq!(pool.pooled, 4 * 32_768);
        pool.make_room(4 * 4_096);
        assert_eq!((pool.pooled, pool.free.len()), (4 * 16_384, 1));
        pool.make_room(4 * 50_000);
        assert_eq!((pool.pooled, pool.free.len()), (0, 0));
    }

    #[test]
    fn a_larger_one_is_cut_before_others_are_driven_out() {
        let mut pool = Pool { peak_live: 4 * 40_000, ..Pool::default() };
        pool.keep(vec![1.0; 16_384]);
        pool.keep(vec![1.0; 20_480]);
        pool.live = 4 * 1_000;
        // There is room for a fresh one of 2,048.
        assert!(pool.reuse(2_048).is_none());
        let data = pool.reuse(8_192).unwrap();
        assert!(data == vec![1.0; 8_192] && pool.pooled == 4 * 20_480);
        assert_eq!(pool.reuse(20_480).unwrap().len(), 20_480);
        assert!(pool.reuse(40_960).is_none());
        assert_eq!((pool.pooled, pool.free.len()), (0, 0));
    }

    #[test]
    fn zeros_are_zero_after_reuse() {
        let mut first = Buffer::scratch(70_000);
        first.as_mut_slice().fill(3.0);
        drop(first);
        assert!(Buffer::zeros(70_000).as_slice().iter().all(|&x| x == 0.0));
    }
}
