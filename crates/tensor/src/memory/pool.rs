//! Freed vectors that wait for the next buffer of their size class.

use std::collections::{BTreeMap, VecDeque};

/// Below this many elements a buffer is not worth keeping.
const POOL_MIN: usize = 4096;

/// A buffer in the pool, and when it came there.
struct Waiting {
    data: Vec<f32>,
    since: u64,
}

#[derive(Default)]
pub struct Pool {
    free: BTreeMap<usize, VecDeque<Waiting>>,
    /// Buffers that were kept so far.
    kept: u64,
    bytes: usize,
}

/// Rounds up to the next size class: eight steps an octave.
fn class_of(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.div_ceil(step) * step
}

/// Bytes that a vector for `len` elements holds.
pub fn held_bytes(len: usize) -> usize {
    4 * if len < POOL_MIN { len } else { class_of(len) }
}

impl Pool {
    pub const fn new() -> Pool {
        Pool { free: BTreeMap::new(), kept: 0, bytes: 0 }
    }

    /// Bytes of all that waits.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the buffer that waited longest back to the system; false if there is none.
    pub fn forget_oldest(&mut self) -> bool {
        let oldest = |(class, list): (&usize, &VecDeque<Waiting>)| Some((list.front()?.since, *class));
        let oldest = self.free.iter().filter_map(oldest).min();
        oldest.is_some_and(|(_, class)| self.remove(class, VecDeque::pop_front).is_some())
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
        self.bytes -= 4 * class;
        Some(found.data)
    }

    /// A pooled buffer of a class. Where a fresh one would drive others out (it does not fit), a larger one is cut to size and its rest goes back to
    /// the system: the pages that it keeps need not be cleared again. (glibc cuts where the buffer lies, and copies nothing.)
    pub fn reuse(&mut self, class: usize, fits: bool) -> Option<Vec<f32>> {
        if class < POOL_MIN {
            return None;
        }
        if let Some(data) = self.remove(class, VecDeque::pop_back) {
            return Some(data);
        }
        if fits {
            return None;
        }
        let larger = *self.free.range(class..).next()?.0;
        let mut data = self.remove(larger, VecDeque::pop_back)?;
        data.truncate(class);
        data.shrink_to_fit();
        Some(data)
    }

    /// Lets a buffer wait for its next use, if it has the length of a class.
    pub fn keep(&mut self, data: Vec<f32>) {
        if data.len() < POOL_MIN || class_of(data.len()) != data.len() {
            return;
        }
        self.bytes += 4 * data.len();
        self.kept += 1;
        let since = self.kept;
        self.free.entry(data.len()).or_default().push_back(Waiting { data, since });
    }

    pub fn clear(&mut self) {
        *self = Pool::new();
    }
}

/// So many zeros of the system. A large run of them asks for large pages: of pages of 4 KiB, a step of a convolution network takes
/// hundreds of thousands, and a fifth of its time to get them.
pub fn fresh(len: usize) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_round_up_by_at_most_an_eighth() {
        for len in [4096, 5000, 65_537, 1_000_000, 1 << 24] {
            let class = class_of(len);
            assert!(class >= len && class <= len + len / 8 + 1, "{len} -> {class}");
            assert_eq!(class_of(class), class);
        }
    }

    #[test]
    fn a_larger_one_is_cut_before_others_are_driven_out() {
        let mut pool = Pool::new();
        pool.keep(vec![1.0; 16_384]);
        pool.keep(vec![1.0; 20_480]);
        assert!(pool.reuse(8_192, true).is_none());
        let data = pool.reuse(8_192, false).unwrap();
        assert!(data == vec![1.0; 8_192] && pool.bytes() == 4 * 20_480);
        assert_eq!(pool.reuse(20_480, true).unwrap().len(), 20_480);
        assert!(pool.reuse(40_960, false).is_none());
        assert_eq!((pool.bytes(), pool.free.len()), (0, 0));
    }
}
