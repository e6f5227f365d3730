//! Next-token loss on the targets of texts: `sum of -log p(next token) / denominator`.

use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use super::{Dataset, Example};
use crate::error::{Error, Result};
use crate::models::{TextInput, TextModel, check_ids};
use crate::nn::{Hidden, LanguageModelHead, Pass};
use crate::objective::{Objective, ObjectiveError};
use crate::tasks::trunk_cache::{self, Text, TrunkCache};

/// A data set seen through a model.
pub struct CausalLm<'a> {
    pub net: &'a dyn TextModel,
    pub data: &'a Dataset,
    /// Seed of the dropout masks; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    /// Blocks are run again in the backward pass.
    pub checkpoint: bool,
    /// The rows of the frozen part of the trunk, where they are kept.
    pub cache: Option<&'a TrunkCache>,
}

impl CausalLm<'_> {
    /// # Errors
    /// If the model cannot predict next tokens, or an example holds ids outside the model's vocabulary: tokenizer and
    /// model do not belong together.
    pub fn check(&self) -> Result<()> {
        language_model(self.net)?;
        if !self.net.info().decoder {
            let what = "this model reads text both ways: it would see the token that it is to predict";
            let task = "train it on masked tokens instead (`--task masked-lm`), or on labels";
            return Err(Error::Input(format!("{what} (model type {}); {task}", self.net.model_type())));
        }
        for example in &self.data.examples {
            let named = |e| Error::Input(format!("{}: {e}", example.source));
            check_ids(self.net, &example.ids).map_err(named)?;
        }
        Ok(())
    }

    /// Virtual tokens in front of each example.
    fn prompt_rows(&self) -> usize {
        self.net.prompt_rows(Some(0))
    }
}

/// Labels of some examples laid end to end. Row `t` predicts token `t + 1` of its example; the last
/// of `prompt_rows` virtual tokens predicts the first.
fn labels(examples: &[&Example], prompt_rows: usize, denominator: f64) -> LossRows {
    let mut labels = LossRows { denominator: denominator as f32, ..LossRows::default() };
    let mut first = 0;
    for example in examples {
        first += prompt_rows;
        for (i, (&id, &target)) in example.ids.iter().zip(&example.target).enumerate() {
            if target && (i > 0 || prompt_rows > 0) {
                labels.rows.push(first + i - 1);
                labels.targets.push(id);
                labels.weights.push(1.0);
            }
        }
        first += example.ids.len();
    }
    labels
}

/// The loss `[1, 1]` of a language model's head over hidden rows `[T, d_model]`: fused and in chunks, unless a method sits on the head.
pub fn head_loss(tape: &Tape, head: &LanguageModelHead, hidden: &Hidden, labels: &LossRows) -> Var {
    if let Some(weight) = head.linear.only_weight(&hidden.rows.active) {
        let x = head.transform(tape, &hidden.rows, &hidden.x);
        return ops::linear_cross_entropy(tape, &x, &tape.weight(weight), labels);
    }
    // Dropout masks are those of the whole batch: the head runs on all rows.
    let logits = head.forward(tape, &hidden.rows, &hidden.x);
    ops::cross_entropy(tape, &logits, labels)
}

/// The head that next-token prediction needs.
///
/// # Errors
/// If the model has none.
pub(crate) fn language_model(net: &dyn TextModel) -> Result<&LanguageModelHead> {
    net.language_model().ok_or_else(|| {
        let what = "this model has no language-model head: it cannot predict tokens";
        Error::Input(format!("{what} (model type {})", net.model_type()))
    })
}

impl Objective for CausalLm<'_> {
    fn len(&self) -> usize {
        self.data.examples.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.data.examples[example].ids.len() + self.prompt_rows()
    }

    fn targets(&self, example: usize) -> usize {
        let example = &self.data.examples[example];
        // Behind a soft prompt the first token is predicted too.
        let first = self.prompt_rows() > 0 && example.target.first() == Some(&true);
        example.targets() + usize::from(first)
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
        let labels = labels(&examples, self.prompt_rows(), denominator);
        let keys = examples.iter().map(|e| e.key);
        let pass = Pass::of_step(tape, self.dropout_seed, epoch, keys, self.checkpoint);
        let texts: Vec<Text> = examples.iter().map(|e| Text { ids: &e.ids, token_types: &[] }).collect();
        let hidden = trunk_cache::hidden(self.cache, tape, self.net, &texts, &pass);
        Ok(head_loss(tape, language_model(self.net)?, &hidden, &labels))
    }
}

/// Logits `[T, V]` of texts laid end to end (virtual rows of a soft prompt included), for comparing with other
/// implementations.
///
/// # Errors
/// If an id is outside the vocabulary, or the model has no such head.
pub fn logits(net: &dyn TextModel, params: &Params, ids: &[u32], segments: &Segments) -> Result<Tensor> {
    check_ids(net, ids)?;
    let head = language_model(net)?;
    let tape = Tape::inference(params);
    let hidden = net.hidden(&tape, &TextInput::new(ids, segments), &Pass::default());
    Ok(head.forward(&tape, &hidden.rows, &hidden.x).value().clone())
}
