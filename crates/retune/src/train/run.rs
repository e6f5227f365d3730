//! The training loop, to be read from top to bottom.
//!
//! A step is a window of `batch x accumulation` examples. Its loss is the sum of all weighted losses over the sum of all
//! weights of the window, so that k passes of b examples are one batch of k x b. What a step does depends on its number alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use retune_tensor::{Gradients, Params, Tape, Tensor, Weight, memory};

use super::checkpoint::{self, Best, Evaluation, State};
use super::error::{Error, Result};
use super::events::{Control, Event, Outcome, OutcomeEnd, SpikeIn};
use super::folder::{RunFolder, Start};
use super::memory_limit::peak_resident_bytes;
use super::optimizer::Optimizer;
use super::optimizer::moments::MomentMemory;
use super::order::{Order, Window};
use super::settings::TrainSettings;
use crate::metrics::{Metric, Metrics};
use crate::objective::{Objective, ObjectiveError};
use crate::run_file::OnNan;

/// Trains the trainable parameters of `params` in place.
///
/// With a `folder`, checkpoints are written to it, and a run opened with [`Start::Resume`] goes on from the newest whole
/// one. Every [`Event`] is handed to `events`; when that answers [`Control::Stop`] the step is finished, a checkpoint
/// saved, and the outcome is [`OutcomeEnd::Interrupted`].
///
/// # Errors
/// Unusable settings or data, a checkpoint of another run, a disk that refuses. Numbers that are not finite are no error
/// but an outcome, [`OutcomeEnd::Diverged`]; the weights are then those after the last good update.
pub fn train(
    params: &mut Params,
    objective: &dyn Objective,
    eval: Option<&dyn Objective>,
    settings: &TrainSettings,
    folder: Option<&RunFolder>,
    events: &mut dyn FnMut(Event) -> Control,
) -> Result<Outcome> {
    settings.check()?;
    let mut run = Run::new(params, objective, eval, settings, folder, events)?;
    run.resume()?;
    run.announce();
    loop {
        run.evaluate_if_due()?;
        run.save_if_due()?;
        if run.stopping {
            return run.interrupt();
        }
        if run.state.step >= run.steps || run.is_out_of_patience() {
            return run.finish();
        }
        if let Some(why) = run.step()? {
            return Ok(run.diverge(why));
        }
    }
}

/// The mean loss per target over all examples; NaN if any of them is.
///
/// `progress` is told the number of examples done after each pass; when it answers [`Control::Stop`] there is no result.
///
/// # Errors
/// If no example has a target, or a loss cannot be computed.
pub fn evaluate(
    params: &Params,
    objective: &dyn Objective,
    batch_size: usize,
    progress: &mut dyn FnMut(usize) -> Control,
) -> Result<Option<f64>> {
    Ok(measure(params, objective, batch_size, progress)?.map(|measured| measured.loss))
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The mean loss per target; NaN if any example's is.
    pub loss: f64,
    /// Where the task has any; the loss is among them.
    pub metrics: Option<Metrics>,
}

impl Measured {
    /// A number of it; NaN where it is undefined.
    fn value(&self, metric: Metric) -> f64 {
        match (metric, &self.metrics) {
            (Metric::Loss, _) => self.loss,
            (metric, Some(metrics)) => metrics.get(metric).unwrap_or(f64::NAN),
            (_, None) => f64::NAN,
        }
    }

    /// Its numbers by name, without the loss.
    pub fn scalars(&self) -> BTreeMap<String, f64> {
        let Some(metrics) = &self.metrics else { return BTreeMap::new() };
        let known = metrics.known().iter().filter(|metric| **metric != Metric::Loss);
        known.filter_map(|metric| Some((metric.to_string(), metrics.get(*metric)?))).collect()
    }
}

/// As [`evaluate`], with the metrics of the task.
///
/// # Errors
/// As [`evaluate`]; if predictions cannot be scored.
pub fn measure(
    params: &Params,
    objective: &dyn Objective,
    batch_size: usize,
    progress: &mut dyn FnMut(usize) -> Control,
) -> Result<Option<Measured>> {
    let examples: Vec<usize> = (0..objective.len()).filter(|&e| objective.weight(e) > 0.0).collect();
    let denominator: f64 = examples.iter().map(|&e| objective.weight(e)).sum();
    if examples.is_empty() {
        return Err(Error::NothingToLearn { examples: objective.len() });
    }
    if let Some(measured) = objective.measured() {
        let found = measured.metrics(params, batch_size, &mut |done| progress(done) == Control::Continue);
        check_weights(params)?;
        let metrics = found.map_err(failed(objective, &examples, 0))?;
        let measured =
            |metrics: Metrics| Measured { loss: metrics.loss.unwrap_or(f64::NAN), metrics: Some(metrics) };
        return Ok(metrics.map(measured));
    }
    let (mut loss, mut done) = (0.0, 0);
    for batch in examples.chunks(batch_size.max(1)) {
        loss += loss_of(params, objective, batch, 0, denominator, 0)?;
        check_weights(params)?;
        done += batch.len();
        if progress(done) == Control::Stop && done < examples.len() {
            return Ok(None);
        }
    }
    Ok(Some(Measured { loss, metrics: None }))
}

/// What was computed with weights that could not be had is worth nothing.
fn check_weights(params: &Params) -> Result<()> {
    params.fault().map_or(Ok(()), |fault| Err(Error::Weights(fault)))
}

struct Run<'a> {
    params: &'a mut Params,
    objective: &'a dyn Objective,
    eval: Option<&'a dyn Objective>,
    settings: &'a TrainSettings,
    folder: Option<&'a RunFolder>,
    events: &'a mut dyn FnMut(Event) -> Control,

    order: Order,
    steps: u64,
    optimizer: Optimizer,
    gradients: Gradients,
    state: State,

    /// The step of the newest checkpoint on the disk.
    saved: Option<u64>,
    loss: Option<f64>,
    stopping: bool,
    began: Instant,
    /// Steps and seconds spent in steps, of this process.
    timed: (u64, f64),
}

impl<'a> Run<'a> {
    fn new(
        params: &'a mut Params,
        objective: &'a dyn Objective,
        eval: Option<&'a dyn Objective>,
        settings: &'a TrainSettings,
        folder: Option<&'a RunFolder>,
        events: &'a mut dyn FnMut(Event) -> Control,
    ) -> Result<Run<'a>> {
        let order = Order::new(objective, settings)?;
        let steps = settings.steps_total(order.steps_per_epoch());
        let mut identity = folder.map(|f| f.identity.clone()).unwrap_or_default();
        identity.extend(settings.fingerprint(steps));
        identity.insert("training examples".into(), order.examples().to_string());
        Ok(Run {
            optimizer: Optimizer::new(params, settings, folder.map(RunFolder::path))?,
            params,
            objective,
            eval,
            settings,
            folder,
            events,
            order,
            steps,
            gradients: Gradients::new(),
            state: State { settings: identity, ..State::default() },
            saved: None,
            loss: None,
            stopping: false,
            began: Instant::now(),
            timed: (0, 0.0),
        })
    }

    fn tell(&mut self, event: Event) {
        self.stopping |= (self.events)(event) == Control::Stop;
    }

    /// Goes back to the newest whole checkpoint, if the run is to be resumed and there is one.
    fn resume(&mut self) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        checkpoint::remove_unfinished(folder)?;
        if folder.start() == Start::New {
            return Ok(());
        }
        let (newest, rejected) = checkpoint::newest_whole(folder)?;
        for (path, why) in &rejected {
            self.tell(Event::CheckpointRejected { path: path.clone(), why: why.clone() });
        }
        let Some(newest) = newest else {
            if rejected.is_empty() {
                return Ok(());
            }
            let why = rejected.into_iter().map(|(_, why)| why).collect();
            return Err(Error::NoWholeCheckpoint { path: folder.path().to_path_buf(), why });
        };
        let state = checkpoint::read_state(&newest)?;
        let differences = differences(&state, &self.state);
        if !differences.is_empty() {
            return Err(Error::OtherSettings { path: newest, differences });
        }
        checkpoint::load_weights(&newest, self.params)?;
        checkpoint::load_moments(&newest, &state, &mut self.optimizer)?;
        for (path, _) in &rejected {
            checkpoint::set_aside(path)?;
        }
        self.saved = Some(state.step);
        self.state = state;
        Ok(())
    }

    fn announce(&mut self) {
        memory::reset_peak();
        let resumed_from = self.saved.and_then(|step| self.folder.map(|f| f.checkpoint_path(step)));
        self.tell(Event::Started {
            step: self.state.step,
            steps: self.steps,
            steps_per_epoch: self.order.steps_per_epoch(),
            examples: self.order.examples() as u64,
            targets: self.order.weight(),
            trainable_parameters: self.optimizer.elements(),
            resumed_from,
        });
        let MomentMemory { resident_bytes, file_bytes } = self.optimizer.memory();
        if let Some(path) = self.optimizer.page_file().map(Path::to_path_buf) {
            self.tell(Event::Paged { path, resident_bytes, file_bytes });
        }
    }

    /// Is something due after this many steps that happens every so often (`None`: each epoch), and at the end?
    fn is_due(&self, every: Option<u64>) -> bool {
        let step = self.state.step;
        step == self.steps || step.is_multiple_of(every.unwrap_or(self.order.steps_per_epoch()))
    }

    fn evaluate_if_due(&mut self) -> Result<()> {
        let step = self.state.step;
        let Some(eval) = self.eval else { return Ok(()) };
        let done = self.state.eval_last.is_some_and(|e| e.step == step);
        if done || !self.is_due(self.settings.eval_every) || self.stopping {
            return Ok(());
        }
        let (events, examples) = (&mut *self.events, eval.len() as u64);
        let mut progress = |done| events(Event::Evaluating { step, done: done as u64, examples });
        let Some(found) = measure(self.params, eval, self.settings.batch_size, &mut progress)? else {
            self.stopping = true;
            return Ok(());
        };
        let loss = found.loss;
        let finite = Some(loss).filter(|loss| loss.is_finite());
        if step == 0 {
            self.state.eval_before = finite;
            self.state.metrics_before = found.metrics.clone();
        }
        self.state.eval_last = Some(Evaluation { step, loss: finite });
        self.state.metrics_last = found.metrics.clone();
        let best = step > 0 && self.note_best(&found);
        let metrics = found.scalars();
        self.tell(Event::Eval { step, loss, perplexity: loss.exp(), best, metrics });
        // The best weights must be on the disk, whenever the next checkpoint is due.
        if best { self.save() } else { Ok(()) }
    }

    /// Takes the evaluation after this step for the best so far if it is; says whether.
    fn note_best(&mut self, found: &Measured) -> bool {
        let (step, metric) = (self.state.step, self.settings.metric);
        let value = found.value(metric);
        let earlier = self.state.best.as_ref();
        let usable = value.is_finite() && found.loss.is_finite();
        let better = usable && metric.better(value, earlier.map_or(f64::NAN, Best::value));
        self.state.eval_waited = if better { 0 } else { self.state.eval_waited + 1 };
        // Of equals the one with the lower loss; patience does not count that.
        let lower = earlier.is_some_and(|best| value == best.value() && found.loss < best.loss);
        if !(better || usable && lower) {
            return false;
        }
        let name = self.folder.map(|folder| folder.checkpoint_path(step));
        let name = name.as_deref().and_then(std::path::Path::file_name).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        self.state.best = Some(Best { step, loss: found.loss, metric, value: Some(value), name });
        self.state.metrics_best = found.metrics.clone();
        true
    }

    fn is_out_of_patience(&self) -> bool {
        self.settings.patience.is_some_and(|patience| self.state.eval_waited >= patience)
    }

    fn save_if_due(&mut self) -> Result<()> {
        let due = self.is_due(self.settings.save_every) || self.is_out_of_patience();
        if self.state.step > 0 && due { self.save() } else { Ok(()) }
    }

    /// Saves, unless the newest checkpoint is of this very step.
    fn save(&mut self) -> Result<()> {
        let step = self.state.step;
        let Some(folder) = self.folder.filter(|_| self.saved != Some(step)) else { return Ok(()) };
        self.state.updates = self.optimizer.updates();
        let (path, bytes) = checkpoint::save(folder, &self.state, self.params, &mut self.optimizer)?;
        self.saved = Some(step);
        checkpoint::prune(folder, self.settings.keep, self.state.best.as_ref())?;
        self.tell(Event::Saved { step, path, bytes });
        Ok(())
    }

    /// One step: the gradient of a window, and an update if all is finite. Returns why the run cannot go on, if so.
    fn step(&mut self) -> Result<Option<String>> {
        let began = Instant::now();
        let window = self.order.window(self.state.step);
        let (loss, norm) = self.gradient(&window)?;
        check_weights(self.params)?;
        if !(loss.is_finite() && norm.is_finite()) {
            return self.skip(&window, loss, norm);
        }
        let lr = self.settings.lr_at(self.state.step, self.steps);
        self.optimizer.step(self.params, &self.gradients, lr, norm, self.settings.max_grad_norm)?;
        self.gradients.clear();
        self.state.guard.skipped_in_a_row = 0;
        self.state.step += 1;
        self.loss = Some(loss);
        self.report(&window, loss, lr, norm, began.elapsed().as_secs_f64());
        Ok(None)
    }

    /// Sums the gradient of a window, pass by pass; returns its mean loss and the gradient's norm.
    fn gradient(&mut self, window: &Window) -> Result<(f64, f64)> {
        self.gradients.clear();
        let mut loss = 0.0;
        for batch in window.examples.chunks(self.settings.batch_size) {
            let tape = Tape::new(self.params);
            let value = self
                .objective
                .loss(&tape, batch, window.epoch, window.denominator)
                .map_err(failed(self.objective, batch, self.state.step + 1))?;
            loss += f64::from(scalar(value.value()));
            tape.backward(&value, Tensor::scalar(1.0), &mut self.gradients);
        }
        Ok((loss, self.gradients.global_norm()))
    }

    fn report(&mut self, window: &Window, loss: f64, lr: f64, grad_norm: f64, seconds: f64) {
        let tokens: u64 = window.examples.iter().map(|&e| self.objective.rows(e) as u64).sum();
        self.state.tokens += tokens;
        self.timed = (self.timed.0 + 1, self.timed.1 + seconds);
        let step = self.state.step;
        let left = self.steps.saturating_sub(step) as f64;
        for (what, value, z) in [
            (SpikeIn::Loss, loss, self.state.guard.losses.push(loss)),
            (SpikeIn::GradNorm, grad_norm, self.state.guard.grad_norms.push(grad_norm)),
        ] {
            if let Some(z) = z {
                self.tell(Event::Spike { step, what, value, z });
            }
        }
        self.tell(Event::Step {
            step,
            steps: self.steps,
            epoch: step as f64 / self.order.steps_per_epoch() as f64,
            loss,
            lr,
            grad_norm,
            tokens,
            tokens_per_s: tokens as f64 / seconds.max(1e-9),
            unit: self.objective.unit(),
            peak_bytes: memory::peak_bytes() as u64,
            eta_s: left * self.timed.1 / self.timed.0 as f64,
        });
    }

    /// A step whose numbers are not finite: no weight and no moment changes; the step counts, the update does not.
    fn skip(&mut self, window: &Window, loss: f64, grad_norm: f64) -> Result<Option<String>> {
        let tensor = self.optimizer.slots().iter().find_map(|slot| {
            let bad = self.gradients.get(slot.id).is_some_and(|g| !g.all_finite());
            bad.then(|| slot.name.clone())
        });
        let weight = bad_weight(self.params);
        self.gradients.clear();
        let examples: Vec<String> =
            self.culprits(window)?.into_iter().map(|e| self.objective.describe(e)).collect();
        self.state.step += 1;
        self.state.guard.skipped_in_a_row += 1;
        let in_a_row = self.state.guard.skipped_in_a_row;
        let step = self.state.step;
        let whose = if loss.is_finite() { "gradient" } else { "loss" };
        let place = match (&weight, &tensor) {
            (Some(name), _) => format!(", for the weight `{name}` is not"),
            (None, Some(name)) => format!(", first in the gradient of `{name}`"),
            (None, None) => String::new(),
        };
        let who = shortened(&examples, examples.len());
        self.tell(Event::Skipped { step, loss, grad_norm, tensor: weight.or(tensor), examples, in_a_row });
        let why = match self.settings.on_nan {
            OnNan::Stop => format!("the {whose} of step {step} is not finite{place} ({who})"),
            OnNan::Skip if in_a_row >= self.settings.nan_steps_max => format!(
                "the {whose} is not finite for {in_a_row} steps in a row, lastly in step {step}{place} ({who}); \
                 try a lower learning rate, or look at these examples"
            ),
            OnNan::Skip => return Ok(None),
        };
        Ok(Some(why))
    }

    /// The examples of a window whose own loss is not finite; all of them if each alone is fine.
    fn culprits(&self, window: &Window) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for &example in &window.examples {
            let step = self.state.step + 1;
            let loss =
                loss_of(self.params, self.objective, &[example], window.epoch, window.denominator, step)?;
            if !loss.is_finite() {
                found.push(example);
            }
        }
        Ok(if found.is_empty() { window.examples.clone() } else { found })
    }

    fn interrupt(mut self) -> Result<Outcome> {
        if self.state.step > 0 {
            self.save()?;
        }
        let (step, checkpoint) = (self.state.step, self.newest());
        self.tell(Event::Interrupted { step, checkpoint });
        Ok(self.outcome(OutcomeEnd::Interrupted, None))
    }

    fn diverge(mut self, why: String) -> Outcome {
        let (step, checkpoint) = (self.state.step, self.newest());
        self.tell(Event::Diverged { step, why: why.clone(), checkpoint });
        self.outcome(OutcomeEnd::Diverged { why }, None)
    }

    fn finish(mut self) -> Result<Outcome> {
        if self.state.step < self.steps {
            let (step, waited) = (self.state.step, self.state.eval_waited);
            self.tell(Event::StoppedEarly { step, steps: self.steps, waited });
        }
        let restored = self.restore_best()?;
        self.tell(Event::Finished {
            step: self.state.step,
            eval_before: self.state.eval_before,
            eval_after: self.eval_after(restored),
            best: self.state.best.clone(),
            restored,
            tokens: self.state.tokens,
            seconds: self.began.elapsed().as_secs_f64(),
            peak_bytes: memory::peak_bytes() as u64,
            process_peak_bytes: peak_resident_bytes(),
            paging_wait_s: self.optimizer.page_file().map(|_| self.optimizer.waited().as_secs_f64()),
        });
        Ok(self.outcome(OutcomeEnd::Finished, restored))
    }

    /// Goes back to the weights of the best evaluation, unless they are the last ones or these are wanted; says to which
    /// step. A checkpoint that is not whole leaves the last ones.
    fn restore_best(&mut self) -> Result<Option<u64>> {
        let best =
            self.state.best.clone().filter(|best| !self.settings.keep_last && best.step != self.state.step);
        let (Some(folder), Some(best)) = (self.folder, best) else { return Ok(None) };
        let path = folder.checkpoint_path(best.step);
        match checkpoint::load_weights(&path, self.params) {
            Ok(()) => Ok(Some(best.step)),
            Err(error) if error.is_io() && path.exists() => Err(error),
            Err(error) => {
                self.tell(Event::CheckpointRejected { path, why: error.to_string() });
                Ok(None)
            }
        }
    }

    fn eval_after(&self, restored: Option<u64>) -> Option<f64> {
        match (restored, &self.state.best) {
            (Some(_), Some(best)) => Some(best.loss),
            _ => self.state.eval_last.and_then(|e| e.loss),
        }
    }

    fn newest(&self) -> Option<PathBuf> {
        Some(self.folder?.checkpoint_path(self.saved?))
    }

    fn outcome(self, end: OutcomeEnd, restored: Option<u64>) -> Outcome {
        let after = if restored.is_some() { &self.state.metrics_best } else { &self.state.metrics_last };
        Outcome {
            end,
            step: self.state.step,
            steps: self.steps,
            loss: self.loss,
            eval_before: self.state.eval_before,
            eval_after: self.eval_after(restored),
            metrics_before: self.state.metrics_before.clone(),
            metrics_after: after.clone(),
            checkpoint: self.newest(),
            restored,
            stopped_early: self.state.step < self.steps && self.is_out_of_patience(),
            best: self.state.best,
            tokens: self.state.tokens,
            seconds: self.began.elapsed().as_secs_f64(),
        }
    }
}

/// The loss of some examples, without recording; `step` is for messages.
fn loss_of(
    params: &Params,
    objective: &dyn Objective,
    batch: &[usize],
    epoch: u64,
    denominator: f64,
    step: u64,
) -> Result<f64> {
    let tape = Tape::inference(params);
    let value = objective.loss(&tape, batch, epoch, denominator).map_err(failed(objective, batch, step))?;
    Ok(f64::from(scalar(value.value())))
}

/// The first f32 weight that is not finite itself: then no example is to blame.
fn bad_weight(params: &Params) -> Option<String> {
    let mut bad = params.iter().map(|(_, p)| p).filter(|p| match &p.weight {
        Weight::F32(tensor) => !tensor.all_finite(),
        Weight::Stored(_) => false,
    });
    bad.next().map(|p| p.name.clone())
}

/// The value of a `[1, 1]` tensor; NaN for any other shape, which the guard then reports.
fn scalar(tensor: &Tensor) -> f32 {
    if let [value] = tensor.data() { *value } else { f32::NAN }
}

/// A loss that cannot be computed, with the step and the examples that it is of.
fn failed(objective: &dyn Objective, batch: &[usize], step: u64) -> impl FnOnce(ObjectiveError) -> Error {
    let names: Vec<String> = batch.iter().take(SHOWN + 1).map(|&e| objective.describe(e)).collect();
    let examples = shortened(&names, batch.len());
    move |source| Error::Objective { step, examples, source }
}

/// Names shown of a long list.
const SHOWN: usize = 4;

/// The first few names of a list, and how many more there are.
fn shortened(names: &[String], count: usize) -> String {
    let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if count > SHOWN { format!("{first} and {} more", count - SHOWN) } else { first }
}

/// The settings in which two runs differ, with both values.
fn differences(was: &State, now: &State) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = was.settings.keys().chain(now.settings.keys()).collect();
    let value =
        |state: &State, key: &String| state.settings.get(key).cloned().unwrap_or_else(|| "not set".into());
    keys.into_iter()
        .filter(|key| was.settings.get(*key) != now.settings.get(*key))
        .map(|key| format!("`{key}` was {} and is now {}", value(was, key), value(now, key)))
        .collect()
}
