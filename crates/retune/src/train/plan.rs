//! The memory of a run, before it starts: weights, gradients, moments, activations.
//!
//! `peak = weights + gradients + moments + fixed + T (blocks x kept + outside) + max(T x transient, head)`, where `T` is the
//! rows of the largest pass. With checkpointing a block keeps its input alone, and one block at a time keeps all.

use retune_tensor::kernel::PackedLhs;
use retune_tensor::memory::held_bytes;
use retune_tensor::ops::linear_cross_entropy::chunk_rows;
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::memory_limit::MemoryLimit;
use super::order::largest_batch;
use super::settings::TrainSettings;
use crate::methods::Cost;
use crate::models::Model;
use crate::objective::Objective;
use crate::run_file::Checkpointing;

/// What a model (with its adapters) keeps and needs for a row of activations. Bytes throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationProfile {
    /// Blocks that checkpointing may run twice.
    pub blocks: u64,
    /// A row of a block's input: what a checkpointed block keeps.
    pub block_input: u64,
    /// What the tape keeps of a row in one block, its input included.
    pub block_kept: u64,
    /// The most that one block's forward or backward holds for a row beyond what is kept.
    pub block_transient: u64,
    /// Kept for a row outside of blocks (tables, last norm).
    pub outside_kept: u64,
    /// The most that the forward alone holds for a row when nothing is recorded.
    pub inference: u64,
    /// For each row that carries loss: its copy and its gradient.
    pub head_per_target: u64,
    /// For each row that carries loss, up to `head_chunk` rows: its logits.
    pub head_logits: u64,
    /// Rows whose logits exist at a time.
    pub head_chunk: u64,
    /// What exists once, independent of the batch (gradients of the largest weight before they are added).
    pub fixed: u64,
}

/// Buffers come in eight sizes an octave, so a tensor may take an eighth more than its values.
fn held(bytes: u64) -> u64 {
    bytes + bytes / 8
}

impl ActivationProfile {
    /// The profile of a model with its method on, and what that costs.
    pub fn of(model: &Model, cost: Cost) -> ActivationProfile {
        const F32: u64 = 4;
        let trainable = || model.params.iter().map(|(_, p)| p).filter(|p| p.trainable);
        let base = model.net.activation_profile();
        let elements = |n: usize| F32 * n as u64;
        ActivationProfile {
            blocks: base.blocks as u64,
            block_input: elements(base.input_per_row),
            block_kept: elements(base.kept_per_row + cost.kept_per_row.div_ceil(base.blocks.max(1))),
            block_transient: elements(base.transient_per_row + cost.transient_per_row),
            outside_kept: elements(base.shared_per_row),
            inference: elements(base.inference_per_row),
            head_per_target: elements(2 * base.input_per_row),
            // The logits, and perhaps their copy packed for the product with the head.
            head_logits: elements(base.logits * if PackedLhs::copies_rows_of(base.logits) { 2 } else { 1 }),
            head_chunk: chunk_rows(base.logits) as u64,
            // A tied weight's two gradients besides the sum of the passes before; rounding of gradients and moments.
            fixed: trainable().map(|p| 2 * held_bytes(p.elements()) as u64).max().unwrap_or(0)
                + trainable().map(|p| 3 * (held_bytes(p.elements()) - p.weight.bytes()) as u64).sum::<u64>(),
        }
    }

    /// What is kept and what comes on top at the worst moment, for a pass of so many rows and targets.
    fn activations(&self, rows: u64, targets: u64, checkpointing: bool) -> (u64, u64) {
        let head = self.head(targets) + rows * self.block_input;
        let (each, block) = if checkpointing {
            (self.block_input, self.block_kept + self.block_transient)
        } else {
            (self.block_kept, self.block_transient)
        };
        let kept = rows * (self.blocks * each + self.outside_kept);
        (held(kept), held((rows * block).max(rows * self.inference * u64::from(checkpointing)).max(head)))
    }

    fn head(&self, targets: u64) -> u64 {
        targets * self.head_per_target + targets.min(self.head_chunk) * self.head_logits
    }

    /// An evaluation of a pass of so many rows: nothing is recorded.
    fn evaluation(&self, rows: u64, targets: u64) -> u64 {
        let head = self.head(targets) + rows * self.block_input;
        held((rows * self.inference).max(head) + rows * self.outside_kept)
    }
}

/// What is to be planned.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// Frozen weights, as they lie in memory.
    pub base_bytes: u64,
    /// Trainable weights, in f32.
    pub trainable_bytes: u64,
    pub profile: ActivationProfile,
    pub objective: &'a dyn Objective,
    pub eval: Option<&'a dyn Objective>,
    pub settings: &'a TrainSettings,
    pub checkpointing: Checkpointing,
    /// `None`: not known, so nothing is refused.
    pub limit: Option<&'a MemoryLimit>,
}

impl<'a> PlanRequest<'a> {
    /// The bytes of frozen and of trainable weights.
    pub fn weights(params: &retune_tensor::Params) -> (u64, u64) {
        let bytes = |trainable| {
            params
                .iter()
                .filter(|(_, p)| p.trainable == trainable)
                .map(|(_, p)| p.weight.bytes() as u64)
                .sum()
        };
        (bytes(false), bytes(true))
    }
}

/// The memory that a run will take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub base_bytes: u64,
    pub trainable_bytes: u64,
    pub gradient_bytes: u64,
    pub moment_bytes: u64,
    /// Activations kept for the backward pass.
    pub activation_bytes: u64,
    /// What comes on top at the worst moment, and fixed tables.
    pub transient_bytes: u64,
    /// The sum: the most that tensors will hold.
    pub total_bytes: u64,
    /// Rows and targets of the largest pass.
    pub rows: u64,
    pub targets: u64,
    pub batch_size: u64,
    /// Whether blocks are computed again in the backward pass.
    pub checkpointing: bool,
    pub limit_bytes: Option<u64>,
    pub limit_source: Option<String>,
}

impl Plan {
    /// What the peak is made of, by name, in bytes.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("base weights", self.base_bytes),
            ("trained weights", self.trainable_bytes),
            ("gradients", self.gradient_bytes),
            ("optimiser's moments", self.moment_bytes),
            ("activations", self.activation_bytes),
            ("at the worst moment", self.transient_bytes),
        ]
    }
}

/// A run that needs more memory than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run needs {} (batch_size {}, {}), but {} is {}; {remedy}", human(plan.total_bytes), plan.batch_size,
    if plan.checkpointing { "with checkpointing" } else { "without checkpointing" },
    plan.limit_source.as_deref().unwrap_or("the limit"), human(plan.limit_bytes.unwrap_or(0)))]
pub struct DoesNotFit {
    pub plan: Box<Plan>,
    /// The nearest setting that fits.
    pub remedy: String,
}

/// Plans a run: picks checkpointing if that was left open and is needed.
///
/// # Errors
/// If there is nothing to learn from, or if the run cannot fit; the message names the nearest setting that does.
pub fn plan(request: &PlanRequest) -> Result<Plan> {
    let batch_size = request.settings.batch_size;
    let fits = |plan: &Plan| plan.limit_bytes.is_none_or(|limit| plan.total_bytes <= limit);
    let tried: &[bool] = match request.checkpointing {
        Checkpointing::Auto => &[false, true],
        Checkpointing::On => &[true],
        Checkpointing::Off => &[false],
    };
    let mut last = predict(request, batch_size, false)?;
    for &checkpointing in tried {
        last = predict(request, batch_size, checkpointing)?;
        if fits(&last) {
            return Ok(last);
        }
    }
    let remedy = nearest(request, &last, fits)?;
    Err(DoesNotFit { plan: Box::new(last), remedy }.into())
}

/// The memory with these two settings changed.
fn predict(request: &PlanRequest, batch_size: usize, checkpointing: bool) -> Result<Plan> {
    let settings = TrainSettings { batch_size, ..request.settings.clone() };
    let (rows, targets) = largest_batch(request.objective, &settings)?;
    let (rows, targets) = (rows as u64, targets as u64);
    let profile = &request.profile;
    let (kept, on_top) = profile.activations(rows, targets, checkpointing);
    let gradients = request.trainable_bytes;
    // Evaluation comes between steps, when there are no gradients and nothing is recorded.
    let evaluation = request.eval.map_or(0, |eval| evaluation_bytes(profile, eval, batch_size));
    let on_top = on_top.max(evaluation.saturating_sub(kept + gradients));
    let transient = on_top + profile.fixed;
    let moments = 2 * request.trainable_bytes;
    Ok(Plan {
        base_bytes: request.base_bytes,
        trainable_bytes: request.trainable_bytes,
        gradient_bytes: gradients,
        moment_bytes: moments,
        activation_bytes: kept,
        transient_bytes: transient,
        total_bytes: request.base_bytes + request.trainable_bytes + gradients + moments + kept + transient,
        rows,
        targets,
        batch_size: batch_size as u64,
        checkpointing,
        limit_bytes: request.limit.map(|limit| limit.bytes),
        limit_source: request.limit.map(|limit| limit.source.clone()),
    })
}

fn evaluation_bytes(profile: &ActivationProfile, eval: &dyn Objective, batch_size: usize) -> u64 {
    let examples: Vec<usize> = (0..eval.len()).filter(|&e| eval.weight(e) > 0.0).collect();
    let of_batch = |batch: &[usize]| {
        let rows: u64 = batch.iter().map(|&e| eval.rows(e) as u64).sum();
        let targets: u64 = batch.iter().map(|&e| eval.targets(e) as u64).sum();
        profile.evaluation(rows, targets)
    };
    examples.chunks(batch_size.max(1)).map(of_batch).max().unwrap_or(0)
}

/// The nearest setting that fits: checkpointing first, then half the batch, a quarter, and so on.
fn nearest(request: &PlanRequest, now: &Plan, fits: impl Fn(&Plan) -> bool) -> Result<String> {
    if !now.checkpointing {
        let with = predict(request, request.settings.batch_size, true)?;
        if fits(&with) {
            return Ok(format!(
                "`checkpointing = \"on\"` needs {} and gives the same result",
                human(with.total_bytes)
            ));
        }
    }
    let mut batch_size = request.settings.batch_size;
    while batch_size > 1 {
        batch_size /= 2;
        for checkpointing in [now.checkpointing, true] {
            let smaller = predict(request, batch_size, checkpointing)?;
            if fits(&smaller) {
                let passes =
                    request.settings.gradient_accumulation * request.settings.batch_size.div_ceil(batch_size);
                let also =
                    if checkpointing == now.checkpointing { "" } else { " and `checkpointing = \"on\"`" };
                return Ok(format!(
                    "`batch_size = {batch_size}` with `gradient_accumulation = {passes}`{also} needs {} for the same step",
                    human(smaller.total_bytes)
                ));
            }
        }
    }
    let least = predict(request, 1, true)?;
    Ok(format!(
        "even `batch_size = 1` with checkpointing needs {}, of which {} are weights: use a smaller `max_length`, a smaller \
         storage of the base, or a smaller model",
        human(least.total_bytes),
        human(least.base_bytes + least.trainable_bytes)
    ))
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
