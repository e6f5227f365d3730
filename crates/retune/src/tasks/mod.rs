//! Tasks: what rows of data mean, and which of their numbers carry loss.

pub mod causal_lm;
pub mod classification;
pub mod detection;
pub mod embeddings;
pub mod images;
pub mod kept_rows;
pub mod masked_lm;
pub mod record;
mod scored;
pub mod speech;
pub mod trunk_cache;
mod wording;

pub use record::{TASK_FILE, Task, TaskRecord};
