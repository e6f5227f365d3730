//! The rows of a run as its task sees them: read before the model is opened, since labels decide its head; then as examples.

use std::path::Path;

use anyhow::{Result, bail};
use retune::methods::targets::nearest;
use retune::metrics::Metric;
use retune::models::{
    HeadRequest, ImageModel, Model, ModelFiles, Net, Reads, TextModel, Whisper, image_head,
};
use retune::nn::{Active, Pooling, Problem};
use retune::run_file::{PoolingChoice, RunFile, TaskChoice};
use retune::tasks::causal_lm::{self, CausalLm};
use retune::tasks::classification::{
    self, ClassWeights, Classification, Examples, HELD_OUT, Label, Labels, Options, Prediction, predict,
};
use retune::tasks::detection::Detect;
use retune::tasks::images::{ImageCache, ImageClassification};
use retune::tasks::masked_lm::{MaskedLm, Texts};
use retune::tasks::speech::{SoundCache, SpeechToText};
use retune::tasks::trunk_cache::{self, Limits, TrunkCache};
use retune::tasks::{Task, TaskRecord};
use retune::text::Language;
use retune::train::Objective;
use retune_formats::records::Records;
use retune_tensor::Params;

use crate::detection::Detected;
use crate::exit::UsageError;
use crate::loading::dataset;
use crate::pictures::Pictured;
use crate::speech::Spoken;
use crate::style::{count, seconds};

/// Rows that are looked at to tell what they are.
const LOOKED_AT: usize = 20;

/// What a run's rows are, without a model.
pub enum Read {
    CausalLm,
    MaskedLm,
    Classification {
        train: Box<classification::Dataset>,
        eval: Option<Box<classification::Dataset>>,
    },
    Pictures(Box<Pictured>),
    Boxes(Box<Detected>),
    /// Read when the tokenizer is there.
    Speech,
}

/// What a run's rows are, as its model reads them.
pub enum Data {
    CausalLm { train: Box<causal_lm::Dataset>, eval: Option<Box<causal_lm::Dataset>> },
    MaskedLm { train: Texts, eval: Option<Texts>, seed: u64 },
    Classification(Box<Classified>),
    Pictures(Box<Pictured>),
    Boxes(Box<Detected>),
    Speech(Box<Spoken>),
}

/// Labelled examples.
pub struct Classified {
    pub train: Examples,
    pub eval: Option<Examples>,
    pub class_weights: Option<Vec<f32>>,
    /// A few rows whose labels are told before and after.
    pub samples: Vec<classification::LabelledText>,
}

/// The task of a run: as it says, else as its rows do.
///
/// # Errors
/// If the data cannot be read.
pub fn task_of(choice: TaskChoice, data: &Path, files: &ModelFiles) -> Result<(Task, Option<Problem>)> {
    let spec = retune::models::spec_of(files)?;
    let speech = TaskChoice::AutomaticSpeechRecognition;
    match (spec.reads == Reads::Sound, choice) {
        (true, TaskChoice::Auto | TaskChoice::AutomaticSpeechRecognition) => {
            return Ok((Task::AutomaticSpeechRecognition, None));
        }
        (is_of_sound, choice) if is_of_sound || choice == speech => {
            let what = if is_of_sound { "reads sound" } else { "does not read sound" };
            bail!(
                "{}: a {} model {what}, which is not what the task is about",
                files.path().display(),
                spec.name
            );
        }
        _ => {}
    }
    let reads_pictures = spec.reads == Reads::Pictures;
    if choice != TaskChoice::Auto && choice.is_of_pictures() != reads_pictures {
        let reads = if reads_pictures { "pictures" } else { "text" };
        bail!(
            "{}: a {} model reads {reads}, which is not what the task is about",
            files.path().display(),
            spec.name
        );
    }
    Ok(match choice {
        TaskChoice::ImageClassification => (Task::ImageClassification, Some(Problem::SingleLabel)),
        TaskChoice::ObjectDetection => (Task::ObjectDetection, None),
        TaskChoice::Auto if spec.detects => (Task::ObjectDetection, None),
        TaskChoice::Auto if reads_pictures => (Task::ImageClassification, Some(Problem::SingleLabel)),
        TaskChoice::AutomaticSpeechRecognition => (Task::AutomaticSpeechRecognition, None),
        TaskChoice::TextGeneration => (Task::TextGeneration, None),
        TaskChoice::MaskedLm => (Task::MaskedLm, None),
        TaskChoice::TextClassification => (Task::TextClassification, None),
        TaskChoice::Regression => (Task::TextClassification, Some(Problem::Regression)),
        TaskChoice::TokenClassification => (Task::TokenClassification, Some(Problem::Tokens)),
        TaskChoice::Auto if is_labelled(data)? => (Task::TextClassification, None),
        TaskChoice::Auto => {
            let encoder = spec.name == "bert";
            (if encoder { Task::MaskedLm } else { Task::TextGeneration }, None)
        }
    })
}

/// Whether any of the first rows has a label (or tags).
pub fn is_labelled(path: &Path) -> Result<bool> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if ["conll", "bio", "iob2"].contains(&extension.as_str()) {
        return Ok(true);
    }
    for record in Records::open(path)?.take(LOOKED_AT) {
        if classification::is_labelled(&record?.value) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Read {
    /// Reads labelled rows; others are read when the tokenizer is there.
    ///
    /// # Errors
    /// If the rows are not what the task needs.
    pub fn new(run: &RunFile, files: &ModelFiles) -> Result<Read> {
        let (task, problem) = task_of(run.task, &run.data, files)?;
        match task {
            Task::TextGeneration => return Ok(Read::CausalLm),
            Task::MaskedLm => return Ok(Read::MaskedLm),
            Task::AutomaticSpeechRecognition => return Ok(Read::Speech),
            Task::ImageClassification => return Ok(Read::Pictures(Box::new(Pictured::read(run)?))),
            Task::ObjectDetection => return Ok(Read::Boxes(Box::new(Detected::read(run)?))),
            Task::TextClassification | Task::TokenClassification => {}
        }
        let own = own_labels(files)?.filter(|_| run.keep_head);
        let labels = run.labels.clone().map(|names| Labels { names });
        let options = Options { problem, labels, model_labels: own };
        let train = classification::Dataset::load(&run.data, &options)?;
        if task == Task::TextClassification
            && run.task != TaskChoice::Auto
            && train.problem == Problem::Tokens
        {
            bail!("{}: its rows are tagged words; use --task token-classification", run.data.display());
        }
        let known =
            Options { problem: Some(train.problem), labels: Some(train.labels.clone()), model_labels: None };
        let (train, eval) = match &run.eval_data {
            Some(path) => (train, Some(classification::Dataset::load(path, &known)?)),
            None => {
                let share = run.eval_share.unwrap_or(HELD_OUT);
                let (train, held_out) = train.split_stratified(share, run.seed)?;
                (train, Some(held_out).filter(|rows| !rows.examples.is_empty()))
            }
        };
        if train.problem == Problem::Tokens && run.pooling != PoolingChoice::Auto {
            return Err(UsageError(
                "pooling is for labels of whole texts; these rows are tagged words".into(),
            )
            .into());
        }
        Ok(Read::Classification { train: Box::new(train), eval: eval.map(Box::new) })
    }

    /// The head that the model is to be opened with, and whether it is a new one that knows nothing yet.
    ///
    /// # Errors
    /// If the model's configuration is damaged.
    pub fn head(&self, run: &RunFile, files: &ModelFiles) -> Result<(HeadRequest, bool)> {
        let (problem, names) = match self {
            Read::Classification { train, .. } => (train.problem, &train.labels.names),
            Read::Pictures(data) => (Problem::SingleLabel, &data.train.classes),
            Read::Boxes(_) if run.pooling != PoolingChoice::Auto => {
                return Err(
                    UsageError("pooling is for classifiers; a detector looks at every pixel".into()).into()
                );
            }
            Read::Boxes(data) => {
                let labels = data.train.classes.clone();
                let own = files.config().ok().and_then(|config| image_head::labels(&config).ok());
                let keep = run.keep_head && own.is_some_and(|own| own == labels);
                let (seed, image_size) = (run.seed, run.image_size());
                return Ok((HeadRequest::Detector { labels, keep, seed, image_size }, !keep));
            }
            Read::CausalLm | Read::MaskedLm | Read::Speech => return Ok((HeadRequest::AsFile, false)),
        };
        if run.pooling == PoolingChoice::Auto && problem != Problem::Tokens && was_mean_pooled(files) {
            eprintln!(
                "note: {} was trained with the mean of a text's rows (1_Pooling/config.json), and its classifier here reads \
                 the first row through the pooler, as transformers' does: --pooling mean may learn faster",
                run.model.display()
            );
        }
        let labels = match problem {
            Problem::Regression => vec!["LABEL_0".to_owned()],
            _ => names.clone(),
        };
        let own = TaskRecord::of_files(files)?.filter(TaskRecord::classifies);
        let same = own.as_ref().is_some_and(|own| {
            own.problem == Some(problem) && own.labels.len() == labels.len() && {
                own.labels == labels || problem == Problem::Regression
            }
        });
        let keep = run.keep_head && same;
        let pooling = match run.pooling {
            PoolingChoice::Auto if keep => own.and_then(|own| own.pooling),
            PoolingChoice::Auto => None,
            PoolingChoice::First => Some(Pooling::First),
            PoolingChoice::Last => Some(Pooling::Last),
            PoolingChoice::Mean => Some(Pooling::Mean),
        };
        let request = HeadRequest::Classifier {
            problem,
            labels,
            pooling,
            keep,
            seed: run.seed,
            image_size: run.image_size(),
        };
        Ok((request, !keep))
    }
}

/// Is it a sentence encoder whose texts are the mean of their rows? A file that cannot be read says nothing.
fn was_mean_pooled(files: &ModelFiles) -> bool {
    const BYTES_MAX: u64 = 1 << 16;
    let path = files.path().join("1_Pooling/config.json");
    let config = path.is_file().then(|| retune_formats::json::read(&path, BYTES_MAX).ok()).flatten();
    config.is_some_and(|config| config["pooling_mode_mean_tokens"] == true)
}

/// The labels of the model's own classifier.
fn own_labels(files: &ModelFiles) -> Result<Option<Labels>> {
    let own = TaskRecord::of_files(files)?.filter(TaskRecord::classifies);
    Ok(own.filter(|own| own.problem != Some(Problem::Regression)).map(|own| Labels { names: own.labels }))
}

/// [`room`] of a model that reads text; of others what was asked for.
pub fn room_of(net: &Net, asked: usize) -> usize {
    net.as_text().map_or(asked, |net| room(net, asked))
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

/// Tokens that a text may have: what is asked for, and what the model (with its adapter) has room for.
pub fn room(net: &dyn TextModel, asked: usize) -> usize {
    let info = net.info();
    asked.min(info.context_length.saturating_sub(net.virtual_positions(Some(0)))).max(2)
}

impl Data {
    /// Makes examples of the rows, for a model with its head and its method on.
    ///
    /// # Errors
    /// If rows are not understood or do not fit the model.
    pub fn new(read: Read, language: Option<&Language>, model: &Model, run: &RunFile) -> Result<Data> {
        let Some(language) = language else {
            let net = model.image()?;
            return match read {
                Read::Pictures(mut data) => {
                    data.choose_augmentation(run, net, &model.params);
                    data.objective(net, &data.train).check()?;
                    Ok(Data::Pictures(data))
                }
                Read::Boxes(mut data) => {
                    data.choose_augmentation(run, net, &model.params);
                    data.objective(net, &data.train).check()?;
                    Ok(Data::Boxes(data))
                }
                _ => bail!("texts need a model that reads them"),
            };
        };
        if let Read::Speech = read {
            return Ok(Data::Speech(Box::new(Spoken::read(run, language, model)?)));
        }
        let net = model.text()?;
        let asked = run.max_length as usize;
        match read {
            Read::Speech => bail!("clips need a model that reads sound"),
            Read::Pictures(_) | Read::Boxes(_) => bail!("pictures need a model that reads them"),
            Read::CausalLm => {
                let rows = |path: &Path| dataset(language, path, asked, run.train_on);
                let train = rows(&run.data)?;
                let share = run.eval_share.filter(|share| *share > 0.0);
                let (train, eval) = match (&run.eval_data, share) {
                    (Some(path), _) => (train, Some(rows(path)?)),
                    (None, Some(share)) => {
                        let (train, held_out) = train.split_by_question(share, run.seed)?;
                        (train, Some(held_out).filter(|rows| !rows.examples.is_empty()))
                    }
                    (None, None) => (train, None),
                };
                for data in std::iter::once(&train).chain(&eval) {
                    CausalLm { net, data, dropout_seed: None, checkpoint: false, cache: None }.check()?;
                }
                Ok(Data::CausalLm { train: Box::new(train), eval: eval.map(Box::new) })
            }
            Read::MaskedLm => {
                let rows = |path: &Path| -> Result<Texts> {
                    let records = Records::read_all(path)?;
                    let name = path.display().to_string();
                    let data = Texts::build(&language.tokenizer, &name, &records, room(net, asked))?;
                    MaskedLm { net, data: &data, seed: run.seed, dropout_seed: None, checkpoint: false }
                        .check()?;
                    Ok(data)
                };
                let eval = run.eval_data.as_deref().map(rows).transpose()?;
                Ok(Data::MaskedLm { train: rows(&run.data)?, eval, seed: run.seed })
            }
            Read::Classification { train, eval } => {
                let weights = ClassWeights::parse(&run.class_weights)?;
                if weights != ClassWeights::Even && train.problem == Problem::Regression {
                    return Err(
                        UsageError("class_weights are for labels; these rows have numbers".into()).into()
                    );
                }
                let class_weights = weights.of(&train.labels, train.class_counts())?;
                let examples = |data: &classification::Dataset| -> Result<Examples> {
                    Ok(Examples::of(&language.tokenizer, data, room(net, asked))?)
                };
                let of = eval.as_deref().unwrap_or(&train);
                let every = of.examples.len().div_ceil(SAMPLES).max(1);
                let samples = of.examples.iter().step_by(every).take(SAMPLES).cloned().collect();
                let classified = Classified {
                    samples,
                    eval: eval.as_deref().map(examples).transpose()?,
                    train: examples(&train)?,
                    class_weights,
                };
                for data in std::iter::once(&classified.train).chain(&classified.eval) {
                    classified.of(net, data).check()?;
                }
                Ok(Data::Classification(Box::new(classified)))
            }
        }
    }

    /// What is learned.
    pub fn task(&self) -> Task {
        match self {
            Data::CausalLm { .. } => Task::TextGeneration,
            Data::MaskedLm { .. } => Task::MaskedLm,
            Data::Classification(data) if data.train.problem == Problem::Tokens => Task::TokenClassification,
            Data::Classification(_) => Task::TextClassification,
            Data::Pictures(_) => Task::ImageClassification,
            Data::Boxes(_) => Task::ObjectDetection,
            Data::Speech(_) => Task::AutomaticSpeechRecognition,
        }
    }

    /// Whether a frozen trunk's values are the same in every epoch.
    fn is_cached(&self) -> bool {
        match self {
            // Masked words are others in each epoch.
            Data::MaskedLm { .. } => false,
            Data::Pictures(data) => data.is_cached(),
            Data::Boxes(data) => data.is_cached(),
            Data::CausalLm { .. } | Data::Classification(_) | Data::Speech(_) => true,
        }
    }

    /// Bytes of a frozen trunk's rows that a run would keep; `lengths` are those of all examples.
    pub fn kept_bytes(&self, net: &Net, params: &Params, lengths: impl Iterator<Item = usize>) -> u64 {
        match (self, net) {
            (Data::MaskedLm { .. }, _) => 0,
            (Data::Pictures(_) | Data::Boxes(_), Net::Image(net)) if self.is_cached() => {
                ImageCache::bytes_each(net, params) * lengths.count() as u64
            }
            (_, Net::Text(net)) => trunk_cache::kept_bytes(net.as_ref(), params, lengths),
            (Data::Speech(data), Net::Speech(net)) => SoundCache::bytes(net, params, data.all()),
            (_, Net::Image(_) | Net::Speech(_)) => 0,
        }
    }

    /// Tokens of a clip that an evaluation writes down, where it does.
    pub fn transcribed_tokens(&self, net: &Net) -> usize {
        match (self, net) {
            (Data::Speech(data), Net::Speech(net)) if data.transcribes() => {
                net.config().max_target_positions / 2
            }
            _ => 0,
        }
    }

    /// Where rows of a frozen trunk are kept, if that is worth it.
    pub fn cache(&self, net: &Net, params: &Params, limits: Limits) -> Option<Kept> {
        match (self, net) {
            (Data::MaskedLm { .. }, _) => None,
            (_, Net::Image(net)) if self.is_cached() => {
                ImageCache::new(net, params, limits).map(Kept::Pictures)
            }
            (_, Net::Text(net)) => TrunkCache::new(net.as_ref(), params, limits).map(Kept::Texts),
            (Data::Speech(_), Net::Speech(net)) => SoundCache::new(net, params, limits).map(Kept::Sounds),
            (_, Net::Image(_) | Net::Speech(_)) => None,
        }
    }

    /// The training rows, as the loop sees them.
    pub fn objective<'a>(
        &'a self,
        net: &'a Net,
        seed: u64,
        checkpoint: bool,
        cache: Option<&'a Kept>,
    ) -> Box<dyn Objective + 'a> {
        let dropout_seed = Some(seed);
        let kept = cache.and_then(Kept::texts);
        match self {
            Data::CausalLm { train: data, .. } => {
                Box::new(CausalLm { net: text(net), data, dropout_seed, checkpoint, cache: kept })
            }
            Data::MaskedLm { train: data, .. } => {
                Box::new(MaskedLm { net: text(net), data, seed, dropout_seed, checkpoint })
            }
            Data::Classification(data) => Box::new(Classification {
                dropout_seed,
                checkpoint,
                cache: kept,
                ..data.of(text(net), &data.train)
            }),
            Data::Pictures(data) => Box::new(ImageClassification {
                seed: Some(seed),
                checkpoint,
                cache: cache.and_then(Kept::pictures),
                augment: data.augment.as_ref(),
                ..data.objective(image(net), &data.train)
            }),
            Data::Boxes(data) => Box::new(Detect {
                seed: Some(seed),
                checkpoint,
                cache: cache.and_then(Kept::pictures),
                augment: data.augment.as_ref(),
                ..data.objective(image(net), &data.train)
            }),
            Data::Speech(data) => Box::new(SpeechToText {
                dropout_seed,
                checkpoint,
                cache: cache.and_then(Kept::sounds),
                ..data.objective(speech(net), &data.train)
            }),
        }
    }

    /// The held-out rows.
    pub fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let (dropout_seed, checkpoint) = (None, false);
        let kept = cache.and_then(Kept::texts);
        Some(match self {
            Data::CausalLm { eval, .. } => {
                let data = eval.as_deref()?;
                Box::new(CausalLm { net: text(net), data, dropout_seed, checkpoint, cache: kept })
            }
            Data::MaskedLm { eval, seed, .. } => {
                let data = eval.as_ref()?;
                Box::new(MaskedLm { net: text(net), data, seed: *seed, dropout_seed, checkpoint })
            }
            Data::Classification(data) => {
                Box::new(Classification { cache: kept, ..data.of(text(net), data.eval.as_ref()?) })
            }
            Data::Pictures(data) => Box::new(ImageClassification {
                cache: cache.and_then(Kept::pictures),
                ..data.objective(image(net), data.eval.as_ref()?)
            }),
            Data::Boxes(data) => Box::new(Detect {
                cache: cache.and_then(Kept::pictures),
                ..data.objective(image(net), data.eval.as_ref()?)
            }),
            Data::Speech(data) => Box::new(SpeechToText {
                cache: cache.and_then(Kept::sounds),
                ..data.objective(speech(net), data.eval.as_ref()?)
            }),
        })
    }

    /// Rows of an old task, as examples of this model's own task.
    ///
    /// # Errors
    /// If the model has no head for such rows, or one that knows no old task; if the rows do not fit it.
    pub fn retained(
        &self,
        path: &Path,
        language: Option<&Language>,
        model: &Model,
        run: &RunFile,
        fresh_head: bool,
    ) -> Result<Data> {
        let (Some(language), file) = (language, path.display()) else {
            return self.retained_pictures(path, model, fresh_head);
        };
        if let Data::Speech(_) = self {
            return Ok(Data::Speech(Box::new(Spoken::retained(path, run, language, model)?)));
        }
        let net = model.text()?;
        let asked = run.max_length as usize;
        match (self, is_labelled(path)?) {
            (Data::Classification(_), false) => bail!(
                "{file}: its rows have no labels, and this run's model has a classifier, not a language model's head: the \
                 loss of plain texts cannot be measured; give rows with the same labels"
            ),
            (Data::CausalLm { .. } | Data::MaskedLm { .. }, true) => bail!(
                "{file}: its rows have labels, and this run's model has a language model's head, not a classifier: give \
                 texts or conversations"
            ),
            (Data::Classification(_), true) if fresh_head => bail!(
                "{file}: this run's classifier is a new one, which knows no old task that it could forget; retain_data is \
                 for a model that has its classifier already (and keep_head = true)"
            ),
            (Data::Pictures(_) | Data::Boxes(_) | Data::Speech(_), _) => {
                self.retained_pictures(path, model, fresh_head)
            }
            (Data::CausalLm { .. }, false) => {
                let data = dataset(language, path, asked, run.train_on)?;
                CausalLm { net, data: &data, dropout_seed: None, checkpoint: false, cache: None }.check()?;
                Ok(Data::CausalLm { train: Box::new(data), eval: None })
            }
            (Data::MaskedLm { seed, .. }, false) => {
                let records = Records::read_all(path)?;
                let name = path.display().to_string();
                let train = Texts::build(&language.tokenizer, &name, &records, room(net, asked))?;
                MaskedLm { net, data: &train, seed: *seed, dropout_seed: None, checkpoint: false }.check()?;
                Ok(Data::MaskedLm { train, eval: None, seed: *seed })
            }
            (Data::Classification(data), true) => {
                let (problem, labels) = (Some(data.train.problem), Some(data.train.labels.clone()));
                let rows =
                    classification::Dataset::load(path, &Options { problem, labels, model_labels: None })?;
                let train = Examples::of(&language.tokenizer, &rows, room(net, asked))?;
                let old = Classified { train, eval: None, class_weights: None, samples: Vec::new() };
                old.of(net, &old.train).check()?;
                Ok(Data::Classification(Box::new(old)))
            }
        }
    }

    /// Pictures of an old task.
    fn retained_pictures(&self, path: &Path, model: &Model, fresh_head: bool) -> Result<Data> {
        if fresh_head {
            bail!(
                "{}: this run's classifier is a new one, which knows no old task that it could forget; retain_data is for a model \
                 that has its classifier already (and keep_head = true)",
                path.display()
            );
        }
        let net = model.image()?;
        match self {
            Data::Pictures(data) => {
                let old = data.others(path)?;
                old.objective(net, &old.train).check()?;
                Ok(Data::Pictures(Box::new(old)))
            }
            Data::Boxes(data) => {
                let old = data.others(path)?;
                old.objective(net, &old.train).check()?;
                Ok(Data::Boxes(Box::new(old)))
            }
            _ => bail!("{}: these are no pictures", path.display()),
        }
    }

    /// The training rows, to be measured instead; without the adapter where that can be switched off in a pass.
    pub fn measured<'a>(&'a self, net: &'a Net, with_adapter: bool) -> Box<dyn Objective + 'a> {
        match self {
            Data::Pictures(data) => {
                let active = if with_adapter { Active::default() } else { Active::Base };
                Box::new(ImageClassification { active, ..data.objective(image(net), &data.train) })
            }
            Data::Boxes(data) => {
                let active = if with_adapter { Active::default() } else { Active::Base };
                Box::new(Detect { active, ..data.objective(image(net), &data.train) })
            }
            Data::Speech(data) => {
                let active = if with_adapter { Active::default() } else { Active::Base };
                Box::new(SpeechToText { active, ..data.objective(speech(net), &data.train) })
            }
            _ => self.measured_text(text(net)),
        }
    }

    /// The training rows of a task of texts, to be measured instead.
    pub fn measured_text<'a>(&'a self, net: &'a dyn TextModel) -> Box<dyn Objective + 'a> {
        match self {
            Data::CausalLm { train: data, .. } => {
                Box::new(CausalLm { net, data, dropout_seed: None, checkpoint: false, cache: None })
            }
            Data::MaskedLm { train: data, seed, .. } => {
                Box::new(MaskedLm { net, data, seed: *seed, dropout_seed: None, checkpoint: false })
            }
            Data::Classification(data) => Box::new(data.of(net, &data.train)),
            Data::Pictures(_) | Data::Boxes(_) | Data::Speech(_) => {
                unreachable!("these are measured by another network")
            }
        }
    }

    /// The metric that the best weights are chosen by.
    ///
    /// # Errors
    /// If the one that is asked for is none of the task's.
    pub fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        match (self, asked) {
            (Data::Classification(data), Some(metric)) => {
                metric.check(data.train.problem).map_err(|e| UsageError(e.to_string()))?;
                Ok(metric)
            }
            (Data::Classification(data), None) => {
                Ok(Metric::of(data.train.problem).first().copied().unwrap_or_default())
            }
            (Data::Boxes(_), None) => Ok(Metric::Map50),
            (Data::Boxes(_), Some(metric)) => match Metric::OF_DETECTIONS.contains(&metric) {
                true => Ok(metric),
                false => {
                    let known: Vec<&str> = Metric::OF_DETECTIONS.iter().map(|metric| metric.name()).collect();
                    let what =
                        format!("metric = \"{metric}\" is not for boxes; there are {}", known.join(", "));
                    Err(UsageError(what).into())
                }
            },
            (Data::Pictures(_), None) => Ok(Metric::Accuracy),
            (Data::Pictures(_), Some(metric)) => {
                metric.check(Problem::SingleLabel).map_err(|e| UsageError(e.to_string()))?;
                Ok(metric)
            }
            (Data::Speech(data), asked) => data.metric(asked),
            (_, None | Some(Metric::Loss)) => Ok(Metric::Loss),
            (_, Some(other)) => {
                Err(UsageError(format!("metric = \"{other}\" is for labelled rows; here there is the loss"))
                    .into())
            }
        }
    }

    /// What the user should know though nothing is wrong.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Data::CausalLm { train, .. } => train.report.warnings(),
            Data::MaskedLm { train, .. } => {
                let counts = [(train.dropped, "too short, dropped"), (train.truncated, "cut at max_length")];
                let told = counts.iter().filter(|(n, _)| *n > 0);
                told.map(|(n, what)| format!("{} rows {what}", count(*n as u64))).collect()
            }
            Data::Classification(data) => data.train.warnings(),
            Data::Pictures(data) => data.train.warnings.clone(),
            Data::Boxes(data) => data.warnings(),
            Data::Speech(data) => data.warnings(),
        }
    }

    /// What a run of these rows says of them in one line.
    pub fn summary(&self) -> String {
        let rows = self.rows();
        if let Data::Pictures(data) = self {
            return format!(
                "{} pictures, {} classes",
                count(data.train.len() as u64),
                data.train.classes.len()
            );
        }
        if let Data::Boxes(data) = self {
            let rows = data.rows();
            return format!(
                "{} pictures, {} boxes, {} classes",
                rows[0].1,
                rows[1].1,
                data.train.classes.len()
            );
        }
        if let Data::Speech(data) = self {
            return format!("{} clips, {}", count(data.train.len() as u64), seconds(data.report.seconds));
        }
        let pick = |name: &str| rows.iter().find(|(n, _)| n == name).map_or("0", |(_, value)| value);
        format!("{} rows, {} tokens", pick("examples"), pick("tokens in them"))
    }

    /// Counts for the report.
    pub fn rows(&self) -> Vec<(String, String)> {
        let n = |n: usize| count(n as u64);
        let mut rows: Vec<(&str, String)> = match self {
            Data::CausalLm { train, .. } => vec![
                ("rows", n(train.report.rows)),
                ("examples", n(train.report.examples)),
                ("tokens in them", n(train.report.tokens)),
                ("with loss", n(train.report.target_tokens)),
                ("cut at max_length", n(train.report.truncated_rows)),
            ],
            Data::MaskedLm { train, .. } => vec![
                ("examples", n(train.examples.len())),
                ("tokens in them", n(train.examples.iter().map(|e| e.tokens.ids.len()).sum())),
                ("cut at max_length", n(train.truncated)),
            ],
            Data::Classification(data) => vec![
                ("examples", n(data.train.examples.len())),
                ("tokens in them", n(data.train.tokens)),
                ("labels", data.train.labels.listed()),
                ("cut at max_length", n(data.train.truncated)),
            ],
            Data::Pictures(data) => data.rows(),
            Data::Boxes(data) => data.rows(),
            Data::Speech(data) => data.rows(),
        };
        let held_out = match self {
            Data::CausalLm { eval, .. } => eval.as_ref().map(|e| e.report.examples),
            Data::MaskedLm { eval, .. } => eval.as_ref().map(|e| e.examples.len()),
            Data::Classification(data) => data.eval.as_ref().map(|e| e.examples.len()),
            Data::Pictures(data) => data.eval.as_ref().map(|e| e.len()),
            Data::Boxes(data) => data.eval.as_ref().map(|e| e.pictures.len()),
            Data::Speech(data) => data.eval.as_ref().map(|e| e.len()),
        };
        rows.extend(held_out.map(|held| ("held-out examples", n(held))));
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
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

/// Texts whose labels are told before and after.
const SAMPLES: usize = 3;

impl Classified {
    fn of<'a>(&'a self, net: &'a dyn TextModel, data: &'a Examples) -> Classification<'a> {
        let class_weights = self.class_weights.as_deref();
        Classification { net, data, class_weights, dropout_seed: None, checkpoint: false, cache: None }
    }

    /// What the model says of the samples, in words.
    ///
    /// # Errors
    /// If the tokenizer cannot read one.
    pub fn answers(&self, model: &Model, language: &Language, max_length: usize) -> Result<Vec<String>> {
        let net = model.text()?;
        let mut texts = Vec::new();
        for row in &self.samples {
            let words = if row.words.is_empty() { vec![] } else { classification::words_of(&row.text) };
            texts.push(classification::Tokens::of(
                &language.tokenizer,
                &row.text,
                row.pair.as_deref(),
                &words,
                room(net, max_length),
            )?);
        }
        let slots = vec![Some(0); texts.len()];
        let found = predict(net, &model.params, &texts, &slots, 8, &mut |_| true)?.unwrap_or_default();
        Ok(found.iter().map(|prediction| in_words(prediction, &self.train.labels)).collect())
    }

    /// The samples' texts, each with its true label.
    pub fn questions(&self) -> Vec<String> {
        let question = |row: &classification::LabelledText| {
            let truth = match &row.label {
                Label::Value(x) => format!("{x}"),
                Label::Tags(_) => return row.text.clone(),
                other => {
                    other.classes().iter().map(|c| self.train.labels.name(*c)).collect::<Vec<_>>().join(", ")
                }
            };
            let pair = row.pair.as_ref().map(|pair| format!(" | {pair}")).unwrap_or_default();
            format!("{}{pair}  [{truth}]", row.text)
        };
        self.samples.iter().map(question).collect()
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

/// The nearest of some names, as a question.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}
