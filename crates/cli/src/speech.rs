//! Clips of a run and what is said in them, as examples for a model that reads sound.

use std::path::Path;

use anyhow::{Result, bail};
use retune::models::{Model, ModelFiles, Whisper};
use retune::nn::Active;
use retune::run_file::RunFile;
use retune::tasks::speech::data::{DataReport, Dataset, Options};
use retune::tasks::speech::{Examples, Request, SoundCache, SpeechToText, SpeechTokens};
use retune::text::Language;

use crate::style::{count, seconds};

/// Share of the files that is held out where nobody says.
const HELD_OUT: f64 = 0.1;
/// Fewer files than these are all trained on.
const SPLIT_FROM: usize = 10;

/// Clips to learn from, and held-out ones.
pub struct Spoken {
    pub train: Examples,
    pub eval: Option<Examples>,
    pub report: DataReport,
}

impl Spoken {
    /// Reads a run's clips and tokenises what is said in them.
    ///
    /// # Errors
    /// All rows that cannot be used.
    pub fn read(run: &RunFile, language: &Language, model: &Model) -> Result<Spoken> {
        let all = load(&run.data)?;
        let report = all.report.clone();
        let share = run.eval_share.unwrap_or(if all.clips.len() < SPLIT_FROM { 0.0 } else { HELD_OUT });
        let (train, eval) = match &run.eval_data {
            Some(path) => (all, Some(load(path)?)),
            None if share > 0.0 => {
                let [train, held_out, _] = all.split([share, 0.0], run.seed)?;
                (train, Some(held_out))
            }
            None => (all, None),
        };
        let make = |data: Dataset| examples(data, language, model);
        let eval = eval.filter(|data| !data.clips.is_empty()).map(make).transpose()?;
        let train = make(train)?;
        if train.is_empty() {
            bail!("{}: there are no clips to learn from", run.data.display());
        }
        Ok(Spoken { train, eval, report })
    }

    /// Clips to be measured.
    ///
    /// # Errors
    /// As [`Spoken::read`].
    pub fn measured(path: &Path, language: &Language, model: &Model) -> Result<Spoken> {
        let data = load(path)?;
        let report = data.report.clone();
        Ok(Spoken { train: examples(data, language, model)?, eval: None, report })
    }

    /// Some of them as a task, as they are.
    pub fn objective<'a>(&'a self, net: &'a Whisper, data: &'a Examples) -> SpeechToText<'a> {
        SpeechToText {
            net,
            data,
            dropout_seed: None,
            checkpoint: false,
            cache: None::<&SoundCache>,
            active: Active::default(),
        }
    }

    /// Counts for the report.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows =
            vec![("clips", count(self.train.len() as u64)), ("speech", seconds(self.report.seconds))];
        if !self.report.languages.is_empty() {
            let told = self.report.languages.iter().map(|(code, n)| format!("{code} ({n})"));
            rows.push(("languages", told.collect::<Vec<_>>().join(", ")));
        }
        if self.report.duplicates > 0 {
            rows.push(("left out, for they repeat others", count(self.report.duplicates as u64)));
        }
        rows
    }
}

fn load(path: &Path) -> Result<Dataset> {
    Ok(Dataset::load(path, &Options::default())?)
}

/// Every clip is decoded once, so that what is wrong is told before anything is trained.
fn examples(data: Dataset, language: &Language, model: &Model) -> Result<Examples> {
    let multilingual = match &model.files {
        ModelFiles::Folder(folder) => {
            folder.generation_config().and_then(|config| config.get("is_multilingual")?.as_bool())
        }
        _ => None,
    };
    let tokens = SpeechTokens::new(&language.tokenizer, multilingual)?;
    let request = Request::default();
    data.check(&tokens, &language.tokenizer, request, || {})?;
    Ok(Examples::new(data, model.speech()?, &language.tokenizer, &tokens, request)?)
}
