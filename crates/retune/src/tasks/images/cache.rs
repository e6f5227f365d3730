//! What the frozen part of an image network gives, computed once for each picture: later epochs cost what is above it.
//!
//! Everything below block `k` is frozen when only what lies above is trained. What later layers read at that cut is kept as one row for each
//! picture; where a classifier pools the last pixels, the pooled row alone. Pictures must be the same in every epoch: no augmentation.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use retune_media::pictures::Placement;
use retune_tensor::{Grid, Params, Segments, Tape, Tensor, Var};

use crate::models::ImageModel;
use crate::models::Network;
use crate::models::graph::State;
use crate::nn::{Head, Hidden, Pass, Pooling, Rows};
use crate::tasks::kept_rows::{KeptRows, Limits};

/// Up to where the network is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// What lies at the cut in front of this block.
    Block(usize),
    /// One row of the last pixels for each picture.
    Pooled(Pooling),
}

/// Rows of pictures, by their numbers.
pub struct ImageCache {
    level: Level,
    /// Layer, grid of one picture and channels of each value at the cut.
    parts: Vec<(usize, Grid, usize)>,
    kept: KeptRows,
    /// Where the pictures lie in the network's input, for what has boxes in them.
    placements: Mutex<HashMap<u64, Placement>>,
}

/// The trunk's values for some pictures, or what the head reads.
pub enum Trunk {
    State(State),
    Pooled(Hidden),
}

impl ImageCache {
    /// A cache for a model as it is going to be trained; `None` if its lowest block is trained.
    pub fn new(net: &ImageModel, params: &Params, limits: Limits) -> Option<ImageCache> {
        let (level, parts) = frozen(net, params)?;
        Some(ImageCache { level, parts, kept: KeptRows::new(limits), placements: Mutex::default() })
    }

    /// Bytes that are kept of each picture.
    pub fn bytes_each(net: &ImageModel, params: &Params) -> u64 {
        let Some((level, parts)) = frozen(net, params) else { return 0 };
        let of = |(_, grid, channels): &(usize, Grid, usize)| match level {
            Level::Pooled(_) => *channels,
            Level::Block(_) => grid.pixels() * channels,
        };
        4 * parts.iter().map(of).sum::<usize>() as u64
    }

    /// Pictures whose rows are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the picture of this number lies in the network's input, if that was kept.
    pub fn placement(&self, key: u64) -> Option<Placement> {
        self.placements.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    /// Keeps where a picture lies.
    pub fn keep_placement(&self, key: u64, placement: Placement) {
        self.placements.lock().unwrap_or_else(PoisonError::into_inner).insert(key, placement);
    }

    /// What the network gives for pictures of these numbers; `read` makes the input of some of them.
    ///
    /// # Errors
    /// What `read` says.
    pub fn trunk<'p, E>(
        &self,
        tape: &Tape<'p>,
        net: &'p ImageModel,
        keys: &[u64],
        pass: &Pass,
        read: &dyn Fn(&[usize]) -> Result<(Tensor, Grid), E>,
    ) -> Result<Trunk, E> {
        let failed = std::cell::RefCell::new(None);
        let names: Vec<Vec<u32>> = keys.iter().map(|key| vec![*key as u32, (*key >> 32) as u32]).collect();
        let width: usize = self.width();
        let compute = |which: &[usize]| match read(which) {
            Ok((x, grid)) => (self.compute(tape.params(), net, x, grid), vec![1; which.len()]),
            Err(error) => {
                failed.borrow_mut().get_or_insert(error);
                (Tensor::zeros(which.len(), width), vec![1; which.len()])
            }
        };
        let (rows, _) = self.kept.rows(&names, &compute);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        Ok(match self.level {
            Level::Pooled(_) => {
                let rows_of = Rows::new(Segments::from_lengths(&vec![1; keys.len()]), pass);
                let grid = Grid { images: keys.len(), height: 1, width: 1 };
                Trunk::Pooled(Hidden { x: Var::constant(rows), rows: rows_of.on_grid(grid) })
            }
            Level::Block(from) => {
                let state = self.split(&rows, keys.len());
                Trunk::State(net.run(tape, state, from..net.blocks(), pass))
            }
        })
    }

    fn width(&self) -> usize {
        match self.level {
            Level::Pooled(_) => self.parts.iter().map(|(.., channels)| channels).sum(),
            Level::Block(_) => self.parts.iter().map(|(_, grid, channels)| grid.pixels() * channels).sum(),
        }
    }

    /// Runs the frozen part: one row for each picture.
    fn compute(&self, params: &Params, net: &ImageModel, x: Tensor, grid: Grid) -> Tensor {
        let tape = Tape::inference(params);
        let pass = Pass::default();
        let start = net.start(Var::constant(x), grid);
        match self.level {
            Level::Block(to) => {
                let state = net.run(&tape, start, 0..to, &pass);
                let parts: Vec<&Tensor> = state.values.iter().map(|(_, x, _)| x.value()).collect();
                let mut out = Tensor::scratch(grid.images, self.width());
                let width = out.cols();
                for (image, row) in out.data_mut().chunks_exact_mut(width.max(1)).enumerate() {
                    let mut rest = row;
                    for part in &parts {
                        let each = part.len() / grid.images.max(1);
                        let (here, after) = rest.split_at_mut(each);
                        here.copy_from_slice(&part.data()[image * each..][..each]);
                        rest = after;
                    }
                }
                out
            }
            Level::Pooled(pooling) => {
                let state = net.run(&tape, start, 0..net.blocks(), &pass);
                let Some(hidden) = net.hidden(&state, &pass) else {
                    return Tensor::zeros(grid.images, self.width());
                };
                pooling.apply(&tape, &hidden.x, &hidden.rows.segments).value().clone()
            }
        }
    }

    /// Rows of pictures as the values at the cut.
    fn split(&self, rows: &Tensor, images: usize) -> State {
        let mut first = 0;
        let mut values = Vec::new();
        for &(layer, grid, channels) in &self.parts {
            let each = grid.pixels() * channels;
            let grid = Grid { images, ..grid };
            let mut x = Tensor::scratch(grid.rows(), channels);
            for (image, out) in x.data_mut().chunks_exact_mut(each.max(1)).enumerate() {
                out.copy_from_slice(&rows.row(image)[first..first + each]);
            }
            first += each;
            values.push((layer, Var::constant(x), grid));
        }
        State { values, images }
    }
}

/// The highest cut below which nothing is trained, and what lies there: each block is run over one picture, and asked whether it met a trainable
/// parameter.
fn frozen(net: &ImageModel, params: &Params) -> Option<(Level, Vec<(usize, Grid, usize)>)> {
    let tape = Tape::inference(params);
    let pass = Pass::default();
    let input = net.input();
    let grid = Grid { images: 1, height: input.height, width: input.width };
    let mut found = None;
    retune_tensor::memory::trace(|| {
        let parts = |state: &State| state.values.iter().map(|(at, x, grid)| (*at, *grid, x.cols())).collect();
        let mut state = net.start(Var::constant(Tensor::zeros(grid.rows(), 3)), grid);
        for block in 0..net.blocks() {
            let at_cut = (Level::Block(block), parts(&state));
            state = net.run(&tape, state, block..block + 1, &pass);
            if tape.met_trainable() {
                found = (block > 0).then_some(at_cut);
                return;
            }
        }
        let level = match net.head() {
            Head::Classifier(head) => Level::Pooled(head.pooling),
            _ => Level::Block(net.blocks()),
        };
        found = Some((level, parts(&state)));
    });
    found
}
