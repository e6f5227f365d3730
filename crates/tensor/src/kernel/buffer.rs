//! Scratch memory of each thread for packed operands: aligned to cache lines, kept for the next product.

use std::cell::RefCell;

/// One cache line, and one AVX-512 register.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of f32 that starts on a cache line; grows, never shrinks, contents unspecified after growing.
#[derive(Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// At least `len` floats.
    pub fn of(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            // Of just this size, and not beside the old one: growing would double it.
            self.lines = Vec::new();
            self.lines.reserve_exact(lines);
            self.lines.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a Line is exactly sixteen f32, initialised, without padding; there are at least `len` of them, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}

thread_local! {
    static SCRATCH: RefCell<[Aligned; 2]> = RefCell::default();
}

/// Hands this thread's two scratch buffers (panel, decoded rows) to `f`. Must not be nested: products inside products don't occur.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Aligned, &mut Aligned) -> R) -> R {
    SCRATCH.with(|cell| {
        let [panel, rows] = &mut *cell.borrow_mut();
        f(panel, rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let mut buffer = Aligned::default();
        for len in [0, 1, 15, 16, 17, 1000, 3] {
            let slice = buffer.of(len);
            slice.fill(1.0);
            assert_eq!((slice.len(), slice.as_ptr() as usize % 64), (len, 0));
        }
    }
}
