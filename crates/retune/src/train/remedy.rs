//! The nearest settings with which a run fits, in the order in which they are wanted: what changes no number of the run
//! first (checkpointing, a smaller batch with more passes), then another storage of the base, then shorter texts.

use super::error::Result;
use super::plan::{OtherStorage, Plan, Planner, human};
use super::settings::TrainSettings;
use crate::run_file::{RunFile, Storage, Weights};

/// Settings to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remedy {
    pub checkpointing: Option<bool>,
    /// Rows of a pass and passes of a step.
    pub batch: Option<(usize, usize)>,
    pub storage: Option<OtherStorage>,
    pub max_length: Option<usize>,
}

/// Texts are not cut shorter than this.
const SHORTEST: usize = 32;

impl Remedy {
    /// The loop's settings with the change.
    pub(super) fn settings(&self, settings: &TrainSettings) -> TrainSettings {
        let (batch_size, gradient_accumulation) =
            self.batch.unwrap_or((settings.batch_size, settings.gradient_accumulation));
        TrainSettings { batch_size, gradient_accumulation, ..settings.clone() }
    }

    /// Changes a run file's settings.
    pub fn apply(&self, run: &mut RunFile) {
        if let Some(on) = self.checkpointing {
            run.checkpointing =
                if on { crate::run_file::Checkpointing::On } else { crate::run_file::Checkpointing::Off };
        }
        if let Some((batch_size, passes)) = self.batch {
            (run.batch_size, run.gradient_accumulation) = (batch_size as u32, passes as u32);
        }
        match self.storage {
            Some(OtherStorage { key: "weights", .. }) => run.weights = Weights::Streamed,
            Some(OtherStorage { name, .. }) => run.storage = Storage::from_name(name).unwrap_or(run.storage),
            None => {}
        }
        if let Some(length) = self.max_length {
            run.max_length = length as u32;
        }
    }

    /// Whether the model or the rows are others then.
    pub fn reloads(&self) -> bool {
        self.storage.is_some() || self.max_length.is_some()
    }

    /// The settings as they stand in a run file.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if let Some((batch_size, passes)) = self.batch {
            words.push(format!("`batch_size = {batch_size}` with `gradient_accumulation = {passes}`"));
        }
        if self.checkpointing == Some(true) {
            words.push("`checkpointing = \"on\"`".into());
        }
        words.extend(self.storage.map(|storage| format!("`{} = \"{}\"`", storage.key, storage.name)));
        words.extend(self.max_length.map(|length| format!("`max_length = {length}`")));
        words.join(" and ")
    }

    /// What that does to the numbers of the run.
    fn effect(&self) -> &'static str {
        match self {
            Remedy { max_length: Some(_), .. } => "; longer texts are cut",
            Remedy { storage: Some(OtherStorage { key: "storage", .. }), .. } => "; the base is rounded",
            Remedy { storage: Some(_), .. } => "; they are read again in each pass",
            Remedy { batch: Some(_), .. } => " for the same step",
            _ => " and gives the same result",
        }
    }
}

/// The nearest change that fits, if any does, and what to tell the user.
pub(super) fn nearest(planner: &Planner, now: &Plan) -> Result<(Option<Remedy>, String)> {
    let mut least = now.clone();
    for mut remedy in candidates(planner, now) {
        let plan = planner.predict(&remedy)?;
        if plan.fits() {
            if remedy.checkpointing == Some(now.checkpointing) {
                remedy.checkpointing = None;
            }
            let advice = format!("{} needs {}{}", remedy.words(), human(plan.total_bytes), remedy.effect());
            return Ok((Some(remedy), advice));
        }
        if plan.total_bytes < least.total_bytes {
            least = plan;
        }
    }
    Ok((None, hopeless(now, &least)))
}

/// All changes, the nearest first.
fn candidates(planner: &Planner, now: &Plan) -> Vec<Remedy> {
    let settings = planner.request.settings;
    let on = Remedy { checkpointing: Some(true), ..Remedy::default() };
    let mut all = Vec::new();
    if !now.checkpointing {
        all.push(on.clone());
    }
    let window = settings.batch_size * settings.gradient_accumulation;
    let smaller: Vec<(usize, usize)> = (1..settings.batch_size)
        .rev()
        .filter(|batch| window.is_multiple_of(*batch))
        .map(|batch| (batch, window / batch))
        .collect();
    for &batch in &smaller {
        let each = |checkpointing| Remedy {
            checkpointing: Some(checkpointing),
            batch: Some(batch),
            ..Remedy::default()
        };
        if !now.checkpointing {
            all.push(each(false));
        }
        all.push(each(true));
    }
    let least = Remedy { batch: smaller.last().copied(), ..on.clone() };
    for &storage in planner.request.storages {
        let storage = Some(storage);
        all.push(Remedy { checkpointing: Some(now.checkpointing), storage, ..Remedy::default() });
        all.push(Remedy { storage, ..on.clone() });
        all.extend(smaller.iter().map(|&batch| Remedy { storage, batch: Some(batch), ..on.clone() }));
    }
    // The smallest storage and batch of those, and shorter texts.
    let storages: Vec<Option<OtherStorage>> =
        std::iter::once(None).chain(planner.request.storages.last().map(|last| Some(*last))).collect();
    for storage in storages {
        let mut length = now.longest as usize * 3 / 4;
        while length >= SHORTEST {
            all.push(Remedy { storage, max_length: Some(length), ..least.clone() });
            length = length * 3 / 4;
        }
    }
    all
}

/// What is to be said where nothing helps.
fn hopeless(now: &Plan, least: &Plan) -> String {
    if now.limit_bytes.is_none_or(|limit| now.total_bytes <= limit) {
        return "free some room there, write to another disk (`out`), or keep fewer checkpoints (`keep`)"
            .into();
    }
    format!(
        "even `batch_size = {}`{} needs {}, of which {} are weights and their gradients: use a smaller `max_length`, a \
         smaller storage of the base, a method that trains less, or a smaller model",
        least.batch_size,
        if least.checkpointing { " with checkpointing" } else { "" },
        human(least.total_bytes),
        human(least.base_bytes + least.trainable_bytes + least.gradient_bytes)
    )
}
