//! What a run tells its caller while it goes on. One event is one line of `metrics.jsonl` and of `--json`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::checkpoint::Best;
use super::plan::Plan;
use crate::metrics::Metrics;
use crate::objective::Unit;

/// Something that happened. Steps count from 1; a step is one update (or a skipped one).
///
/// Numbers that are not finite are `null` in JSON and NaN when read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The memory plan (sent by whoever planned, before the run).
    Planned(Plan),
    /// The run begins, or goes on after `step` steps.
    Started {
        step: u64,
        steps: u64,
        steps_per_epoch: u64,
        /// Examples with something to learn.
        examples: u64,
        /// The sum of their weights (target tokens).
        targets: f64,
        trainable_parameters: u64,
        /// The checkpoint that the run goes on from.
        resumed_from: Option<PathBuf>,
    },
    /// Moments of the optimiser lie in a file that goes with the process, for want of memory or since that was wished.
    Paged {
        path: PathBuf,
        /// Bytes in memory, pages on the move included.
        resident_bytes: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// One update was made.
    Step {
        step: u64,
        steps: u64,
        /// Epochs done, as a fraction.
        epoch: f64,
        /// Mean loss per target.
        loss: f64,
        lr: f64,
        /// Norm of the whole gradient before clipping.
        grad_norm: f64,
        /// Real rows (tokens) of the step; there is no padding.
        tokens: u64,
        tokens_per_s: f64,
        /// What these rows are.
        #[serde(default)]
        unit: Unit,
        /// The most bytes that tensors held so far.
        peak_bytes: u64,
        /// Seconds left, at the speed so far.
        eta_s: f64,
    },
    /// An evaluation goes on; not worth a line in a log.
    Evaluating { step: u64, done: u64, examples: u64 },
    /// An evaluation is done.
    Eval {
        step: u64,
        /// Mean loss per target over all of the evaluation data.
        #[serde(deserialize_with = "null_is_nan")]
        loss: f64,
        #[serde(deserialize_with = "null_is_nan")]
        perplexity: f64,
        /// The best so far, the one before the first step aside.
        best: bool,
        /// What was measured besides, by name.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metrics: BTreeMap<String, f64>,
    },
    /// The last `waited` evaluations were no better than the best: the run ends before its last step.
    StoppedEarly { step: u64, steps: u64, waited: u32 },
    /// A checkpoint is on the disk for good.
    Saved { step: u64, path: PathBuf, bytes: u64 },
    /// A loss or gradient was not finite: weights and moments are as before.
    Skipped {
        step: u64,
        #[serde(deserialize_with = "null_is_nan")]
        loss: f64,
        #[serde(deserialize_with = "null_is_nan")]
        grad_norm: f64,
        /// The first weight that is not finite itself, else the first parameter whose gradient is not.
        tensor: Option<String>,
        /// The examples whose own loss is not finite; all of the step if no single one is to blame.
        examples: Vec<String>,
        in_a_row: u32,
    },
    /// The loss or the gradient norm stands out of the last steps. Only a warning.
    Spike { step: u64, what: SpikeIn, value: f64, z: f64 },
    /// A checkpoint is not whole and was not used. Once the run goes on from an older one, it is renamed to
    /// `….damaged-1` (or the next free number).
    CheckpointRejected { path: PathBuf, why: String },
    /// The run was stopped on request and can go on from `checkpoint`.
    Interrupted { step: u64, checkpoint: Option<PathBuf> },
    /// The run was ended since its numbers are not finite.
    Diverged { step: u64, why: String, checkpoint: Option<PathBuf> },
    /// The run is done.
    Finished {
        step: u64,
        eval_before: Option<f64>,
        eval_after: Option<f64>,
        best: Option<Best>,
        /// The step whose weights, the best ones, are those at the end; `None`: the last ones are.
        #[serde(default)]
        restored: Option<u64>,
        tokens: u64,
        /// Of this process.
        seconds: f64,
        peak_bytes: u64,
        /// Seconds of this process in which updates and checkpoints waited for the file of moments, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        paging_wait_s: Option<f64>,
        /// The most bytes that the process held, where the system says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process_peak_bytes: Option<u64>,
    },
}

impl Event {
    /// Worth a progress bar, not a line in a log.
    pub fn is_transient(&self) -> bool {
        matches!(self, Event::Evaluating { .. })
    }

    /// The step that a logged line belongs to, if any.
    pub fn step(&self) -> Option<u64> {
        match self {
            Event::Planned(_) | Event::Paged { .. } | Event::CheckpointRejected { .. } => None,
            Event::Started { step, .. }
            | Event::Step { step, .. }
            | Event::Evaluating { step, .. }
            | Event::Eval { step, .. }
            | Event::StoppedEarly { step, .. }
            | Event::Saved { step, .. }
            | Event::Skipped { step, .. }
            | Event::Spike { step, .. }
            | Event::Interrupted { step, .. }
            | Event::Diverged { step, .. }
            | Event::Finished { step, .. } => Some(*step),
        }
    }
}

/// Which series a spike is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpikeIn {
    Loss,
    GradNorm,
}

/// The caller's answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Finish the step, save, and return.
    Stop,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum OutcomeEnd {
    Finished,
    /// Stopped on request.
    Interrupted,
    /// Too many steps in a row without finite numbers.
    Diverged {
        why: String,
    },
}

/// What a run leaves behind; the trained weights are in the caller's `Params`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub end: OutcomeEnd,
    /// Steps done, of `steps`.
    pub step: u64,
    pub steps: u64,
    /// Mean loss of the last update.
    pub loss: Option<f64>,
    /// Evaluation loss before the first step, and of the weights at the end.
    pub eval_before: Option<f64>,
    pub eval_after: Option<f64>,
    /// Metrics before the first step, and of the weights at the end.
    pub metrics_before: Option<Metrics>,
    pub metrics_after: Option<Metrics>,
    /// The best evaluation.
    pub best: Option<Best>,
    /// The step whose weights, the best ones, the parameters hold now; `None`: they hold the last ones.
    pub restored: Option<u64>,
    /// The run ended since its evaluations got no better.
    pub stopped_early: bool,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Rows (tokens) trained on since the run's beginning, over all restarts.
    pub tokens: u64,
    /// Seconds of this process.
    pub seconds: f64,
}

/// JSON has no NaN; `null` stands for it.
pub(crate) fn null_is_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_json_objects_and_come_back() {
        let event =
            Event::Eval { step: 3, loss: 1.5, perplexity: 4.25, best: true, metrics: BTreeMap::new() };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"event":"eval","step":3,"loss":1.5,"perplexity":4.25,"best":true}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_null() {
        let event = Event::Eval {
            step: 3,
            loss: f64::NAN,
            perplexity: f64::INFINITY,
            best: false,
            metrics: BTreeMap::new(),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains(r#""loss":null"#), "{text}");
        let Event::Eval { loss, .. } = serde_json::from_str::<Event>(&text).unwrap() else { panic!() };
        assert!(loss.is_nan());
    }
}
