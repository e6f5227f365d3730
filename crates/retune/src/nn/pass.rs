//! One forward pass: the rows it works on, which adapter they go through, and how they are treated.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use retune_tensor::ops::{DropoutRows, RopeTable};
use retune_tensor::{Grid, Segments, Tape, Tensor, Var};

/// Keys the dropout masks of a training pass.
#[derive(Clone, Debug)]
pub struct Dropouts {
    pub seed: u64,
    pub epoch: u64,
    /// The stable key of each example of the batch.
    pub examples: Vec<u64>,
}

/// Which adapter the examples of a pass go through: sites hold one for each slot ([`crate::nn::Slots`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Active {
    Slot(usize),
    /// The base alone.
    Base,
    /// One for each example; `None` is the base alone.
    PerExample(Arc<[Option<usize>]>),
}

impl Default for Active {
    fn default() -> Active {
        Active::Slot(0)
    }
}

impl Active {
    /// The slot of an example.
    pub fn of(&self, example: usize) -> Option<usize> {
        match self {
            Active::Slot(slot) => Some(*slot),
            Active::Base => None,
            Active::PerExample(slots) => slots.get(example).copied().flatten(),
        }
    }
}

/// What a pass is for. The default is evaluation: no dropout, everything kept that a backward pass needs, slot 0.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// `Some` while training.
    pub dropout: Option<Dropouts>,
    /// Blocks are run again in the backward pass instead of keeping their activations.
    pub checkpoint: bool,
    pub active: Active,
}

impl Pass {
    /// A pass of the training loop: dropout while `tape` records and there is a seed, its masks keyed by (seed, epoch,
    /// example). `examples` are the batch's stable keys.
    pub fn of_step(
        tape: &Tape,
        seed: Option<u64>,
        epoch: u64,
        examples: impl Iterator<Item = u64>,
        checkpoint: bool,
    ) -> Pass {
        let seed = seed.filter(|_| tape.is_recording());
        let dropout = seed.map(|seed| Dropouts { seed, epoch, examples: examples.collect() });
        Pass { dropout, checkpoint, ..Pass::default() }
    }
}

/// The rows of a batch as layers see them.
#[derive(Clone)]
pub struct Rows {
    pub segments: Segments,
    pub active: Active,
    /// Where the rows are pixels.
    pub grid: Option<Grid>,
    keys: Option<Arc<Dropouts>>,
    masks: Arc<OnceLock<DropoutRows>>,
}

/// Neighbouring examples of one adapter.
struct Group {
    slot: Option<usize>,
    examples: Range<usize>,
}

impl Rows {
    pub fn new(segments: Segments, pass: &Pass) -> Rows {
        let keys = pass.dropout.clone().map(Arc::new);
        Rows::keyed(segments, keys, pass.active.clone())
    }

    fn keyed(segments: Segments, keys: Option<Arc<Dropouts>>, active: Active) -> Rows {
        Rows { segments, active, grid: None, keys, masks: Arc::default() }
    }

    /// Keys of the dropout masks, row by row: while training.
    pub fn dropout(&self) -> Option<&DropoutRows> {
        let keys = self.keys.as_ref()?;
        let rows = || DropoutRows::new(keys.seed, keys.epoch, &self.segments, &keys.examples);
        Some(self.masks.get_or_init(rows))
    }

    /// The same examples as pixels: each is an image of `grid`.
    pub fn on_grid(&self, grid: Grid) -> Rows {
        let rows = self.with_segments(Segments::from_lengths(&vec![grid.pixels(); grid.images]));
        Rows { grid: Some(grid), ..rows }
    }

    /// The same examples with other rows: virtual rows in front, or pooled to one row each.
    pub fn with_segments(&self, segments: Segments) -> Rows {
        Rows::keyed(segments, self.keys.clone(), self.active.clone())
    }

    /// The same examples with one row each.
    pub fn pooled(&self) -> Rows {
        self.with_segments(Segments::from_lengths(&vec![1; self.segments.len()]))
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for example in 0..self.segments.len() {
            let slot = self.active.of(example);
            match groups.last_mut() {
                Some(last) if last.slot == slot => last.examples.end = example + 1,
                _ => groups.push(Group { slot, examples: example..example + 1 }),
            }
        }
        groups
    }

    /// The examples of a group alone.
    fn part(&self, group: &Group) -> (Rows, Range<usize>) {
        let lengths: Vec<usize> = group.examples.clone().map(|e| self.segments.length(e)).collect();
        let start = self.segments.range(group.examples.start).start;
        let segments = Segments::from_lengths(&lengths);
        let range = start..start + segments.rows();
        let active = group.slot.map_or(Active::Base, Active::Slot);
        let grid = self.grid.map(|grid| Grid { images: group.examples.len(), ..grid });
        (Rows { grid, ..Rows::keyed(segments, None, active) }, range)
    }

    /// Runs `part` over the rows of each adapter, with its slot, and lays the results end to end: each example's output
    /// is what it would be alone. `xs` are values `[T, _]` of these rows.
    ///
    /// # Panics
    /// If the adapters differ between examples while a tape records: mixed batches are for inference.
    pub fn by_adapter<const N: usize>(
        &self,
        tape: &Tape,
        xs: [&Var; N],
        part: impl Fn(Option<usize>, &Rows, [&Var; N]) -> Var,
    ) -> Var {
        if !matches!(self.active, Active::PerExample(_)) || self.segments.is_empty() {
            return part(self.active.of(0), self, xs);
        }
        assert!(!tape.is_recording(), "mixed batches are for inference");
        let outs: Vec<Var> = self
            .groups()
            .iter()
            .map(|group| {
                let (rows, range) = self.part(group);
                let parts = xs.map(|x| slice_rows(x, range.clone()));
                part(group.slot, &rows, parts.each_ref())
            })
            .collect();
        stack(&outs)
    }
}

fn slice_rows(x: &Var, rows: Range<usize>) -> Var {
    let cols = x.cols();
    Var::constant(Tensor::from_slice(rows.len(), cols, &x.value().data()[rows.start * cols..rows.end * cols]))
}

fn stack(parts: &[Var]) -> Var {
    let cols = parts.first().map_or(0, Var::cols);
    let mut out = Tensor::scratch(parts.iter().map(Var::rows).sum(), cols);
    let mut rest = out.data_mut();
    for part in parts {
        let (here, after) = rest.split_at_mut(part.value().len());
        here.copy_from_slice(part.value().data());
        rest = after;
    }
    Var::constant(out)
}

/// What all blocks of one pass share.
#[derive(Clone)]
pub struct Shared {
    pub rows: Rows,
    /// Where positions are rotations.
    pub rope: Option<RopeTable>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_tensor::Params;

    #[test]
    fn each_example_goes_through_its_own_adapter() {
        let slots: Arc<[Option<usize>]> = vec![Some(1), Some(1), None, Some(0)].into();
        let pass = Pass { active: Active::PerExample(slots), ..Pass::default() };
        let rows = Rows::new(Segments::from_lengths(&[2, 1, 3, 1]), &pass);
        let params = Params::new();
        let tape = Tape::inference(&params);
        let x = Var::constant(Tensor::from_fn(7, 2, |r, _| r as f32));
        let y = rows.by_adapter(&tape, [&x], |slot, rows, [x]| {
            let mut y = x.value().clone();
            y.scale_assign(slot.map_or(1.0, |s| 10.0 * (s + 1) as f32));
            assert_eq!(rows.segments.rows(), y.rows());
            Var::constant(y)
        });
        let firsts: Vec<f32> = (0..7).map(|r| y.value().row(r)[0]).collect();
        assert_eq!(firsts, [0.0, 20.0, 40.0, 3.0, 4.0, 5.0, 60.0]);
    }
}
