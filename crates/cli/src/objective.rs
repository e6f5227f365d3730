//! A text model and its examples as the training loop sees them: rows, targets, and the loss of a batch.
//!
//! loss = sum over targets of -log p(ids[i] | ids[..i]) / denominator.

use retune::models::{Model, TextModel};
use retune::nn::{Dropouts, Pass};
use retune::tasks::causal_lm::{Dataset, Example};
use retune::train::{Objective, ObjectiveError};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Segments, Tape, Var};

/// Borrows the network, not its parameters, so that training may change those.
pub struct TextObjective<'a> {
    pub net: &'a dyn TextModel,
    pub examples: &'a [Example],
    /// The key of dropout; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    /// Blocks are run twice to save memory.
    pub checkpointing: bool,
}

impl<'a> TextObjective<'a> {
    /// The loss on data that is not trained on.
    ///
    /// # Errors
    /// If an id is outside the model's vocabulary.
    pub fn for_evaluation(model: &'a Model, data: &'a Dataset) -> anyhow::Result<TextObjective<'a>> {
        check_ids(model, data)?;
        let net = model.net.as_ref();
        Ok(TextObjective { net, examples: &data.examples, dropout_seed: None, checkpointing: false })
    }
}

/// Checks every id before it indexes a table.
pub fn check_ids(model: &Model, data: &Dataset) -> anyhow::Result<()> {
    for example in &data.examples {
        model.check_ids(&example.ids)?;
    }
    Ok(())
}

impl Objective for TextObjective<'_> {
    fn len(&self) -> usize {
        self.examples.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.examples[example].ids.len()
    }

    fn targets(&self, example: usize) -> usize {
        self.examples[example].targets()
    }

    fn weight(&self, example: usize) -> f64 {
        self.targets(example) as f64
    }

    fn describe(&self, example: usize) -> String {
        self.examples[example].source.to_string()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let examples: Vec<&Example> = batch.iter().map(|&i| &self.examples[i]).collect();
        let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
        let ids: Vec<u32> = examples.iter().flat_map(|e| e.ids.iter().copied()).collect();
        let dropout = self.dropout_seed.map(|seed| Dropouts {
            seed,
            epoch,
            examples: examples.iter().map(|e| e.key).collect(),
        });
        let pass = Pass { dropout, checkpoint: self.checkpointing };
        let hidden = self.net.hidden(tape, &ids, &Segments::from_lengths(&lengths), &pass);
        let head = tape.weight(self.net.head().weight);
        Ok(ops::linear_cross_entropy(tape, &hidden, &head, &loss_rows(&examples, denominator)))
    }
}

/// The row before each target predicts it.
fn loss_rows(examples: &[&Example], denominator: f64) -> LossRows {
    let mut rows = LossRows { denominator: denominator as f32, ..LossRows::default() };
    let mut first = 0;
    for example in examples {
        for (i, _) in example.target.iter().enumerate().skip(1).filter(|(_, target)| **target) {
            rows.rows.push(first + i - 1);
            rows.targets.push(example.ids[i]);
            rows.weights.push(1.0);
        }
        first += example.ids.len();
    }
    rows
}
