//! What the adapters in memory put into one site, slot by slot: switching between them is choosing a slot.

use std::collections::BTreeMap;

/// The methods' parts at one site. Slot 0 is what training works on and what a pass uses unless it says otherwise.
pub struct Slots<T: ?Sized> {
    parts: BTreeMap<usize, Box<T>>,
}

impl<T: ?Sized> Default for Slots<T> {
    fn default() -> Self {
        Slots { parts: BTreeMap::new() }
    }
}

impl<T: ?Sized> Slots<T> {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub fn get(&self, slot: Option<usize>) -> Option<&T> {
        self.parts.get(&slot?).map(|part| part.as_ref())
    }

    /// Puts a part into a slot, in place of what was there.
    pub fn put(&mut self, slot: usize, part: Box<T>) {
        self.parts.insert(slot, part);
    }

    pub fn remove(&mut self, slot: usize) -> Option<Box<T>> {
        self.parts.remove(&slot)
    }

    /// Takes away what is in other slots than these.
    pub fn keep_only(&mut self, slots: &[usize]) {
        self.parts.retain(|slot, _| slots.contains(slot));
    }
}
