//! Sweeps: one run after the other over a grid of settings, the hopeless ended early, the rest compared.

mod axis;
mod grid;
mod page;
mod record;
mod stopping;

pub use axis::Axis;
pub use grid::{Grid, Trial};
pub use page::{Page, html};
pub use record::{Done, Record, SWEEP_FILE, State};
pub use stopping::{Curve, Hopeless, MedianRule};
