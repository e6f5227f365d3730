//! The rows of a frozen trunk, computed once for each text and used in every later epoch and evaluation.
//!
//! Everything below block `k` is frozen when only what lies above is trained: the head, the last blocks, adapters on upper
//! layers. The rows that block `k` reads are then the same in every epoch. Where the trunk is frozen to its end and a
//! classifier pools its rows, one row for each text is all that is kept, and an epoch costs the head alone.
//!
//! Rows are kept in memory up to a limit, then in a file that goes with the process. What fits neither is computed again.
//! Numbers and dropout masks are those without the cache, bit for bit.

use retune_tensor::{Params, Segments, Tape, Tensor, Var, memory};

use super::kept_rows::KeptRows;
pub use super::kept_rows::Limits;
use crate::models::{TextInput, TextModel};
use crate::nn::{Active, Head, Hidden, Pass, Pooling, Rows};

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
    4 * rows as u64 * net.hidden_size() as u64
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
    kept: KeptRows,
}

impl TrunkCache {
    /// A cache for a model as it is going to be trained; `None` if its lowest block is trained, or there is nothing to gain.
    /// `limits` say where rows may be kept. The parameters that are frozen now must stay as they are.
    pub fn new(net: &dyn TextModel, params: &Params, limits: Limits) -> Option<TrunkCache> {
        let level = frozen_level(net, params)?;
        Some(TrunkCache { level, kept: KeptRows::new(limits) })
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
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kept rows of all texts, those of unknown ones computed first; and how many each has.
    fn rows(&self, params: &Params, net: &dyn TextModel, texts: &[Text]) -> (Tensor, Vec<usize>) {
        let keys: Vec<Vec<u32>> = texts.iter().map(key_of).collect();
        self.kept.rows(&keys, &|which| self.compute(params, net, which.iter().map(|&i| texts[i])))
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
}

/// A text's ids, its types behind them where it has any.
fn key_of(text: &Text) -> Vec<u32> {
    let mut key = text.ids.to_vec();
    if text.token_types.contains(&1) {
        key.push(u32::MAX);
        key.extend_from_slice(text.token_types);
    }
    key
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
