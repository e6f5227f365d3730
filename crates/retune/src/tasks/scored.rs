//! Scoring a task: all of its examples that count, batch by batch.

use retune_tensor::{Params, Tape, Var};

use crate::error::Result;
use crate::objective::Objective;

/// Runs `each` on the examples of a weight above 0, batch by batch, with the denominator that all their losses have in common; it gives the batch's
/// loss. The sum of the losses and the number of examples; `None` if `progress`, which is told how many are done, says not to go on.
///
/// # Errors
/// What `each` says.
pub fn scored<'p>(
    objective: &dyn Objective,
    params: &'p Params,
    batch_size: usize,
    progress: &mut dyn FnMut(usize) -> bool,
    each: &mut dyn FnMut(&Tape<'p>, &[usize], f64) -> Result<Var>,
) -> Result<Option<(f64, usize)>> {
    let examples: Vec<usize> = (0..objective.len()).filter(|&e| objective.weight(e) > 0.0).collect();
    let denominator: f64 = examples.iter().map(|&e| objective.weight(e)).sum();
    let (mut loss, mut done) = (0.0, 0);
    for batch in examples.chunks(batch_size.max(1)) {
        let tape = Tape::inference(params);
        let value = each(&tape, batch, denominator)?;
        loss += f64::from(value.value().data().first().copied().unwrap_or(f32::NAN));
        done += batch.len();
        if !progress(done) && done < examples.len() {
            return Ok(None);
        }
    }
    Ok(Some((loss, examples.len())))
}
