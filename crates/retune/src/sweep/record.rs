//! `sweep.json`: what the runs of a sweep came to, so that an interrupted one goes on and a page can be drawn.

use std::path::Path;

use retune_formats::{atomic, json, limits};
use serde::{Deserialize, Serialize};

use super::{Curve, Trial};
use crate::error::{Error, Result};
use crate::metrics::Metric;
use crate::run_file::RunFile;

/// The file's name.
pub const SWEEP_FILE: &str = "sweep.json";
const VERSION: u32 = 1;

/// How a run of a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Finished,
    /// Hopeless beside the others.
    Stopped,
    /// Its numbers were not finite any more.
    Diverged,
    /// It could not be run with these settings.
    Failed,
}

impl State {
    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            State::Finished => "finished",
            State::Stopped => "stopped early",
            State::Diverged => "diverged",
            State::Failed => "failed",
        }
    }
}

/// A run that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub name: String,
    /// What distinguishes it.
    pub settings: Vec<(String, String)>,
    pub method: String,
    pub state: State,
    /// The metric of the weights that were written; of a run that was stopped, the best so far.
    pub value: Option<f64>,
    pub curve: Curve,
    pub trainable: u64,
    pub total: u64,
    /// Of training, over all restarts.
    pub seconds: f64,
    pub step: u64,
    pub steps: u64,
    /// Why it was stopped or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How to use it, as a command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// How much the old task's loss or metric changed, where that was measured: before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained: Option<(f64, f64)>,
}

/// A sweep so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub(super) version: u32,
    pub metric: Metric,
    /// The settings that all runs share, as a run file.
    pub base: String,
    /// In the order in which they ended.
    pub runs: Vec<Done>,
}

impl Record {
    /// A sweep that begins. What is swept over is no setting that all runs share.
    pub fn new(metric: Metric, base: &RunFile) -> Record {
        Record { version: VERSION, metric, base: base.to_toml(), runs: Vec::new() }
    }

    /// Reads a folder's `sweep.json`, if it is there.
    ///
    /// # Errors
    /// If it is damaged or of another version.
    pub fn read(folder: &Path) -> Result<Option<Record>> {
        let path = folder.join(SWEEP_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let value = json::read(&path, limits::CONFIG_BYTES)?;
        let fail = |what: String| Error::Adapter { path: path.clone(), what };
        let record: Record =
            serde_json::from_value(value).map_err(|e| fail(format!("it does not describe a sweep ({e})")))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => {
                Err(fail(format!("version {other} of sweeps is not known; this program writes {VERSION}")))
            }
        }
    }

    /// Writes `sweep.json` into a folder, atomically.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let value = serde_json::to_value(self).unwrap_or_default();
        Ok(atomic::write_bytes(&folder.join(SWEEP_FILE), json::to_python_text(&value).as_bytes())?)
    }

    /// The shared settings in which another base differs, as lines of run files.
    pub fn differences(&self, base: &RunFile) -> Vec<String> {
        let other = base.to_toml();
        let plain = |line: &&str| !line.starts_with('#');
        let (old, new): (Vec<&str>, Vec<&str>) =
            (self.base.lines().filter(plain).collect(), other.lines().filter(plain).collect());
        let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
        let came = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
        gone.chain(came).collect()
    }

    /// A trial's run, if it ended and need not be made again: one that failed is tried again.
    pub fn find(&self, trial: &Trial) -> Option<&Done> {
        self.runs.iter().find(|done| done.name == trial.name && done.state != State::Failed)
    }

    /// Puts a run in, in place of an earlier one of that name.
    pub fn put(&mut self, done: Done) {
        self.runs.retain(|other| other.name != done.name);
        self.runs.push(done);
    }

    /// The curves of the runs that came to their end.
    pub fn finished(&self) -> impl Iterator<Item = &Curve> {
        self.runs.iter().filter(|done| done.state == State::Finished).map(|done| &done.curve)
    }

    /// All runs, best first: the finished by their metric, then those stopped early, then the others. Of equal ones that
    /// with fewer trained parameters comes first.
    pub fn ranked(&self) -> Vec<&Done> {
        let mut runs: Vec<&Done> = self.runs.iter().collect();
        let class = |done: &Done| match done.state {
            State::Finished => 0,
            State::Stopped => 1,
            State::Diverged => 2,
            State::Failed => 3,
        };
        let badness = |done: &Done| match done.value {
            Some(value) if self.metric.higher_is_better() => -value,
            Some(value) => value,
            None => f64::INFINITY,
        };
        runs.sort_by(|a, b| {
            let by_value = class(a).cmp(&class(b)).then(badness(a).total_cmp(&badness(b)));
            by_value.then(a.trainable.cmp(&b.trainable))
        });
        runs
    }

    /// The best of the finished runs.
    pub fn best(&self) -> Option<&Done> {
        self.ranked().into_iter().next().filter(|done| done.state == State::Finished && done.value.is_some())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn done(name: &str, state: State, value: f64, trainable: u64) -> Done {
        let mut curve = Curve::default();
        curve.push(0.5, value + 0.5);
        curve.push(1.0, value);
        Done {
            name: name.into(),
            settings: vec![("rank".into(), name.into())],
            method: "lora".into(),
            state,
            value: Some(value).filter(|value| value.is_finite()),
            curve,
            trainable,
            total: 1_000_000,
            seconds: 10.0,
            step: 10,
            steps: 10,
            note: None,
            command: None,
            retained: None,
        }
    }

    pub fn record() -> Record {
        let mut record = Record::new(Metric::Loss, &RunFile::default());
        for run in [
            done("a", State::Stopped, 0.5, 10),
            done("b", State::Finished, 2.0, 20),
            done("c", State::Finished, 1.0, 40),
            done("d", State::Diverged, f64::NAN, 10),
            done("e", State::Finished, 1.0, 30),
        ] {
            record.put(run);
        }
        record
    }

    #[test]
    fn the_best_is_finished_and_small() {
        let record = record();
        let order: Vec<&str> = record.ranked().iter().map(|done| done.name.as_str()).collect();
        assert_eq!(order, ["e", "c", "b", "a", "d"]);
        assert_eq!(record.best().unwrap().name, "e");
        assert_eq!(Record { metric: Metric::Accuracy, ..record.clone() }.best().unwrap().name, "b");
        assert_eq!(record.finished().count(), 3);
        assert!(Record { runs: vec![], ..record }.best().is_none());
    }

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let mut record = record();
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap().unwrap(), record);
        record.version = 9;
        record.write(dir.path()).unwrap();
        assert!(Record::read(dir.path()).unwrap_err().to_string().contains("version 9"));
        std::fs::write(dir.path().join(SWEEP_FILE), "{\"version\": 1").unwrap();
        assert!(Record::read(dir.path()).is_err());
    }

    #[test]
    fn another_base_is_noticed() {
        let record = record();
        assert!(record.differences(&RunFile::default()).is_empty());
        let other = RunFile { epochs: 9, ..RunFile::default() };
        assert_eq!(record.differences(&other), ["- epochs = 3", "+ epochs = 9"]);
    }
}
