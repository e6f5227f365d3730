//! The rows of a frozen trunk, computed once for each text and used in every later epoch and evaluation.
//!
//! Everything below block `k` is frozen when only what lies above is trained: the head, the last blocks, adapters on upper
//! layers. The rows that block `k` reads are then the same in every epoch. Where the trunk is frozen to its end and a
//! classifier pools its rows, one row for each text is all that is kept, and an epoch costs the head alone.
//!
//! Rows are kept in memory up to a limit, then in a file that goes with the process. What fits neither is computed again.
//! Numbers and dropout masks are those without the cache, bit for bit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retune_formats::atomic;
use retune_formats::scratch::ScratchFile;
use retune_tensor::memory::{self, held_bytes};
use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use crate::models::{TextInput, TextModel};
use crate::nn::{Active, Head, Hidden, Pass, Pooling, Rows};

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

/// [`TextModel::hidden`] of some texts, from a cache where there is one.
pub fn hidden<'p>(
    cache: Option<&TrunkCache>,
    tape: &Tape<'p>,
    net: &'p dyn TextModel,
    texts: &[Text],
    pass: &Pass,
) -> Hidden {
    match cache {
        Some(cache) => cache.hidden(tape, net, texts, pass),
        None => {
            let packed = Packed::of(texts.iter().copied());
            net.hidden(tape, &packed.input(), pass)
        }
    }
}

/// Bytes of the rows that a cache would keep of texts with so many rows: for the memory plan.
pub fn kept_bytes(net: &dyn TextModel, params: &Params, lengths: impl Iterator<Item = usize>) -> u64 {
    let mut level = None;
    // Which parameters are met is all that is asked for: products need not be computed.
    memory::trace(|| level = frozen_level(net, params));
    let rows = match level {
        None => return 0,
        Some(Level::Pooled(_)) => lengths.count(),
        Some(_) => lengths.sum(),
    };
    4 * rows as u64 * net.info().hidden_size as u64
}

/// Texts laid end to end.
struct Packed {
    ids: Vec<u32>,
    token_types: Vec<u32>,
    segments: Segments,
}

impl Packed {
    fn of<'t>(texts: impl Iterator<Item = Text<'t>> + Clone) -> Packed {
        let lengths: Vec<usize> = texts.clone().map(|t| t.ids.len()).collect();
        let types = |t: Text<'t>| (0..t.ids.len()).map(move |i| t.token_types.get(i).copied().unwrap_or(0));
        // Single texts are all 0, which is what none means.
        let paired = texts.clone().any(|t| t.token_types.contains(&1));
        Packed {
            ids: texts.clone().flat_map(|t| t.ids.iter().copied()).collect(),
            token_types: if paired { texts.flat_map(types).collect() } else { Vec::new() },
            segments: Segments::from_lengths(&lengths),
        }
    }

    fn input(&self) -> TextInput<'_> {
        TextInput { token_types: &self.token_types, ..TextInput::new(&self.ids, &self.segments) }
    }
}

/// Up to where the trunk is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// The rows that this block reads; the number of blocks: the last block's output.
    Block(usize),
    /// The last norm's output.
    Normed,
    /// One row of that for each text.
    Pooled(Pooling),
}

/// One text: its ids, and 0 or 1 for each (empty: all 0).
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub ids: &'a [u32],
    pub token_types: &'a [u32],
}

/// Rows of texts, by the texts themselves: whoever asks for the same text gets the same rows.
pub struct TrunkCache {
    level: Level,
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

/// Where a text's rows lie.
#[derive(Clone, Copy)]
struct Place {
    /// Number of a block in memory; `None`: in the file.
    block: Option<usize>,
    first: usize,
    rows: usize,
}

impl TrunkCache {
    /// A cache for a model as it is going to be trained; `None` if its lowest block is trained, or there is nothing to gain.
    /// `limits` say where rows may be kept. The parameters that are frozen now must stay as they are.
    pub fn new(net: &dyn TextModel, params: &Params, limits: Limits) -> Option<TrunkCache> {
        let level = frozen_level(net, params)?;
        Some(TrunkCache { level, limits, kept: Mutex::default() })
    }

    /// The trunk's last rows for some texts laid end to end, as [`TextModel::hidden`] gives them; pooled already where
    /// that is what the head reads, so that each text has one row.
    pub fn hidden<'p>(&self, tape: &Tape<'p>, net: &'p dyn TextModel, texts: &[Text], pass: &Pass) -> Hidden {
        let (x, lengths) = self.rows(tape.params(), net, texts);
        let rows = Rows::new(Segments::from_lengths(&lengths), pass);
        let hidden = Hidden { x: Var::constant(x), rows };
        match self.level {
            Level::Block(from) => net.upper(tape, hidden, from, pass),
            Level::Normed | Level::Pooled(_) => hidden,
        }
    }

    /// Texts whose rows are kept.
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

    /// The kept rows of all texts, those of unknown ones computed first; and how many each has.
    fn rows(&self, params: &Params, net: &dyn TextModel, texts: &[Text]) -> (Tensor, Vec<usize>) {
        let mut kept = self.kept();
        let mut key = Vec::new();
        let unknown: Vec<usize> =
            (0..texts.len()).filter(|&i| kept.find(&texts[i], &mut key).is_none()).collect();
        let fresh = (!unknown.is_empty()).then(|| {
            let computed = self.compute(params, net, unknown.iter().map(|&i| texts[i]));
            self.keep(&mut kept, &unknown, texts, &computed);
            computed
        });
        if let Some((x, lengths)) = fresh.as_ref().filter(|_| unknown.len() == texts.len()) {
            return (x.clone(), lengths.clone());
        }
        match kept.collect(texts, fresh.as_ref().map(|(x, lengths)| (x, lengths, unknown.as_slice()))) {
            Some(found) => found,
            // The file cannot be read: all is computed as if nothing were kept.
            None => self.compute(params, net, texts.iter().copied()),
        }
    }

    /// Runs the frozen part over some texts.
    fn compute<'t>(
        &self,
        params: &Params,
        net: &dyn TextModel,
        texts: impl Iterator<Item = Text<'t>> + Clone,
    ) -> (Tensor, Vec<usize>) {
        let packed = Packed::of(texts);
        let pass = Pass::default();
        let to = if let Level::Block(to) = self.level { to } else { net.blocks() };
        let Hidden { x, rows } = net.lower(params, &packed.input(), to, &pass);
        let tape = Tape::inference(params);
        let x = match self.level {
            Level::Block(_) => x,
            Level::Normed => net.finish(&tape, &x),
            Level::Pooled(pooling) => {
                let pooled = pooling.apply(&tape, &net.finish(&tape, &x), &rows.segments);
                return (pooled.value().clone(), vec![1; rows.segments.len()]);
            }
        };
        (x.value().clone(), rows.segments.lengths())
    }

    /// Keeps the rows of the texts that were unknown, while there is room.
    fn keep(&self, kept: &mut Kept, unknown: &[usize], texts: &[Text], computed: &(Tensor, Vec<usize>)) {
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
        for (&text, &rows) in unknown.iter().zip(lengths) {
            kept.places.insert(key_of(&texts[text], Vec::new()).into(), Place { block, first, rows });
            first += rows;
        }
    }
}

/// A text's ids, its types behind them where it has any.
fn key_of(text: &Text, mut key: Vec<u32>) -> Vec<u32> {
    key.clear();
    key.extend_from_slice(text.ids);
    if text.token_types.contains(&1) {
        key.push(u32::MAX);
        key.extend_from_slice(text.token_types);
    }
    key
}

impl Kept {
    fn find(&self, text: &Text, key: &mut Vec<u32>) -> Option<Place> {
        *key = key_of(text, std::mem::take(key));
        self.places.get(key.as_slice()).copied()
    }

    /// Lays the rows of texts end to end: `fresh` ones (values, lengths, which texts) from there, others from where they
    /// are kept. `None` if the file cannot be read.
    fn collect(
        &self,
        texts: &[Text],
        fresh: Option<(&Tensor, &Vec<usize>, &[usize])>,
    ) -> Option<(Tensor, Vec<usize>)> {
        let mut key = Vec::new();
        let mut parts = Vec::with_capacity(texts.len());
        let mut new = fresh.map(|(x, lengths, which)| (x, lengths.iter().zip(which).peekable(), 0));
        let mut cols = fresh.map(|(x, ..)| x.cols());
        for (i, text) in texts.iter().enumerate() {
            if let Some((x, lengths, first)) = &mut new
                && let Some((&rows, _)) = lengths.next_if(|(_, which)| **which == i)
            {
                parts.push((Some(*x), *first, rows));
                *first += rows;
                continue;
            }
            let Place { block, first, rows } = self.find(text, &mut key)?;
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

/// The highest level below which nothing is trained: each part is run over one row, and asked whether it met a trainable
/// parameter. `None` if the first block or what comes before it is trained.
fn frozen_level(net: &dyn TextModel, params: &Params) -> Option<Level> {
    let segments = Segments::from_lengths(&[1]);
    let pass = Pass { active: Active::default(), ..Pass::default() };
    let tape = Tape::inference(params);
    let Hidden { mut x, rows } = net.embed(&tape, &TextInput::new(&[0], &segments), &pass);
    if tape.met_trainable() {
        return None;
    }
    let shared = net.shared(&rows, None);
    for index in 0..net.blocks() {
        x = net.block(&tape, &shared, index, &x, None);
        if tape.met_trainable() {
            return (index > 0).then_some(Level::Block(index));
        }
    }
    net.finish(&tape, &x);
    if tape.met_trainable() {
        return Some(Level::Block(net.blocks()));
    }
    match net.head() {
        Head::Classifier(head) if head.pooling != Pooling::Each => Some(Level::Pooled(head.pooling)),
        _ => Some(Level::Normed),
    }
}
