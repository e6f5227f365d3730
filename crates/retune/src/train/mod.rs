//! Training: the loop, the optimiser, the schedule, checkpoints, the guard against bad numbers, the memory plan.
//!
//! Everything here is a function of (settings, data, step): the order of the examples, the learning rate and dropout have
//! no state, so a checkpoint is {step, trainable weights, moments} and resuming is exact to the last bit.

pub mod checkpoint;
pub mod dry_run;
mod error;
mod events;
mod folder;
mod guard;
mod memory_limit;
mod metrics;
pub mod optimizer;
mod order;
pub mod plan;
pub mod remedy;
mod run;
pub mod schedule;
mod settings;

pub use crate::objective::{Objective, ObjectiveError};
pub use error::{Error, Result};
pub(crate) use events::null_is_nan;
pub use events::{Control, Event, Outcome, OutcomeEnd};
pub use folder::{RunFolder, Start};
pub use memory_limit::{MemoryLimit, available_memory, peak_resident_bytes, process_bytes};
pub use metrics::MetricsLog;
pub use optimizer::Optimizer;
pub use order::{Order, Window, largest_batch};
pub use plan::{Beside, OtherStorage, Plan, PlanRequest};
pub use remedy::Remedy;
pub use run::{Measured, evaluate, measure, train};
pub use settings::TrainSettings;

pub use crate::run_file::{Checkpointing, OnNan, Optim, Schedule};
