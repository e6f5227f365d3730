//! A training run from its settings to the finished folder: load, attach, plan, train, save, report.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use retune::base;
use retune::export::{self, ExportOptions};
use retune::methods;
use retune::metrics::Metric;
use retune::metrics::words::NormalizerChoice;
use retune::models::{Model, ModelFiles, Net, Snapshot};
use retune::nn::Head;
use retune::report::{self, BeforeAfter, OnOff, ReportData, Retained};
use retune::run_file::RunFile;
use retune::tasks::speech::AudioWindow;
use retune::tasks::trunk_cache::Limits;
use retune::tasks::{Task, TaskRecord};
use retune::text::Language;
use retune::train::{
    self, Beside, Control, Event, MetricsLog, Objective, Outcome, OutcomeEnd, Plan, PlanRequest, Remedy,
    RunFolder, Start, TrainSettings, available_memory, process_bytes,
};
use retune_formats::{atomic, hash_data};

use crate::exit::{DIVERGED, Ended, UsageError};
use crate::loading::{language, set_threads};
use crate::progress::Progress;
use crate::prompting::Question;
use crate::room;
use crate::signals::Signals;
use crate::style::count;
use crate::tasks::{self, Making, Passes, ReadRows, Samples, TaskData, View, room_of};

/// The files of a run's folder beside the adapter's.
pub const RUN_FILE: &str = "run.toml";
pub const METRICS: &str = "metrics.jsonl";
const REPORT: &str = "report.html";
/// Changes that `auto` makes one after the other, each to what the plan before it could not know.
const CHANGES_MAX: usize = 4;

/// A base model with its head, and the rows of a run: what several runs can share.
pub struct Base {
    model: Model,
    /// Of a model that reads or writes text.
    language: Option<Language>,
    /// The head is new: before training it knows nothing.
    fresh_head: bool,
    total: usize,
    /// Rows that were read, for the head's labels, but are no examples yet.
    read: Option<Box<dyn ReadRows>>,
    /// Examples, and what they were made for.
    data: Option<(MadeFor, Box<dyn TaskData>)>,
}

impl Base {
    /// Loads a run's model and reads its rows.
    ///
    /// # Errors
    /// If a file is damaged, or the rows are not what the task needs.
    pub fn load(run: &RunFile) -> Result<Base> {
        let path = crate::embedded::resolve(&run.model)?;
        let files = ModelFiles::open(&path)?;
        let read = tasks::read(run, &files)?;
        let (head, fresh_head) = read.head(run, &files)?;
        let model = Model::load_with(&path, run.load_options(), &head)?;
        let language = model.net.as_image().is_none().then(|| language(&model.files)).transpose()?;
        let total = model.params.iter().map(|(_, param)| param.elements()).sum();
        Ok(Base { model, language, fresh_head, total, read: Some(read), data: None })
    }

    /// The model as it is now, to go back to after a run.
    pub fn snapshot(&self) -> Snapshot {
        self.model.snapshot()
    }

    fn making<'a>(&'a self, run: &'a RunFile) -> Making<'a> {
        Making { run, model: &self.model, language: self.language.as_ref(), fresh_head: self.fresh_head }
    }

    /// The rows as examples for the model with its method on; those of an earlier run, if they fit as well.
    fn take_data(&mut self, run: &RunFile) -> Result<(MadeFor, Box<dyn TaskData>)> {
        let room = made_for(&self.model.net, run);
        if let Some(known) = self.data.take().filter(|(known, _)| *known == room) {
            return Ok(known);
        }
        let read = match self.read.take() {
            Some(read) => read,
            None => tasks::read(run, &self.model.files)?,
        };
        Ok((room, read.examples(&self.making(run))?))
    }
}

/// The room for a text, and how clips are heard and measured.
type MadeFor = (usize, AudioWindow, u64, NormalizerChoice);

fn made_for(net: &Net, run: &RunFile) -> MadeFor {
    (room_of(net, run.max_length as usize), run.audio_window, run.wer_rows, run.normalizer)
}

/// All that a run needs, loaded and checked, before any step.
pub struct Prepared {
    pub run: RunFile,

    pub model: Model,
    /// Of a model that reads text.
    pub language: Option<Language>,
    pub data: Box<dyn TaskData>,
    /// What the examples were made for.
    room: MadeFor,
    /// Rows of an old task.
    retain: Option<Box<dyn TaskData>>,
    /// The head is new: before training it knows nothing.
    fresh_head: bool,
    /// The base's own values are kept beside those that are trained.
    keeps_base: bool,
    pub settings: TrainSettings,
    pub attached: methods::Attached,
    pub total: usize,
    /// What `auto` changed, in words.
    pub changed: Vec<String>,
}

/// A run that came to its end.
pub struct Trained {
    pub prepared: Prepared,
    pub outcome: Outcome,
    pub report: ReportData,
}

impl Prepared {
    /// Loads model and data and puts the method on. With `auto`, a run that does not fit gets the nearest settings with
    /// which it does: [`Prepared::changed`].
    ///
    /// # Errors
    /// Besides what is wrong with files and settings: with `auto`, if nothing makes the run fit.
    pub fn new(run: RunFile) -> Result<Prepared> {
        set_threads(run.threads)?;
        // A misspelt method is told before minutes of loading.
        methods::find(&run.method)?;
        let (run, mut changed) = room::with_masters(run)?;
        let (run, shrunk) = room::for_weights(run)?;
        changed.extend(shrunk);
        let mut prepared = Prepared { changed, ..Prepared::on(Base::load(&run)?, run)? };
        while prepared.run.auto {
            let Err(error) = prepared.plan() else { break };
            let Some(train::Error::DoesNotFit(refusal)) = error.downcast_ref() else { return Err(error) };
            let Some(remedy) = refusal.remedy.as_ref().filter(|_| prepared.changed.len() < CHANGES_MAX)
            else {
                return Err(error);
            };
            let changed = format!("auto: {}", refusal.in_words(remedy));
            prepared = prepared.with(remedy)?;
            prepared.changed.push(changed);
        }
        Ok(prepared)
    }

    /// The same run with some settings changed; loads again what is another then.
    fn with(mut self, remedy: &Remedy) -> Result<Prepared> {
        let (mut run, changed) = (self.run.clone(), std::mem::take(&mut self.changed));
        remedy.apply(&mut run);
        if remedy.reloads() {
            drop(self);
            let prepared = Prepared::on(Base::load(&run)?, run)?;
            return Ok(Prepared { changed, ..prepared });
        }
        let spec = methods::find(&run.method)?;
        Ok(Prepared { settings: TrainSettings::from_run_file(&run, spec.default_lr), run, changed, ..self })
    }

    /// Puts a run's method on a base that was loaded for it.
    ///
    /// # Errors
    /// If the method cannot be put on this model, or the rows do not fit it.
    pub fn on(mut base: Base, mut run: RunFile) -> Result<Prepared> {
        let spec = methods::find(&run.method)?;
        run.lr = Some(run.lr_or(spec.default_lr));
        run.model = crate::embedded::resolve(&run.model)?;
        let attached = (spec.attach)(&mut base.model, &run)?;
        let (room, data) = base.take_data(&run)?;
        let retain = run.retain_data.as_deref();
        let retain = retain.map(|path| data.retained(path, &base.making(&run))).transpose()?;
        let Base { model, language, fresh_head, total, .. } = base;
        let metric = data.metric(run.metric)?;
        match data.eval(&model.net, None) {
            // The loss needs no word where nobody asked.
            Some(_) if run.metric.is_none() && metric == Metric::Loss => {}
            Some(_) => run.metric = Some(metric),
            None => check_no_eval(&run)?,
        }
        let settings = TrainSettings::from_run_file(&run, spec.default_lr);
        let keeps_base = false;
        Ok(Prepared {
            run,
            model,
            language,
            data,
            room,
            retain,
            fresh_head,
            keeps_base,
            settings,
            attached,
            total,
            changed: Vec::new(),
        })
    }

    /// Takes the method off again, so that another can be put on.
    pub fn into_base(self, snapshot: &Snapshot) -> Base {
        let Prepared { mut model, language, data, room, fresh_head, total, .. } = self;
        model.reset(snapshot);
        Base { model, language, fresh_head, total, read: None, data: Some((room, data)) }
    }

    /// Says that a snapshot of the base is kept while the run trains, for the plan.
    pub fn keeping_base(self) -> Prepared {
        Prepared { keeps_base: true, ..self }
    }

    /// The memory that the run will take; picks checkpointing if that was left open.
    ///
    /// # Errors
    /// If it cannot fit.
    pub fn plan(&self) -> Result<Plan> {
        let net = &self.model.net;
        let passes = Passes { seed: self.run.seed, checkpoint: false, cache: None };
        let objective = self.data.objective(net, passes);
        let (eval, view) = (self.data.eval(net, None), View::on(net));
        let retained = self.retain.as_ref().map(|data| data.measured(&view));
        let evaluated: Vec<&dyn Objective> =
            eval.iter().chain(&retained).map(|objective| objective.as_ref()).collect();
        let limit = available_memory(self.run.memory_limit);
        let request = PlanRequest {
            model: &self.model,
            attached: &self.attached,
            objective: objective.as_ref(),
            evaluated: &evaluated,
            settings: &self.settings,
            checkpointing: self.run.checkpointing,
            beside: self.beside(objective.as_ref(), eval.as_deref())?,
            storages: &room::other_storages(&self.model, &self.run)?,
            limit: limit.as_ref(),
            disk_free: room::free_for(&self.run.out),
        };
        let plan = train::plan::plan(&request)?;
        if let Some(pager) = &self.model.pager {
            pager.set_budget(Some(plan.streamed_bytes));
        }
        Ok(plan)
    }

    /// What the run takes beside the model and its passes.
    fn beside(&self, objective: &dyn Objective, eval: Option<&dyn Objective>) -> Result<Beside> {
        let (net, params) = (&self.model.net, &self.model.params);
        let own = params.iter().filter(|(_, param)| param.trainable && !param.adapter);
        let own: u64 = own.map(|(_, param)| param.weight.bytes() as u64).sum();
        let generated_rows = match self.data.samples(&self.run)? {
            Samples::Questions(all) => self.generated_rows(&all)?,
            Samples::Texts(_) => self.data.transcribed_tokens(net) as u64,
        };
        let lengths = [Some(objective), eval].into_iter().flatten();
        let mut lengths = lengths.flat_map(|texts| (0..texts.len()).map(|example| texts.rows(example)));
        Ok(Beside {
            base_copy: if self.keeps_base { own } else { 0 },
            generated_rows,
            process: process_bytes(),
            trunk_rows: self.data.kept_bytes(net, params, &mut lengths),
        })
    }

    /// Rows of the longest question with its answer.
    fn generated_rows(&self, questions: &[Question]) -> Result<u64> {
        let Some(language) = &self.language else { return Ok(0) };
        let rows = questions.iter().map(|question| question.rows(language));
        Ok(rows.collect::<Result<Vec<usize>>>()?.into_iter().max().unwrap_or(0) as u64)
    }

    /// What the numbers of the run depend on besides the loop's settings.
    fn identity(&self) -> Result<BTreeMap<String, String>> {
        let mut identity = BTreeMap::new();
        // The same hash as the adapter's base.json records: the weights are read for it once.
        identity.insert("model".into(), base::hash_files(&self.model.files.weight_files())?);
        identity.insert("data".into(), hash_data::data(&self.run.data)?);
        identity.insert("method".into(), self.run.method.clone());
        identity.insert("max_length".into(), self.run.max_length.to_string());
        identity.insert("train_on".into(), format!("{:?}", self.run.train_on).to_lowercase());
        identity.insert("storage".into(), format!("{:?}", self.run.storage).to_lowercase());
        if self.run.storage.is_quantised() {
            let quantization = &self.run.quantization;
            identity.insert("double_quant".into(), quantization.double_quant.to_string());
            identity.insert("keep_modules".into(), quantization.keep_modules.join(", "));
        }
        identity.insert("eval_share".into(), format!("{:?}", self.run.eval_share));
        if let Some(path) = &self.run.eval_data {
            identity.insert("eval_data".into(), hash_data::data(path)?);
        }
        let of_task = self.data.identity(&self.run)?;
        identity.extend(of_task.into_iter().map(|(name, value)| (name.to_string(), value)));
        let settings = toml::Value::try_from(&self.run)?.get(&self.run.method).map(toml::Value::to_string);
        identity.insert("settings of the method".into(), settings.unwrap_or_default());
        Ok(identity)
    }

    /// Trains, and writes the folder. `command` goes into the report.
    ///
    /// # Errors
    /// Besides what can go wrong: [`Ended`] if the run was interrupted (and saved) or diverged.
    pub fn train(
        mut self,
        start: Start,
        command: &str,
        progress: &mut Progress,
        signals: &Signals,
    ) -> Result<Trained> {
        let (outcome, report) = self.train_in_place(start, command, progress, signals)?;
        self.check_end(&outcome, signals)?;
        let report = report.context("the run ended without a report")?;
        Ok(Trained { prepared: self, outcome, report })
    }

    /// As [`Prepared::train`]; a run that did not come to its end is no error, but has no report.
    ///
    /// # Errors
    /// What can go wrong.
    pub fn train_in_place(
        &mut self,
        start: Start,
        command: &str,
        progress: &mut Progress,
        signals: &Signals,
    ) -> Result<(Outcome, Option<ReportData>)> {
        let plan = self.plan()?;
        let out = self.run.out.clone();
        let run_file = self.run.to_toml();
        let folder = RunFolder::open(&out, start, self.identity()?, run_file.clone())?;
        progress.show(&Event::Planned(plan.clone()))?;

        let old_before = self.measure_retained(signals)?;
        let questions = self.data.samples(&self.run)?;
        let before = self.answers(&questions)?;
        let Prepared { model: Model { params, net, .. }, run, data, settings, attached, .. } = self;
        let net: &Net = net;
        settings.optimizer_budget = plan.optimizer_budget;
        let passes = Passes { seed: run.seed, checkpoint: plan.checkpointing, cache: None };
        // Only what is ready says what lies below the lowest trained weight: the cache comes after.
        if let Some(prepare) = attached.prepare.take() {
            prepare(params, data.objective(net, passes).as_ref())?;
        }
        let cache = data.cache(net, params, cache_limits(&plan, &out));
        let objective = data.objective(net, Passes { cache: cache.as_ref(), ..passes });
        let eval = data.eval(net, cache.as_ref());
        let mut sink =
            Sink { out: &out, run_file: &run_file, log: None, plan: Some(&plan), progress, failure: None };
        let outcome = train::train(
            params,
            objective.as_ref(),
            eval.as_deref(),
            settings,
            Some(&folder),
            &mut |event| match (sink.take(&event), signals.exit_code()) {
                (true, None) => Control::Continue,
                _ => Control::Stop,
            },
        );
        let failure = sink.failure.take();
        progress.finish();
        drop((objective, eval));
        if let Some(pager) = &self.model.pager {
            progress.streamed(&pager.stats())?;
        }
        let outcome = outcome?;
        failure.map_or(Ok(()), Err)?;
        if outcome.end != OutcomeEnd::Finished {
            return Ok((outcome, None));
        }
        let after = self.answers(&questions)?;
        let pairs = questions.texts().into_iter().zip(before.into_iter().zip(after));
        let answers =
            pairs.map(|(question, (before, after))| report::Answer { question, before, after }).collect();
        let retained = match old_before {
            Some(before) => match self.measure_retained(signals) {
                // A finished run is written, even if there is no time left to measure.
                Err(_) if signals.exit_code().is_some() => None,
                after => after?.map(|after| self.retained(before, after)),
            },
            None => None,
        };
        if let Some(retained) = &retained {
            progress.retained(retained)?;
        }
        let report = self.write_results(&plan, &outcome, command, answers, retained)?;
        Ok((outcome, Some(report)))
    }

    /// Why the adapter cannot be switched off, if it cannot.
    fn no_off(&self) -> Option<String> {
        let own = self.model.params.iter().any(|(_, param)| param.trainable && !param.adapter);
        own.then(|| "parameters of the base itself were trained: there is no adapter to switch off".into())
    }

    /// The metric on the old task's rows, as the model is now.
    ///
    /// # Errors
    /// If it cannot be computed, or the program was asked to end.
    fn measure_retained(&self, signals: &Signals) -> Result<Option<OnOff>> {
        let Some(data) = &self.retain else { return Ok(None) };
        let metric = data.metric(self.run.metric)?;
        let measure = |with_adapter: bool| -> Result<f64> {
            let net = &self.model.net;
            let view = if with_adapter { View::on(net) } else { View::off(net) };
            let objective = data.measured(&view);
            let mut go_on = |_| match signals.exit_code() {
                Some(_) => Control::Stop,
                None => Control::Continue,
            };
            let found =
                train::measure(&self.model.params, objective.as_ref(), self.settings.batch_size, &mut go_on)?;
            let Some(found) = found else {
                let code = signals.exit_code().unwrap_or(130);
                return Err(Ended::new(code, "interrupted while the old task was measured").into());
            };
            let of = |metrics: &retune::metrics::Metrics| metrics.get(metric);
            Ok(if metric == Metric::Loss {
                found.loss
            } else {
                found.metrics.as_ref().and_then(of).unwrap_or(f64::NAN)
            })
        };
        let on = measure(true)?;
        let off = if self.no_off().is_none() { Some(measure(false)?) } else { None };
        Ok(Some(OnOff { on, off }))
    }

    fn retained(&self, before: OnOff, after: OnOff) -> Retained {
        let data = self.retain.as_ref();
        Retained {
            file: self.run.retain_data.as_deref().map(name_of).unwrap_or_default(),
            rows: data.map_or(0, |data| data.counts().rows as u64),
            metric: data.and_then(|data| data.metric(self.run.metric).ok()).unwrap_or_default(),
            before,
            after,
            no_off: self.no_off(),
        }
    }

    fn answers(&self, samples: &Samples) -> Result<Vec<String>> {
        let Some(language) = &self.language else { return Ok(vec![]) };
        self.data.answers(samples, &self.model, language, self.run.max_length as usize)
    }

    /// An interrupted or diverged run leaves its checkpoints, and an exit code that says so.
    fn check_end(&self, outcome: &Outcome, signals: &Signals) -> Result<()> {
        let out = shell_word(&self.run.out.display().to_string());
        let saved = match &outcome.checkpoint {
            Some(path) => format!("saved in {}", path.display()),
            None => "nothing was saved yet".into(),
        };
        match &outcome.end {
            OutcomeEnd::Finished => Ok(()),
            OutcomeEnd::Interrupted => {
                let (step, steps) = (outcome.step, outcome.steps);
                let message = format!(
                    "stopped after step {step} of {steps}, {saved}; go on with\n  {} train {out} --resume",
                    program()
                );
                Err(Ended::new(signals.exit_code().unwrap_or(130), message).into())
            }
            OutcomeEnd::Diverged { why } => {
                let message = format!("diverged: {why}\nthe last good weights are {saved}");
                Err(Ended::new(DIVERGED, message).into())
            }
        }
    }

    /// The adapter, the model card, the report.
    fn write_results(
        &self,
        plan: &Plan,
        outcome: &Outcome,
        command: &str,
        answers: Vec<report::Answer>,
        retained: Option<Retained>,
    ) -> Result<ReportData> {
        let out = &self.run.out;
        let pictures = self.data.sheet(&self.model)?;
        let report = ReportData { answers, retained, pictures, ..self.report(plan, outcome, command)? };
        let card = report::model_card(&report, &self.run.to_toml());
        match &self.attached.save {
            Some(save) => {
                save(&self.model, out, Some(&card))?;
                base::record(&self.model, out)?;
            }
            None => {
                let options = ExportOptions { merge: false, overwrite: true, ..ExportOptions::default() };
                export::write_folder(&self.model, out, &options)?;
                atomic::write_bytes(&out.join("README.md"), card.as_bytes())?;
            }
        }
        self.record().write(out)?;
        atomic::write_bytes(&out.join(REPORT), report::html(&report).as_bytes())?;
        Ok(report)
    }

    fn report(&self, plan: &Plan, outcome: &Outcome, command: &str) -> Result<ReportData> {
        let run = &self.run;
        let path = run.out.join(METRICS);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut report = ReportData { metric: run.metric, ..ReportData::default() };
        report.read_metrics(&text);
        report.metrics = outcome.metrics_after.clone().map(|after| BeforeAfter {
            before: outcome.metrics_before.clone().filter(|_| !self.fresh_head),
            after,
        });
        if let Head::Classifier(head) = self.model.net.head() {
            report.outputs = head.labels.len();
        }
        report.transcribes = self.data.task() == Task::AutomaticSpeechRecognition;
        report.model = run.model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        report.model_path = run.model.display().to_string();
        report.method = run.method.clone();
        report.out = run.out.display().to_string();
        report.whole_model = self.attached.save.is_none();
        report.command = command.into();
        report.version = env!("CARGO_PKG_VERSION").into();
        report.date = crate::style::today();
        report.seconds = outcome.seconds;
        report.tokens = outcome.tokens;
        report.trainable_parameters = self.attached.trainable as u64;
        report.total_parameters = self.total as u64;
        report.settings = settings_rows(run);
        report.data = self.data_rows();
        report.memory.predicted_bytes = plan.total_bytes;
        report.memory.parts = plan.parts().map(|(name, bytes)| (name.into(), bytes)).into();
        Ok(report)
    }

    fn data_rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![("training data".to_owned(), name_of(&self.run.data))];
        rows.extend(self.run.eval_data.iter().map(|path| ("held-out data".to_owned(), name_of(path))));
        rows.extend(self.data.facts().into_iter().map(|(name, value)| (name.to_owned(), value)));
        let held_out = self.data.held_out().map(|held| count(held as u64));
        rows.extend(held_out.map(|held| ("held-out examples".to_owned(), held)));
        rows.extend(self.run.retain_data.iter().map(|path| ("old task's data".to_owned(), name_of(path))));
        rows
    }

    /// What was learned, for whoever uses the folder.
    fn record(&self) -> TaskRecord {
        let room = room_of(&self.model.net, self.run.max_length as usize);
        let audio_window = self.data.audio_window();
        TaskRecord { audio_window, ..TaskRecord::of(&self.model, self.data.task(), room) }
    }
}

/// Settings that make sense only where something is held out.
fn check_no_eval(run: &RunFile) -> Result<()> {
    let given = [
        ("eval_every", run.eval_every.is_some()),
        ("metric", run.metric.is_some()),
        ("early_stopping_patience", run.early_stopping_patience.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => {
            let what = format!("{name} is given, but no eval_data (or eval_share) to evaluate on");
            Err(UsageError(what).into())
        }
        None => Ok(()),
    }
}

/// The settings worth a line in the report: all of the run file that has a value, but no paths.
fn settings_rows(run: &RunFile) -> Vec<(String, String)> {
    let text = run.to_toml();
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']));
    let pairs = lines.filter_map(|line| line.split_once(" = "));
    pairs
        .filter(|(name, _)| !["model", "data", "eval_data", "retain_data", "out"].contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Rows of a frozen trunk: the memory that the plan leaves for them, then a file beside the run.
fn cache_limits(plan: &Plan, out: &Path) -> Limits {
    Limits { memory: plan.trunk_room_bytes, folder: Some(out.to_path_buf()) }
}

/// Takes the events of a run: into the log, and onto the screen.
struct Sink<'a> {
    out: &'a Path,
    run_file: &'a str,
    /// Opened when the run says where it starts.
    log: Option<MetricsLog>,
    plan: Option<&'a Plan>,
    progress: &'a mut Progress,
    failure: Option<anyhow::Error>,
}

impl Sink<'_> {
    /// False if the run should stop, because an event could not be written.
    fn take(&mut self, event: &Event) -> bool {
        let taken = self.write(event).and_then(|()| self.progress.show(event));
        if let Err(error) = taken {
            self.failure.get_or_insert(error);
        }
        self.failure.is_none() && !self.progress.wants_stop()
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        if let Event::Started { step, resumed_from, .. } = event {
            // Only now is it sure that the run may go on with these settings: a refused one must not leave its own.
            atomic::write_bytes(&self.out.join(RUN_FILE), self.run_file.as_bytes())?;
            let metrics = self.out.join(METRICS);
            let mut log = match resumed_from {
                Some(_) => MetricsLog::resume(&metrics, *step)?,
                None => MetricsLog::create(&metrics)?,
            };
            if let Some(plan) = self.plan.take() {
                log.write(&Event::Planned(plan.clone()))?;
            }
            self.log = Some(log);
        }
        if let Some(log) = &mut self.log {
            log.write(event)?;
        }
        Ok(())
    }
}

/// A word as a shell reads it back.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// This program as it was called, so that a printed command can be typed as it stands: `retune` where that was found
/// by its name, else the path (`target/release/retune` under `cargo run`).
pub fn program() -> String {
    std::env::args_os().next().map_or_else(|| "retune".into(), |path| shell_word(&path.to_string_lossy()))
}

/// The command line of this process, to be typed again.
pub fn command_line() -> String {
    let words = std::env::args_os().skip(1).map(|word| shell_word(&word.to_string_lossy()));
    std::iter::once("retune".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}
