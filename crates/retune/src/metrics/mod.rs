//! Metrics of predictions: classes, sets of labels, numbers, tagged tokens; each as scikit-learn, SciPy or seqeval counts it.
//!
//! Pure functions of what is true and what was predicted. [`Metrics`] gathers what fits a problem, in a form that can be
//! saved; [`Metric`] names one number of it, to stop early by or to choose the best run.

mod classes;
mod interval;
mod label_sets;
mod named;
mod numbers;
mod spans;
pub mod words;

use serde::{Deserialize, Serialize};

pub use classes::{CONFUSION_CLASSES_MAX, Counts, confusion};
pub use interval::{Interval, t_interval, wilson};
pub use label_sets::SetCounts;
pub use named::Metric;
pub use numbers::{mean_absolute_error, mean_squared_error, pearson, r2, ranks, spearman};
pub use spans::{Span, is_span_scheme, spans};

use crate::error::{Error, Result};
use crate::tasks::classification::Problem;
use crate::tasks::detection::Precisions;

/// Precision, recall and their harmonic mean, each in 0..=1; 0 where there is nothing to divide by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

impl Scores {
    /// From counts: `hits` of `predicted` are right, of `support` that exist.
    pub fn of(hits: u64, predicted: u64, support: u64) -> Scores {
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        Scores {
            precision: ratio(hits, predicted),
            recall: ratio(hits, support),
            f1: ratio(2 * hits, predicted + support),
        }
    }

    /// The weighted mean, number by number; zeros if the weights sum to nothing.
    fn mean(scores: impl Iterator<Item = (Scores, f64)>) -> Scores {
        let mut sum = Scores::default();
        let mut total = 0.0;
        for (score, weight) in scores {
            sum.precision += weight * score.precision;
            sum.recall += weight * score.recall;
            sum.f1 += weight * score.f1;
            total += weight;
        }
        let by = if total > 0.0 { 1.0 / total } else { 0.0 };
        Scores { precision: sum.precision * by, recall: sum.recall * by, f1: sum.f1 * by }
    }
}

/// The scores of one class, label or entity type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    pub name: String,
    #[serde(flatten)]
    pub scores: Scores,
    /// How often it is true.
    pub support: u64,
    /// How often it was predicted.
    pub predicted: u64,
}

/// The same scores averaged in three ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Averages {
    /// Of the counts summed over the classes.
    pub micro: Scores,
    /// Each class counts the same.
    #[serde(rename = "macro")]
    pub macro_: Scores,
    /// Each class counts by its support.
    pub weighted: Scores,
}

impl Averages {
    /// Of the classes' own scores, given which of them take part in the macro average.
    fn of(classes: &[ClassScores], hits: u64, in_macro: impl Fn(&ClassScores) -> bool) -> Averages {
        let (predicted, support) =
            classes.iter().fold((0, 0), |(p, s), class| (p + class.predicted, s + class.support));
        let even = classes.iter().filter(|class| in_macro(class)).map(|class| (class.scores, 1.0));
        Averages {
            micro: Scores::of(hits, predicted, support),
            macro_: Scores::mean(even),
            weighted: Scores::mean(classes.iter().map(|class| (class.scores, class.support as f64))),
        }
    }
}

/// Everything that was measured on one set of examples; what does not fit the problem is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    pub problem: Problem,
    /// Rows.
    pub examples: u64,
    /// Mean loss, if it was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The share of right answers: of classes, of exactly right sets of labels, of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The share of rows whose right class is among the five likeliest, where there are more than five.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5_accuracy: Option<f64>,
    /// 95 % (Wilson) around the accuracy of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_interval: Option<Interval>,
    /// Matthews' correlation, -1..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matthews: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub averages: Option<Averages>,
    /// One for each class, label or (in tagged text) entity type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassScores>,
    /// The classes' names, as rows and columns of [`Metrics::confusion`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion_labels: Vec<String>,
    /// `confusion[t][p]`: rows (or tokens) of class t that were predicted as p.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pearson: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spearman: Option<f64>,
    /// Mean squared and mean absolute error, and the share of the variance explained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mse: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mae: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
    /// Word and character error rates of what was transcribed; `problem` says nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wer: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cer: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transcribed: Vec<words::TranscribedRow>,
    /// Of boxes; `problem` says nothing of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detection: Option<Precisions>,
}

impl Metrics {
    /// Of one class a row; both are indices into `names`.
    ///
    /// # Errors
    /// Nothing to score, lengths that differ, or a class beyond `names`.
    pub fn of_classes(names: &[String], truth: &[u32], predicted: &[u32]) -> Result<Metrics> {
        same_length(truth.len(), predicted.len())?;
        let counts = Counts::of(names.len(), truth, predicted)?;
        let mut metrics = Metrics::from_counts(names, &counts, truth, predicted);
        metrics.problem = Problem::SingleLabel;
        metrics.examples = truth.len() as u64;
        metrics.accuracy_interval = Some(wilson(counts.hits(), truth.len() as u64));
        Ok(metrics)
    }

    /// Of sets of labels; all are indices into `names`.
    ///
    /// # Errors
    /// As [`Metrics::of_classes`].
    pub fn of_label_sets(names: &[String], truth: &[Vec<u32>], predicted: &[Vec<u32>]) -> Result<Metrics> {
        same_length(truth.len(), predicted.len())?;
        let counts = SetCounts::of(names.len(), truth, predicted)?;
        let classes = counts.classes.scores(names);
        let rows = truth.len() as u64;
        Ok(Metrics {
            problem: Problem::MultiLabel,
            examples: rows,
            accuracy: Some(counts.exact as f64 / rows as f64),
            accuracy_interval: Some(wilson(counts.exact, rows)),
            averages: Some(Averages::of(&classes, counts.classes.hits(), |_| true)),
            classes,
            ..Metrics::default()
        })
    }

    /// Of numbers.
    ///
    /// # Errors
    /// Nothing to score, lengths that differ, or a number that isn't finite.
    pub fn of_numbers(truth: &[f32], predicted: &[f32]) -> Result<Metrics> {
        same_length(truth.len(), predicted.len())?;
        for (what, values) in [("the true value", truth), ("the prediction", predicted)] {
            if let Some((row, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(Error::Input(format!(
                    "{what} of row {} is {value}: it cannot be scored",
                    row + 1
                )));
            }
        }
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|v| f64::from(*v)).collect() };
        let (truth, predicted) = (wide(truth), wide(predicted));
        Ok(Metrics {
            problem: Problem::Regression,
            examples: truth.len() as u64,
            pearson: pearson(&truth, &predicted),
            spearman: spearman(&truth, &predicted),
            mse: Some(mean_squared_error(&truth, &predicted)),
            mae: Some(mean_absolute_error(&truth, &predicted)),
            r2: r2(&truth, &predicted),
            ..Metrics::default()
        })
    }

    /// Of tagged rows, one tag a token; all are indices into `names`. Where the tags name spans (`B-PER`, `I-PER`, `O`) the
    /// classes are entity types, and a span counts as right if its type and both ends are; else they are the tags.
    ///
    /// # Errors
    /// As [`Metrics::of_classes`]; a row whose two lengths differ.
    pub fn of_tags(names: &[String], truth: &[Vec<u32>], predicted: &[Vec<u32>]) -> Result<Metrics> {
        same_length(truth.len(), predicted.len())?;
        if let Some(row) = truth.iter().zip(predicted).position(|(t, p)| t.len() != p.len()) {
            let (t, p) = (truth[row].len(), predicted[row].len());
            return Err(Error::Input(format!("row {} has {t} tags and {p} predictions", row + 1)));
        }
        let (flat_truth, flat_predicted) = (truth.concat(), predicted.concat());
        let counts = Counts::of(names.len(), &flat_truth, &flat_predicted)?;
        let mut metrics = Metrics::from_counts(names, &counts, &flat_truth, &flat_predicted);
        metrics.problem = Problem::Tokens;
        metrics.examples = truth.len() as u64;
        if is_span_scheme(names) {
            let (classes, hits) = spans::scores(names, truth, predicted);
            metrics.averages = Some(Averages::of(&classes, hits, |_| true));
            metrics.classes = classes;
        }
        Ok(metrics)
    }

    /// Of boxes in as many pictures.
    pub fn of_detections(precisions: Precisions, pictures: usize) -> Metrics {
        Metrics {
            examples: pictures as u64,
            classes: precisions.classes.iter().map(|class| class.class.clone()).collect(),
            detection: Some(precisions),
            ..Metrics::default()
        }
    }

    /// Of transcripts: of some of so many clips.
    pub fn of_transcripts(transcribed: Vec<words::TranscribedRow>, clips: usize) -> Metrics {
        let rates: words::ErrorRates = transcribed.iter().collect();
        Metrics {
            examples: clips as u64,
            wer: Some(rates.wer()),
            cer: Some(rates.cer()),
            transcribed,
            ..Metrics::default()
        }
    }

    fn from_counts(names: &[String], counts: &Counts, truth: &[u32], predicted: &[u32]) -> Metrics {
        let classes = counts.scores(names);
        let confusion = confusion(names.len(), truth, predicted);
        Metrics {
            accuracy: Some(counts.accuracy()),
            matthews: Some(counts.matthews()),
            // As scikit-learn has it: a class that neither occurs nor was predicted is no class of this set.
            averages: Some(Averages::of(&classes, counts.hits(), |c| c.support + c.predicted > 0)),
            classes,
            confusion_labels: if confusion.is_empty() { Vec::new() } else { names.to_vec() },
            confusion,
            ..Metrics::default()
        }
    }

    /// With the share of rows whose right class is among the five likeliest.
    pub fn with_top5(self, share: f64) -> Metrics {
        Metrics { top5_accuracy: Some(share), ..self }
    }

    /// With the mean loss of the same examples.
    pub fn with_loss(mut self, loss: f64) -> Metrics {
        self.loss = Some(loss);
        self
    }

    /// The metrics that it can have; the first is the one that people quote.
    pub fn known(&self) -> &'static [Metric] {
        match self {
            Metrics { detection: Some(_), .. } => Metric::OF_DETECTIONS,
            Metrics { wer: Some(_), .. } => Metric::OF_TRANSCRIPTS,
            _ => Metric::of(self.problem),
        }
    }

    /// One number of it; `None` if it does not fit the problem or is undefined (a correlation of constants).
    pub fn get(&self, metric: Metric) -> Option<f64> {
        let average = |pick: fn(&Averages) -> f64| self.averages.as_ref().map(pick);
        match metric {
            Metric::Loss => self.loss,
            Metric::Accuracy => self.accuracy,
            Metric::F1 => self.f1().map(|scores| scores.f1),
            Metric::Precision => self.f1().map(|scores| scores.precision),
            Metric::Recall => self.f1().map(|scores| scores.recall),
            Metric::MacroF1 => average(|a| a.macro_.f1),
            Metric::MicroF1 => average(|a| a.micro.f1),
            Metric::WeightedF1 => average(|a| a.weighted.f1),
            Metric::Matthews => self.matthews,
            Metric::Pearson => self.pearson,
            Metric::Spearman => self.spearman,
            Metric::Mse => self.mse,
            Metric::Mae => self.mae,
            Metric::R2 => self.r2,
            Metric::Wer => self.wer,
            Metric::Cer => self.cer,
            Metric::Map => self.detection.as_ref().map(|found| found.map),
            Metric::Map50 => self.detection.as_ref().map(|found| found.map50),
        }
    }

    /// What `f1`, `precision` and `recall` mean without another word: of two classes the second one's (positive, yes, 1,
    /// true come last in order); of more the macro average; of sets of labels and of spans the micro average; of boxes
    /// those of all classes together at the best confidence.
    fn f1(&self) -> Option<Scores> {
        if let Some(found) = &self.detection {
            return Some(found.best.map(|best| best.scores).unwrap_or_default());
        }
        let averages = self.averages.as_ref()?;
        Some(match (self.problem, self.classes.as_slice()) {
            (Problem::SingleLabel, [_, second]) => second.scores,
            (Problem::SingleLabel, _) => averages.macro_,
            _ => averages.micro,
        })
    }
}

fn same_length(truth: usize, predicted: usize) -> Result<()> {
    match truth {
        0 => Err(Error::Input("there are no examples to score".into())),
        n if n != predicted => Err(Error::Input(format!("{n} examples and {predicted} predictions"))),
        _ => Ok(()),
    }
}

/// Refuses classes beyond `classes`.
fn check_classes(classes: usize, what: &str, indices: &[u32]) -> Result<()> {
    match indices.iter().position(|i| *i as usize >= classes) {
        Some(at) => Err(Error::Input(format!(
            "{what} of row {} is class {}, there are {classes}",
            at + 1,
            indices[at]
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
