//! How far the answers of two models lie apart: of a base with its adapter, and of what was written of them.

use retune_tensor::{Params, Segments, Tape, Tensor};

use crate::error::Result;
use crate::models::{Model, TextInput, TextModel, check_ids};
use crate::nn::{Head, Pass};

/// Rows of a text that are compared where each row sees those before it alone: [T, V] logits take much memory.
const ROWS: usize = 256;

/// The logits of two models on the same texts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Logits compared.
    pub logits: u64,
    /// Rows of logits, and those of them whose largest is the same one.
    pub rows: u64,
    pub agreeing: u64,
    /// The largest |difference|.
    pub max: f64,
    sum: f64,
    squares: f64,
    energy: f64,
}

impl Difference {
    /// Adds one text. Of decoders the first 256 tokens count.
    ///
    /// # Errors
    /// If an id is outside a vocabulary, or a model has no head.
    pub fn add(&mut self, a: &Model, b: &Model, ids: &[u32], token_types: &[u32]) -> Result<()> {
        let most =
            if a.text()?.info().decoder && a.net.language_model().is_some() { ROWS } else { ids.len() };
        let ids = &ids[..ids.len().min(most)];
        let token_types = token_types.get(..ids.len()).unwrap_or_default();
        let segments = Segments::from_lengths(&[ids.len()]);
        let input = TextInput { token_types, ..TextInput::new(ids, &segments) };
        let (a, b) = (logits(a.text()?, &a.params, &input)?, logits(b.text()?, &b.params, &input)?);
        // A soft prompt's rows stand in front.
        let rows = a.rows().min(b.rows());
        let (a0, b0) = (a.rows() - rows, b.rows() - rows);
        for row in 0..rows {
            self.compare(a.row(a0 + row), b.row(b0 + row));
        }
        Ok(())
    }

    fn compare(&mut self, a: &[f32], b: &[f32]) {
        self.rows += 1;
        self.logits += a.len() as u64;
        self.agreeing += u64::from(largest(a) == largest(b));
        for (a, b) in a.iter().zip(b) {
            let difference = (f64::from(*a) - f64::from(*b)).abs();
            // A NaN counts as far away, not as nothing.
            self.max = if difference.is_nan() { f64::INFINITY } else { self.max.max(difference) };
            self.sum += difference;
            self.squares += difference * difference;
            self.energy += f64::from(*a) * f64::from(*a);
        }
    }

    /// The mean |difference|.
    pub fn mean(&self) -> f64 {
        self.sum / self.logits.max(1) as f64
    }

    /// Root of the mean square of the differences over that of the logits.
    pub fn relative(&self) -> f64 {
        if self.energy > 0.0 { (self.squares / self.energy).sqrt() } else { 0.0 }
    }

    /// The share of rows with the same first choice.
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.rows.max(1) as f64
    }
}

fn largest(logits: &[f32]) -> usize {
    let place = |best: usize, (i, z): (usize, &f32)| if *z > logits[best] { i } else { best };
    logits.iter().enumerate().fold(0, place)
}

/// What the model's head says of a text: `[T, V]`, of classifiers `[1, K]` or `[T, K]`, without a head its hidden rows.
fn logits(net: &dyn TextModel, params: &Params, input: &TextInput) -> Result<Tensor> {
    check_ids(net, input.ids)?;
    let tape = Tape::inference(params);
    let hidden = net.hidden(&tape, input, &Pass::default());
    Ok(match net.head() {
        Head::LanguageModel(head) => head.forward(&tape, &hidden.rows, &hidden.x).value().clone(),
        Head::Classifier(head) => head.forward(&tape, &hidden).value().clone(),
        Head::Detector(_) | Head::None => hidden.x.value().clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_summed() {
        let mut difference = Difference::default();
        difference.compare(&[1.0, 3.0], &[1.5, 2.0]);
        difference.compare(&[1.0, 0.0], &[0.0, 0.5]);
        assert_eq!((difference.logits, difference.max, difference.mean()), (4, 1.0, 0.75));
        assert_eq!(difference.agreement(), 0.5);
        difference.compare(&[1.0], &[f32::NAN]);
        assert_eq!(difference.max, f64::INFINITY);
    }
}
