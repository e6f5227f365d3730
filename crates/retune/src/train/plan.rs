//! The memory of a run, before it starts: weights, gradients, moments, activations, and what lies beside them.
//!
//! `peak = weights + moments + threads + beside + max(training, evaluation, loading, choosing)`. What training and evaluation
//! take comes from going through a pass without its products ([`DryRun`]): the code that allocates is its own formula.

use std::cell::OnceCell;

use retune_tensor::memory::{ends_bytes, held_bytes};
use retune_tensor::{ParamId, Params};
use serde::{Deserialize, Serialize};

use super::dry_run::{DryRun, Moment, PassSize, Purpose, taken_bytes, workspace_bytes};
use super::error::Result;
use super::memory_limit::MemoryLimit;
use super::optimizer::moments::{self, MomentMemory};
use super::order::largest_batch;
use super::remedy::{Remedy, nearest};
use super::settings::TrainSettings;
use crate::methods::Attached;
use crate::models::streamed::{Pager, Sizes};
use crate::models::{Model, Net};
use crate::nn::Active;
use crate::objective::Objective;
use crate::run_file::{Checkpointing, Optim};

/// What is to be planned.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The model as it is going to be trained.
    pub model: &'a Model,
    /// Its method.
    pub attached: &'a Attached,
    pub objective: &'a dyn Objective,
    /// What is evaluated before, while and after it is trained.
    pub evaluated: &'a [&'a dyn Objective],
    pub settings: &'a TrainSettings,
    pub checkpointing: Checkpointing,
    pub beside: Beside,
    /// Other storages of the base.
    pub storages: &'a [OtherStorage],
    /// `None`: not known, so nothing is refused.
    pub limit: Option<&'a MemoryLimit>,
    /// Free bytes of the disk that the run writes to, where they are known.
    pub disk_free: Option<u64>,
}

/// What a run takes beside the model and its passes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// A copy of the base's own values that are trained.
    pub base_copy: u64,
    /// Rows of the longest text that is generated before and after, its prompt included.
    pub generated_rows: u64,
    /// The process itself: program, tokenizer, examples.
    pub process: u64,
    /// Rows of a frozen trunk, at most: in memory as far as there is room, else in a file.
    pub trunk_rows: u64,
}

/// How else the base could be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherStorage {
    /// The setting: `storage = "nf4"`, or `weights = "streamed"`.
    pub key: &'static str,
    pub name: &'static str,
    /// Bytes of the frozen weights, and the most that are held at a time while they are read.
    pub base_bytes: u64,
    pub loading_bytes: u64,
}

/// The memory that a run will take, in bytes. The parts are those of the worst moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Frozen weights, as they lie in memory.
    pub base_bytes: u64,
    /// Weights that stay in their file: those of them that are in memory at a time.
    pub streamed_bytes: u64,
    /// Trained weights, in f32.
    pub trainable_bytes: u64,
    pub gradient_bytes: u64,
    /// The optimiser's state that stays in memory.
    pub moment_bytes: u64,
    /// Activations kept for the backward pass.
    pub activation_bytes: u64,
    /// What is needed for a moment only.
    pub transient_bytes: u64,
    /// Packed operands of products, on all threads; buffers of files; pages that are in use in part.
    pub workspace_bytes: u64,
    /// Copies of weights, rows of a frozen trunk.
    pub kept_bytes: u64,
    /// The process itself: program, tokenizer, examples, what the allocator wastes.
    pub process_bytes: u64,
    /// The sum: the most that the process will hold.
    pub total_bytes: u64,
    /// When that is.
    pub worst: Worst,
    /// Memory for the optimiser's state, where that is limited ([`TrainSettings::optimizer_budget`]).
    pub optimizer_budget: Option<u64>,
    /// The optimiser's state that lies in a file.
    pub page_file_bytes: u64,
    /// All checkpoints that exist at a time.
    pub checkpoint_bytes: u64,
    /// Rows of a frozen trunk that lie in a file.
    pub trunk_file_bytes: u64,
    /// Memory that rows of a frozen trunk may take.
    pub trunk_room_bytes: u64,
    /// The sum of what is written to the disk.
    pub disk_bytes: u64,
    /// Rows, targets and the longest example of the largest pass.
    pub rows: u64,
    pub targets: u64,
    pub longest: u64,
    pub batch_size: u64,
    pub gradient_accumulation: u64,
    /// Whether blocks are computed again in the backward pass.
    pub checkpointing: bool,
    pub limit_bytes: Option<u64>,
    pub limit_source: Option<String>,
    pub disk_free_bytes: Option<u64>,
}

/// When the most is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worst {
    #[default]
    Training,
    Evaluation,
    /// While the weights are read.
    Loading,
    /// While the data chooses what is trained.
    Choosing,
    /// While texts are generated before and after.
    Generation,
}

impl Worst {
    /// As in "the most is held ...".
    pub fn words(self) -> &'static str {
        match self {
            Worst::Training => "in a training step",
            Worst::Evaluation => "in an evaluation",
            Worst::Loading => "while the weights are read",
            Worst::Choosing => "while the data chooses what is trained",
            Worst::Generation => "while texts are generated",
        }
    }
}

impl Plan {
    /// What the peak is made of, by name, in bytes.
    pub fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("base weights", self.base_bytes),
            ("streamed weights", self.streamed_bytes),
            ("trained weights", self.trainable_bytes),
            ("gradients", self.gradient_bytes),
            ("optimiser's moments", self.moment_bytes),
            ("activations", self.activation_bytes),
            ("at the worst moment", self.transient_bytes),
            ("work space", self.workspace_bytes),
            ("copies and kept rows", self.kept_bytes),
            ("the process itself", self.process_bytes),
        ]
    }

    /// What is written to the disk, by name, in bytes.
    pub fn disk_parts(&self) -> [(&'static str, u64); 3] {
        [
            ("checkpoints", self.checkpoint_bytes),
            ("moments in a page file", self.page_file_bytes),
            ("rows of the frozen trunk", self.trunk_file_bytes),
        ]
    }

    /// Bytes that tensors and what belongs to them take: all but the process itself.
    pub fn heap_bytes(&self) -> u64 {
        self.total_bytes - self.process_bytes
    }

    /// Whether there is room in memory and on the disk.
    pub fn fits(&self) -> bool {
        self.limit_bytes.is_none_or(|limit| self.total_bytes <= limit) && self.fits_disk()
    }

    fn fits_disk(&self) -> bool {
        self.disk_free_bytes.is_none_or(|free| self.disk_bytes <= free)
    }

    /// What is too large, with both numbers.
    fn refusal(&self) -> String {
        let limit = human(self.limit_bytes.unwrap_or(0));
        let source = self.limit_source.as_deref().unwrap_or("the limit");
        if self.base_bytes == self.total_bytes {
            let weights = human(self.base_bytes);
            return format!("the run needs {weights} for the weights alone, but {source} is {limit}");
        }
        let checkpointing = if self.checkpointing { "with checkpointing" } else { "without checkpointing" };
        if let (false, Some(free)) = (self.fits_disk(), self.disk_free_bytes) {
            return format!(
                "the run writes {} to the disk ({} of them checkpoints), but {} are free there",
                human(self.disk_bytes),
                human(self.checkpoint_bytes),
                human(free)
            );
        }
        format!(
            "the run needs {} (batch_size {}, {checkpointing}), but {source} is {limit}",
            human(self.total_bytes),
            self.batch_size,
        )
    }
}

/// A run that needs more memory, or more room on the disk, than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}; {advice}", plan.refusal())]
pub struct DoesNotFit {
    pub plan: Box<Plan>,
    /// The nearest settings that fit, if any do.
    pub remedy: Option<Remedy>,
    /// The same in words.
    pub advice: String,
}

/// Plans a run: picks checkpointing if that was left open and is needed.
///
/// # Errors
/// If there is nothing to learn from, or if the run cannot fit; the message names the nearest setting that does.
pub fn plan(request: &PlanRequest) -> Result<Plan> {
    let planner = Planner::new(request);
    let tried: &[bool] = match request.checkpointing {
        Checkpointing::Auto => &[false, true],
        Checkpointing::On => &[true],
        Checkpointing::Off => &[false],
    };
    let with = |checkpointing| Remedy { checkpointing, ..Remedy::default() };
    let mut last = planner.predict_with(&with(tried.first().copied()), None)?;
    for &checkpointing in &tried[1..] {
        if !last.fits() {
            last = planner.predict_with(&with(Some(checkpointing)), None)?;
        }
    }
    if !last.fits() {
        last = planner.predict(&with(Some(last.checkpointing)))?;
    }
    if last.fits() {
        return Ok(last);
    }
    let (remedy, advice) = nearest(&planner, &last)?;
    Err(DoesNotFit { plan: Box::new(last), remedy, advice }.into())
}

/// Dry runs are made once, and answer for all settings that are tried.
pub(super) struct Planner<'a> {
    pub request: &'a PlanRequest<'a>,
    plain: OnceCell<DryRun>,
    checkpointed: OnceCell<DryRun>,
    evaluation: OnceCell<DryRun>,
    choosing: OnceCell<(DryRun, u64)>,
}

impl<'a> Planner<'a> {
    fn new(request: &'a PlanRequest<'a>) -> Planner<'a> {
        Planner {
            request,
            plain: OnceCell::new(),
            checkpointed: OnceCell::new(),
            evaluation: OnceCell::new(),
            choosing: OnceCell::new(),
        }
    }

    /// The memory with some settings changed; moments go into a file as far as memory has no room for them.
    pub fn predict(&self, change: &Remedy) -> Result<Plan> {
        let all = self.predict_with(change, None)?;
        match all.limit_bytes {
            Some(limit) if all.total_bytes > limit && all.moment_bytes > 0 => {
                let others = all.total_bytes - all.moment_bytes;
                let paged = self.predict_with(change, Some(limit.saturating_sub(others)))?;
                Ok(if paged.total_bytes < all.total_bytes { paged } else { all })
            }
            _ => Ok(all),
        }
    }

    /// The memory with some settings changed, and so many bytes of it for moments (`None`: no limit).
    fn predict_with(&self, change: &Remedy, budget: Option<u64>) -> Result<Plan> {
        let request = self.request;
        let settings = change.settings(request.settings);
        let params = &request.model.params;
        let (frozen, trainable) = weights(params);
        let base = change.storage.map_or(frozen, |storage| storage.base_bytes);
        let elements = trained_elements(params);
        let MomentMemory { resident_bytes: moments, file_bytes } =
            moments::memory(&elements, settings.optim, budget);
        let beside = request.beside;
        let streamed = request.model.pager.as_ref().map(Pager::sizes).unwrap_or_default();

        let size = largest_pass(request.objective, &settings, change.max_length)?;
        let checkpointing = change.checkpointing.unwrap_or(false);
        let passes = settings.gradient_accumulation.min(2);
        let training = self.training(checkpointing).worst(size, passes);
        let mut worst = (Worst::Training, training, moments);
        let mut consider = |when: Worst, moment: Moment, moments: u64| {
            if moment.total() + moments > worst.1.total() + worst.2 {
                worst = (when, moment, moments);
            }
        };
        for evaluated in request.evaluated {
            let size = evaluated_pass(*evaluated, settings.batch_size, change.max_length);
            consider(Worst::Evaluation, self.evaluation().worst(size, 1), moments);
        }
        if let Some(moment) = self.choosing(request.objective, change.max_length) {
            consider(Worst::Choosing, moment, 0);
        }
        let alone = |transient: u64| Moment { transient, ..Moment::default() };
        if beside.generated_rows > 0 {
            let rows = beside.generated_rows;
            let size = PassSize { rows, targets: 1, examples: 1, longest: rows };
            let pass = self.evaluation().worst(size, 1).total();
            let cache = match &self.request.model.net {
                Net::Text(net) => taken_bytes(|| drop(net.new_cache(rows as usize, Active::default()))),
                Net::Speech(net) => net.transcript_bytes(self.evaluated_frames()),
                Net::Image(_) => 0,
            };
            consider(Worst::Generation, alone(cache + pass), 0);
        }
        let loading = change.storage.map_or_else(|| loading_bytes(request.model), |s| s.loading_bytes);
        consider(Worst::Loading, alone(loading.saturating_sub(base + trainable)), 0);

        let (when, moment, moment_bytes) = worst;
        let workspace = workspace_bytes(&request.model.net, params) + FILE_BYTES;
        let mut plan = Plan {
            base_bytes: base,
            streamed_bytes: streamed.least,
            trainable_bytes: trainable,
            gradient_bytes: moment.gradients,
            moment_bytes,
            activation_bytes: moment.activations,
            transient_bytes: moment.transient,
            workspace_bytes: workspace,
            kept_bytes: beside.base_copy + request.attached.beside_bytes,
            process_bytes: beside.process + NAME_BYTES * params.len() as u64,
            worst: when,
            optimizer_budget: budget,
            page_file_bytes: file_bytes,
            checkpoint_bytes: checkpoint_bytes(&elements, settings.optim) * (settings.keep as u64 + 2),
            rows: size.rows,
            targets: size.targets,
            longest: size.longest,
            batch_size: settings.batch_size as u64,
            gradient_accumulation: settings.gradient_accumulation as u64,
            checkpointing,
            limit_bytes: request.limit.map(|limit| limit.bytes),
            limit_source: request.limit.map(|limit| limit.source.clone()),
            disk_free_bytes: request.disk_free,
            ..Plan::default()
        };
        let in_buffers = plan.trainable_bytes + plan.gradient_bytes + plan.moment_bytes;
        plan.workspace_bytes += ends_bytes(in_buffers + plan.activation_bytes + plan.transient_bytes);
        // A process, not its heap alone, is what is planned where the caller says what it holds.
        if beside.process > 0 {
            plan.process_bytes += plan.parts().iter().map(|(_, bytes)| bytes).sum::<u64>() / ALLOCATOR_SHARE;
        }
        plan.total_bytes = plan.parts().iter().map(|(_, bytes)| bytes).sum();
        plan.place_trunk_rows(beside.trunk_rows);
        plan.place_streamed(streamed);
        plan.disk_bytes = plan.disk_parts().iter().map(|(_, bytes)| bytes).sum();
        Ok(plan)
    }

    fn training(&self, checkpointing: bool) -> &DryRun {
        let cell = if checkpointing { &self.checkpointed } else { &self.plain };
        let model = self.request.model;
        let frames = self.request.objective.window_frames();
        cell.get_or_init(|| {
            DryRun::of_windows(&model.net, &model.params, Purpose::Training { checkpointing }, frames)
        })
    }

    fn evaluation(&self) -> &DryRun {
        let (model, frames) = (self.request.model, self.evaluated_frames());
        self.evaluation
            .get_or_init(|| DryRun::of_windows(&model.net, &model.params, Purpose::Evaluation, frames))
    }

    fn evaluated_frames(&self) -> Option<usize> {
        self.request.evaluated.iter().filter_map(|evaluated| evaluated.window_frames()).max()
    }

    /// What choosing by gradients takes, one example at a time, where the method does that.
    fn choosing(&self, objective: &dyn Objective, max_length: Option<usize>) -> Option<Moment> {
        let weights = &self.request.attached.examined;
        let params = &self.request.model.params;
        let at_a_time = crate::methods::examined_at_a_time(params, weights);
        let now = weights.get(..at_a_time).filter(|now| !now.is_empty())?;
        let (dry_run, beside) = self.choosing.get_or_init(|| self.examine(now));
        let mut moment = dry_run.worst(evaluated_pass(objective, 1, max_length), 1);
        moment.transient += beside;
        Some(moment)
    }

    /// A pass with these weights trainable, and the bytes of their sums and f32 copies.
    fn examine(&self, weights: &[ParamId]) -> (DryRun, u64) {
        let model = self.request.model;
        let mut params = model.params.clone();
        params.freeze_all();
        let mut beside = 0;
        for &id in weights {
            let param = params.get_mut(id);
            param.trainable = true;
            let values = held_bytes(param.elements()) as u64;
            let copy = if matches!(param.weight, retune_tensor::Weight::Stored(_)) { values } else { 0 };
            // The sum; once it is there, scores and places of the largest entries of one weight.
            beside += values + copy;
        }
        let purpose = Purpose::Training { checkpointing: false };
        let frames = self.request.objective.window_frames();
        (DryRun::of_windows(&model.net, &params, purpose, frames), beside)
    }
}

impl DoesNotFit {
    /// What a change of settings is for, for people.
    pub fn in_words(&self, remedy: &Remedy) -> String {
        format!("{} instead, for {}", remedy.words(), self.plan.refusal())
    }
}

impl Plan {
    /// Rows of a frozen trunk: half of what is left of the memory, the rest in a file.
    fn place_trunk_rows(&mut self, rows: u64) {
        let left = self.limit_bytes.map(|limit| limit.saturating_sub(self.total_bytes));
        let room = left.unwrap_or(UNKNOWN_MEMORY) / 2;
        self.trunk_room_bytes = room;
        self.kept_bytes += rows.min(room);
        self.total_bytes += rows.min(room);
        self.trunk_file_bytes = rows - rows.min(room);
    }

    /// The more streamed weights there is room for, the less is read: they take what is left, but for an eighth of it, in
    /// which the system keeps what was read of their file.
    fn place_streamed(&mut self, sizes: Sizes) {
        let left = self.limit_bytes.map(|limit| limit.saturating_sub(self.total_bytes) / 8 * 7);
        let more = sizes.resident(left.map(|left| sizes.least + left)) - sizes.least;
        self.streamed_bytes += more;
        self.total_bytes += more;
    }
}

/// Memory that is taken for free where nothing is known.
const UNKNOWN_MEMORY: u64 = 2 << 30;
/// One part in so many of what is held is lost between buffers: measured, 1 % of a step of SmolLM2's shape.
const ALLOCATOR_SHARE: u64 = 64;
/// Bytes of what reads, writes and hashes files.
const FILE_BYTES: u64 = 3 << 18;
/// Bytes of a parameter beside its values: its name, its shape, its place in lists.
const NAME_BYTES: u64 = 1024;

/// The bytes of frozen and of trainable weights.
pub fn weights(params: &Params) -> (u64, u64) {
    let bytes = |trainable| {
        let these = params.iter().map(|(_, param)| param).filter(|param| param.trainable == trainable);
        these.map(|param| param.weight.held_bytes() as u64).sum()
    };
    (bytes(false), bytes(true))
}

/// How many values each trained weight has.
fn trained_elements(params: &Params) -> Vec<usize> {
    params.iter().filter(|(_, param)| param.trainable).map(|(_, param)| param.elements()).collect()
}

/// A checkpoint: weights and two moments.
fn checkpoint_bytes(elements: &[usize], optim: Optim) -> u64 {
    let MomentMemory { resident_bytes, file_bytes } = moments::memory(elements, optim, None);
    let weights: u64 = elements.iter().map(|&n| 4 * n as u64 + NAME_BYTES).sum();
    weights + resident_bytes.max(file_bytes)
}

/// The most that is held while the weights are read: those before, and one as it lies in the file and as it is decoded.
fn loading_bytes(model: &Model) -> u64 {
    const STRIP: u64 = 1 << 20;
    let widest = model.files.source().tensors().iter().filter(|tensor| tensor.numel() > 0);
    let widest = widest.map(|tensor| tensor.byte_len().div_ceil(tensor.numel())).max().unwrap_or(4);
    let (mut held, mut most) = (0, 0);
    for (_, param) in model.params.iter().filter(|(_, param)| !param.adapter) {
        let (elements, own) = (param.elements() as u64, param.weight.held_bytes() as u64);
        held += own;
        // What is held in f32 is read in strips; of the others all is there as it lies in the file, and as it is decoded.
        let beside = match param.weight {
            retune_tensor::Weight::F32(_) => (4 + widest) * elements.min(STRIP),
            retune_tensor::Weight::Stored(_) => (4 + widest) * elements,
        };
        most = most.max(held + beside);
    }
    most
}

/// The largest pass of training.
fn largest_pass(
    objective: &dyn Objective,
    settings: &TrainSettings,
    max_length: Option<usize>,
) -> Result<PassSize> {
    let shorter = Shortened { objective, max_length };
    let (rows, targets) = largest_batch(&shorter, settings)?;
    let longest = (0..shorter.len()).map(|example| shorter.rows(example)).max().unwrap_or(0);
    let examples = settings.batch_size.min(shorter.len());
    Ok(PassSize {
        rows: rows as u64,
        targets: targets as u64,
        examples: examples as u64,
        longest: longest as u64,
    })
}

/// The largest pass of an evaluation, which takes the examples as they come.
fn evaluated_pass(objective: &dyn Objective, batch_size: usize, max_length: Option<usize>) -> PassSize {
    let shorter = Shortened { objective, max_length };
    let examples: Vec<usize> = (0..shorter.len()).filter(|&e| shorter.weight(e) > 0.0).collect();
    let mut largest = PassSize::default();
    for batch in examples.chunks(batch_size.max(1)) {
        let of = |f: &dyn Fn(usize) -> usize| batch.iter().map(|&e| f(e) as u64).sum::<u64>();
        largest.rows = largest.rows.max(of(&|e| shorter.rows(e)));
        largest.targets = largest.targets.max(of(&|e| shorter.targets(e)));
        largest.examples = largest.examples.max(batch.len() as u64);
        let longest = batch.iter().map(|&e| shorter.rows(e) as u64).max();
        largest.longest = largest.longest.max(longest.unwrap_or(0));
    }
    largest
}

/// Examples as they would be if they were cut to some length.
struct Shortened<'a> {
    objective: &'a dyn Objective,
    max_length: Option<usize>,
}

impl Objective for Shortened<'_> {
    fn len(&self) -> usize {
        self.objective.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.objective.rows(example).min(self.max_length.unwrap_or(usize::MAX))
    }

    fn targets(&self, example: usize) -> usize {
        self.objective.targets(example).min(self.max_length.unwrap_or(usize::MAX))
    }

    fn weight(&self, example: usize) -> f64 {
        self.objective.weight(example)
    }

    fn describe(&self, example: usize) -> String {
        self.objective.describe(example)
    }

    fn loss<'p>(
        &'p self,
        tape: &retune_tensor::Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<retune_tensor::Var, crate::objective::ObjectiveError> {
        self.objective.loss(tape, batch, epoch, denominator)
    }
}

/// Bytes for people: three digits and a binary unit.
pub fn human(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" || value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.2} {unit}") }
}
