//! Texts, questions and conversations, of which a model that reads from left to right learns the next token.

use std::path::Path;

use anyhow::Result;
use retune::metrics::Metric;
use retune::models::{ModelFiles, Net, TextModel};
use retune::run_file::RunFile;
use retune::tasks::Task;
use retune::tasks::causal_lm::{CausalLm, Dataset, Example};
use retune::text::Language;
use retune::train::Objective;
use serde_json::{Value, json};

use super::{
    Counts, Kept, Making, Passes, ReadRows, Samples, Spec, TaskData, View, loss_alone, text, without_labels,
};
use crate::loading::{dataset, language};
use crate::previewing::{Asked, Preview, of_text};
use crate::prompting::questions;
use crate::style::count;

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::TextGeneration],
    read: |_, _, _| Ok(Box::new(Rows)),
    measured: |path, with| {
        let language = language(&with.model.files)?;
        let train = dataset(&language, path, with.max_length, with.train_on)?;
        Ok(Box::new(Texts { train, eval: None }.checked(with.model.text()?)?))
    },
};

/// Questions answered before and after.
const SAMPLE_QUESTIONS: usize = 3;

/// Read when the tokenizer is there.
struct Rows;

impl ReadRows for Rows {
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        let run = with.run;
        let train = load(with.language()?, &run.data, run)?;
        let share = run.eval_share.filter(|share| *share > 0.0);
        let (train, eval) = match (&run.eval_data, share) {
            (Some(path), _) => (train, Some(load(with.language()?, path, run)?)),
            (None, Some(share)) => {
                let (train, held_out) = train.split_by_question(share, run.seed)?;
                (train, Some(held_out).filter(|rows| !rows.examples.is_empty()))
            }
            (None, None) => (train, None),
        };
        Ok(Box::new(Texts { train, eval }.checked(with.model.text()?)?))
    }

    fn preview(self: Box<Self>, run: RunFile, files: &ModelFiles, asked: Asked) -> Result<Preview> {
        let language = language(files)?;
        let data = load(&language, &run.data, &run)?;
        let row = |e: &Example| {
            of_text(&language.tokenizer, e.source.to_string(), (&e.ids, &e.target), e.truncated, Value::Null)
        };
        let rows = data.examples.iter().take(asked.rows).map(row).collect::<Result<_>>()?;
        let report = &data.report;
        let json = json!({
            "rows": report.rows, "examples": report.examples, "tokens": report.tokens,
            "target_tokens": report.target_tokens, "truncated_rows": report.truncated_rows,
            "duplicates": report.duplicates, "dropped": report.dropped.len(), "warnings": report.warnings(),
        });
        Ok(Preview { rows, lines: vec![report.to_string()], json, ..Preview::default() })
    }
}

fn load(language: &Language, path: &Path, run: &RunFile) -> Result<Dataset> {
    dataset(language, path, run.max_length as usize, run.train_on)
}

/// Rows to learn from, and held-out ones.
struct Texts {
    train: Dataset,
    eval: Option<Dataset>,
}

impl Texts {
    fn checked(self, net: &dyn TextModel) -> Result<Texts> {
        std::iter::once(&self.train).chain(&self.eval).try_for_each(|data| plain(net, data).check())?;
        Ok(self)
    }
}

/// Rows to be measured.
fn plain<'a>(net: &'a dyn TextModel, data: &'a Dataset) -> CausalLm<'a> {
    CausalLm { net, data, dropout_seed: None, checkpoint: false, cache: None }
}

impl TaskData for Texts {
    fn task(&self) -> Task {
        Task::TextGeneration
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, cache } = passes;
        let (dropout_seed, cache) = (Some(seed), cache.and_then(Kept::texts));
        Box::new(CausalLm { dropout_seed, checkpoint, cache, ..plain(text(net), &self.train) })
    }

    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let cache = cache.and_then(Kept::texts);
        Some(Box::new(CausalLm { cache, ..plain(text(net), self.eval.as_ref()?) }))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        Box::new(plain(view.text(), &self.train))
    }

    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        without_labels(path)?;
        let train = load(with.language()?, path, with.run)?;
        Ok(Box::new(Texts { train, eval: None }.checked(with.model.text()?)?))
    }

    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        loss_alone(asked)
    }

    fn counts(&self) -> Counts {
        let report = &self.train.report;
        Counts { rows: report.examples, tokens: report.tokens, targets: Some(report.target_tokens) }
    }

    fn texts(&self) -> Vec<(&[u32], &[u32])> {
        self.train.examples.iter().map(|e| (&e.ids[..], &[][..])).collect()
    }

    fn held_out(&self) -> Option<usize> {
        self.eval.as_ref().map(|eval| eval.report.examples)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let report = &self.train.report;
        let n = |n: usize| count(n as u64);
        vec![
            ("rows", n(report.rows)),
            ("examples", n(report.examples)),
            ("tokens in them", n(report.tokens)),
            ("with loss", n(report.target_tokens)),
            ("cut at max_length", n(report.truncated_rows)),
        ]
    }

    fn summary(&self) -> String {
        let Counts { rows, tokens, .. } = self.counts();
        format!("{} rows, {} tokens", count(rows as u64), count(tokens as u64))
    }

    fn warnings(&self) -> Vec<String> {
        self.train.report.warnings()
    }

    /// Of the held-out rows, else of the training rows.
    fn samples(&self, run: &RunFile) -> Result<Samples> {
        let path = run.eval_data.as_ref().unwrap_or(&run.data);
        Ok(Samples::Questions(questions(path, SAMPLE_QUESTIONS)?))
    }
}
