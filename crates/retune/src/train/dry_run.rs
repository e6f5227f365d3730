//! What a pass takes, found by going through it on a few short texts without its products.
//!
//! The same code that trains is run four times ([`retune_tensor::memory::trace`]), on texts that differ in one number each:
//! their rows `T`, the rows that carry loss `S`, the texts `B`. Every buffer's size is `c + t T + s S + b B`, so four runs
//! tell what any batch takes, buffer by buffer, and when: a method, a model or an op needs no formula of its own.

use retune_media::pictures::Prepare;
use retune_tensor::memory::{self, Traced, held_bytes};
use retune_tensor::ops::linear_cross_entropy::chunk_rows;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, Grid, Params, Segments, Tape, Tensor, Var, kernel};

use crate::models::{ImageModel, Net, Network, TextInput, TextModel, Whisper};
use crate::nn::{Dropouts, Head, Pass};
use crate::tasks::causal_lm::head_loss;

/// How large a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassSize {
    /// Rows of all examples, virtual ones of a soft prompt included.
    pub rows: u64,
    /// Rows that carry loss.
    pub targets: u64,
    pub examples: u64,
    /// Rows of the longest example.
    pub longest: u64,
}

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward and backward; blocks are computed twice or not.
    Training { checkpointing: bool },
    /// Forward alone.
    Evaluation,
}

/// What is taken at the worst moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Kept by the forward pass until the backward pass needs it.
    pub activations: u64,
    /// Sums of gradients, which stay until the update.
    pub gradients: u64,
    /// What is needed for a moment only.
    pub transient: u64,
}

impl Moment {
    pub fn total(&self) -> u64 {
        self.activations + self.gradients + self.transient
    }
}

/// A pass as a function of its size.
#[derive(Clone, Debug)]
pub struct DryRun {
    events: Vec<Event>,
    comparable: bool,
    /// Width of the logits of a loss in chunks, and the rows of a chunk.
    logits: (u64, u64),
    /// Virtual rows of a soft prompt in each example.
    prompt_rows: u64,
    /// Keys in front of each example's.
    prefix_rows: u64,
    /// Columns of a head.
    head_dim: u64,
    /// Rows look at each other.
    attends: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Take(Size),
    Free(usize),
    Mark,
}

/// Elements of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    fixed: i64,
    per_row: i64,
    per_target: i64,
    per_example: i64,
}

/// What becomes of a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Activation,
    Gradient,
    Transient,
}

/// The texts of a probe: how many, how long, how many rows with loss.
#[derive(Clone, Copy)]
struct Probe {
    texts: usize,
    length: usize,
    targets: usize,
}

impl Probe {
    fn rows(self) -> usize {
        self.texts * self.length
    }

    fn segments(self) -> Segments {
        Segments::from_lengths(&vec![self.length; self.texts])
    }
}

/// Bytes of a row beside tensors: ids, labels, keys of dropout masks, positions.
const ROW_BYTES: u64 = 80;
/// Bytes of a tensor on a tape beside its values: its node, its recipe, its place in lists.
const NODE_BYTES: u64 = 400;
/// One part in so many is added for what no list has: small vectors, uneven cuts.
const MARGIN: u64 = 64;
/// Queries of a tile of attention.
const TILE: u64 = 64;

impl DryRun {
    /// Goes through a pass of a model as it is going to be trained or evaluated.
    pub fn of(net: &Net, params: &Params, purpose: Purpose) -> DryRun {
        match net {
            Net::Text(net) => DryRun::of_texts(net.as_ref(), params, purpose),
            Net::Image(net) => DryRun::of_pictures(net, params, purpose),
            Net::Speech(net) => DryRun::of_speech(net, params, purpose, net.config().frames()),
        }
    }

    /// As [`DryRun::of`]; a model that reads sound sees windows of so many frames, if that is said.
    pub fn of_windows(net: &Net, params: &Params, purpose: Purpose, frames: Option<usize>) -> DryRun {
        match (net, frames) {
            (Net::Speech(net), Some(frames)) => DryRun::of_speech(net, params, purpose, frames),
            _ => DryRun::of(net, params, purpose),
        }
    }

    /// Pictures have one size: two probes tell what each of them takes.
    fn of_pictures(net: &ImageModel, params: &Params, purpose: Purpose) -> DryRun {
        let [few, more] = [2, 3].map(|n| memory::trace(|| run_pictures(net, params, purpose, n)));
        let comparable = alike(&few, &more);
        let size = |index: usize, elements: usize| {
            let per_example = match more.get(index) {
                Some(Traced::Take(larger)) if comparable => *larger as i64 - elements as i64,
                // The paths differ with their number: all is taken for pictures.
                _ => elements.div_ceil(2) as i64,
            };
            let fixed = if comparable { elements as i64 - 2 * per_example } else { 0 };
            Size { fixed, per_row: 0, per_target: 0, per_example }
        };
        let event = |(index, traced): (usize, &Traced)| match *traced {
            Traced::Take(elements) => Event::Take(size(index, elements)),
            Traced::Free(number) => Event::Free(number),
            Traced::Mark => Event::Mark,
        };
        DryRun {
            comparable,
            events: few.iter().enumerate().map(event).collect(),
            logits: (0, 1),
            prompt_rows: 0,
            prefix_rows: 0,
            head_dim: 0,
            attends: false,
        }
    }

    /// Texts of several lengths.
    fn of_texts(net: &dyn TextModel, params: &Params, purpose: Purpose) -> DryRun {
        let info = net.info();
        let (prompt_rows, prefix_rows) = (net.prompt_rows(Some(0)), net.prefix_rows(Some(0)));
        let most = if info.learned_positions { info.context_length } else { usize::MAX };
        // Large enough for the paths that large passes take, short enough for any table of positions.
        let long = most.saturating_sub(prompt_rows + prefix_rows).clamp(1, 12);
        let first = Probe { texts: 5, length: long.saturating_sub(4).max(1), targets: 16.min(long * 4) };
        let logits = net.language_model().map_or(0, |head| head.linear.out_features);
        DryRun {
            logits: (logits as u64, chunk_rows(logits) as u64),
            prompt_rows: prompt_rows as u64,
            prefix_rows: prefix_rows as u64,
            head_dim: if net.blocks() == 0 { 0 } else { net.attention(0).shape.head_dim as u64 },
            ..DryRun::probed(first, long, |probe| run(net, params, purpose, probe))
        }
    }

    /// Transcripts of several lengths, each over a window of so many frames.
    fn of_speech(net: &Whisper, params: &Params, purpose: Purpose, frames: usize) -> DryRun {
        let long = net.room(Some(0)).clamp(1, 12);
        let first = Probe { texts: 2, length: long.saturating_sub(4).max(1), targets: 8.min(long) };
        let logits = net.config().vocab_size;
        DryRun {
            logits: (logits as u64, chunk_rows(logits) as u64),
            prefix_rows: net.prefix_rows(Some(0)) as u64,
            head_dim: net.head_dim() as u64,
            ..DryRun::probed(first, long, |probe| run(&Windows { net, frames }, params, purpose, probe))
        }
    }

    /// What four probes tell: one, and others that differ from it in one number each.
    fn probed(first: Probe, long: usize, run: impl Fn(Probe)) -> DryRun {
        // A model with room for a few rows alone has few with loss.
        let first = Probe { targets: first.targets.min(first.rows().div_ceil(2)), ..first };
        let probes = [
            first,
            Probe { length: long, ..first },
            Probe { targets: first.targets + 8.min(first.rows() - first.targets), ..first },
            Probe { texts: first.texts + 1, ..first },
        ];
        let traces = probes.map(|probe| memory::trace(|| run(probe)));
        DryRun {
            comparable: traces[1..].iter().all(|other| alike(&traces[0], other)),
            events: fit(&probes, &traces),
            logits: (0, 1),
            prompt_rows: 0,
            prefix_rows: 0,
            attends: true,
            head_dim: 0,
        }
    }

    /// Whether all probes took the same path. If not, every buffer is taken to grow with the rows.
    pub fn is_exact(&self) -> bool {
        self.comparable
    }

    /// What a window of so many passes of this size takes at its worst moment.
    pub fn worst(&self, size: PassSize, passes: usize) -> Moment {
        let kinds = self.kinds();
        let mut live = Moment::default();
        let mut worst = live;
        let mut taken: Vec<u64> = Vec::new();
        let mut marks = 0;
        for event in &self.events {
            match *event {
                Event::Take(elements) => {
                    let bytes = held_bytes(self.elements(elements, size)) as u64;
                    *live.of(kinds[taken.len()]) += bytes;
                    taken.push(bytes);
                    if live.total() > worst.total() {
                        worst = live;
                    }
                }
                Event::Free(number) => *live.of(kinds[number]) -= taken[number],
                Event::Mark => marks += 1,
            }
            // Two marks a pass; more than two passes repeat the second.
            if marks == 2 * passes.min(2) {
                break;
            }
        }
        let nodes = NODE_BYTES * kinds.iter().filter(|kind| **kind == Kind::Activation).count() as u64;
        worst.transient += self.beside(size) + nodes + worst.total() / MARGIN;
        worst
    }

    /// What a pass takes beside tensors: scratch of attention on each thread, lists of rows.
    fn beside(&self, size: PassSize) -> u64 {
        if !self.attends {
            return 0;
        }
        let threads = rayon::current_num_threads() as u64;
        let keys = size.longest + self.prefix_rows;
        let tile = TILE.min(size.longest);
        let scratch = 2 * tile * keys + 2 * keys * self.head_dim + TILE * self.head_dim;
        4 * threads * scratch + size.rows * ROW_BYTES
    }

    fn elements(&self, size: Size, pass: PassSize) -> usize {
        let (logits, chunk) = self.logits;
        // Logits of a loss over a vocabulary exist in chunks.
        let in_chunks = logits > 0 && size.per_target == logits as i64;
        let targets = if in_chunks { pass.targets.min(chunk) } else { pass.targets };
        let rows = pass.rows.saturating_sub(self.prompt_rows * pass.examples);
        let elements = size.fixed
            + size.per_row * rows as i64
            + size.per_target * targets as i64
            + size.per_example * pass.examples as i64;
        elements.max(0) as usize
    }

    /// What becomes of each buffer: gradients are never given back, activations live when a forward pass is done.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        let mut alive: Vec<usize> = Vec::new();
        let mut marks = 0;
        for event in &self.events {
            match *event {
                Event::Take(_) => {
                    alive.push(kinds.len());
                    kinds.push(Kind::Transient);
                }
                Event::Free(number) => alive.retain(|other| *other != number),
                Event::Mark => {
                    let kind = if marks % 2 == 0 { Kind::Activation } else { Kind::Gradient };
                    for &number in &alive {
                        if kinds[number] != Kind::Gradient {
                            kinds[number] = kind;
                        }
                    }
                    marks += 1;
                }
            }
        }
        kinds
    }
}

impl Moment {
    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Activation => &mut self.activations,
            Kind::Gradient => &mut self.gradients,
            Kind::Transient => &mut self.transient,
        }
    }
}

/// Bytes of all buffers that some work takes.
pub fn taken_bytes(work: impl FnOnce()) -> u64 {
    let bytes =
        |event: &Traced| if let Traced::Take(elements) = event { held_bytes(*elements) as u64 } else { 0 };
    memory::trace(work).iter().map(bytes).sum()
}

/// Bytes that all threads keep for the packed operands of products with these weights.
pub fn workspace_bytes(net: &Net, params: &Params) -> u64 {
    let block = params.iter().map(|(_, param)| param.weight.storage().block()).max().unwrap_or(1);
    let largest = net.linears().into_iter().map(|layer| layer.in_features * layer.out_features).max();
    let largest = largest.unwrap_or(0);
    let most = kernel::workspace_bytes(block);
    // A product for a weight's gradient packs activations; the others pack no more than a weight and its padding.
    let trains_base = params.iter().any(|(_, param)| param.trainable && !param.adapter);
    let bytes = if trains_base { most } else { most.min(5 * largest + (64 << 10)) };
    (rayon::current_num_threads() * bytes) as u64
}

/// What goes through a pass as tasks do.
trait Probed {
    /// The loss of a probe.
    fn loss<'p>(&'p self, tape: &Tape<'p>, probe: Probe, pass: &Pass) -> Var;
}

/// One probe: two passes, so that the second finds the gradients of the first.
fn run<N: Probed + ?Sized>(net: &N, params: &Params, purpose: Purpose, probe: Probe) {
    let Purpose::Training { checkpointing } = purpose else {
        let tape = Tape::inference(params);
        net.loss(&tape, probe, &Pass::default());
        return;
    };
    let mut gradients = Gradients::new();
    for _ in 0..2 {
        let tape = Tape::new(params);
        let examples = (0..probe.texts as u64).collect();
        let dropout = Some(Dropouts { seed: 0, epoch: 0, examples });
        let pass = Pass { dropout, checkpoint: checkpointing, ..Pass::default() };
        let value = net.loss(&tape, probe, &pass);
        memory::mark();
        tape.backward(&value, Tensor::scalar(1.0), &mut gradients);
        drop(value);
        memory::mark();
    }
}

/// The same with pictures.
fn run_pictures(net: &ImageModel, params: &Params, purpose: Purpose, images: usize) {
    let Prepare { height, width, .. } = net.input();
    let grid = Grid { images, height, width };
    fn forward<'p>(net: &'p ImageModel, tape: &Tape<'p>, grid: Grid, pass: &Pass) -> Var {
        let x = Var::constant(Tensor::scratch(grid.rows(), 3));
        let state = net.run(tape, net.start(x, grid), 0..net.blocks(), pass);
        let outputs: Vec<Var> = match (net.head(), net.hidden(&state, pass)) {
            (Head::Detector(_), _) => net.detect(tape, &state, pass).into_iter().map(|(x, ..)| x).collect(),
            (Head::Classifier(head), Some(hidden)) => vec![head.forward(tape, &hidden)],
            (_, hidden) => hidden.map(|hidden| hidden.x).into_iter().collect(),
        };
        let losses = outputs.iter().map(|x| ops::mse(tape, x, &Tensor::zeros(x.rows(), x.cols()), 1.0));
        let sum = losses.reduce(|sum, loss| ops::add(tape, &sum, &loss));
        sum.unwrap_or_else(|| Var::constant(Tensor::zeros(1, 1)))
    }
    let Purpose::Training { checkpointing } = purpose else {
        forward(net, &Tape::inference(params), grid, &Pass::default());
        return;
    };
    let mut gradients = Gradients::new();
    for _ in 0..2 {
        let tape = Tape::new(params);
        let dropout = Some(Dropouts { seed: 0, epoch: 0, examples: (0..images as u64).collect() });
        let value =
            forward(net, &tape, grid, &Pass { dropout, checkpoint: checkpointing, ..Pass::default() });
        memory::mark();
        tape.backward(&value, Tensor::scalar(1.0), &mut gradients);
        drop(value);
        memory::mark();
    }
}

impl Probed for dyn TextModel + '_ {
    fn loss<'p>(&'p self, tape: &Tape<'p>, probe: Probe, pass: &Pass) -> Var {
        let (ids, segments) = (vec![0; probe.rows()], probe.segments());
        let hidden = self.hidden(tape, &TextInput::new(&ids, &segments), pass);
        match self.head() {
            Head::LanguageModel(head) => head_loss(tape, head, &hidden, &labels(probe.targets)),
            Head::Classifier(head) => {
                let logits = head.forward(tape, &hidden);
                ops::cross_entropy(tape, &logits, &labels(logits.rows()))
            }
            Head::Detector(_) | Head::None => hidden.x,
        }
    }
}

/// Transcripts over windows of so many frames.
struct Windows<'a> {
    net: &'a Whisper,
    frames: usize,
}

impl Probed for Windows<'_> {
    fn loss<'p>(&'p self, tape: &Tape<'p>, probe: Probe, pass: &Pass) -> Var {
        let (ids, segments) = (vec![0; probe.rows()], probe.segments());
        let clips = Segments::from_lengths(&vec![self.frames; probe.texts]);
        let features = Var::constant(Tensor::scratch(clips.rows(), self.net.config().num_mel_bins));
        let sound = self.net.encode(tape, &features, &clips, pass);
        drop(features);
        let hidden = self.net.decode(tape, &sound, &ids, &segments, pass);
        match self.net.head() {
            Head::LanguageModel(head) => head_loss(tape, head, &hidden, &labels(probe.targets)),
            _ => hidden.x,
        }
    }
}

/// Labels of the first rows.
fn labels(rows: usize) -> LossRows {
    LossRows { rows: (0..rows).collect(), targets: vec![0; rows], weights: vec![1.0; rows], denominator: 1.0 }
}

/// Whether two traces differ in sizes alone.
fn alike(one: &[Traced], other: &[Traced]) -> bool {
    let same = |(a, b): (&Traced, &Traced)| match (a, b) {
        (Traced::Take(_), Traced::Take(_)) => true,
        (a, b) => a == b,
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// Each buffer's size from what it was in four probes.
fn fit(probes: &[Probe; 4], traces: &[Vec<Traced>; 4]) -> Vec<Event> {
    let [first, longer, targets, texts] = traces;
    let comparable = [longer, targets, texts].into_iter().all(|other| alike(first, other));
    let at = |trace: &[Traced], index: usize| match trace.get(index) {
        Some(Traced::Take(elements)) => *elements as i64,
        _ => 0,
    };
    let (rows, per_text) = (probes[0].rows() as i64, probes[0].length as i64);
    let [more_rows, more_targets] =
        [probes[1].rows() - probes[0].rows(), probes[2].targets - probes[0].targets].map(|n| n as i64);
    let size = |index: usize, elements: i64| {
        if !comparable || more_rows == 0 {
            // The paths differ with the size: all is taken for rows.
            return Size {
                fixed: 0,
                per_row: (elements as u64).div_ceil(rows as u64) as i64,
                per_target: 0,
                per_example: 0,
            };
        }
        let slope = |other: &[Traced], by: i64| {
            if by == 0 { 0 } else { (at(other, index) - elements).div_euclid(by) }
        };
        let (per_row, per_target) = (slope(longer, more_rows), slope(targets, more_targets));
        let per_example = at(texts, index) - elements - per_row * per_text;
        let known =
            per_row * rows + per_target * probes[0].targets as i64 + per_example * probes[0].texts as i64;
        Size { fixed: elements - known, per_row, per_target, per_example }
    };
    let event = |(index, traced): (usize, &Traced)| match *traced {
        Traced::Take(elements) => Event::Take(size(index, elements as i64)),
        Traced::Free(number) => Event::Free(number),
        Traced::Mark => Event::Mark,
    };
    first.iter().enumerate().map(event).collect()
}
