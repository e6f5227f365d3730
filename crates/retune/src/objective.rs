//! What training needs to know of the data and the loss: implemented by tasks, used by `train`.

use retune_tensor::{Params, Tape, Var};
use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;

/// Why a loss could not be computed; shown to the user with the step and the examples added.
pub type ObjectiveError = Box<dyn std::error::Error + Send + Sync>;

/// What the rows of a task are, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    #[default]
    Tokens,
    Pictures,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Tokens => "tokens",
            Unit::Pictures => "pictures",
        }
    }
}

/// Examples and their loss. Everything random in it is keyed by (seed, epoch, example), nothing is drawn from a state:
/// the same call gives the same bytes, in any order, after any restart.
pub trait Objective: Sync {
    /// Number of examples.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of an example: tokens, or 1 where all are of one size, as pictures are. For speed and the memory plan.
    fn rows(&self, example: usize) -> usize;

    /// What rows are.
    fn unit(&self) -> Unit {
        Unit::Tokens
    }

    /// Rows of an example that carry loss: for the memory plan.
    fn targets(&self, example: usize) -> usize {
        self.rows(example)
    }

    /// Frames of the longest window of sound, where examples have sounds and not all are seen through whole windows: for the memory plan.
    fn window_frames(&self) -> Option<usize> {
        None
    }

    /// An example's share of the loss's denominator (its target tokens). Examples of weight 0 are never trained on.
    fn weight(&self, example: usize) -> f64;

    /// Where the example comes from, as `file:line`, for messages.
    fn describe(&self, example: usize) -> String;

    /// The weighted losses of the examples of `batch`, summed, over `denominator`: a `[1, 1]` value on the tape.
    ///
    /// # Errors
    /// When the loss cannot be computed at all. A loss that is not finite is no error here.
    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError>;

    /// The examples as something to score, where the task has metrics besides the loss.
    fn measured(&self) -> Option<&dyn Measured> {
        None
    }
}

/// Examples whose predictions can be scored.
pub trait Measured: Sync {
    /// The metrics of all examples, their mean loss among them. `progress` is told the number of examples done, and
    /// answers whether to go on; if not, there is no result.
    ///
    /// # Errors
    /// When the predictions cannot be computed or scored at all.
    fn metrics(
        &self,
        params: &Params,
        batch_size: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Metrics>, ObjectiveError>;
}
