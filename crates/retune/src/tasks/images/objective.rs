//! The loss of a picture's class: cross-entropy of the logits, and the metrics of all pictures.

use rayon::prelude::*;
use retune_media::pictures::augment::{Augment, Key, Mixed, classify_example};
use retune_media::pictures::{Labelled, Prepare};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Params, Tape, Tensor, Var};

use super::cache::{ImageCache, Trunk};
use super::error::{classifier, no_output};
use super::{batch, fitted, picture_of};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::models::ImageModel;
use crate::nn::{Active, Pass};
use crate::objective::{Measured, Objective, ObjectiveError, Unit};
use crate::tasks::classification::argmax;
use crate::tasks::scored::scored;

/// Labelled pictures and the network that is to tell them apart.
pub struct ImageClassification<'a> {
    pub net: &'a ImageModel,
    pub data: &'a Labelled,
    /// How pictures become the network's input.
    pub input: Prepare,
    /// How each picture is changed anew in every epoch, while training.
    pub augment: Option<&'a Augment>,
    /// One weight for each class.
    pub class_weights: Option<&'a [f32]>,
    /// `Some` while training: keys of augmentation and dropout.
    pub seed: Option<u64>,
    pub checkpoint: bool,
    pub cache: Option<&'a ImageCache>,
    pub active: Active,
}

impl ImageClassification<'_> {
    /// # Errors
    /// If the model has no classifier, or one of other labels.
    pub fn check(&self) -> Result<()> {
        let (found, wanted) = (classifier(self.net)?.labels.len(), self.data.classes.len());
        if found != wanted {
            let what = format!("the model's classifier has {found} outputs; the data has {wanted} classes");
            return Err(Error::Input(what));
        }
        Ok(())
    }

    fn class(&self, example: usize) -> u32 {
        self.data.examples[example].class
    }

    /// Logits `[B, classes]` of some examples.
    fn logits<'p>(&'p self, tape: &Tape<'p>, examples: &[usize], pass: &Pass) -> Result<Var> {
        let head = classifier(self.net)?;
        let read =
            |which: &[usize]| batch(self.input, which.len(), |i| picture_of(self.data, examples[which[i]]));
        let hidden = match self.cache {
            Some(cache) => {
                let keys: Vec<u64> = examples.iter().map(|&e| self.key(e)).collect();
                match cache.trunk(tape, self.net, &keys, pass, &read)? {
                    Trunk::Pooled(hidden) => Some(hidden),
                    Trunk::State(state) => self.net.hidden(&state, pass),
                }
            }
            None => {
                let all: Vec<usize> = (0..examples.len()).collect();
                let (x, grid) = read(&all)?;
                self.net.hidden(&self.net.trunk(tape, x, grid, pass), pass)
            }
        };
        Ok(head.forward(tape, &hidden.ok_or_else(no_output)?))
    }

    /// A number of an example that is the same in every data set.
    fn key(&self, example: usize) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.data.examples[example].source.name().hash(&mut hasher);
        hasher.finish()
    }

    /// A picture as the network is given it in an epoch, and whose labels it bears.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn seen(&self, example: usize, epoch: u64) -> Result<Mixed> {
        if let Some((augment, seed)) = self.augment.zip(self.seed) {
            return self.changed(augment, Key { seed, epoch, example });
        }
        let picture = self.input.fit(&picture_of(self.data, example)?).0;
        Ok(Mixed { picture, labels: vec![(example, 1.0)] })
    }

    fn changed(&self, augment: &Augment, key: Key) -> Result<Mixed> {
        classify_example(augment, &self.input, key, self.data.len(), |e| picture_of(self.data, e))
    }

    /// Logits of some examples that are changed for this epoch, and whose labels each of them bears: (example, share).
    fn augmented<'p>(
        &'p self,
        tape: &Tape<'p>,
        examples: &[usize],
        augment: &Augment,
        (seed, epoch): (u64, u64),
        pass: &Pass,
    ) -> Result<(Var, Vec<Vec<(usize, f32)>>)> {
        let change = |&example: &usize| self.changed(augment, Key { seed, epoch, example });
        let made: Vec<Mixed> = examples.par_iter().map(change).collect::<Result<_>>()?;
        let (x, grid) = fitted(self.input, made.iter().map(|mixed| &mixed.picture));
        let state = self.net.trunk(tape, x, grid, pass);
        let hidden = self.net.hidden(&state, pass).ok_or_else(no_output)?;
        let labels = made.into_iter().map(|mixed| mixed.labels).collect();
        Ok((classifier(self.net)?.forward(tape, &hidden), labels))
    }

    /// `labels`: whose labels each row bears, and with what shares.
    fn loss_of(
        &self,
        tape: &Tape,
        logits: &Var,
        labels: impl Iterator<Item = Vec<(usize, f32)>>,
        denominator: f32,
    ) -> Var {
        let mut rows = LossRows { denominator, ..LossRows::default() };
        for (row, shares) in labels.enumerate() {
            for (example, share) in shares {
                rows.rows.push(row);
                rows.targets.push(self.class(example));
                rows.weights.push(share * self.weight(example) as f32);
            }
        }
        ops::cross_entropy(tape, logits, &rows)
    }
}

impl Objective for ImageClassification<'_> {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn rows(&self, _example: usize) -> usize {
        1
    }

    fn unit(&self) -> Unit {
        Unit::Pictures
    }

    fn targets(&self, _example: usize) -> usize {
        1
    }

    fn weight(&self, example: usize) -> f64 {
        let class = self.class(example) as usize;
        f64::from(self.class_weights.and_then(|w| w.get(class)).copied().unwrap_or(1.0))
    }

    fn describe(&self, example: usize) -> String {
        self.data.examples[example].origin.clone()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let keys = batch.iter().map(|&e| e as u64);
        let pass = Pass::of_step(tape, self.seed, epoch, keys, self.checkpoint);
        if let (Some(augment), Some(seed)) = (self.augment, self.seed.filter(|_| tape.is_recording())) {
            let (logits, labels) = self.augmented(tape, batch, augment, (seed, epoch), &pass)?;
            return Ok(self.loss_of(tape, &logits, labels.into_iter(), denominator as f32));
        }
        let logits = self.logits(tape, batch, &pass)?;
        Ok(self.loss_of(tape, &logits, own(batch), denominator as f32))
    }

    fn measured(&self) -> Option<&dyn Measured> {
        Some(self)
    }
}

impl Measured for ImageClassification<'_> {
    fn metrics(
        &self,
        params: &Params,
        batch_size: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> std::result::Result<Option<Metrics>, ObjectiveError> {
        let (mut truth, mut found, mut top5) = (Vec::new(), Vec::new(), 0);
        let all = scored(self, params, batch_size, progress, &mut |tape, batch, denominator| {
            let pass = Pass { active: self.active.clone(), ..Pass::default() };
            let logits = self.logits(tape, batch, &pass)?;
            for (place, &e) in batch.iter().enumerate() {
                truth.push(self.class(e));
                found.push(argmax(logits.value().row(place)));
                top5 += usize::from(rank(logits.value(), place, self.class(e)) < 5);
            }
            Ok(self.loss_of(tape, &logits, own(batch), denominator as f32))
        })?;
        let Some((loss, n)) = all else { return Ok(None) };
        let metrics = Metrics::of_classes(&self.data.classes, &truth, &found)?.with_loss(loss);
        Ok(Some(match self.data.classes.len() > 5 {
            true => metrics.with_top5(top5 as f64 / n.max(1) as f64),
            false => metrics,
        }))
    }
}

/// Each example with its own label alone.
fn own(examples: &[usize]) -> impl Iterator<Item = Vec<(usize, f32)>> {
    examples.iter().map(|&example| vec![(example, 1.0)])
}

/// How many classes have a larger logit than this one.
fn rank(logits: &Tensor, row: usize, class: u32) -> usize {
    let row = logits.row(row);
    let own = row.get(class as usize).copied().unwrap_or(f32::NEG_INFINITY);
    row.iter().filter(|z| **z > own).count()
}
