//! The tasks: how each reads the rows of a run, makes examples of them for its model, and tells of them. One a file; a new one is a file and two lines
//! here.
//!
//! Rows are read before the model is opened, since labels decide its head ([`ReadRows`]); then they become examples ([`TaskData`]).

mod choose;
mod head;
mod image_classification;
mod masked_lm;
mod object_detection;
mod speech_recognition;
mod text_classification;
mod text_generation;

use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::methods::targets::nearest;
use retune::metrics::Metric;
use retune::models::{HeadRequest, ImageModel, Model, ModelFiles, Net, TextModel, Whisper, WithoutAdapter};
use retune::nn::{Active, Head, Problem};
use retune::run_file::{RunFile, TrainOn};
use retune::tasks::images::ImageCache;
use retune::tasks::speech::{AudioWindow, SoundCache};
use retune::tasks::trunk_cache::{self, Limits, TrunkCache};
use retune::tasks::{Task, TaskRecord};
use retune::text::Language;
use retune::train::Objective;
use retune_tensor::Params;

use crate::exit::UsageError;
use crate::previewing::{Asked, Preview};
use crate::prompting::Question;
use crate::training::Prepared;
use choose::{is_labelled, task_of};

pub use object_detection::drawn;
pub use speech_recognition::{NOT_EXACT, SpeechArgs, left_out, window};
pub use text_classification::in_words;

/// A task.
struct Spec {
    /// Those that its rows may be of.
    tasks: &'static [Task],
    /// Reads the rows of a run.
    read: fn(&RunFile, &ModelFiles, Option<Problem>) -> Result<Box<dyn ReadRows>>,
    /// Reads rows to be measured, as a model with its own head sees them.
    measured: fn(&Path, &Measuring) -> Result<Box<dyn TaskData>>,
}

const TASKS: &[Spec] = &[
    text_generation::SPEC,
    masked_lm::SPEC,
    text_classification::SPEC,
    image_classification::SPEC,
    object_detection::SPEC,
    speech_recognition::SPEC,
];

fn find(task: Task) -> Result<&'static Spec> {
    TASKS.iter().find(|spec| spec.tasks.contains(&task)).context("a task without a way to read its rows")
}

/// Reads the rows of a run, as far as that needs no model.
///
/// # Errors
/// If the rows are not what the task needs.
pub fn read(run: &RunFile, files: &ModelFiles) -> Result<Box<dyn ReadRows>> {
    let (task, problem) = task_of(run.task, &run.data, files)?;
    (find(task)?.read)(run, files, problem)
}

/// Reads rows for a model that is there, with its own head.
///
/// # Errors
/// If they are not what the model's task needs.
pub fn measured(data: &Path, with: &Measuring) -> Result<Box<dyn TaskData>> {
    let masked = with.record.is_some_and(|record| record.task == Task::MaskedLm);
    let task = match (&with.model.net, with.model.net.head()) {
        (Net::Image(_), Head::Detector(_)) => Task::ObjectDetection,
        (Net::Image(_), _) => Task::ImageClassification,
        (Net::Speech(_), _) => Task::AutomaticSpeechRecognition,
        (Net::Text(_), Head::Classifier(_)) => Task::TextClassification,
        (Net::Text(net), _) if masked || !net.info().decoder => Task::MaskedLm,
        (Net::Text(_), _) => Task::TextGeneration,
    };
    (find(task)?.measured)(data, with)
}

/// What rows become examples with.
pub struct Making<'a> {
    pub run: &'a RunFile,
    /// With its head and its method on.
    pub model: &'a Model,
    /// Of a model that reads or writes text.
    pub language: Option<&'a Language>,
    /// The head is new: before training it knows nothing.
    pub fresh_head: bool,
}

impl Making<'_> {
    fn language(&self) -> Result<&Language> {
        self.language.context("texts need a model that reads them")
    }

    /// Tokens that a text may have.
    fn room(&self) -> Result<usize> {
        Ok(room(self.model.text()?, self.run.max_length as usize))
    }

    /// Refuses rows of an old task where the classifier is new.
    fn knows_old_tasks(&self, path: &Path) -> Result<()> {
        if self.fresh_head {
            bail!(
                "{}: this run's classifier is a new one, which knows no old task that it could forget; retain_data is for a model \
                 that has its classifier already (and keep_head = true)",
                path.display()
            );
        }
        Ok(())
    }
}

/// How rows are measured.
pub struct Measuring<'a> {
    pub model: &'a Model,
    /// What its adapter was trained for.
    pub record: Option<&'a TaskRecord>,
    /// Tokens of a text.
    pub max_length: usize,
    pub train_on: TrainOn,
    pub speech: &'a SpeechArgs,
}

/// How training passes are made.
#[derive(Clone, Copy)]
pub struct Passes<'a> {
    pub seed: u64,
    pub checkpoint: bool,
    pub cache: Option<&'a Kept>,
}

/// A network as it is measured: with its adapter or without.
pub struct View<'a> {
    net: &'a Net,
    /// A network of texts without its adapter.
    without: Option<WithoutAdapter<'a>>,
    active: Active,
}

impl<'a> View<'a> {
    pub fn on(net: &'a Net) -> View<'a> {
        View { net, without: None, active: Active::default() }
    }

    pub fn off(net: &'a Net) -> View<'a> {
        View { net, without: net.as_text().map(WithoutAdapter), active: Active::Base }
    }

    fn text(&self) -> &dyn TextModel {
        match &self.without {
            Some(without) => without,
            None => text(self.net),
        }
    }
}

/// The network of a task of texts.
fn text(net: &Net) -> &dyn TextModel {
    net.as_text().expect("texts are made for a model that reads them")
}

/// The network of a task of pictures.
fn image(net: &Net) -> &ImageModel {
    net.as_image().expect("pictures are read for a model that reads them")
}

/// The network of a task of sounds.
fn speech(net: &Net) -> &Whisper {
    net.as_speech().expect("clips are read for a model that reads them")
}

/// Rows of a run without a model.
pub trait ReadRows {
    /// The head that the model is to be opened with, and whether it is a new one that knows nothing yet.
    ///
    /// # Errors
    /// If the model's configuration is damaged, or settings contradict the task.
    fn head(&self, _run: &RunFile, _files: &ModelFiles) -> Result<(HeadRequest, bool)> {
        Ok((HeadRequest::AsFile, false))
    }

    /// Makes examples of the rows.
    ///
    /// # Errors
    /// If rows are not understood or do not fit the model.
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>>;

    /// The first rows as a run would train on them; pictures need the whole run for that.
    ///
    /// # Errors
    /// If they cannot be read.
    fn preview(self: Box<Self>, run: RunFile, _files: &ModelFiles, asked: Asked) -> Result<Preview> {
        let prepared = Prepared::new(run)?;
        prepared.data.preview(&prepared.model.net, &prepared.run, asked)
    }
}

/// Rows, tokens, and tokens with loss where that is not all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub rows: usize,
    pub tokens: usize,
    pub targets: Option<usize>,
}

/// What is asked before and after.
pub enum Samples {
    Questions(Vec<Question>),
    /// Texts whose labels are told.
    Texts(Vec<String>),
}

impl Samples {
    pub fn texts(self) -> Vec<String> {
        match self {
            Samples::Questions(all) => all.into_iter().map(|question| question.text).collect(),
            Samples::Texts(all) => all,
        }
    }
}

/// The rows of a run, as its model reads them.
pub trait TaskData {
    /// What is learned.
    fn task(&self) -> Task;

    /// The training rows, as the loop sees them.
    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a>;

    /// The held-out rows.
    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>>;

    /// The training rows, to be measured instead.
    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a>;

    /// Rows of an old task, as examples of this model's own task.
    ///
    /// # Errors
    /// If the model has no head for such rows, or one that knows no old task; if the rows do not fit it.
    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>>;

    /// The metric that the best weights are chosen by.
    ///
    /// # Errors
    /// If the one that is asked for is none of the task's.
    fn metric(&self, asked: Option<Metric>) -> Result<Metric>;

    /// How much there is to learn from.
    fn counts(&self) -> Counts;

    /// The ids of each text, and its token types.
    fn texts(&self) -> Vec<(&[u32], &[u32])> {
        Vec::new()
    }

    /// Examples that are held out.
    fn held_out(&self) -> Option<usize>;

    /// Counts for the report.
    fn facts(&self) -> Vec<(&'static str, String)>;

    /// What a run of these rows says of them in one line.
    fn summary(&self) -> String;

    /// What the user should know though nothing is wrong.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Settings that a run's numbers depend on, beside those of every run.
    ///
    /// # Errors
    /// If a setting cannot be written.
    fn identity(&self, _run: &RunFile) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// Whether examples are the same in every epoch, so that what a frozen trunk gives can be kept.
    fn stays(&self) -> bool {
        true
    }

    /// Where rows of a frozen trunk are kept, if that is worth it.
    fn cache(&self, net: &Net, params: &Params, limits: Limits) -> Option<Kept> {
        match net {
            _ if !self.stays() => None,
            Net::Text(net) => TrunkCache::new(net.as_ref(), params, limits).map(Kept::Texts),
            Net::Image(net) => ImageCache::new(net, params, limits).map(Kept::Pictures),
            Net::Speech(net) => SoundCache::new(net, params, limits).map(Kept::Sounds),
        }
    }

    /// Bytes of a frozen trunk's rows that a run would keep; `lengths` are those of all examples.
    fn kept_bytes(&self, net: &Net, params: &Params, lengths: &mut dyn Iterator<Item = usize>) -> u64 {
        match net {
            _ if !self.stays() => 0,
            Net::Text(net) => trunk_cache::kept_bytes(net.as_ref(), params, lengths),
            Net::Image(net) => ImageCache::bytes_each(net, params) * lengths.count() as u64,
            Net::Speech(_) => 0,
        }
    }

    /// Tokens of an example that an evaluation writes down, where it does.
    fn transcribed_tokens(&self, _net: &Net) -> usize {
        0
    }

    /// What the encoder sees of a sound, where that is not a window of 30 s.
    fn audio_window(&self) -> Option<AudioWindow> {
        None
    }

    /// A few questions or texts, for a look before and after.
    ///
    /// # Errors
    /// If the rows cannot be read again.
    fn samples(&self, _run: &RunFile) -> Result<Samples> {
        Ok(Samples::Texts(Vec::new()))
    }

    /// What the model says of them.
    ///
    /// # Errors
    /// If the tokenizer cannot read one.
    fn answers(
        &self,
        samples: &Samples,
        model: &Model,
        language: &Language,
        _room: usize,
    ) -> Result<Vec<String>> {
        match samples {
            Samples::Questions(all) => all.iter().map(|question| question.answer(model, language)).collect(),
            Samples::Texts(_) => Ok(Vec::new()),
        }
    }

    /// Held-out pictures with what is true and what the model says of them, as one PNG.
    ///
    /// # Errors
    /// If a picture cannot be read.
    fn sheet(&self, _model: &Model) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// The first pictures as the network is given them.
    ///
    /// # Errors
    /// If they cannot be read, or these are no pictures.
    fn preview(&self, _net: &Net, _run: &RunFile, _asked: Asked) -> Result<Preview> {
        bail!("the rows are no pictures")
    }
}

/// The metric of a task that tells nothing but the loss.
///
/// # Errors
/// If another is asked for.
fn loss_alone(asked: Option<Metric>) -> Result<Metric> {
    match asked {
        None | Some(Metric::Loss) => Ok(Metric::Loss),
        Some(other) => {
            let what = format!("metric = \"{other}\" is for labelled rows; here there is the loss");
            Err(UsageError(what).into())
        }
    }
}

/// Refuses labelled rows as those of an old task of a language model.
fn without_labels(path: &Path) -> Result<()> {
    if is_labelled(path)? {
        bail!(
            "{}: its rows have labels, and this run's model has a language model's head, not a classifier: give texts or \
             conversations",
            path.display()
        );
    }
    Ok(())
}

/// What is kept of a frozen trunk.
pub enum Kept {
    Texts(TrunkCache),
    Pictures(ImageCache),
    Sounds(SoundCache),
}

impl Kept {
    fn texts(&self) -> Option<&TrunkCache> {
        if let Kept::Texts(cache) = self { Some(cache) } else { None }
    }

    fn pictures(&self) -> Option<&ImageCache> {
        if let Kept::Pictures(cache) = self { Some(cache) } else { None }
    }

    fn sounds(&self) -> Option<&SoundCache> {
        if let Kept::Sounds(cache) = self { Some(cache) } else { None }
    }
}

/// [`room`] of a model that reads text; of others what was asked for.
pub fn room_of(net: &Net, asked: usize) -> usize {
    net.as_text().map_or(asked, |net| room(net, asked))
}

/// Tokens that a text may have: what is asked for, and what the model (with its adapter) has room for.
pub fn room(net: &dyn TextModel, asked: usize) -> usize {
    let info = net.info();
    asked.min(info.context_length.saturating_sub(net.virtual_positions(Some(0)))).max(2)
}

/// The nearest of some names, as a question.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}
