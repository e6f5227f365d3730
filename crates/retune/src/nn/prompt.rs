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

    /// They stand in front of rows whose positions, types and norm are in them already, and take no position: as with
    /// AdapterHub. Else they stand in front of the tokens' embeddings, as with PEFT.
    fn is_embedded(&self) -> bool {
        false
    }
}

/// The site of soft prompts: after the token table, before positions; or after all of that.
#[derive(Default)]
pub struct Prompt {
    pub rows: Slots<dyn PromptRows>,
}

impl Prompt {
    /// Number of virtual tokens in front of an example that goes through this slot.
    pub fn virtual_rows(&self, slot: Option<usize>) -> usize {
        self.rows.get(slot).map_or(0, |prompt| prompt.rows())
    }

    /// Positions that the virtual tokens of this slot take.
    pub fn virtual_positions(&self, slot: Option<usize>) -> usize {
        self.rows.get(slot).map_or(0, |prompt| if prompt.is_embedded() { 0 } else { prompt.rows() })
    }

    /// `x` `[T, C]`, the tokens' embeddings, with each example's virtual tokens in front, and its rows then.
    pub fn lengthen(&self, tape: &Tape, rows: &Rows, x: Var) -> (Var, Rows) {
        self.put_in_front(tape, rows, x, false)
    }

    /// The same where the rows of `x` have their positions, types and norm.
    pub fn lengthen_embedded(&self, tape: &Tape, rows: &Rows, x: Var) -> (Var, Rows) {
        self.put_in_front(tape, rows, x, true)
    }

    fn put_in_front(&self, tape: &Tape, rows: &Rows, x: Var, embedded: bool) -> (Var, Rows) {
        let slots: Vec<Option<usize>> = (0..rows.segments.len()).map(|e| rows.active.of(e)).collect();
        let of = |slot| self.rows.get(slot).filter(|prompt| prompt.is_embedded() == embedded);
        if slots.iter().all(|slot| of(*slot).is_none()) {
            return (x, rows.clone());
        }
        let made = fronts(&slots, |slot| of(Some(slot)).map(|prompt| prompt.forward(tape)));
        let made: Vec<Option<&Var>> = made.iter().map(Option::as_ref).collect();
        let (x, segments) = ops::concat_segments_each(tape, &made, &x, &rows.segments);
        (x, rows.with_segments(segments))
    }
}
