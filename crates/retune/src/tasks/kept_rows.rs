//! Rows that a frozen part of a network gave, by keys: in memory up to a limit, then in a file that goes with the process. What fits neither is
//! computed again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retune_formats::atomic;
use retune_formats::scratch::ScratchFile;
use retune_tensor::Tensor;
use retune_tensor::memory::held_bytes;

/// Free space that a file of rows leaves on its disk, in bytes.
const LEAVE_ON_DISK: u64 = 2 << 30;

/// Where rows may be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of rows in memory.
    pub memory: u64,
    /// The folder of the file for what exceeds that; `None`: no file.
    pub folder: Option<PathBuf>,
}

/// Rows of examples, by their keys: whoever asks for the same key gets the same rows.
pub struct KeptRows {
    limits: Limits,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    places: HashMap<Box<[u32]>, Place>,
    blocks: Vec<Tensor>,
    memory: u64,
    file: FileRows,
}

/// Where an example's rows lie.
#[derive(Clone, Copy)]
struct Place {
    /// Number of a block in memory; `None`: in the file.
    block: Option<usize>,
    first: usize,
    rows: usize,
}

impl KeptRows {
    /// Nothing yet.
    pub fn new(limits: Limits) -> KeptRows {
        KeptRows { limits, kept: Mutex::default() }
    }

    /// Examples whose rows are kept.
    pub fn len(&self) -> usize {
        self.kept().places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What is kept is whole at any time: a panic elsewhere does not spoil it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept rows of all examples, laid end to end, and how many each has; `compute` makes those of some of them, in order.
    pub fn rows(
        &self,
        keys: &[Vec<u32>],
        compute: &dyn Fn(&[usize]) -> (Tensor, Vec<usize>),
    ) -> (Tensor, Vec<usize>) {
        let mut kept = self.kept();
        let unknown: Vec<usize> = (0..keys.len()).filter(|&i| kept.find(&keys[i]).is_none()).collect();
        let fresh = (!unknown.is_empty()).then(|| {
            let computed = compute(&unknown);
            self.keep(&mut kept, &unknown, keys, &computed);
            computed
        });
        if let Some((x, lengths)) = fresh.as_ref().filter(|_| unknown.len() == keys.len()) {
            return (x.clone(), lengths.clone());
        }
        match kept.collect(keys, fresh.as_ref().map(|(x, lengths)| (x, lengths, unknown.as_slice()))) {
            Some(found) => found,
            // The file cannot be read: all is computed as if nothing were kept.
            None => compute(&(0..keys.len()).collect::<Vec<_>>()),
        }
    }

    /// Keeps the rows of the examples that were unknown, while there is room.
    fn keep(&self, kept: &mut Kept, unknown: &[usize], keys: &[Vec<u32>], computed: &(Tensor, Vec<usize>)) {
        let (x, lengths) = computed;
        let bytes = held_bytes(x.len()) as u64;
        let (block, mut first) = if kept.memory + bytes <= self.limits.memory {
            kept.memory += bytes;
            kept.blocks.push(x.clone());
            (Some(kept.blocks.len() - 1), 0)
        } else {
            let folder = self.limits.folder.as_deref();
            match folder.and_then(|folder| kept.file.append(folder, x)) {
                Some(first) => (None, first),
                None => return,
            }
        };
        for (&example, &rows) in unknown.iter().zip(lengths) {
            kept.places.insert(keys[example].clone().into(), Place { block, first, rows });
            first += rows;
        }
    }
}

impl Kept {
    fn find(&self, key: &[u32]) -> Option<Place> {
        self.places.get(key).copied()
    }

    /// Lays the rows of examples end to end: `fresh` ones (values, lengths, which examples) from there, others from where they
    /// are kept. `None` if the file cannot be read.
    fn collect(
        &self,
        keys: &[Vec<u32>],
        fresh: Option<(&Tensor, &Vec<usize>, &[usize])>,
    ) -> Option<(Tensor, Vec<usize>)> {
        let mut parts = Vec::with_capacity(keys.len());
        let mut new = fresh.map(|(x, lengths, which)| (x, lengths.iter().zip(which).peekable(), 0));
        let mut cols = fresh.map(|(x, ..)| x.cols());
        for (i, key) in keys.iter().enumerate() {
            if let Some((x, lengths, first)) = &mut new
                && let Some((&rows, _)) = lengths.next_if(|(_, which)| **which == i)
            {
                parts.push((Some(*x), *first, rows));
                *first += rows;
                continue;
            }
            let Place { block, first, rows } = self.find(key)?;
            let block = block.and_then(|block| self.blocks.get(block));
            cols = cols.or(block.map(Tensor::cols)).or(Some(self.file.cols));
            parts.push((block, first, rows));
        }
        let cols = cols?;
        let mut x = Tensor::scratch(parts.iter().map(|(.., rows)| rows).sum(), cols);
        let mut rest = x.data_mut();
        for (block, first, rows) in &parts {
            let (here, after) = rest.split_at_mut(rows * cols);
            match block {
                Some(block) => here.copy_from_slice(&block.data()[first * cols..(first + rows) * cols]),
                None => self.file.read(*first, here)?,
            }
            rest = after;
        }
        Some((x, parts.iter().map(|(.., rows)| *rows).collect()))
    }
}

/// Rows in a file, f32, little-endian.
#[derive(Default)]
struct FileRows {
    file: Option<ScratchFile>,
    rows: usize,
    cols: usize,
    /// It could not be made or grown: no further try.
    full: bool,
}

/// Values that are turned into bytes at a time.
const STRIP: usize = 64 << 10;

impl FileRows {
    /// Appends rows; returns the number of the first. `None` if there is no room: the file is a help, not a must.
    fn append(&mut self, folder: &Path, x: &Tensor) -> Option<usize> {
        if self.full {
            return None;
        }
        let written = self.write(folder, x);
        self.full = written.is_none();
        written
    }

    fn write(&mut self, folder: &Path, x: &Tensor) -> Option<usize> {
        atomic::check_space(folder, 4 * x.len() as u64 + LEAVE_ON_DISK).ok()?;
        if self.file.is_none() {
            self.file = Some(ScratchFile::create(folder, "trunk-rows").ok()?);
            self.cols = x.cols();
        }
        let file = self.file.as_ref()?;
        let first = self.rows;
        let mut bytes = Vec::with_capacity(4 * STRIP.min(x.len()));
        for (strip, values) in x.data().chunks(STRIP).enumerate() {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            file.write_at(&bytes, 4 * (first * self.cols + strip * STRIP) as u64).ok()?;
        }
        self.rows += x.rows();
        Some(first)
    }

    fn read(&self, first: usize, out: &mut [f32]) -> Option<()> {
        let file = self.file.as_ref()?;
        let mut bytes = vec![0; 4 * STRIP.min(out.len())];
        for (strip, values) in out.chunks_mut(STRIP).enumerate() {
            let bytes = &mut bytes[..4 * values.len()];
            file.read_at(bytes, 4 * (first * self.cols + strip * STRIP) as u64).ok()?;
            values.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
        Some(())
    }
}
