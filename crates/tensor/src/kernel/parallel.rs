//! Splits work into numbered tasks for the rayon threads. Who runs which task is chance; what a task computes never depends on it.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and what it splits into tasks, on this thread alone: for work that is one of many tasks itself.
pub fn alone<R>(work: impl FnOnce() -> R) -> R {
    /// Ends it also when `work` panics.
    struct End(bool);
    impl Drop for End {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _end = End(ALONE.replace(true));
    work()
}

/// Calls `f(0)` to `f(tasks - 1)`, each once, on the current rayon pool; the caller works too. Returns when all are done.
pub fn for_each_task(tasks: usize, f: impl Fn(usize) + Sync) {
    let threads = if ALONE.get() { 1 } else { rayon::current_num_threads().min(tasks) };
    if threads <= 1 {
        return (0..tasks).for_each(f);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            f(task);
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// [`for_each_task`] with something of its own for each task.
pub fn for_each_of<T: Send>(items: Vec<T>, f: impl Fn(usize, T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    for_each_task(items.len(), |i| {
        let item = items[i].lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(item) = item {
            f(i, item);
        }
    });
}

/// Bounds of part `i` of `0..n` cut into `parts` as equal as possible.
#[inline]
pub(crate) fn part(n: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

/// A pointer that tasks share; each must write elements of its own only.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: only carries the address; whoever dereferences it answers for disjointness (see the uses).
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }

    pub fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.install(|| for_each_task(tasks, |i| _ = counts[i].fetch_add(1, Ordering::Relaxed)));
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn alone_no_other_thread_is_asked() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        pool.install(|| {
            let me = std::thread::current().id();
            alone(|| for_each_task(50, |_| assert_eq!(std::thread::current().id(), me)));
            assert!(std::panic::catch_unwind(|| alone(|| panic!())).is_err());
            assert!(!ALONE.get());
        });
    }

    #[test]
    fn every_task_gets_its_own() {
        let mut numbers = [0; 40];
        for_each_of(numbers.iter_mut().collect(), |i, number| *number = i);
        assert!(numbers.iter().enumerate().all(|(i, &number)| number == i));
    }

    #[test]
    fn parts_cover_the_whole_in_order() {
        for (n, parts) in [(0, 3), (7, 3), (12, 12), (5, 8)] {
            let all: Vec<usize> = (0..parts).flat_map(|i| part(n, parts, i)).collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }
}
