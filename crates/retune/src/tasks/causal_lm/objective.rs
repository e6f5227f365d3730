//! Next-token loss on the targets of texts: `sum of -log p(next token) / denominator`.

use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use super::{Dataset, Example};
use crate::error::{Error, Result};
use crate::models::{TextModel, check_ids};
use crate::nn::{Dropouts, Pass, Rows};
use crate::objective::{Objective, ObjectiveError};

/// A data set seen through a model.
pub struct CausalLm<'a> {
    pub net: &'a dyn TextModel,
    pub data: &'a Dataset,
    /// Seed of the dropout masks; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    /// Blocks are run again in the backward pass.
    pub checkpoint: bool,
}

impl CausalLm<'_> {
    /// # Errors
    /// If an example holds ids outside the model's vocabulary: tokenizer and model do not belong together.
    pub fn check(&self) -> Result<()> {
        for example in &self.data.examples {
            let named = |e| Error::Input(format!("{}: {e}", example.source));
            check_ids(self.net, &example.ids).map_err(named)?;
        }
        Ok(())
    }
}

/// Ids, segments and labels of some examples laid end to end. Row `t` predicts token `t + 1` of its example.
fn pack(examples: &[&Example], denominator: f64) -> (Vec<u32>, Segments, LossRows) {
    let mut ids = Vec::new();
    let mut labels = LossRows { denominator: denominator as f32, ..LossRows::default() };
    for example in examples {
        for (i, (&id, &target)) in example.ids.iter().zip(&example.target).enumerate() {
            if target && i > 0 {
                labels.rows.push(ids.len() - 1);
                labels.targets.push(id);
                labels.weights.push(1.0);
            }
            ids.push(id);
        }
    }
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    (ids, Segments::from_lengths(&lengths), labels)
}

/// The loss of a head over hidden rows: fused and in chunks, unless a method sits on the head.
pub(crate) fn head_loss(
    tape: &Tape,
    net: &dyn TextModel,
    rows: &Rows,
    hidden: &Var,
    labels: &LossRows,
) -> Var {
    let head = net.head();
    if head.delta.is_none() && head.bias.is_none() {
        return ops::linear_cross_entropy(tape, hidden, &tape.weight(head.weight), labels);
    }
    // Dropout masks are those of the whole batch: the head runs on all rows.
    let logits = head.forward(tape, rows, hidden);
    ops::cross_entropy(tape, &logits, labels)
}

impl Objective for CausalLm<'_> {
    fn len(&self) -> usize {
        self.data.examples.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.data.examples[example].ids.len()
    }

    fn targets(&self, example: usize) -> usize {
        self.data.examples[example].targets()
    }

    fn weight(&self, example: usize) -> f64 {
        self.targets(example) as f64
    }

    fn describe(&self, example: usize) -> String {
        self.data.examples[example].source.to_string()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let examples: Vec<&Example> = batch.iter().map(|&i| &self.data.examples[i]).collect();
        let (ids, segments, labels) = pack(&examples, denominator);
        let keys = || examples.iter().map(|e| e.key).collect();
        let dropout = self.dropout_seed.filter(|_| tape.is_recording());
        let pass = Pass {
            dropout: dropout.map(|seed| Dropouts { seed, epoch, examples: keys() }),
            checkpoint: self.checkpoint,
        };
        let hidden = self.net.hidden(tape, &ids, &segments, &pass);
        let rows = Rows::new(segments, &pass);
        Ok(head_loss(tape, self.net, &rows, &hidden, &labels))
    }
}

/// Logits `[T, V]` of texts laid end to end, for comparing with other implementations.
///
/// # Errors
/// If an id is outside the vocabulary.
pub fn logits(net: &dyn TextModel, params: &Params, ids: &[u32], segments: &Segments) -> Result<Tensor> {
    check_ids(net, ids)?;
    let tape = Tape::inference(params);
    let pass = Pass::default();
    let hidden = net.hidden(&tape, ids, segments, &pass);
    let rows = Rows::new(segments.clone(), &pass);
    Ok(net.head().forward(&tape, &rows, &hidden).value().clone())
}
