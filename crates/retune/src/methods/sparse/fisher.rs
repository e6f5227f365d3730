//! Which entries of the weights matter most to the loss: `F = sum over examples of (d loss / d w)^2`.
//!
//! Some weights at a time are made trainable, so that the sums stay within a limit of memory; each group takes a pass.

use retune_tensor::{Gradients, ParamId, Params, Tape, Tensor, Weight};

use super::{Part, largest, pattern};
use crate::error::{Error, Result};
use crate::objective::Objective;

/// Values whose gradients and sums are held at a time: 1 GiB of each.
const VALUES_AT_A_TIME: usize = 1 << 28;

/// Chooses the places of all parts by the gradients of up to `examples` examples, spread evenly over the data.
pub(super) fn choose(
    params: &mut Params,
    objective: &dyn Objective,
    parts: &[Part],
    examples: usize,
) -> Result<()> {
    let trained = params.trainable();
    let useful: Vec<usize> = (0..objective.len()).filter(|&e| objective.weight(e) > 0.0).collect();
    let step = useful.len().div_ceil(examples.max(1)).max(1);
    let examples: Vec<usize> = useful.into_iter().step_by(step).collect();
    params.freeze_all();
    let mut rest: Vec<&Part> = parts.iter().filter(|part| part.places.get().is_none()).collect();
    let mut done = Ok(());
    while !rest.is_empty() && done.is_ok() {
        let weights: Vec<ParamId> = rest.iter().map(|part| part.weight).collect();
        let count = at_a_time(params, &weights);
        let group: Vec<&Part> = rest.drain(..count).collect();
        done = choose_group(params, objective, &group, &examples);
    }
    trained.into_iter().for_each(|id| params.get_mut(id).trainable = true);
    done
}

/// How many of some weights go into one pass: their gradients and sums are within the limit, or it is one alone.
pub(in crate::methods) fn at_a_time(params: &Params, weights: &[ParamId]) -> usize {
    let mut values = 0;
    let fits = |weight: &&ParamId| {
        values += params.get(**weight).elements();
        values <= VALUES_AT_A_TIME
    };
    weights.iter().take_while(fits).count().max(1)
}

/// One pass for some weights, which are f32 and trainable while it lasts.
fn choose_group(
    params: &mut Params,
    objective: &dyn Objective,
    group: &[&Part],
    examples: &[usize],
) -> Result<()> {
    let before: Vec<Weight> = group.iter().map(|part| params.get(part.weight).weight.clone()).collect();
    for part in group {
        let param = params.get_mut(part.weight);
        param.weight = Weight::F32(param.weight.to_tensor());
        param.trainable = true;
    }
    let sums = squares(params, objective, group, examples);
    for (part, weight) in group.iter().zip(before) {
        let param = params.get_mut(part.weight);
        (param.weight, param.trainable) = (weight, false);
    }
    for (part, sum) in group.iter().zip(sums?) {
        if !sum.all_finite() {
            let what =
                format!("sparse: the gradient of {} is not finite: it cannot choose entries", part.path);
            return Err(Error::Method(what));
        }
        let flat = largest(sum.data().iter().copied(), part.nnz);
        part.places.set(pattern(sum.rows(), sum.cols(), &flat)?);
    }
    Ok(())
}

/// The squared gradients of each weight of the group, example by example, summed.
fn squares(
    params: &Params,
    objective: &dyn Objective,
    group: &[&Part],
    examples: &[usize],
) -> Result<Vec<Tensor>> {
    let zeros = |part: &&Part| {
        let weight = &params.get(part.weight).weight;
        Tensor::zeros(weight.rows(), weight.cols())
    };
    let mut sums: Vec<Tensor> = group.iter().map(zeros).collect();
    let mut gradients = Gradients::new();
    for &example in examples {
        let tape = Tape::new(params);
        let loss = objective.loss(&tape, &[example], 0, objective.weight(example)).map_err(|e| {
            Error::Method(format!(
                "sparse: the loss of {} cannot be computed: {e}",
                objective.describe(example)
            ))
        })?;
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        for (part, sum) in group.iter().zip(&mut sums) {
            if let Some(g) = gradients.get(part.weight) {
                sum.data_mut().iter_mut().zip(g.data()).for_each(|(s, g)| *s += g * g);
            }
        }
        gradients.clear();
    }
    Ok(sums)
}
