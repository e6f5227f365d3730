//! What stands on a trunk's last rows: a language model's head, a classifier, or nothing.

use retune_tensor::ops::{self, Activation};
use retune_tensor::{Segments, Tape, Var};
use serde::{Deserialize, Serialize};

use crate::nn::{DetectorHead, LayerNorm, Linear, Rows, Site};

/// What a classifier says of an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// One of some labels; transformers' `single_label_classification`.
    #[default]
    SingleLabel,
    /// Any of some labels; `multi_label_classification`.
    MultiLabel,
    /// One number; `regression`.
    Regression,
    /// One of some labels for each row.
    Tokens,
}

/// Which of an example's rows a classifier reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first: `[CLS]`, or the first row of a soft prompt.
    First,
    /// The last: decoders.
    Last,
    /// Their mean.
    Mean,
    /// Each row by itself.
    Each,
}

impl Pooling {
    /// `x` `[T, C]` to one row for each example `[B, C]` (all rows for [`Pooling::Each`]).
    pub fn apply(self, tape: &Tape, x: &Var, segments: &Segments) -> Var {
        match self {
            Pooling::First => {
                ops::select_rows(tape, x, &segments.ranges().map(|r| r.start).collect::<Vec<_>>())
            }
            Pooling::Last => {
                ops::select_rows(tape, x, &segments.ranges().map(|r| r.end.max(1) - 1).collect::<Vec<_>>())
            }
            Pooling::Mean => ops::segment_mean(tape, x, segments),
            Pooling::Each => x.clone(),
        }
    }
}

/// `out(act(dense(pool(x))))`.
pub struct Classifier {
    pub problem: Problem,
    pub pooling: Pooling,
    /// BERT's pooler, RoBERTa's `classifier.dense`, DistilBERT's `pre_classifier`.
    pub dense: Option<(Linear, Activation)>,
    pub out: Linear,
    /// The names of the classes, in the order of the logits.
    pub labels: Vec<String>,
}

impl Classifier {
    /// `x` `[T, C]` to logits: one row for each example, or for each row ([`Pooling::Each`]).
    pub fn forward(&self, tape: &Tape, hidden: &Hidden) -> Var {
        let pooled = self.pooling.apply(tape, &hidden.x, &hidden.rows.segments);
        let rows = if self.pooling == Pooling::Each { hidden.rows.clone() } else { hidden.rows.pooled() };
        let pooled = match &self.dense {
            Some((dense, activation)) => {
                ops::activation(tape, &dense.forward(tape, &rows, &pooled), *activation)
            }
            None => pooled,
        };
        self.out.forward(tape, &rows, &pooled)
    }
}

/// Logits over the vocabulary: `linear(norm(act(dense(x))))`; decoders have the last part alone.
pub struct LanguageModelHead {
    pub transform: Option<(Linear, Activation, LayerNorm)>,
    pub linear: Linear,
}

impl LanguageModelHead {
    /// What the last linear reads, for rows `x` `[T, C]`.
    pub fn transform(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        match &self.transform {
            Some((dense, activation, norm)) => {
                let dense = dense.forward(tape, rows, x);
                norm.forward(tape, &ops::activation(tape, &dense, *activation))
            }
            None => x.clone(),
        }
    }

    /// Logits `[T, V]`.
    pub fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        self.linear.forward(tape, rows, &self.transform(tape, rows, x))
    }
}

/// What stands on the trunk.
pub enum Head {
    LanguageModel(LanguageModelHead),
    Classifier(Classifier),
    Detector(DetectorHead),
    None,
}

impl Head {
    /// A decoder's head.
    pub fn language_model(linear: Linear) -> Head {
        Head::LanguageModel(LanguageModelHead { transform: None, linear })
    }

    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Head::LanguageModel(head) => {
                head.transform.iter().map(|(dense, ..)| dense).chain([&head.linear]).collect()
            }
            Head::Classifier(head) => head.dense.iter().map(|(dense, _)| dense).chain([&head.out]).collect(),
            Head::Detector(head) => head.linears().collect(),
            Head::None => Vec::new(),
        }
    }

    pub fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        let linears: Vec<&mut Linear> = match self {
            Head::LanguageModel(head) => {
                head.transform.iter_mut().map(|(dense, ..)| dense).chain([&mut head.linear]).collect()
            }
            Head::Classifier(head) => {
                head.dense.iter_mut().map(|(dense, _)| dense).chain([&mut head.out]).collect()
            }
            Head::Detector(head) => head.linears_mut().collect(),
            Head::None => Vec::new(),
        };
        linears.into_iter().for_each(|linear| visit(Site::Linear(linear)));
    }
}

/// A trunk's last rows `[T, C]`, virtual ones of a soft prompt included, and which example each belongs to.
pub struct Hidden {
    pub x: Var,
    pub rows: Rows,
}
