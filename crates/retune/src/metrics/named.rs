//! One metric by its name: to stop early by, to keep the best checkpoint by, to compare runs by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::methods::targets::nearest;
use crate::tasks::classification::Problem;

/// A number of [`super::Metrics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    #[default]
    Loss,
    Accuracy,
    /// Of two classes the second's, of more the macro average, of sets of labels and spans the micro average.
    F1,
    Precision,
    Recall,
    MacroF1,
    MicroF1,
    WeightedF1,
    Matthews,
    Pearson,
    Spearman,
    Mse,
    Mae,
    R2,
    /// Mean average precision of boxes, IoU .50 to .95.
    Map,
    /// At IoU .5.
    Map50,
    /// Word error rate of transcripts.
    Wer,
    /// Character error rate.
    Cer,
}

use Metric::*;

/// Every metric and its name.
const NAMES: [(Metric, &str); 18] = [
    (Loss, "loss"),
    (Accuracy, "accuracy"),
    (F1, "f1"),
    (Precision, "precision"),
    (Recall, "recall"),
    (MacroF1, "macro_f1"),
    (MicroF1, "micro_f1"),
    (WeightedF1, "weighted_f1"),
    (Matthews, "matthews"),
    (Pearson, "pearson"),
    (Spearman, "spearman"),
    (Mse, "mse"),
    (Mae, "mae"),
    (R2, "r2"),
    (Map, "map"),
    (Map50, "map50"),
    (Wer, "wer"),
    (Cer, "cer"),
];

/// Names that other tools use.
const ALIASES: [(&str, Metric); 12] = [
    ("acc", Accuracy),
    ("f1_macro", MacroF1),
    ("f1_micro", MicroF1),
    ("f1_weighted", WeightedF1),
    ("mcc", Matthews),
    ("matthews_correlation", Matthews),
    ("spearmanr", Spearman),
    ("pearsonr", Pearson),
    ("eval_loss", Loss),
    ("map@50", Map50),
    ("map50_95", Map),
    ("map@50_95", Map),
];

impl Metric {
    /// The metrics of boxes; the first is the one that people quote.
    pub const OF_DETECTIONS: &[Metric] = &[Map50, Map, F1, Precision, Recall, Loss];

    /// The metrics of transcripts.
    pub const OF_TRANSCRIPTS: &[Metric] = &[Wer, Cer, Loss];

    /// As it is written.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(metric, _)| *metric == self).map_or("", |(_, name)| name)
    }

    /// Whether more is better; of losses and errors less is.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Loss | Mse | Mae | Wer | Cer)
    }

    /// Whether `a` is better than `b`; NaN is never better, and anything is better than NaN.
    pub fn better(self, a: f64, b: f64) -> bool {
        match (a.is_nan(), b.is_nan(), self.higher_is_better()) {
            (true, ..) => false,
            (_, true, _) => true,
            (.., true) => a > b,
            (.., false) => a < b,
        }
    }

    /// The metrics of a problem; the first is the one that people quote.
    pub fn of(problem: Problem) -> &'static [Metric] {
        match problem {
            Problem::SingleLabel => {
                &[Accuracy, F1, Precision, Recall, MacroF1, MicroF1, WeightedF1, Matthews, Loss]
            }
            Problem::MultiLabel => &[MicroF1, F1, Precision, Recall, MacroF1, WeightedF1, Accuracy, Loss],
            Problem::Regression => &[Spearman, Pearson, Mse, Mae, R2, Loss],
            Problem::Tokens => {
                &[F1, Precision, Recall, MicroF1, MacroF1, WeightedF1, Accuracy, Matthews, Loss]
            }
        }
    }

    /// Refuses a metric that the problem has not.
    ///
    /// # Errors
    /// Names those that it has.
    pub fn check(self, problem: Problem) -> Result<()> {
        let all = Metric::of(problem);
        if all.contains(&self) {
            return Ok(());
        }
        let names: Vec<&str> = all.iter().map(|metric| metric.name()).collect();
        Err(Error::Input(format!("{self} is no metric of {problem}; it has {}", names.join(", "))))
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = Error;

    /// Case and `-` for `_` do not matter.
    fn from_str(text: &str) -> Result<Metric> {
        let name = text.trim().to_ascii_lowercase().replace(['-', ' '], "_");
        let known = NAMES.iter().find(|(_, known)| *known == name).map(|(metric, _)| *metric);
        let alias = || ALIASES.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric);
        known.or_else(alias).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
            let near = nearest(&name, names.iter().copied()).unwrap_or_default();
            let shown: String = text.chars().take(40).collect();
            Error::Input(format!(
                "there is no metric {shown:?}; did you mean {near:?}? There are {}",
                names.join(", ")
            ))
        })
    }
}
