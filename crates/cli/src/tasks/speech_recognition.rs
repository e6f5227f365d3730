//! Clips and what is said in them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use retune::metrics::Metric;
use retune::metrics::words::NormalizerChoice;
use retune::models::{Model, ModelFiles, Net, Whisper};
use retune::nn::Active;
use retune::run_file::RunFile;
use retune::tasks::speech::data::{DataReport, Dataset, Options};
use retune::tasks::speech::{
    AudioWindow, Clip, Examples, Request, Scoring, SoundCache, SpeechToText, SpeechTokens, Vocabulary,
    language_code,
};
use retune::tasks::{Task, TaskRecord};
use retune::text::Language;
use retune::train::Objective;
use retune_tensor::Params;
use serde_json::json;

use super::{Counts, Kept, Making, Measuring, Passes, ReadRows, Spec, TaskData, View, speech};
use crate::exit::UsageError;
use crate::loading::language;
use crate::previewing::{Asked, Preview, of_text};
use crate::style::{count, seconds};

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::AutomaticSpeechRecognition],
    read: |_, _, _| Ok(Box::new(Rows)),
    measured: |path, with| Ok(Box::new(Spoken::measured(path, with)?)),
};

/// Share of the files that is held out where nobody says.
const HELD_OUT: f64 = 0.1;
/// Fewer files than these are all trained on.
const SPLIT_FROM: usize = 10;
/// Rows that are named.
const NAMED: usize = 5;

/// How clips are read, heard and measured.
#[derive(Clone, clap::Args)]
pub struct SpeechArgs {
    /// Speech: the language that is spoken, where rows name none: fr, French
    #[arg(long, value_name = "NAME", value_parser = language_code)]
    pub language: Option<&'static str>,

    /// Speech: what Whisper's encoder sees; without it, as the adapter was trained, else windows of 30 s
    #[arg(long, value_name = "30s|clip")]
    pub audio_window: Option<AudioWindow>,

    /// Speech: leave out clips longer than 30 s instead of refusing the data
    #[arg(long)]
    pub skip_long: bool,

    /// Speech: most clips that are transcribed for word and character error rates; 0 for none [default: all]
    #[arg(long, value_name = "N")]
    pub wer_rows: Option<u64>,

    /// Speech: how texts are made alike before they are compared; auto as Whisper's authors do for the language
    #[arg(long, value_name = "auto|basic|english|none", default_value = "auto")]
    pub normalizer: NormalizerChoice,
}

/// The same, as a run or flags say it.
struct Settings {
    options: Options,
    window: AudioWindow,
    rows_max: usize,
    normalizer: NormalizerChoice,
}

impl Settings {
    fn of_run(run: &RunFile) -> Result<Settings> {
        let language = run.language.as_deref().map(language_code).transpose();
        let language = language.map_err(|what| UsageError(format!("language: {what}")))?;
        Ok(Settings {
            options: Options { language, task: None, skip_long: run.skip_long },
            window: run.audio_window,
            rows_max: usize::try_from(run.wer_rows).unwrap_or(usize::MAX),
            normalizer: run.normalizer,
        })
    }
}

/// The window that a flag asks for, else the one that an adapter or model was trained with.
pub fn window(asked: Option<AudioWindow>, record: Option<&TaskRecord>) -> AudioWindow {
    asked.or(record.and_then(|record| record.audio_window)).unwrap_or_default()
}

/// What is to be said of windows that Whisper was not trained on.
pub const NOT_EXACT: &str =
    "windows are cut to the clips (audio_window = \"clip\"): faster, but not what Whisper was trained on";

/// Clips to learn from, and held-out ones.
struct Spoken {
    train: Examples,
    eval: Option<Examples>,
    report: DataReport,
    scoring: Scoring,
}

impl Spoken {
    /// Reads a run's clips and tokenises what is said in them.
    ///
    /// # Errors
    /// All rows that cannot be used.
    fn read(run: &RunFile, language: &Language, model: &Model) -> Result<Spoken> {
        let settings = Settings::of_run(run)?;
        let load = |path: &Path| Dataset::load(path, &settings.options);
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
        let eval = eval.filter(|data| !data.clips.is_empty());
        let spoken = Spoken::of(train, eval, report, &settings, language, model)?;
        if spoken.train.is_empty() {
            bail!("{}: there are no clips to learn from", run.data.display());
        }
        Ok(spoken)
    }

    /// Clips to be measured.
    ///
    /// # Errors
    /// As [`Spoken::read`].
    fn measured(path: &Path, with: &Measuring) -> Result<Spoken> {
        let args = with.speech;
        let settings = Settings {
            options: Options { language: args.language, task: None, skip_long: args.skip_long },
            window: window(args.audio_window, with.record),
            rows_max: args.wer_rows.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            normalizer: args.normalizer,
        };
        Spoken::alone(path, &settings, &language(&with.model.files)?, with.model)
    }

    fn alone(path: &Path, settings: &Settings, language: &Language, model: &Model) -> Result<Spoken> {
        let data = Dataset::load(path, &settings.options)?;
        if data.clips.is_empty() {
            bail!("{}: there are no clips in it", path.display());
        }
        let report = data.report.clone();
        Spoken::of(data, None, report, settings, language, model)
    }

    /// Every clip is decoded once, so that what is wrong is told before anything is trained.
    fn of(
        train: Dataset,
        eval: Option<Dataset>,
        report: DataReport,
        settings: &Settings,
        language: &Language,
        model: &Model,
    ) -> Result<Spoken> {
        let vocabulary = Arc::new(Vocabulary::of(model, &language.tokenizer)?);
        let examples = |data: Dataset| -> Result<Examples> {
            let (tokens, request) = (&vocabulary.tokens, Request::default());
            let samples = data.check(tokens, &language.tokenizer, request, || {})?;
            let examples = Examples::new(data, model.speech()?, &language.tokenizer, tokens, request)?;
            Ok(examples.seen_through(settings.window, samples))
        };
        let (train, eval) = (examples(train)?, eval.map(examples).transpose()?);
        let (normalizer, rows_max) = (settings.normalizer, settings.rows_max);
        Ok(Spoken { train, eval, report, scoring: Scoring { vocabulary, normalizer, rows_max } })
    }

    /// Some of them as a task, as they are.
    fn plain<'a>(&'a self, net: &'a Whisper, data: &'a Examples) -> SpeechToText<'a> {
        SpeechToText {
            net,
            data,
            dropout_seed: None,
            checkpoint: false,
            cache: None::<&SoundCache>,
            active: Active::default(),
            scoring: Some(&self.scoring),
        }
    }

    /// Training clips and held-out ones.
    fn all(&self) -> impl Iterator<Item = &Examples> {
        std::iter::once(&self.train).chain(&self.eval)
    }

    /// Whether evaluations write down what is said.
    fn transcribes(&self) -> bool {
        self.scoring.rows_max > 0
    }
}

/// Read when the tokenizer is there.
struct Rows;

impl ReadRows for Rows {
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        Ok(Box::new(Spoken::read(with.run, with.language()?, with.model)?))
    }

    fn preview(self: Box<Self>, run: RunFile, files: &ModelFiles, asked: Asked) -> Result<Preview> {
        let (language, data) =
            (language(files)?, Dataset::load(&run.data, &Settings::of_run(&run)?.options)?);
        let tokens = SpeechTokens::of(files, &language.tokenizer)?;
        let row = |clip: &Clip| {
            let fail = |what: String| anyhow!("{}: {what}", clip.source);
            let sound = clip.sound().map_err(fail)?;
            let labels =
                clip.labels(&tokens, &language.tokenizer, Request::default(), sound.start).map_err(fail)?;
            let (length, file) =
                (retune_media::sound::seconds(sound.samples.len()), clip.audio.display().to_string());
            let more = json!({"audio": file, "seconds": length});
            let text = (&labels.ids[..], &labels.target[..]);
            let mut row = of_text(&language.tokenizer, clip.source.to_string(), text, 0, more)?;
            row.counts = format!("{length:.1} s of {file}, {}", row.counts);
            Ok(row)
        };
        let rows = data.clips.iter().take(asked.rows).map(row).collect::<Result<_>>()?;
        let report = &data.report;
        let mut lines =
            vec![format!("{} clips, {} of speech", count(data.clips.len() as u64), seconds(report.seconds))];
        lines.extend(left_out(report));
        let json = json!({
            "rows": report.rows, "examples": data.clips.len(), "seconds": report.seconds, "duplicates": report.duplicates,
            "too_long": report.too_long.len(), "languages": report.languages,
        });
        Ok(Preview { rows, lines, json, ..Preview::default() })
    }
}

impl TaskData for Spoken {
    fn task(&self) -> Task {
        Task::AutomaticSpeechRecognition
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, cache } = passes;
        let (dropout_seed, cache) = (Some(seed), cache.and_then(Kept::sounds));
        Box::new(SpeechToText { dropout_seed, checkpoint, cache, ..self.plain(speech(net), &self.train) })
    }

    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let cache = cache.and_then(Kept::sounds);
        Some(Box::new(SpeechToText { cache, ..self.plain(speech(net), self.eval.as_ref()?) }))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        Box::new(SpeechToText { active: view.active.clone(), ..self.plain(speech(view.net), &self.train) })
    }

    /// Measured as a run measures its own.
    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        let settings = Settings::of_run(with.run)?;
        Ok(Box::new(Spoken::alone(path, &settings, with.language()?, with.model)?))
    }

    /// Of transcripts, if there are any.
    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        let transcribes = self.transcribes();
        match asked {
            None if transcribes => Ok(Metric::Wer),
            None | Some(Metric::Loss) => Ok(Metric::Loss),
            Some(metric @ (Metric::Wer | Metric::Cer)) if transcribes => Ok(metric),
            Some(metric @ (Metric::Wer | Metric::Cer)) => {
                Err(UsageError(format!("metric = \"{metric}\" needs transcripts, and wer_rows is 0")).into())
            }
            Some(metric) => {
                let known: Vec<&str> = Metric::OF_TRANSCRIPTS.iter().map(|metric| metric.name()).collect();
                let what = format!("metric = \"{metric}\" is not for speech; there are {}", known.join(", "));
                Err(UsageError(what).into())
            }
        }
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.train.len(), ..Counts::default() }
    }

    fn held_out(&self) -> Option<usize> {
        self.eval.as_ref().map(Examples::len)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut rows =
            vec![("clips", count(self.train.len() as u64)), ("speech", seconds(self.report.seconds))];
        if !self.report.languages.is_empty() {
            let told = self.report.languages.iter().map(|(code, n)| format!("{code} ({n})"));
            rows.push(("languages", told.collect::<Vec<_>>().join(", ")));
        }
        if self.report.duplicates > 0 {
            rows.push(("left out, for they repeat others", count(self.report.duplicates as u64)));
        }
        if !self.report.too_long.is_empty() {
            rows.push(("left out, for they are too long", count(self.report.too_long.len() as u64)));
        }
        if self.train.window() == AudioWindow::Clip {
            rows.push(("windows", "cut to the clips: not what Whisper was trained on".into()));
        }
        rows
    }

    fn summary(&self) -> String {
        format!("{} clips, {}", count(self.train.len() as u64), seconds(self.report.seconds))
    }

    fn warnings(&self) -> Vec<String> {
        let mut told = Vec::new();
        if self.train.window() == AudioWindow::Clip {
            told.push(NOT_EXACT.to_string());
        }
        told.extend(left_out(&self.report));
        told
    }

    fn identity(&self, run: &RunFile) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("audio_window", format!("{:?}", run.audio_window).to_lowercase()),
            ("language", format!("{:?}", run.language)),
            ("skip_long", run.skip_long.to_string()),
        ])
    }

    fn kept_bytes(&self, net: &Net, params: &Params, _lengths: &mut dyn Iterator<Item = usize>) -> u64 {
        SoundCache::bytes(speech(net), params, self.all())
    }

    fn transcribed_tokens(&self, net: &Net) -> usize {
        if self.transcribes() { speech(net).config().max_target_positions / 2 } else { 0 }
    }

    fn audio_window(&self) -> Option<AudioWindow> {
        Some(self.train.window()).filter(|window| *window == AudioWindow::Clip)
    }
}

/// Which rows were left out since they are too long, if any.
pub fn left_out(report: &DataReport) -> Option<String> {
    let all = &report.too_long;
    let named: Vec<String> = all.iter().take(NAMED).map(|source| source.to_string()).collect();
    let more = all.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let n = count(all.len() as u64);
    (!all.is_empty()).then(|| {
        format!("{n} rows are longer than 30 s and left out (skip_long): {}{more}", named.join(", "))
    })
}
