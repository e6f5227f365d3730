//! Labels, sets of labels and numbers of texts and pairs, and tags of words.

use std::path::Path;

use anyhow::{Result, bail};
use retune::metrics::Metric;
use retune::models::{HeadRequest, Model, ModelFiles, Net, TextModel};
use retune::nn::{Head, Problem};
use retune::run_file::{PoolingChoice, RunFile, TaskChoice};
use retune::tasks::Task;
use retune::tasks::classification::{
    self, ClassWeights, Classification, Dataset, Example, Examples, HELD_OUT, Label, LabelledText, Labels,
    Options, Prediction, predict,
};
use retune::text::Language;
use retune::train::Objective;
use serde_json::json;

use super::{
    Counts, Kept, Making, Passes, ReadRows, Samples, Spec, TaskData, View, head, is_labelled, room, text,
};
use crate::exit::UsageError;
use crate::loading::language;
use crate::previewing::{Asked, Preview, of_text};
use crate::style::{self, count};

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::TextClassification, Task::TokenClassification],
    read: |run, files, problem| Ok(Box::new(Rows::read(run, files, problem)?)),
    measured: |path, with| {
        let net = with.model.text()?;
        let Head::Classifier(head) = net.head() else { bail!("the model has no classifier") };
        let labels = Some(Labels { names: head.labels.clone() });
        let rows = Dataset::load(path, &Options { problem: Some(head.problem), labels, model_labels: None })?;
        let language = language(&with.model.files)?;
        let data = Classified::of(&language, &rows, room(net, with.max_length))?;
        Ok(Box::new(data.checked(net)?))
    },
};

/// Labelled rows, and held-out ones.
struct Rows {
    train: Dataset,
    eval: Option<Dataset>,
}

impl Rows {
    fn read(run: &RunFile, files: &ModelFiles, problem: Option<Problem>) -> Result<Rows> {
        let own = head::own_labels(files)?.filter(|_| run.keep_head);
        let labels = run.labels.clone().map(|names| Labels { names });
        let options = Options { problem, labels, model_labels: own };
        let train = Dataset::load(&run.data, &options)?;
        // Rows of tags tell their task themselves.
        let tags_asked = matches!(run.task, TaskChoice::Auto | TaskChoice::TokenClassification);
        if !tags_asked && train.problem == Problem::Tokens {
            bail!("{}: its rows are tagged words; use --task token-classification", run.data.display());
        }
        let known =
            Options { problem: Some(train.problem), labels: Some(train.labels.clone()), model_labels: None };
        let (train, eval) = match &run.eval_data {
            Some(path) => (train, Some(Dataset::load(path, &known)?)),
            None => {
                let share = run.eval_share.unwrap_or(HELD_OUT);
                let (train, held_out) = train.split_stratified(share, run.seed)?;
                (train, Some(held_out).filter(|rows| !rows.examples.is_empty()))
            }
        };
        if train.problem == Problem::Tokens && run.pooling != PoolingChoice::Auto {
            let what = "pooling is for labels of whole texts; these rows are tagged words";
            return Err(UsageError(what.into()).into());
        }
        Ok(Rows { train, eval })
    }
}

impl ReadRows for Rows {
    fn head(&self, run: &RunFile, files: &ModelFiles) -> Result<(HeadRequest, bool)> {
        head::classifier(run, files, (self.train.problem, &self.train.labels.names))
    }

    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        let Rows { train, eval } = *self;
        let weights = ClassWeights::parse(&with.run.class_weights)?;
        if weights != ClassWeights::Even && train.problem == Problem::Regression {
            return Err(UsageError("class_weights are for labels; these rows have numbers".into()).into());
        }
        let class_weights = weights.of(&train.labels, train.class_counts())?;
        let (language, room) = (with.language()?, with.room()?);
        let of = eval.as_ref().unwrap_or(&train);
        let every = of.examples.len().div_ceil(SAMPLES).max(1);
        let samples = of.examples.iter().step_by(every).take(SAMPLES).cloned().collect();
        let eval = eval.map(|rows| Examples::of(&language.tokenizer, &rows, room)).transpose()?;
        let data = Classified { samples, eval, class_weights, ..Classified::of(language, &train, room)? };
        Ok(Box::new(data.checked(with.model.text()?)?))
    }

    fn preview(self: Box<Self>, run: RunFile, files: &ModelFiles, asked: Asked) -> Result<Preview> {
        let language = language(files)?;
        let data = Examples::of(&language.tokenizer, &self.train, run.max_length as usize)?;
        let row = |e: &Example| {
            let label = truth(&e.label, &data.labels);
            let (targets, more) = (vec![false; e.tokens.ids.len()], json!({"label": label}));
            let text = (&e.tokens.ids[..], &targets[..]);
            let mut row = of_text(&language.tokenizer, e.source.to_string(), text, e.tokens.truncated, more)?;
            row.lines.push(style::target(&style::printable(&label)));
            Ok(row)
        };
        let rows = data.examples.iter().take(asked.rows).map(row).collect::<Result<_>>()?;
        let n = |n: usize| count(n as u64);
        let (examples, report) = (data.examples.len(), &data.report);
        let mut line = format!("{} rows, {} tokens, {} cut", n(examples), n(data.tokens), n(data.truncated));
        let each = data.labels.names.iter().zip(&report.counts);
        let each: Vec<String> = each.map(|(name, n)| format!("{name} {}", count(*n))).collect();
        if !each.is_empty() {
            line += &format!("; {}", each.join(", "));
        }
        let json = json!({
            "rows": report.rows, "examples": examples, "tokens": data.tokens, "truncated_rows": data.truncated,
            "duplicates": report.duplicates, "labels": data.labels.names, "counts": report.counts,
        });
        Ok(Preview { rows, lines: vec![line], json, ..Preview::default() })
    }
}

/// Texts whose labels are told before and after.
const SAMPLES: usize = 3;

/// Labelled examples.
struct Classified {
    train: Examples,
    eval: Option<Examples>,
    class_weights: Option<Vec<f32>>,
    /// A few rows whose labels are told before and after.
    samples: Vec<LabelledText>,
}

impl Classified {
    fn of(language: &Language, rows: &Dataset, room: usize) -> Result<Classified> {
        let train = Examples::of(&language.tokenizer, rows, room)?;
        Ok(Classified { train, eval: None, class_weights: None, samples: Vec::new() })
    }

    fn checked(self, net: &dyn TextModel) -> Result<Classified> {
        std::iter::once(&self.train).chain(&self.eval).try_for_each(|data| self.plain(net, data).check())?;
        Ok(self)
    }

    fn plain<'a>(&'a self, net: &'a dyn TextModel, data: &'a Examples) -> Classification<'a> {
        let class_weights = self.class_weights.as_deref();
        Classification { net, data, class_weights, dropout_seed: None, checkpoint: false, cache: None }
    }
}

impl TaskData for Classified {
    fn task(&self) -> Task {
        match self.train.problem {
            Problem::Tokens => Task::TokenClassification,
            _ => Task::TextClassification,
        }
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, cache } = passes;
        let (dropout_seed, cache) = (Some(seed), cache.and_then(Kept::texts));
        Box::new(Classification { dropout_seed, checkpoint, cache, ..self.plain(text(net), &self.train) })
    }

    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let cache = cache.and_then(Kept::texts);
        Some(Box::new(Classification { cache, ..self.plain(text(net), self.eval.as_ref()?) }))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        Box::new(self.plain(view.text(), &self.train))
    }

    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        if !is_labelled(path)? {
            bail!(
                "{}: its rows have no labels, and this run's model has a classifier, not a language model's head: the loss of \
                 plain texts cannot be measured; give rows with the same labels",
                path.display()
            );
        }
        with.knows_old_tasks(path)?;
        let (problem, labels) = (Some(self.train.problem), Some(self.train.labels.clone()));
        let rows = Dataset::load(path, &Options { problem, labels, model_labels: None })?;
        Ok(Box::new(Classified::of(with.language()?, &rows, with.room()?)?.checked(with.model.text()?)?))
    }

    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        let Some(metric) = asked else {
            return Ok(Metric::of(self.train.problem).first().copied().unwrap_or_default());
        };
        metric.check(self.train.problem).map_err(|e| UsageError(e.to_string()))?;
        Ok(metric)
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.train.examples.len(), tokens: self.train.tokens, targets: None }
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
            ("tokens in them", n(self.train.tokens)),
            ("labels", self.train.labels.listed()),
            ("cut at max_length", n(self.train.truncated)),
        ]
    }

    fn summary(&self) -> String {
        let (rows, tokens) = (self.train.examples.len() as u64, self.train.tokens as u64);
        format!("{} rows, {} tokens", count(rows), count(tokens))
    }

    fn warnings(&self) -> Vec<String> {
        self.train.warnings()
    }

    fn identity(&self, run: &RunFile) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("labels", self.train.labels.names.join(", ")),
            ("class_weights", run.class_weights.clone()),
            ("pooling", format!("{:?}", run.pooling).to_lowercase()),
            ("keep_head", run.keep_head.to_string()),
        ])
    }

    /// Texts, each with its true label.
    fn samples(&self, _run: &RunFile) -> Result<Samples> {
        let question = |row: &LabelledText| {
            let truth = match &row.label {
                Label::Tags(_) => return row.text.clone(),
                label => truth(label, &self.train.labels),
            };
            let pair = row.pair.as_ref().map(|pair| format!(" | {pair}")).unwrap_or_default();
            format!("{}{pair}  [{truth}]", row.text)
        };
        Ok(Samples::Texts(self.samples.iter().map(question).collect()))
    }

    fn answers(
        &self,
        _samples: &Samples,
        model: &Model,
        language: &Language,
        asked: usize,
    ) -> Result<Vec<String>> {
        let net = model.text()?;
        let mut texts = Vec::new();
        for row in &self.samples {
            let words = if row.words.is_empty() { vec![] } else { classification::words_of(&row.text) };
            let (tokenizer, pair) = (&language.tokenizer, row.pair.as_deref());
            texts.push(classification::Tokens::of(tokenizer, &row.text, pair, &words, room(net, asked))?);
        }
        let slots = vec![Some(0); texts.len()];
        let found = predict(net, &model.params, &texts, &slots, 8, &mut |_| true)?.unwrap_or_default();
        Ok(found.iter().map(|prediction| in_words(prediction, &self.train.labels)).collect())
    }
}

/// What is true of a text.
fn truth(label: &Label, labels: &Labels) -> String {
    let names = |classes: &[u32], between: &str| {
        classes.iter().map(|class| labels.name(*class)).collect::<Vec<_>>().join(between)
    };
    match label {
        Label::Value(value) => value.to_string(),
        Label::Tags(tags) => names(tags, " "),
        Label::Many(none) if none.is_empty() => "none".into(),
        other => names(other.classes(), ", "),
    }
}

/// `positive (98 %)`.
pub fn in_words(prediction: &Prediction, labels: &Labels) -> String {
    let percent = |p: f32| format!("{:.0} %", 100.0 * p);
    match prediction {
        Prediction::Class { class, probabilities } => {
            let p = probabilities.get(*class as usize).copied().unwrap_or_default();
            format!("{} ({})", labels.name(*class), percent(p))
        }
        Prediction::Labels { classes, .. } if classes.is_empty() => "none".into(),
        Prediction::Labels { classes, probabilities } => {
            let one = |class: &u32| {
                let p = probabilities.get(*class as usize).copied().unwrap_or_default();
                format!("{} ({})", labels.name(*class), percent(p))
            };
            classes.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Prediction::Value(x) => format!("{x:.3}"),
        Prediction::Words(words) => {
            let tag = |word: &Option<classification::Tagged>| word.map_or("–", |w| labels.name(w.class));
            words.iter().map(tag).collect::<Vec<_>>().join(" ")
        }
    }
}
