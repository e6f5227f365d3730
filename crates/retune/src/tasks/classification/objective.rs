//! The loss of a classifier, over the weights of the step's window: cross-entropy of one class (or one tag a word), binary
//! cross-entropy of each label of a set, squared error of a number.
//!
//! `loss = sum_i w(y_i) (logsumexp(z_i) - z_i[y_i]) / sum_i w(y_i)`; of sets `sum_ik w_k bce(z_ik, t_ik) / sum_ik w_k`; of
//! numbers `sum_i (z_i - y_i)^2 / n`.

use retune_tensor::ops::{self, BceWeights, LossRows};
use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use super::{Example, Examples, Label, Problem, Tokens};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::models::{TextInput, TextModel};
use crate::nn::{Active, Classifier, Head, Pass};
use crate::objective::{Measured, Objective, ObjectiveError};
use crate::tasks::scored::scored;
use crate::tasks::trunk_cache::{self, Text, TrunkCache};

/// Labelled examples seen through a model with a classifier.
pub struct Classification<'a> {
    pub net: &'a dyn TextModel,
    pub data: &'a Examples,
    /// What each class counts; `None`: all the same.
    pub class_weights: Option<&'a [f32]>,
    /// Seed of the dropout masks; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    /// Blocks are run again in the backward pass.
    pub checkpoint: bool,
    /// The rows of the frozen part of the trunk, where they are kept.
    pub cache: Option<&'a TrunkCache>,
}

/// The classifier that a task needs.
///
/// # Errors
/// If the model has none.
pub fn classifier(net: &dyn TextModel) -> Result<&Classifier> {
    match net.head() {
        Head::Classifier(head) => Ok(head),
        _ => {
            let what = "this model has no classifier: it cannot tell labels";
            Err(Error::Input(format!("{what} (model type {})", net.model_type())))
        }
    }
}

/// Texts laid end to end.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub ids: Vec<u32>,
    pub token_types: Vec<u32>,
    pub segments: Segments,
}

impl Packed {
    pub fn of<'t>(texts: impl Iterator<Item = &'t Tokens> + Clone) -> Packed {
        let lengths: Vec<usize> = texts.clone().map(|t| t.ids.len()).collect();
        Packed {
            ids: texts.clone().flat_map(|t| t.ids.iter().copied()).collect(),
            token_types: texts.flat_map(|t| t.token_types.iter().copied()).collect(),
            segments: Segments::from_lengths(&lengths),
        }
    }

    pub fn input(&self) -> TextInput<'_> {
        // Single texts are all 0, which is what none means.
        let token_types =
            if self.token_types.contains(&1) { self.token_types.as_slice() } else { Default::default() };
        TextInput { token_types, ..TextInput::new(&self.ids, &self.segments) }
    }
}

/// Logits of some texts, `[B, K]`, or `[T, K]` (one for each row, virtual rows of a soft prompt included) of a classifier of
/// words; and the rows of each text.
///
/// # Errors
/// If the model has no classifier.
pub fn logits(
    net: &dyn TextModel,
    params: &Params,
    texts: &[&Tokens],
    active: Active,
) -> Result<(Tensor, Segments)> {
    let head = classifier(net)?;
    let packed = Packed::of(texts.iter().copied());
    let tape = Tape::inference(params);
    let pass = Pass { active, ..Pass::default() };
    let hidden = net.hidden(&tape, &packed.input(), &pass);
    Ok((head.forward(&tape, &hidden).value().clone(), hidden.rows.segments))
}

/// The row of `[T, K]` logits that carries each word's label; `None` of words that were cut away.
pub fn word_rows(tokens: &Tokens, segments: &Segments, text: usize) -> Vec<Option<usize>> {
    let first = segments.range(text).end - tokens.ids.len();
    tokens.words.iter().map(|row| row.map(|row| first + row)).collect()
}

/// The class with the largest logit; the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (class, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = class;
        }
    }
    best as u32
}

impl Classification<'_> {
    /// # Errors
    /// If the model has no classifier, one of other labels, or another vocabulary than the tokenizer.
    pub fn check(&self) -> Result<()> {
        let (found, wanted) = (classifier(self.net)?.labels.len(), self.data.labels.outputs());
        if found != wanted {
            let what = format!("the model's classifier has {found} outputs; the data needs {wanted}");
            return Err(Error::Input(what));
        }
        self.data.check(self.net)
    }

    fn class_weight(&self, class: u32) -> f32 {
        self.class_weights.and_then(|w| w.get(class as usize)).copied().unwrap_or(1.0)
    }

    fn example(&self, index: usize) -> &Example {
        &self.data.examples[index]
    }

    /// Logits of some examples, and the rows of each (one where the cache holds pooled rows).
    fn forward<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        pass: &Pass,
    ) -> std::result::Result<(Var, Segments), Error> {
        let tokens = batch.iter().map(|&i| &self.example(i).tokens);
        let texts: Vec<Text> = tokens.map(|t| Text { ids: &t.ids, token_types: &t.token_types }).collect();
        let hidden = trunk_cache::hidden(self.cache, tape, self.net, &texts, pass);
        Ok((classifier(self.net)?.forward(tape, &hidden), hidden.rows.segments))
    }

    /// The loss of logits as [`logits`] gives them.
    fn loss_of(
        &self,
        tape: &Tape,
        logits: &Var,
        segments: &Segments,
        batch: &[usize],
        denominator: f32,
    ) -> Var {
        let classes = logits.cols();
        let targets = |of: &dyn Fn(&Label, usize) -> f32| {
            Tensor::from_fn(batch.len(), classes, |row, class| of(&self.example(batch[row]).label, class))
        };
        match self.data.problem {
            Problem::Regression => {
                let truth = targets(&|label, _| if let Label::Value(x) = label { *x } else { 0.0 });
                ops::mse(tape, logits, &truth, denominator)
            }
            Problem::MultiLabel => {
                let truth = targets(&|label, class| {
                    f32::from(u8::from(label.classes().binary_search(&(class as u32)).is_ok()))
                });
                let weights = BceWeights { classes: self.class_weights, ..BceWeights::default() };
                ops::bce_with_logits(tape, logits, &truth, &weights, denominator)
            }
            Problem::SingleLabel | Problem::Tokens => {
                let mut labels = LossRows { denominator, ..LossRows::default() };
                for (place, &index) in batch.iter().enumerate() {
                    let example = self.example(index);
                    let rows = match self.data.problem {
                        Problem::Tokens => word_rows(&example.tokens, segments, place),
                        _ => vec![Some(place)],
                    };
                    for (row, &class) in rows.into_iter().zip(example.label.classes()) {
                        let Some(row) = row else { continue };
                        labels.rows.push(row);
                        labels.targets.push(class);
                        labels.weights.push(self.class_weight(class));
                    }
                }
                ops::cross_entropy(tape, logits, &labels)
            }
        }
    }
}

impl Objective for Classification<'_> {
    fn len(&self) -> usize {
        self.data.examples.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.example(example).tokens.ids.len() + self.net.prompt_rows(Some(0))
    }

    fn targets(&self, example: usize) -> usize {
        match self.data.problem {
            Problem::Tokens => self.rows(example),
            _ => 1,
        }
    }

    fn weight(&self, example: usize) -> f64 {
        let example = self.example(example);
        let sum = |classes: &mut dyn Iterator<Item = u32>| -> f64 {
            classes.map(|class| f64::from(self.class_weight(class))).sum()
        };
        match self.data.problem {
            Problem::SingleLabel => sum(&mut example.label.classes().iter().copied()),
            Problem::MultiLabel => sum(&mut (0..self.data.labels.names.len() as u32)),
            Problem::Regression => 1.0,
            Problem::Tokens => {
                let kept = example.label.classes().iter().zip(&example.tokens.words);
                sum(&mut kept.filter(|(_, row)| row.is_some()).map(|(class, _)| *class))
            }
        }
    }

    fn describe(&self, example: usize) -> String {
        self.example(example).source.to_string()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let keys = batch.iter().map(|&i| self.example(i).key);
        let pass = Pass::of_step(tape, self.dropout_seed, epoch, keys, self.checkpoint);
        let (logits, segments) = self.forward(tape, batch, &pass)?;
        Ok(self.loss_of(tape, &logits, &segments, batch, denominator as f32))
    }

    fn measured(&self) -> Option<&dyn Measured> {
        Some(self)
    }
}

/// What was predicted for each example, in the shape that [`Metrics`] takes, beside what is true.
#[derive(Default)]
struct Scored {
    classes: [Vec<u32>; 2],
    sets: [Vec<Vec<u32>>; 2],
    numbers: [Vec<f32>; 2],
}

impl Scored {
    fn push(&mut self, example: &Example, logits: &Tensor, place: usize, rows: &[Option<usize>]) {
        match &example.label {
            Label::One(class) => {
                self.classes[0].push(*class);
                self.classes[1].push(argmax(logits.row(place)));
            }
            Label::Many(classes) => {
                self.sets[0].push(classes.clone());
                let z = logits.row(place).iter().zip(0u32..);
                self.sets[1].push(z.filter(|(z, _)| **z > 0.0).map(|(_, class)| class).collect());
            }
            Label::Value(x) => {
                self.numbers[0].push(*x);
                self.numbers[1].push(logits.row(place).first().copied().unwrap_or(f32::NAN));
            }
            Label::Tags(tags) => {
                let kept = tags.iter().zip(rows).filter_map(|(tag, row)| Some((*tag, (*row)?)));
                let (truth, predicted) = kept.map(|(tag, row)| (tag, argmax(logits.row(row)))).unzip();
                self.sets[0].push(truth);
                self.sets[1].push(predicted);
            }
        }
    }

    fn metrics(&self, problem: Problem, names: &[String]) -> Result<Metrics> {
        let ([truth, predicted], [truths, predictions]) = (&self.classes, &self.sets);
        match problem {
            Problem::SingleLabel => Metrics::of_classes(names, truth, predicted),
            Problem::MultiLabel => Metrics::of_label_sets(names, truths, predictions),
            Problem::Regression => Metrics::of_numbers(&self.numbers[0], &self.numbers[1]),
            Problem::Tokens => Metrics::of_tags(names, truths, predictions),
        }
    }
}

impl Measured for Classification<'_> {
    fn metrics(
        &self,
        params: &Params,
        batch_size: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> std::result::Result<Option<Metrics>, ObjectiveError> {
        let mut said = Scored::default();
        let all = scored(self, params, batch_size, progress, &mut |tape, batch, denominator| {
            let (logits, segments) = self.forward(tape, batch, &Pass::default())?;
            for (place, &e) in batch.iter().enumerate() {
                let example = self.example(e);
                let rows = match self.data.problem {
                    Problem::Tokens => word_rows(&example.tokens, &segments, place),
                    _ => Vec::new(),
                };
                said.push(example, logits.value(), place, &rows);
            }
            Ok(self.loss_of(tape, &logits, &segments, batch, denominator as f32))
        })?;
        let Some((loss, _)) = all else { return Ok(None) };
        if !loss.is_finite() && self.data.problem == Problem::Regression {
            // Numbers that are not finite cannot be ranked; the loss says what there is to say.
            return Ok(Some(Metrics { problem: Problem::Regression, ..Metrics::default() }.with_loss(loss)));
        }
        Ok(Some(said.metrics(self.data.problem, &self.data.labels.names)?.with_loss(loss)))
    }
}
