//! The place in front of the embedded tokens, where a method may put trained rows (Lester et al., 2021).

use retune_tensor::ops;
use retune_tensor::{Tape, Var};

use crate::nn::{Rows, Slots, attention::fronts};

/// What a method puts into [`Prompt::rows`].
pub trait PromptRows: Send + Sync {
    /// Number of virtual tokens.
    fn rows(&self) -> usize;

    /// Their embeddings `[n, C]`.
    fn forward(&self, tape: &Tape) -> Var;
}

/// The site of soft prompts: after the token table, before positions.
#[derive(Default)]
pub struct Prompt {
    pub rows: Slots<dyn PromptRows>,
}

impl Prompt {
    /// Number of virtual tokens in front of an example that goes through this slot.
    pub fn virtual_rows(&self, slot: Option<usize>) -> usize {
        self.rows.get(slot).map_or(0, |prompt| prompt.rows())
    }

    /// `x` `[T, C]` with each example's virtual tokens in front, and its rows then.
    pub fn lengthen(&self, tape: &Tape, rows: &Rows, x: Var) -> (Var, Rows) {
        if self.rows.is_empty() {
            return (x, rows.clone());
        }
        let slots: Vec<Option<usize>> = (0..rows.segments.len()).map(|e| rows.active.of(e)).collect();
        let made = fronts(&slots, |slot| self.rows.get(Some(slot)).map(|prompt| prompt.forward(tape)));
        let made: Vec<Option<&Var>> = made.iter().map(Option::as_ref).collect();
        let (x, segments) = ops::concat_segments_each(tape, &made, &x, &rows.segments);
        (x, rows.with_segments(segments))
    }
}
