//! Which stretches of a region are in use, and which of its pages have memory behind them: pure bookkeeping, best fit with coalescing.
//!
//! A stretch is `n` granules of 4 KiB; the system gives and takes memory in pages of 2 MiB. Of all free places that are long enough the one that
//! needs the fewest new pages is taken, then the shortest: what was written a moment ago is written again, where it fits even if it was several buffers then.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a granule and of a page.
pub const GRANULE: usize = 4 << 10;
pub const PAGE: usize = 2 << 20;
/// Granules of a page.
const EACH: usize = PAGE / GRANULE;

#[derive(Clone, Debug, Default)]
struct Page {
    /// There is memory behind it.
    resident: bool,
    /// Granules in use.
    used: usize,
    /// When the last of them was given back.
    since: u64,
}

/// The places of a region of so many granules.
#[derive(Debug, Default)]
pub struct Places {
    capacity: usize,
    /// Free stretches below `top`: first granule and length. No two touch.
    free: BTreeMap<usize, usize>,
    /// The same as (length, first granule).
    by_length: BTreeSet<(usize, usize)>,
    /// All from here on is free.
    top: usize,
    pages: Vec<Page>,
    resident: usize,
    used: usize,
    clock: u64,
}

impl Places {
    pub fn new(bytes: usize) -> Places {
        Places { capacity: bytes / GRANULE, ..Places::default() }
    }

    /// Bytes that have memory behind them.
    pub fn resident_bytes(&self) -> usize {
        self.resident * PAGE
    }

    /// Those of them that are in no use.
    pub fn idle_bytes(&self) -> usize {
        self.resident_bytes() - self.used * GRANULE
    }

    /// Takes a stretch; its first granule, or nothing if the region is full.
    pub fn take(&mut self, n: usize) -> Option<usize> {
        let at = self.best(n)?;
        if at >= self.top {
            self.insert(self.top, at - self.top);
            self.top = at + n;
        } else {
            let (start, length) =
                self.free.range(..=at).next_back().map(|(start, length)| (*start, *length))?;
            self.remove(start, length);
            self.insert(start, at - start);
            self.insert(at + n, start + length - at - n);
        }
        self.used += n;
        for page in at / EACH..=(at + n - 1) / EACH {
            let overlap = self.overlap(page, at, n);
            if page >= self.pages.len() {
                self.pages.resize(page + 1, Page::default());
            }
            let page = &mut self.pages[page];
            self.resident += usize::from(!page.resident);
            page.resident = true;
            page.used += overlap;
        }
        Some(at)
    }

    /// Gives a stretch back.
    pub fn give(&mut self, at: usize, n: usize) {
        self.used -= n;
        self.clock += 1;
        for page in at / EACH..=(at + n - 1) / EACH {
            let overlap = self.overlap(page, at, n);
            self.pages[page].used -= overlap;
            self.pages[page].since = self.clock;
        }
        let (mut start, mut end) = (at, at + n);
        if let Some((before, length)) = self.free.range(..at).next_back().map(|(s, l)| (*s, *l))
            && before + length == at
        {
            self.remove(before, length);
            start = before;
        }
        if let Some(length) = self.free.get(&end).copied() {
            self.remove(end, length);
            end += length;
        }
        match end == self.top {
            true => self.top = start,
            false => self.insert(start, end - start),
        }
    }

    /// The page that waited longest of those in no use; from now on there is no memory behind it.
    pub fn forget_oldest(&mut self) -> Option<usize> {
        let idle = |(_, page): &(usize, &Page)| page.resident && page.used == 0;
        let (oldest, _) = self.pages.iter().enumerate().filter(idle).min_by_key(|(_, page)| page.since)?;
        self.pages[oldest].resident = false;
        self.resident -= 1;
        Some(oldest)
    }

    /// Where a stretch costs the least: new pages, then the length of the place.
    fn best(&self, n: usize) -> Option<usize> {
        let mut best: Option<(usize, usize, usize)> = None;
        for &(length, start) in self.by_length.range((n, 0)..) {
            let last = start + length - n;
            let warm = (start / EACH..=(start + length - 1) / EACH).find(|page| self.is_resident(*page));
            let warm = warm.map_or(start, |page| (page * EACH).max(start)).min(last);
            for at in [start, last, warm] {
                let found = (self.cold(at, n), length, at);
                best = Some(best.map_or(found, |best| best.min(found)));
            }
            if best.is_some_and(|(cold, ..)| cold == 0) {
                break;
            }
        }
        if self.top + n <= self.capacity {
            let found = (self.cold(self.top, n), usize::MAX, self.top);
            best = Some(best.map_or(found, |best| best.min(found)));
        }
        best.map(|(.., at)| at)
    }

    /// Pages of a stretch without memory behind them.
    fn cold(&self, at: usize, n: usize) -> usize {
        (at / EACH..=(at + n - 1) / EACH).filter(|page| !self.is_resident(*page)).count()
    }

    fn is_resident(&self, page: usize) -> bool {
        self.pages.get(page).is_some_and(|page| page.resident)
    }

    /// Granules of a stretch that lie in a page.
    fn overlap(&self, page: usize, at: usize, n: usize) -> usize {
        ((page + 1) * EACH).min(at + n) - (page * EACH).max(at)
    }

    fn insert(&mut self, start: usize, length: usize) {
        if length > 0 {
            self.free.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn remove(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Everything that must hold, counted anew from the stretches in use.
    fn check(places: &Places, taken: &[(usize, usize)]) {
        let mut used = vec![0; places.pages.len()];
        let mut granules = vec![false; places.top];
        for &(at, n) in taken {
            for granule in at..at + n {
                assert!(!std::mem::replace(&mut granules[granule], true), "granule {granule} is taken twice");
                used[granule / EACH] += 1;
            }
        }
        assert_eq!(places.used, taken.iter().map(|(_, n)| n).sum::<usize>());
        for (page, used) in places.pages.iter().zip(used) {
            assert!(page.used == used && (page.resident || used == 0));
        }
        assert_eq!(places.resident, places.pages.iter().filter(|page| page.resident).count());
        let mut end = None;
        for (&start, &length) in &places.free {
            assert!(end != Some(start) && start + length < places.top, "free stretches touch, or the end");
            assert!(granules[start..start + length].iter().all(|taken| !taken));
            end = Some(start + length);
        }
        assert_eq!(places.free.values().sum::<usize>(), granules.iter().filter(|taken| !**taken).count());
        assert!(places.by_length.iter().map(|(l, s)| (*s, *l)).collect::<BTreeMap<_, _>>() == places.free);
    }

    #[test]
    fn stretches_never_overlap_and_all_is_counted() {
        for seed in 0..20 {
            let stream = Stream::named(seed, "places");
            let mut places = Places::new(1 << 30);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for i in 0..400 {
                let number = |which: u64| stream.uniform(3 * i + which);
                if number(0) < 0.55 || taken.is_empty() {
                    let n = 1 + (number(1) * number(2) * 3_000.0) as usize;
                    let at = places.take(n).expect("room");
                    taken.push((at, n));
                } else if number(0) < 0.97 {
                    let (at, n) = taken.swap_remove((number(1) * taken.len() as f32) as usize);
                    places.give(at, n);
                } else if let Some(page) = places.forget_oldest() {
                    assert_eq!((places.pages[page].used, places.pages[page].resident), (0, false));
                }
                check(&places, &taken);
            }
            while let Some((at, n)) = taken.pop() {
                places.give(at, n);
            }
            check(&places, &[]);
            assert_eq!((places.top, places.free.len()), (0, 0), "all has grown together");
            while places.forget_oldest().is_some() {}
            assert_eq!((places.idle_bytes(), places.resident), (0, 0));
        }
    }

    #[test]
    fn neighbours_grow_together_and_written_pages_come_first() {
        let mut places = Places::new(1 << 30);
        let [a, b, c] = [2 * EACH, 2 * EACH, EACH].map(|n| (places.take(n).expect("room"), n));
        assert_eq!([a.0, b.0, c.0], [0, 2 * EACH, 4 * EACH]);
        places.give(a.0, a.1);
        places.give(b.0, b.1);
        // Two that lay side by side hold one that is longer than either, with no new page.
        assert_eq!((places.take(3 * EACH), places.resident), (Some(0), 5));
        // What has no memory behind it any more is taken last.
        places.give(0, 3 * EACH);
        assert_eq!(places.forget_oldest(), Some(3));
        assert_eq!((places.take(EACH), places.resident), (Some(0), 4));
    }

    #[test]
    fn a_full_region_says_so() {
        let mut places = Places::new(4 * PAGE);
        assert_eq!(places.take(3 * EACH), Some(0));
        assert_eq!(places.take(2 * EACH), None);
        assert_eq!(places.take(EACH), Some(3 * EACH));
    }
}
