//! Buffers in the region, and the arena that gives them out.

use std::ptr::NonNull;

use super::places::{GRANULE, Places};
use super::region::Region;

/// Elements of a granule.
const EACH: usize = GRANULE / 4;

/// Bytes that a buffer of `len` elements holds in the region.
pub fn held_bytes(len: usize) -> usize {
    len.div_ceil(EACH) * GRANULE
}

/// A stretch of the region that belongs to one buffer, until it is given back.
pub struct Block {
    /// Its first granule.
    at: usize,
    granules: usize,
    data: NonNull<f32>,
}

// SAFETY: a block is the only owner of its stretch, as a vector is of its heap memory: `Places` gives none out twice
// (the tests `stretches_never_overlap_and_all_is_counted` and `blocks_are_their_own_and_come_back`).
unsafe impl Send for Block {}
// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for Block {}

impl Block {
    pub fn bytes(&self) -> usize {
        self.granules * GRANULE
    }

    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: the stretch is mapped as long as the program runs, aligned to 4 KiB, initialised (new pages are zeros, others hold what was written
        // as f32), and nobody else's while this block lives. `blocks_are_their_own_and_come_back` fills and reads many at once.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.granules * EACH) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above; the exclusive reference to the block is one to its values.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.granules * EACH) }
    }
}

/// The region and its places.
pub struct Arena {
    places: Places,
    region: Region,
}

impl Arena {
    /// Nothing where the system has no such region.
    pub fn reserve() -> Option<Arena> {
        let region = Region::reserve()?;
        Some(Arena { places: Places::new(region.len()), region })
    }

    /// A block for so many elements; nothing if the region is full.
    pub fn take(&mut self, len: usize) -> Option<Block> {
        let granules = len.div_ceil(EACH).max(1);
        let at = self.places.take(granules)?;
        Some(Block { at, granules, data: self.region.address(at) })
    }

    pub fn give(&mut self, block: Block) {
        self.places.give(block.at, block.granules);
    }

    /// Bytes that have memory behind them and are in no use.
    pub fn idle_bytes(&self) -> usize {
        self.places.idle_bytes()
    }

    /// Bytes that have memory behind them.
    pub fn resident_bytes(&self) -> usize {
        self.places.resident_bytes()
    }

    /// Gives the memory that waited longest back to the system; false if there is none.
    pub fn forget_oldest(&mut self) -> bool {
        let page = self.places.forget_oldest();
        if let Some(page) = page {
            self.region.forget(page);
        }
        page.is_some()
    }
}
