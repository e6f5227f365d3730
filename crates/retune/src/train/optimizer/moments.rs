//! Where each parameter's two moments lie: one after another, cut into pages, as many of them in memory as may be.
//!
//! A page holds pieces; a piece is a run of one parameter's elements: in f32 `m [n], v [n]`, with 8 bits
//! `codes of m [n], codes of v [n], absmax of m [n / 256], absmax of v [n / 256]`, all little-endian. A parameter below 4096
//! elements has f32 moments in any case, as with bitsandbytes.

use retune_tensor::ops::Moment8;
use retune_tensor::ops::adamw_8bit::BLOCK;

use crate::run_file::Optim;

/// Bytes of a page: large enough for a disk, small beside a model.
pub const PAGE_BYTES: usize = 4 << 20;
/// The least that a page may have: a few blocks.
const PAGE_BYTES_MIN: usize = 4096;
/// Pages that move: one is computed with, one comes, one goes.
const MOVING: usize = 3;
/// Parameters of fewer elements keep f32 moments (bitsandbytes' `min_8bit_size`).
const ELEMENTS_MIN_8BIT: usize = 4096;

/// What moments take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MomentMemory {
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Bytes in a file beside the run.
    pub file_bytes: u64,
}

/// What the moments of parameters of so many elements take with `budget` bytes of memory for them (`None`: no limit).
///
/// The least is three pages, whatever the budget; what has no more pages stays in memory, unless `optim` is a paged one.
pub fn memory(elements: &[usize], optim: Optim, budget: Option<u64>) -> MomentMemory {
    Layout::new(elements, optim, budget, PAGE_BYTES).memory()
}

/// A part of a parameter's moments: a tensor of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The first moment, in f32 or as codes.
    M,
    V,
    /// The constants of blocks.
    MAbsmax,
    VAbsmax,
}

impl Part {
    pub fn suffix(self) -> &'static str {
        match self {
            Part::M => "m",
            Part::V => "v",
            Part::MAbsmax => "m.absmax",
            Part::VAbsmax => "v.absmax",
        }
    }

    /// The parts of a parameter.
    pub fn all(eight: bool) -> &'static [Part] {
        if eight { &[Part::M, Part::V, Part::MAbsmax, Part::VAbsmax] } else { &[Part::M, Part::V] }
    }

    /// Whether its values are codes of 8 bits.
    pub fn is_codes(self, eight: bool) -> bool {
        eight && matches!(self, Part::M | Part::V)
    }

    /// Bytes of this part for so many elements from a block's first on.
    pub fn bytes(self, eight: bool, elements: usize) -> usize {
        match (self, eight) {
            (Part::M | Part::V, false) => 4 * elements,
            (Part::M | Part::V, true) => elements,
            (Part::MAbsmax | Part::VAbsmax, _) => 4 * elements.div_ceil(BLOCK),
        }
    }
}

/// Bytes of the moments of so many elements.
fn bytes_of(eight: bool, elements: usize) -> usize {
    Part::all(eight).iter().map(|part| part.bytes(eight, elements)).sum()
}

/// A run of one parameter's elements within a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub slot: usize,
    pub first: usize,
    pub len: usize,
    pub eight: bool,
    /// Where it begins in its page.
    at: usize,
}

impl Piece {
    /// Where a part of it lies in its page.
    pub fn part(&self, part: Part) -> std::ops::Range<usize> {
        let before = Part::all(self.eight).iter().take_while(|p| **p != part);
        let start = self.at + before.map(|p| p.bytes(self.eight, self.len)).sum::<usize>();
        start..start + part.bytes(self.eight, self.len)
    }

    /// Where a part of it lies in its parameter's tensor of a checkpoint.
    pub fn offset(&self, part: Part) -> u64 {
        part.bytes(self.eight, self.first) as u64
    }

    /// Its moments in its page.
    pub fn moments<'a>(&self, page: &'a mut [u8]) -> Moments<'a> {
        let size = |part: Part| part.bytes(self.eight, self.len);
        let (m, rest) = page[self.at..].split_at_mut(size(Part::M));
        let (v, rest) = rest.split_at_mut(size(Part::V));
        if !self.eight {
            return Moments::F32 { m: m.as_chunks_mut().0, v: v.as_chunks_mut().0 };
        }
        let (m_absmax, rest) = rest.split_at_mut(size(Part::MAbsmax));
        let v_absmax = &mut rest[..size(Part::VAbsmax)];
        Moments::Eight {
            m: Moment8 { codes: m, absmax: m_absmax.as_chunks_mut().0 },
            v: Moment8 { codes: v, absmax: v_absmax.as_chunks_mut().0 },
        }
    }
}

/// The moments of a piece.
pub(crate) enum Moments<'a> {
    F32 { m: &'a mut [[u8; 4]], v: &'a mut [[u8; 4]] },
    Eight { m: Moment8<'a>, v: Moment8<'a> },
}

/// A page: its pieces, its size, and whether it stays in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub pieces: Vec<Piece>,
    pub bytes: usize,
    pub resident: bool,
}

/// All pages, in the order in which an update passes through them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub pages: Vec<Page>,
    /// Which parameters have 8-bit moments.
    pub eight: Vec<bool>,
    /// Pages that move between the memory and the file.
    pub moving: usize,
}

impl Layout {
    pub fn new(elements: &[usize], optim: Optim, budget: Option<u64>, page_bytes: usize) -> Layout {
        let page_bytes = page_bytes.max(PAGE_BYTES_MIN);
        let eight: Vec<bool> = elements.iter().map(|&n| optim.is_8bit() && n >= ELEMENTS_MIN_8BIT).collect();
        let mut layout = Layout { pages: cut(elements, &eight, page_bytes), eight, moving: 0 };
        layout.place(optim, budget);
        layout
    }

    /// Chooses the pages that stay in memory, evenly among the others, so that the disk works while these are computed.
    fn place(&mut self, optim: Optim, budget: Option<u64>) {
        let (count, largest) = (self.pages.len(), self.largest());
        // A file for no more pages than move would save nothing.
        let fits = budget.is_none_or(|budget| self.bytes() <= budget) || count <= MOVING;
        let fits = fits && !optim.is_paged();
        self.moving = if fits { 0 } else { MOVING.min(count) };
        let room = budget.unwrap_or(0).saturating_sub(self.moving as u64 * largest);
        let resident = match fits {
            true => count,
            false if optim.is_paged() => 0,
            false => ((room / largest.max(1)) as usize).min(count.saturating_sub(self.moving)),
        };
        for (index, page) in self.pages.iter_mut().enumerate() {
            page.resident = (index + 1) * resident / count > index * resident / count;
        }
    }

    /// Bytes of all moments.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.bytes as u64).sum()
    }

    /// Bytes of the largest page.
    pub fn largest(&self) -> u64 {
        self.pages.iter().map(|page| page.bytes as u64).max().unwrap_or(0)
    }

    pub fn memory(&self) -> MomentMemory {
        let file = self.pages.iter().filter(|page| !page.resident).map(|page| page.bytes as u64).sum();
        let resident_bytes = self.bytes() - file + self.moving as u64 * self.largest();
        MomentMemory { resident_bytes, file_bytes: file }
    }

    /// The pieces of a parameter, in order, each with its page's number.
    pub fn pieces(&self, slot: usize) -> impl Iterator<Item = (usize, &Piece)> {
        let first =
            self.pages.partition_point(|page| page.pieces.last().is_some_and(|piece| piece.slot < slot));
        let pages = self.pages.iter().enumerate().skip(first);
        pages
            .take_while(move |(_, page)| page.pieces.first().is_some_and(|piece| piece.slot <= slot))
            .flat_map(|(index, page)| page.pieces.iter().map(move |piece| (index, piece)))
            .filter(move |(_, piece)| piece.slot == slot)
    }
}

/// Fills page after page with what the parameters need; 8-bit ones are cut between blocks.
fn cut(elements: &[usize], eight: &[bool], page_bytes: usize) -> Vec<Page> {
    let mut pages = vec![Page::default()];
    for (slot, (&elements, &eight)) in elements.iter().zip(eight).enumerate() {
        let step = if eight { BLOCK } else { 1 };
        let mut first = 0;
        while first < elements {
            let open = pages.len() - 1;
            let page = &mut pages[open];
            let left = elements - first;
            let room = page_bytes - page.bytes;
            let fits = room / bytes_of(eight, step) * step;
            let len = if bytes_of(eight, left) <= room { left } else { fits };
            if len == 0 {
                pages.push(Page::default());
                continue;
            }
            page.pieces.push(Piece { slot, first, len, eight, at: page.bytes });
            page.bytes += bytes_of(eight, len);
            first += len;
        }
    }
    pages.retain(|page| page.bytes > 0);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_one_place() {
        let elements = [3, 5000, 1, 4096, 0, 100_000, 4095];
        for (optim, page) in [(Optim::Adamw, 4096), (Optim::Adamw8bit, 4096), (Optim::Adamw8bit, 50_000)] {
            let layout = Layout::new(&elements, optim, None, page);
            let total: usize = elements
                .iter()
                .zip(&layout.eight)
                .map(|(&n, &eight)| if eight { 2 * n + 8 * n.div_ceil(256) } else { 8 * n })
                .sum();
            assert_eq!(layout.bytes(), total as u64);
            for (slot, &n) in elements.iter().enumerate() {
                let mut next = 0;
                for (page, piece) in layout.pieces(slot) {
                    assert_eq!(piece.first, next);
                    assert!(!piece.eight || piece.first.is_multiple_of(256));
                    assert!(piece.at + bytes_of(piece.eight, piece.len) <= layout.pages[page].bytes);
                    next += piece.len;
                }
                assert_eq!(next, n);
            }
            assert!(layout.pages.iter().all(|p| p.bytes <= page && !p.pieces.is_empty()));
            assert_eq!(layout.eight, elements.map(|n| optim.is_8bit() && n >= 4096));
        }
    }

    #[test]
    fn what_stays_in_memory_keeps_to_the_budget() {
        const MIB: u64 = 1 << 20;
        let elements = [5 << 20, 3000, 9 << 20];
        let total = 8 * elements.iter().sum::<usize>() as u64;
        let of = |optim, budget| memory(&elements, optim, budget);
        let all = MomentMemory { resident_bytes: total, file_bytes: 0 };
        assert_eq!(of(Optim::Adamw, None), all);
        assert_eq!(of(Optim::Adamw, Some(total)), all);
        for budget in [20, 33, 64, 100] {
            let found = of(Optim::Adamw, Some(budget * MIB));
            let room = budget * MIB - 3 * PAGE_BYTES as u64;
            assert!(found.resident_bytes <= budget * MIB, "{budget}: {found:?}");
            assert!(found.resident_bytes + 2 * PAGE_BYTES as u64 > budget * MIB, "{budget}: {found:?}");
            assert!(found.file_bytes >= total - room, "{budget}: {found:?}");
        }
        let least = MomentMemory { resident_bytes: 12 * MIB, file_bytes: total };
        assert_eq!(of(Optim::Adamw, Some(0)), least);
        assert_eq!(of(Optim::PagedAdamw, None), least);
        assert!(of(Optim::Adamw8bit, None).resident_bytes < total / 3);
        let small = memory(&[100], Optim::PagedAdamw, None);
        assert_eq!(small, MomentMemory { resident_bytes: 800, file_bytes: 800 });
        let kept = memory(&[100], Optim::Adamw, Some(0));
        assert_eq!(kept, MomentMemory { resident_bytes: 800, file_bytes: 0 });
        assert_eq!(memory(&[], Optim::PagedAdamw8bit, Some(0)), MomentMemory::default());
    }
}
