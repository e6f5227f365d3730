//! The order of the examples: a permutation keyed by (seed, epoch), cut into windows of `batch x accumulation`.
//!
//! Any step's examples can be told without those before it, so a resumed run needs no state for its data.

use retune_tensor::rng::Stream;

use super::error::{Error, Result};
use super::settings::TrainSettings;
use crate::objective::Objective;

/// The examples of one optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// 0 is the first.
    pub epoch: u64,
    pub examples: Vec<usize>,
    /// The loss's denominator: the summed weights of all its examples.
    pub denominator: f64,
}

/// All windows of a run. The last one of an epoch may be smaller: it is a step of its own.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    /// Examples that carry loss, and their weights.
    examples: Vec<(usize, f64)>,
    window: usize,
    shuffled: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// # Errors
    /// If no example has a weight above 0.
    pub fn new(objective: &dyn Objective, settings: &TrainSettings) -> Result<Order> {
        let examples: Vec<(usize, f64)> = (0..objective.len())
            .map(|example| (example, objective.weight(example)))
            .filter(|(_, weight)| weight.is_finite() && *weight > 0.0)
            .collect();
        if examples.is_empty() {
            return Err(Error::NothingToLearn { examples: objective.len() });
        }
        let window = settings.batch_size.saturating_mul(settings.gradient_accumulation);
        Ok(Order { seed: settings.seed, examples, window: window.max(1), shuffled: None })
    }

    /// Examples in an epoch.
    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    /// The summed weights of an epoch.
    pub fn weight(&self) -> f64 {
        self.examples.iter().map(|(_, weight)| weight).sum()
    }

    pub fn steps_per_epoch(&self) -> u64 {
        self.examples.len().div_ceil(self.window) as u64
    }

    /// The examples of the step with this index (0 is the first of the run).
    pub fn window(&mut self, index: u64) -> Window {
        let (epoch, place) = (index / self.steps_per_epoch(), (index % self.steps_per_epoch()) as usize);
        if self.shuffled.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let order =
                Stream::named(self.seed, &format!("order of epoch {epoch}")).permutation(self.examples.len());
            self.shuffled = Some((epoch, order));
        }
        let order = self.shuffled.as_ref().map_or(&[][..], |(_, order)| order);
        let last = order.len().min((place + 1) * self.window);
        let chosen: Vec<(usize, f64)> =
            order[place * self.window..last].iter().map(|&i| self.examples[i]).collect();
        Window {
            epoch,
            examples: chosen.iter().map(|(example, _)| *example).collect(),
            denominator: chosen.iter().map(|(_, weight)| weight).sum(),
        }
    }
}

/// Steps that [`largest_batch`] looks through one by one; later epochs of longer runs are bounded instead.
const STEPS_LOOKED_AT: u64 = 100_000;

/// The most rows, and the most targets, in any one pass (micro-batch) of a whole run: what the memory plan needs.
///
/// Exact, for the order is known beforehand; for very long runs, an upper bound.
///
/// # Errors
/// If no example has a weight above 0.
pub fn largest_batch(objective: &dyn Objective, settings: &TrainSettings) -> Result<(usize, usize)> {
    let mut order = Order::new(objective, settings)?;
    let sums = |batch: &[usize]| {
        batch.iter().fold((0, 0), |(r, t), &e| (r + objective.rows(e), t + objective.targets(e)))
    };
    let steps = settings.steps_total(order.steps_per_epoch());
    if steps > STEPS_LOOKED_AT {
        let mut all: Vec<usize> = order.examples.iter().map(|(example, _)| *example).collect();
        all.sort_by_key(|&e| std::cmp::Reverse(objective.rows(e)));
        let rows = sums(&all[..all.len().min(settings.batch_size)]).0;
        all.sort_by_key(|&e| std::cmp::Reverse(objective.targets(e)));
        return Ok((rows, sums(&all[..all.len().min(settings.batch_size)]).1));
    }
    let mut most = (0, 0);
    for step in 0..steps {
        for batch in order.window(step).examples.chunks(settings.batch_size) {
            let (rows, targets) = sums(batch);
            most = (most.0.max(rows), most.1.max(targets));
        }
    }
    Ok(most)
}
