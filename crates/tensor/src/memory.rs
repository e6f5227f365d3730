//! Buffers that are reused instead of reallocated, and the count of the bytes they hold.
//!
//! A fresh large allocation has to be cleared page by page; a training step would take thousands of them. Large buffers lie side by side in one region
//! ([`places`]): a freed one grows together with its free neighbours, and the next buffer is put where most has been written before. Smaller ones, and all
//! where there is no such region, wait in a pool, sorted by size class (eight classes an octave, so at most 12.5 % is wasted).
//! What waits does not raise the peak, but for pages of the region that are in use in part: when `live + waiting` would exceed the highest `live` seen so
//! far, what waited longest is given back to the system first.
//!
//! [`trace`] is the dry run of a memory plan: it notes what a piece of work takes and gives back, while products (where all
//! the time goes) do nothing.

mod block;
mod places;
mod pool;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod region;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
#[path = "memory/no_region.rs"]
mod region;

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock};

use block::{Arena, Block};
use pool::Pool;

/// Elements from which on a buffer lies in the region.
const REGION_MIN: usize = 64 << 10;

/// What is in use, what waits, and the most of both.
#[derive(Default)]
struct Store {
    pool: Pool,
    /// Asked for when the first large buffer is.
    arena: Option<Arena>,
    live: usize,
    peak_live: usize,
    peak_held: usize,
    /// What the allocator held at most since it was asked last, if somebody counts that.
    heap_peak: Option<fn() -> usize>,
    /// The bytes of the region that have memory behind them, and the most of them and the heap together.
    region: usize,
    peak_all: usize,
}

static STORE: Mutex<Store> = Mutex::new(Store {
    pool: Pool::new(),
    arena: None,
    live: 0,
    peak_live: 0,
    peak_held: 0,
    heap_peak: None,
    region: 0,
    peak_all: 0,
});

fn store() -> std::sync::MutexGuard<'static, Store> {
    // A panic while holding the lock leaves plain counters behind: still usable.
    STORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether there is a region for buffers of so many elements.
fn in_region(len: usize) -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    len >= REGION_MIN
        && *THERE.get_or_init(|| {
            let mut store = store();
            store.arena = Arena::reserve();
            store.arena.is_some()
        })
}

/// Bytes that a buffer of `len` elements holds: what a memory plan has to count.
pub fn held_bytes(len: usize) -> usize {
    match in_region(len) {
        true => block::held_bytes(len),
        false => pool::held_bytes(len),
    }
}

/// What pages that are in use in part take beside so many bytes of buffers, as far as has been seen: what a memory plan has to add.
pub fn ends_bytes(bytes: u64) -> u64 {
    if in_region(REGION_MIN) { bytes / 32 + (bytes / 16).min(2 * places::PAGE as u64) } else { 0 }
}

impl Store {
    /// Bytes that wait for their next use.
    fn waiting(&self) -> usize {
        self.pool.bytes() + self.arena.as_ref().map_or(0, Arena::idle_bytes)
    }

    /// Gives what waited longest back to the system until `bytes` more stay below the peak.
    fn make_room(&mut self, bytes: usize) {
        let most = self.peak_live.max(self.live + bytes);
        while self.live + self.waiting() + bytes > most {
            let forgotten = self.arena.as_mut().is_some_and(Arena::forget_oldest);
            if !forgotten && !self.pool.forget_oldest() {
                break;
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.live += bytes;
        self.peak_live = self.peak_live.max(self.live);
        self.peak_held = self.peak_held.max(self.live + self.waiting());
        self.note_region();
    }

    /// Before the region has another size, what the heap held meanwhile is added to what it had.
    fn note_region(&mut self) {
        let Some(heap_peak) = self.heap_peak else { return };
        let region = self.arena.as_ref().map_or(0, Arena::resident_bytes);
        if region != self.region {
            self.peak_all = self.peak_all.max(self.region + heap_peak());
            self.region = region;
        }
    }

    /// A buffer in the region; nothing if that is full.
    fn take_block(&mut self, len: usize) -> Option<Block> {
        let block = self.arena.as_mut()?.take(len)?;
        self.live += block.bytes();
        // Nothing was written to it yet: what is too much is given back before that.
        self.make_room(0);
        self.count(0);
        Some(block)
    }

    /// A buffer of the pool or, of a class that it has none of, of the system.
    fn take_vec(&mut self, len: usize) -> Vec<f32> {
        let class = pool::held_bytes(len) / 4;
        let fits = self.live + self.waiting() + 4 * class <= self.peak_live;
        let reused = self.pool.reuse(class, fits);
        if reused.is_none() {
            self.make_room(4 * class);
        }
        self.count(4 * class);
        reused.unwrap_or_default()
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

/// A run of f32 that waits for its next use when it is dropped.
pub struct Buffer {
    data: Data,
    len: usize,
    /// Its number in a trace: then it is not counted, and waits for nothing.
    traced: Option<usize>,
}

/// Where the values are.
enum Data {
    Vec(Vec<f32>),
    Block(Block),
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

    /// Takes over a vector.
    pub fn from_vec(data: Vec<f32>) -> Buffer {
        let len = data.len();
        let traced = note(|_| Traced::Take(len));
        if traced.is_none() {
            let mut guard = store();
            guard.make_room(len * 4);
            guard.count(len * 4);
        }
        Buffer { data: Data::Vec(data), len, traced }
    }

    fn take(len: usize, zero: bool) -> Buffer {
        if let Some(number) = note(|_| Traced::Take(len)) {
            // Zeros that nobody writes to take no memory.
            return Buffer { data: Data::Vec(vec![0.0; len]), len, traced: Some(number) };
        }
        let in_region = in_region(len);
        let mut guard = store();
        let block = if in_region { guard.take_block(len) } else { None };
        if let Some(mut block) = block {
            drop(guard);
            if zero {
                block.as_mut_slice()[..len].fill(0.0);
            }
            return Buffer { data: Data::Block(block), len, traced: None };
        }
        let mut data = guard.take_vec(len);
        drop(guard);
        if data.is_empty() {
            data = pool::fresh(pool::held_bytes(len) / 4);
        } else if zero {
            data[..len].fill(0.0);
        }
        Buffer { data: Data::Vec(data), len, traced: None }
    }

    /// Bytes that it holds.
    pub(crate) fn held_bytes(&self) -> usize {
        match &self.data {
            Data::Vec(data) => 4 * data.len(),
            Data::Block(block) => block.bytes(),
        }
    }

    pub fn as_slice(&self) -> &[f32] {
        match &self.data {
            Data::Vec(data) => &data[..self.len],
            Data::Block(block) => &block.as_slice()[..self.len],
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::Vec(data) => &mut data[..self.len],
            Data::Block(block) => &mut block.as_mut_slice()[..self.len],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(number) = self.traced {
            note(|_| Traced::Free(number));
            return;
        }
        let bytes = self.held_bytes();
        let mut guard = store();
        guard.live = guard.live.saturating_sub(bytes);
        match std::mem::replace(&mut self.data, Data::Vec(Vec::new())) {
            Data::Block(block) => {
                if let Some(arena) = &mut guard.arena {
                    arena.give(block);
                }
            }
            // In the region nothing waits that long for one of its own size.
            Data::Vec(data) if data.len() >= REGION_MIN && guard.arena.is_some() => drop(guard),
            Data::Vec(data) => guard.pool.keep(data),
        }
    }
}

/// Counts bytes that live outside buffers (a storage's encoded weights), for as long as the value exists.
pub struct Counted(usize);

impl Counted {
    pub fn new(bytes: usize) -> Counted {
        store().count(bytes);
        Counted(bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut guard = store();
        guard.live = guard.live.saturating_sub(self.0);
    }
}

/// Bytes in use by tensors and storages now.
pub fn live_bytes() -> usize {
    store().live
}

/// The most bytes ever held (in use and pooled) since the last [`reset_peak`].
pub fn peak_bytes() -> usize {
    store().peak_held
}

/// Counts the region of large buffers, which no allocator sees, together with the heap: `heap_peak` tells what the heap held at most since it
/// was asked last.
pub fn count_heap(heap_peak: fn() -> usize) {
    let mut guard = store();
    heap_peak();
    guard.heap_peak = Some(heap_peak);
    guard.region = guard.arena.as_ref().map_or(0, Arena::resident_bytes);
    guard.peak_all = 0;
}

/// The most bytes of heap and region together since [`count_heap`].
pub fn heap_and_region_peak_bytes() -> usize {
    let mut guard = store();
    let last = guard.region + guard.heap_peak.map_or(0, |peak| peak());
    guard.peak_all = guard.peak_all.max(last);
    guard.peak_all
}

/// Starts a new measurement of the peak at what is held now.
pub fn reset_peak() {
    let mut guard = store();
    guard.peak_live = guard.live;
    guard.peak_held = guard.live + guard.waiting();
}

/// Gives all that waits back to the system.
pub fn trim() {
    let mut guard = store();
    guard.pool.clear();
    while guard.arena.as_mut().is_some_and(Arena::forget_oldest) {}
    guard.note_region();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn large_buffers_are_zeros() {
        for len in [1 << 20, (1 << 20) + 1, 5 << 20] {
            let mut data = pool::fresh(len);
            assert!(data.iter().all(|x| *x == 0.0));
            data.iter_mut().zip(0u32..).for_each(|(x, i)| *x = i as f32);
            assert!(data.iter().zip(0u32..).all(|(x, i)| *x == i as f32));
        }
    }

    #[test]
    fn a_trace_tells_takes_frees_and_marks_of_its_thread_and_counts_nothing() {
        let live = || store().live;
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
        let mut store = Store { peak_live: 4 * 40_000, ..Store::default() };
        for len in [16_384, 8_192, 8_192] {
            store.pool.keep(vec![1.0; len]);
        }
        store.live = 4 * 4_000;
        store.make_room(4 * 3_000);
        assert_eq!(store.waiting(), 4 * 32_768);
        store.make_room(4 * 4_096);
        assert_eq!(store.waiting(), 4 * 16_384);
        store.make_room(4 * 50_000);
        assert_eq!(store.waiting(), 0);
    }

    #[test]
    fn blocks_are_their_own_and_come_back() {
        let stream = Stream::named(5, "blocks");
        let mut kept: Vec<(Buffer, f32)> = Vec::new();
        for i in 0..300u64 {
            let number = |which: u64| stream.uniform(3 * i + which);
            if number(0) < 0.6 || kept.is_empty() {
                let mut buffer = Buffer::scratch(REGION_MIN + (number(1) * 400_000.0) as usize);
                buffer.as_mut_slice().fill(i as f32);
                kept.push((buffer, i as f32));
            } else {
                let (buffer, value) = kept.swap_remove((number(1) * kept.len() as f32) as usize);
                assert!(buffer.as_slice().iter().all(|x| *x == value), "somebody else wrote to it");
                drop(buffer);
                if number(2) < 0.2 {
                    trim();
                }
            }
        }
        assert!(kept.iter().all(|(buffer, value)| buffer.as_slice().iter().all(|x| x == value)));
    }

    #[test]
    fn what_waits_in_the_region_stays_below_the_peak() {
        let Some(arena) = Arena::reserve() else { return eprintln!("SKIPPED: no region here") };
        let mut store = Store { arena: Some(arena), ..Store::default() };
        let mut most = 0;
        for round in 0..4 {
            for len in [3_000_000, 1_100_000, 70_000, 5_000_000, 700_000, 2_500_000 + 300_000 * round] {
                let [a, b] = [len, len / 2].map(|len| store.take_block(len).expect("room"));
                most = most.max(a.bytes() + b.bytes());
                for block in [a, b] {
                    store.live -= block.bytes();
                    store.arena.as_mut().expect("it").give(block);
                }
            }
        }
        // Pages that are in use in part.
        let allowed = most + 3 * places::PAGE;
        assert!(store.peak_live == most && store.peak_held <= allowed, "{} of {most}", store.peak_held);
    }

    #[test]
    fn zeros_are_zero_after_reuse() {
        let mut first = Buffer::scratch(70_000);
        first.as_mut_slice().fill(3.0);
        drop(first);
        assert!(Buffer::zeros(70_000).as_slice().iter().all(|&x| x == 0.0));
    }
}
