//! Weights that stay in their file: matrices of the blocks are read (by position, never mapped) when a product needs them.
//!
//! A [`Pager`] holds as many as its budget allows, two blocks' at least, so that the next block is read while this one
//! computes. What is expected soonest stays: up and down through the blocks, as training goes, the most recently used are
//! found again; round and round, as generation goes, the same share of the blocks stays for good. The values are those of the
//! same weights in memory, bit for bit: [`Place::read`] is what loading does.
//!
//! A file that cannot be read, or is not what it was, is a fault: from then on all values are NaN, so that nothing is trained
//! with them, and [`retune_tensor::Params::fault`] says why.

pub mod order;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use order::Order;
use retune_tensor::Weight;
use retune_tensor::storage::{Storage, pin};

use crate::error::{Error, Result};
use crate::models::lost::Lost;
use crate::train::plan::human;

/// A matrix in a file.
pub struct Place {
    /// As messages name it.
    pub name: String,
    /// What it is when it was read: [`Storage::format`], rows, columns, columns a block.
    pub format: &'static str,
    pub shape: (usize, usize),
    pub block: usize,
    /// Bytes that it takes in memory, and those that reading takes beside them.
    pub bytes: u64,
    pub reading: u64,
    /// The block of the model that it belongs to.
    pub layer: usize,
    /// Reads it, and checks that the file is what it was.
    #[allow(clippy::type_complexity)]
    pub read: Box<dyn Fn() -> Result<Weight> + Send + Sync>,
}

/// Bytes that streamed matrices take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// All of them.
    pub total: u64,
    /// The least that a pager holds: twice the largest block, and what reading takes beside.
    pub least: u64,
}

impl Sizes {
    /// Of matrices, each with its layer and its bytes when it is read and beside that while it is read.
    pub fn of(matrices: impl IntoIterator<Item = (usize, u64, u64)>) -> Sizes {
        let mut layers = std::collections::BTreeMap::new();
        let mut beside = 0;
        for (layer, bytes, reading) in matrices {
            *layers.entry(layer).or_insert(0u64) += bytes;
            beside = beside.max(reading);
        }
        let (total, largest): (u64, u64) =
            (layers.values().sum(), layers.values().copied().max().unwrap_or(0));
        Sizes { total: total + beside, least: (2 * largest).min(total) + beside }
    }

    /// Bytes in memory at most, under a budget; `None`: no limit.
    pub fn resident(&self, budget: Option<u64>) -> u64 {
        budget.map_or(self.total, |budget| budget.clamp(self.least, self.total.max(self.least)))
    }
}

/// What a pager did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The most bytes held at a time.
    pub resident_bytes: u64,
    /// All streamed matrices, if they were in memory.
    pub total_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
    /// Time that products waited for the file.
    pub waited: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} of {} resident, {} read, {:.1} s waited for them",
            human(self.resident_bytes),
            human(self.total_bytes),
            human(self.read_bytes),
            self.waited.as_secs_f64()
        )
    }
}

/// Keeps streamed matrices in memory, and reads ahead. Cheap to clone: one pager.
#[derive(Clone)]
pub struct Pager(Arc<Inner>);

impl Default for Pager {
    fn default() -> Pager {
        Pager::new()
    }
}

impl Pager {
    /// One without matrices, and with the least budget.
    pub fn new() -> Pager {
        Pager(Arc::new(Inner { shared: Arc::default(), reader: Mutex::default() }))
    }

    /// A matrix that stays in its file until it is used.
    pub fn add(&self, place: Place) -> Arc<dyn Storage> {
        let place = Arc::new(place);
        let mut state = self.0.shared.lock();
        let index = state.pages.len();
        state.pages.push(Page { place: place.clone(), state: PageState::Out, used: 0 });
        state.order.add();
        state.budget = state.budget.max(state.sizes().least);
        Arc::new(Streamed { place, index, pager: self.0.clone() })
    }

    /// Sizes of the matrices that are in use.
    pub fn sizes(&self) -> Sizes {
        self.0.shared.lock().sizes()
    }

    /// Holds as much as this from now on, but for the least that is needed; `None`: all that is read.
    pub fn set_budget(&self, bytes: Option<u64>) {
        let mut state = self.0.shared.lock();
        state.budget = state.sizes().resident(bytes);
        state.make_room(0, None);
        self.0.shared.work.notify_all();
    }

    pub fn stats(&self) -> Stats {
        let state = self.0.shared.lock();
        Stats { total_bytes: state.sizes().total, ..state.stats }
    }
}

/// Ends the reader when nobody uses the pager any more.
struct Inner {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A page was read, or there is a fault.
    arrived: Condvar,
    /// There may be something to read ahead.
    work: Condvar,
}

#[derive(Default)]
struct State {
    pages: Vec<Page>,
    budget: u64,
    /// Bytes of the pages that are in memory or being read.
    held: u64,
    /// Counts uses.
    clock: u64,
    order: Order,
    fault: Option<String>,
    stats: Stats,
    closing: bool,
}

struct Page {
    place: Arc<Place>,
    state: PageState,
    /// When it was used last.
    used: u64,
}

enum PageState {
    Out,
    Reading,
    In(Arc<dyn Storage>),
}

impl Page {
    /// In memory, and in no product just now.
    fn is_idle(&self) -> bool {
        matches!(&self.state, PageState::In(storage) if Arc::strong_count(storage) == 1)
    }
}

impl State {
    fn sizes(&self) -> Sizes {
        // A matrix that was read to be trained has no other holder left.
        let used = self.pages.iter().filter(|page| Arc::strong_count(&page.place) > 1);
        Sizes::of(used.map(|page| (page.place.layer, page.place.bytes, page.place.reading)))
    }

    /// Drops idle pages until `more` bytes fit; if only for a page that is `needed` so soon, none that are needed sooner.
    /// Says whether there is room.
    fn make_room(&mut self, more: u64, needed: Option<usize>) -> bool {
        if self.held + more <= self.budget {
            return true;
        }
        let distances = self.order.distances();
        let distance = |index: usize| distances.get(index).copied().flatten().unwrap_or(usize::MAX);
        let mut idle: Vec<usize> = (0..self.pages.len()).filter(|&i| self.pages[i].is_idle()).collect();
        idle.retain(|&i| needed.is_none_or(|soon| distance(i) > soon));
        // The latest needed first; of those that nobody expects, the one that was not used for longest.
        idle.sort_by_key(|&i| (std::cmp::Reverse(distance(i)), self.pages[i].used));
        let room: u64 = idle.iter().map(|&i| self.pages[i].place.bytes).sum();
        if needed.is_some() && (self.held + more).saturating_sub(room) > self.budget {
            return false;
        }
        for index in idle {
            if self.held + more <= self.budget {
                break;
            }
            self.pages[index].state = PageState::Out;
            self.held -= self.pages[index].place.bytes;
        }
        self.held + more <= self.budget
    }

    /// Marks a page as being read, and gives what reads it.
    fn begin(&mut self, index: usize) -> Arc<Place> {
        let place = self.pages[index].place.clone();
        self.pages[index].state = PageState::Reading;
        self.held += place.bytes + place.reading;
        self.stats.resident_bytes = self.stats.resident_bytes.max(self.held);
        place
    }

    /// Takes what was read.
    fn end(&mut self, index: usize, read: Result<Weight>) {
        let page = &mut self.pages[index];
        self.held -= page.place.reading;
        match read {
            Ok(weight) => {
                self.stats.reads += 1;
                self.stats.read_bytes += page.place.bytes;
                page.state = PageState::In(match weight {
                    Weight::F32(tensor) => Arc::new(tensor),
                    Weight::Stored(storage) => storage,
                });
            }
            Err(error) => {
                self.held -= page.place.bytes;
                page.state = PageState::Out;
                let what = format!("tensor \"{}\" cannot be read any more: {error}", page.place.name);
                self.fault.get_or_insert(what);
            }
        }
    }

    /// The page to read ahead of need, once room was made for it.
    fn next_ahead(&mut self) -> Option<usize> {
        if self.fault.is_some() {
            return None;
        }
        let expected = self.order.expected().enumerate();
        let missing =
            |page: &Page| matches!(page.state, PageState::Out) && Arc::strong_count(&page.place) > 1;
        let mut between = 0;
        let mut missing = expected.filter_map(|(distance, index)| {
            let page = self.pages.get(index)?;
            let found = missing(page).then_some((distance, index, between));
            between += page.place.bytes;
            found
        });
        let (distance, index, between) = missing.next()?;
        drop(missing);
        let place = &self.pages[index].place;
        let need = place.bytes + place.reading;
        // Further than a block ahead only into free room: whoever fills all of it with what comes next finds nothing again.
        if between >= self.sizes().least / 2 && self.held + need > self.budget {
            return None;
        }
        self.make_room(need, Some(distance)).then_some(index)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left a page that nobody reads; the counts are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a page, unlocked.
    fn read<'a>(&'a self, mut state: MutexGuard<'a, State>, index: usize) -> MutexGuard<'a, State> {
        let place = state.begin(index);
        drop(state);
        // Whoever waits for this page would wait for ever.
        let read = catch_unwind(AssertUnwindSafe(|| (place.read)()));
        let read = read.unwrap_or_else(|_| Err(Error::Input("reading it failed, which is a bug".into())));
        drop(place);
        let mut state = self.lock();
        state.end(index, read);
        self.arrived.notify_all();
        state
    }

    /// Reads ahead until the pager closes.
    fn read_ahead(&self) {
        let mut state = self.lock();
        while !state.closing {
            match state.next_ahead() {
                Some(index) => state = self.read(state, index),
                None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The matrix, in memory; `None` after a fault.
    fn get(&self, index: usize) -> Option<Arc<dyn Storage>> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        state.pages[index].used = clock;
        state.order.now(index);
        self.work.notify_all();
        let mut waiting: Option<Instant> = None;
        loop {
            if state.fault.is_some() {
                return None;
            }
            match &state.pages[index].state {
                PageState::In(storage) => {
                    let storage = storage.clone();
                    state.stats.waited += waiting.map(|since| since.elapsed()).unwrap_or_default();
                    return Some(storage);
                }
                PageState::Reading => {
                    waiting.get_or_insert_with(Instant::now);
                    state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                PageState::Out => {
                    waiting.get_or_insert_with(Instant::now);
                    let place = &state.pages[index].place;
                    let need = place.bytes + place.reading;
                    // Room or not: without it nothing goes on. What is in products just now can be more than the budget.
                    state.make_room(need, None);
                    state = self.read(state, index);
                }
            }
        }
    }
}

impl Inner {
    /// Starts the reader with the first use.
    fn start(&self) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if reader.is_none() {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("weights".into());
            // Without it nothing is read ahead, and all else is the same.
            *reader = thread.spawn(move || shared.read_ahead()).ok();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        let reader = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader {
            // A panic of the reader is told where it happened.
            let _ = reader.join();
        }
    }
}

/// A matrix that is in memory only while it is used, or as long as there is room.
struct Streamed {
    place: Arc<Place>,
    index: usize,
    pager: Arc<Inner>,
}

impl Storage for Streamed {
    fn format(&self) -> &'static str {
        self.place.format
    }
    fn rows(&self) -> usize {
        self.place.shape.0
    }
    fn cols(&self) -> usize {
        self.place.shape.1
    }
    /// None of its own: what is in memory is the pager's.
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        self.place.block
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        pin(self).decode(row, col0, out)
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        pin(self).dot_rows(row0, x, y)
    }
    fn pinned(&self) -> Option<Arc<dyn Storage>> {
        self.pager.start();
        let Place { format, shape, block, .. } = *self.place;
        let lost = || -> Arc<dyn Storage> { Arc::new(Lost { format, shape, block }) };
        Some(self.pager.shared.get(self.index).unwrap_or_else(lost))
    }
    fn fault(&self) -> Option<String> {
        self.pager.shared.lock().fault.clone()
    }
}

#[cfg(test)]
mod tests;
