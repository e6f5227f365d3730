//! Systems on which there is no region: all buffers wait in the pool.

use std::ptr::NonNull;

pub enum Region {}

impl Region {
    pub fn reserve() -> Option<Region> {
        None
    }

    pub fn len(&self) -> usize {
        match *self {}
    }

    pub fn address(&self, _granule: usize) -> NonNull<f32> {
        match *self {}
    }

    pub fn forget(&mut self, _page: usize) {
        match *self {}
    }
}
