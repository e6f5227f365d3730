//! The settings of the loop itself. Defaults live in [`RunFile`]; this is what they mean to the loop.

use std::collections::BTreeMap;

use super::error::{Error, Result};
use super::optimizer::moments::PAGE_BYTES;
use super::schedule;
use crate::metrics::Metric;
use crate::run_file::{OnNan, Optim, RunFile, Schedule};

/// What the training loop needs to know. [`Default`] is the run file's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSettings {
    /// Passes through the data; fractions are allowed. Not looked at when `steps` is given.
    pub epochs: f64,
    /// Optimiser steps.
    pub steps: Option<u64>,
    /// Examples in one forward and backward pass.
    pub batch_size: usize,
    /// Passes summed into one step.
    pub gradient_accumulation: usize,
    /// Peak learning rate.
    pub lr: f64,
    pub schedule: Schedule,
    /// Below 1: a share of all steps. From 1: a number of steps.
    pub warmup: f64,
    pub beta1: f64,
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay; parameters with one dimension (biases, norms) are never decayed.
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Whether moments have 32 or 8 bits, and whether they lie in a file in any case.
    pub optim: Optim,
    /// Bytes of memory for the moments: what exceeds them lies in a file beside the run, with the same result. `None`: no
    /// limit. At least a few pages are in memory.
    pub optimizer_budget: Option<u64>,
    /// Bytes of a page of moments.
    pub page_bytes: usize,
    /// Order of the examples.
    pub seed: u64,
    /// Steps between evaluations; `None`: after each epoch. Always before the first step and after the last.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; `None`: after each epoch. Always after the last step.
    pub save_every: Option<u64>,
    /// Checkpoints kept on disk, at least 2; the best one is kept besides.
    pub keep: usize,
    /// What the best checkpoint is chosen by.
    pub metric: Metric,
    /// Evaluations in a row that are no better than the best, after which the run ends; `None`: never.
    pub patience: Option<u32>,
    /// The weights at the end are the last ones, not the best ones.
    pub keep_last: bool,
    pub on_nan: OnNan,
    /// Steps in a row without finite numbers that end the run.
    pub nan_steps_max: u32,
}

impl Default for TrainSettings {
    fn default() -> Self {
        TrainSettings::from_run_file(&RunFile::default(), 2e-4)
    }
}

impl TrainSettings {
    /// The loop's share of a run file; `method_lr` is the learning rate where the file gives none.
    pub fn from_run_file(run: &RunFile, method_lr: f64) -> TrainSettings {
        TrainSettings {
            epochs: f64::from(run.epochs),
            steps: run.steps,
            batch_size: run.batch_size as usize,
            gradient_accumulation: run.gradient_accumulation as usize,
            lr: run.lr_or(method_lr),
            schedule: run.schedule,
            warmup: run.warmup,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: run.weight_decay,
            max_grad_norm: run.max_grad_norm,
            optim: run.optim,
            optimizer_budget: None,
            page_bytes: PAGE_BYTES,
            seed: run.seed,
            eval_every: run.eval_every,
            save_every: run.save_every,
            keep: run.keep as usize,
            metric: run.metric.unwrap_or_default(),
            patience: run.early_stopping_patience,
            keep_last: run.keep_last,
            on_nan: run.on_nan,
            nan_steps_max: 3,
        }
    }

    /// Optimiser steps of the run when an epoch has `steps_per_epoch`.
    pub fn steps_total(&self, steps_per_epoch: u64) -> u64 {
        self.steps.unwrap_or_else(|| ((self.epochs * steps_per_epoch as f64).ceil() as u64).max(1))
    }

    /// The learning rate of the step with this index (0 is the first) out of `steps_total`.
    pub fn lr_at(&self, index: u64, steps_total: u64) -> f64 {
        let warmup = schedule::warmup_steps(self.warmup, steps_total);
        self.lr * schedule::factor(self.schedule, index, warmup, steps_total)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// One error that lists all that is wrong.
    pub fn check(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let rules = [
            (self.steps.is_some() || positive(self.epochs), "`epochs` must be above 0", self.epochs),
            (self.steps != Some(0), "`steps` must be at least 1", 0.0),
            (self.batch_size > 0, "`batch_size` must be at least 1", 0.0),
            (self.gradient_accumulation > 0, "`gradient_accumulation` must be at least 1", 0.0),
            // AdamW's first step is lr / (1 - beta1), in f32.
            (
                positive(self.lr) && ((self.lr / (1.0 - self.beta1)) as f32).is_finite(),
                "`lr` must be above 0 and small enough for f32",
                self.lr,
            ),
            (self.warmup.is_finite() && self.warmup >= 0.0, "`warmup` must be at least 0", self.warmup),
            ((0.0..1.0).contains(&self.beta1), "`beta1` must be from 0 to below 1", self.beta1),
            ((0.0..1.0).contains(&self.beta2), "`beta2` must be from 0 to below 1", self.beta2),
            (positive(self.eps), "`eps` must be above 0", self.eps),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "`weight_decay` must be at least 0",
                self.weight_decay,
            ),
            (
                self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0,
                "`max_grad_norm` must be at least 0",
                self.max_grad_norm,
            ),
            (self.eval_every != Some(0), "`eval_every` must be at least 1", 0.0),
            (self.save_every != Some(0), "`save_every` must be at least 1", 0.0),
            (
                self.keep >= 2,
                "`keep` must be at least 2, so that a damaged newest checkpoint has a predecessor",
                self.keep as f64,
            ),
            (self.patience != Some(0), "`early_stopping_patience` must be at least 1", 0.0),
            (self.nan_steps_max > 0, "`nan_steps_max` must be at least 1", 0.0),
        ];
        let wrong: Vec<String> = rules
            .iter()
            .filter(|(ok, ..)| !ok)
            .map(|(_, rule, value)| format!("{rule}, not {value}"))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(Error::Settings(wrong)) }
    }

    /// The settings that the numbers of a run depend on, as text: a resumed run must have the same.
    pub(crate) fn fingerprint(&self, steps_total: u64) -> BTreeMap<String, String> {
        let mut map: BTreeMap<String, String> = [
            ("batch_size", self.batch_size.to_string()),
            ("gradient_accumulation", self.gradient_accumulation.to_string()),
            ("lr", self.lr.to_string()),
            ("schedule", format!("{:?}", self.schedule).to_lowercase()),
            ("warmup_steps", schedule::warmup_steps(self.warmup, steps_total).to_string()),
            ("beta1", self.beta1.to_string()),
            ("beta2", self.beta2.to_string()),
            ("eps", self.eps.to_string()),
            ("weight_decay", self.weight_decay.to_string()),
            ("max_grad_norm", self.max_grad_norm.to_string()),
            // Where the moments lie makes no difference.
            ("optim", if self.optim.is_8bit() { "adamw_8bit" } else { "adamw" }.to_string()),
            ("seed", self.seed.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect();
        if self.metric != Metric::Loss {
            map.insert("metric".into(), self.metric.to_string());
        }
        // A constant rate does not know how long the run will be, so such a run may be made longer.
        if self.schedule != Schedule::Constant {
            map.insert("steps".into(), steps_total.to_string());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_at_once() {
        let bad = TrainSettings { batch_size: 0, keep: 1, lr: f64::NAN, ..TrainSettings::default() };
        let text = bad.check().unwrap_err().to_string();
        for word in ["batch_size", "keep", "lr"] {
            assert!(text.contains(word), "{text}");
        }
        TrainSettings::default().check().unwrap();
    }

    #[test]
    fn epochs_may_be_fractions() {
        let of = |epochs| TrainSettings { epochs, ..TrainSettings::default() }.steps_total(10);
        assert_eq!((of(0.25), of(1.0), of(2.5)), (3, 10, 25));
    }
}
