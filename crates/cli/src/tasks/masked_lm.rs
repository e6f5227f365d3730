//! Texts some of whose tokens are hidden or exchanged, which an encoder learns to guess.

use std::path::Path;

use anyhow::Result;
use retune::metrics::Metric;
use retune::models::{ModelFiles, Net, TextModel};
use retune::run_file::RunFile;
use retune::tasks::Task;
use retune::tasks::masked_lm::{Example, MaskedLm, Texts};
use retune::text::Tokenizer;
use retune::train::Objective;
use retune_formats::records::Records;
use serde_json::{Value, json};

use super::{
    Counts, Kept, Making, Passes, ReadRows, Samples, Spec, TaskData, View, loss_alone, room, text,
    without_labels,
};
use crate::loading::language;
use crate::previewing::{Asked, Preview, of_text};
use crate::style::count;

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::MaskedLm],
    read: |_, _, _| Ok(Box::new(Rows)),
    measured: |path, with| {
        let net = with.model.text()?;
        let train = load(&language(&with.model.files)?.tokenizer, path, room(net, with.max_length))?;
        Ok(Box::new(Hidden { train, eval: None, seed: MASK_SEED }.checked(net)?))
    },
};

/// Chooses what is hidden in an evaluation.
const MASK_SEED: u64 = 42;

/// Read when the tokenizer is there.
struct Rows;

impl ReadRows for Rows {
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        let (run, tokenizer, room) = (with.run, &with.language()?.tokenizer, with.room()?);
        let eval = run.eval_data.as_deref().map(|path| load(tokenizer, path, room)).transpose()?;
        let hidden = Hidden { train: load(tokenizer, &run.data, room)?, eval, seed: run.seed };
        Ok(Box::new(hidden.checked(with.model.text()?)?))
    }

    /// What is guessed in the first epoch is marked.
    fn preview(self: Box<Self>, run: RunFile, files: &ModelFiles, asked: Asked) -> Result<Preview> {
        let tokenizer = &language(files)?.tokenizer;
        let data = load(tokenizer, &run.data, run.max_length as usize)?;
        let row = |e: &Example| {
            let mut targets = vec![false; e.tokens.ids.len()];
            data.shown(e, run.seed, 0).1.into_iter().for_each(|(position, _)| targets[position] = true);
            let text = (&e.tokens.ids[..], &targets[..]);
            of_text(tokenizer, e.source.to_string(), text, e.tokens.truncated, Value::Null)
        };
        let rows = data.examples.iter().take(asked.rows).map(row).collect::<Result<_>>()?;
        let n = |n: usize| count(n as u64);
        let (texts, cut, short) = (data.examples.len(), data.truncated, data.dropped);
        let line = format!(
            "{} texts, {} cut, {} too short and left out; which tokens are guessed is another choice in every epoch",
            n(texts),
            n(cut),
            n(short)
        );
        let json = json!({"rows": texts + short, "examples": texts, "truncated_rows": cut, "dropped": short});
        Ok(Preview { rows, lines: vec![line], json, ..Preview::default() })
    }
}

fn load(tokenizer: &Tokenizer, path: &Path, room: usize) -> Result<Texts> {
    Ok(Texts::build(tokenizer, &path.display().to_string(), &Records::read_all(path)?, room)?)
}

/// Texts to learn from, and held-out ones.
struct Hidden {
    train: Texts,
    eval: Option<Texts>,
    seed: u64,
}

impl Hidden {
    fn checked(self, net: &dyn TextModel) -> Result<Hidden> {
        std::iter::once(&self.train).chain(&self.eval).try_for_each(|data| self.plain(net, data).check())?;
        Ok(self)
    }

    fn plain<'a>(&self, net: &'a dyn TextModel, data: &'a Texts) -> MaskedLm<'a> {
        MaskedLm { net, data, seed: self.seed, dropout_seed: None, checkpoint: false }
    }

    fn tokens(&self) -> usize {
        self.train.examples.iter().map(|e| e.tokens.ids.len()).sum()
    }
}

impl TaskData for Hidden {
    fn task(&self) -> Task {
        Task::MaskedLm
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, .. } = passes;
        Box::new(MaskedLm {
            seed,
            dropout_seed: Some(seed),
            checkpoint,
            ..self.plain(text(net), &self.train)
        })
    }

    fn eval<'a>(&'a self, net: &'a Net, _cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        Some(Box::new(self.plain(text(net), self.eval.as_ref()?)))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        Box::new(self.plain(view.text(), &self.train))
    }

    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        without_labels(path)?;
        let train = load(&with.language()?.tokenizer, path, with.room()?)?;
        Ok(Box::new(Hidden { train, eval: None, seed: self.seed }.checked(with.model.text()?)?))
    }

    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        loss_alone(asked)
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.train.examples.len(), tokens: self.tokens(), targets: None }
    }

    fn texts(&self) -> Vec<(&[u32], &[u32])> {
        self.train.examples.iter().map(|e| (&e.tokens.ids[..], &e.tokens.token_types[..])).collect()
    }

    fn held_out(&self) -> Option<usize> {
        self.eval.as_ref().map(|eval| eval.examples.len())
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let n = |n: usize| count(n as u64);
        vec![
            ("examples", n(self.train.examples.len())),
            ("tokens in them", n(self.tokens())),
            ("cut at max_length", n(self.train.truncated)),
        ]
    }

    fn summary(&self) -> String {
        format!("{} rows, {} tokens", count(self.train.examples.len() as u64), count(self.tokens() as u64))
    }

    fn warnings(&self) -> Vec<String> {
        let counts =
            [(self.train.dropped, "too short, dropped"), (self.train.truncated, "cut at max_length")];
        let told = counts.iter().filter(|(n, _)| *n > 0);
        told.map(|(n, what)| format!("{} rows {what}", count(*n as u64))).collect()
    }

    /// Other tokens are hidden in each epoch.
    fn stays(&self) -> bool {
        false
    }

    fn samples(&self, _run: &RunFile) -> Result<Samples> {
        Ok(Samples::Questions(Vec::new()))
    }
}
