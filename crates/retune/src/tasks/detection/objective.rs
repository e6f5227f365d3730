//! Learning to find objects: a detector's loss on pictures with boxes, and COCO's precisions of what it finds.

use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use retune_media::pictures::augment::{Augment, Key, detect_example};
use retune_media::pictures::{Annotations, Picture, Placement, Prepare};
use retune_tensor::{Grid, Params, Tape, Tensor, Var, ops};

use super::{
    Detection, Detector, LabelledBox, Nms, Output, Scene, decode, loss, mean_average_precision, nms,
};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::models::{ImageModel, Network};
use crate::nn::{Active, Head, Pass};
use crate::objective::{Measured, Objective, ObjectiveError, Unit};
use crate::tasks::images::{ImageCache, Trunk, fitted};
use crate::tasks::scored::scored;

/// Candidates below this score are not measured: COCO's precisions count the best hundred of each picture.
const MEASURED_CONFIDENCE: f32 = 0.001;

/// Pictures with boxes, and the network that is to find them.
pub struct Detect<'a> {
    pub net: &'a ImageModel,
    pub data: &'a Annotations,
    /// How pictures become the network's input.
    pub input: Prepare,
    /// How each picture is changed anew in every epoch, while training.
    pub augment: Option<&'a Augment>,
    /// `Some` while training: keys of augmentation and dropout.
    pub seed: Option<u64>,
    pub checkpoint: bool,
    pub cache: Option<&'a ImageCache>,
    pub active: Active,
}

/// What a detector says of some pictures: of each scale `[images * h * w, columns]`, its grid and its stride.
type Said = Vec<(Var, Grid, usize)>;

/// The detector of a network.
///
/// # Errors
/// If it has another head, or none.
pub fn detector(net: &ImageModel) -> Result<&Detector> {
    match net.head() {
        Head::Detector(head) => Ok(&head.detector),
        _ => Err(Error::Input(format!("a {} model has no detector's head", net.model_type()))),
    }
}

/// What the network says of some pictures, in boxes that are fractions of the pictures themselves.
///
/// # Errors
/// If it is no detector.
pub fn found(
    net: &ImageModel,
    outputs: &[(Var, Grid, usize)],
    placements: &[Placement],
    confidence: f32,
    settings: &Nms,
) -> Result<Vec<Vec<Detection>>> {
    let outputs: Vec<Output> = as_outputs(outputs);
    let candidates = decode(detector(net)?, &outputs, confidence)?;
    let place = |(found, placement): (Vec<Detection>, &Placement)| {
        let kept = nms(found, settings).into_iter();
        let kept = kept.map(|d| Detection { bounds: placement.to_picture(d.bounds), ..d });
        kept.filter_map(|d| Some(Detection { bounds: d.bounds.clipped()?, ..d })).collect()
    };
    Ok(candidates.into_par_iter().zip(placements.par_iter()).map(place).collect())
}

fn as_outputs(outputs: &[(Var, Grid, usize)]) -> Vec<Output<'_>> {
    outputs
        .iter()
        .map(|(values, grid, stride)| Output { values: values.value(), grid: *grid, stride: *stride })
        .collect()
}

impl Detect<'_> {
    /// # Errors
    /// If the model is no detector, or one of other classes.
    pub fn check(&self) -> Result<()> {
        let (found, wanted) = (detector(self.net)?.labels.len(), self.data.classes.len());
        if found != wanted {
            let what = format!("the model's head is for {found} classes; the data has {wanted}");
            return Err(Error::Input(what));
        }
        Ok(())
    }

    fn load(&self, example: usize) -> Result<(Picture, Vec<LabelledBox>)> {
        let annotated = &self.data.pictures[example];
        Ok((annotated.read()?, annotated.boxes.clone()))
    }

    /// The boxes of a picture as fractions of the network's input.
    fn boxes(&self, example: usize, placement: &Placement) -> Vec<LabelledBox> {
        let moved = |b: &LabelledBox| {
            Some(LabelledBox { bounds: placement.to_canvas(b.bounds).clipped()?, class: b.class })
        };
        self.data.pictures[example].boxes.iter().filter_map(moved).collect()
    }

    /// A number of a picture that is the same in every data set.
    fn key(&self, example: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.data.pictures[example].path.hash(&mut hasher);
        hasher.finish()
    }

    /// A picture as the network is given it in an epoch, and its boxes there.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn seen(&self, example: usize, epoch: u64) -> Result<(Picture, Vec<LabelledBox>)> {
        if let Some((augment, seed)) = self.augment.zip(self.seed) {
            return self.changed(augment, Key { seed, epoch, example });
        }
        let (picture, placement) = self.input.fit(&self.data.pictures[example].read()?);
        Ok((picture, self.boxes(example, &placement)))
    }

    fn changed(&self, augment: &Augment, key: Key) -> Result<(Picture, Vec<LabelledBox>)> {
        detect_example(augment, &self.input, key, self.data.pictures.len(), |e| self.load(e))
    }

    /// The outputs for some pictures that are changed for this epoch, and their boxes then.
    fn augmented<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        augment: &Augment,
        (seed, epoch): (u64, u64),
        pass: &Pass,
    ) -> Result<(Said, Vec<Vec<LabelledBox>>)> {
        let change = |&example: &usize| self.changed(augment, Key { seed, epoch, example });
        let made: Vec<(Picture, Vec<LabelledBox>)> = batch.par_iter().map(change).collect::<Result<_>>()?;
        let (x, grid) = fitted(self.input, made.iter().map(|(picture, _)| picture));
        let said = self.net.detect(tape, &self.net.trunk(tape, x, grid, pass), pass);
        Ok((said, made.into_iter().map(|(_, boxes)| boxes).collect()))
    }

    /// Opens some pictures: as the network reads them, and where they lie in its input.
    fn open(&self, batch: &[usize]) -> Result<(Vec<Picture>, Vec<Placement>)> {
        let open = |&example: &usize| Ok(self.input.fit(&self.data.pictures[example].read()?));
        batch.par_iter().map(open).collect()
    }

    /// The outputs for some pictures as they are, and where these lie in the network's input. Those whose rows are kept are not opened.
    fn plain<'p>(&'p self, tape: &Tape<'p>, batch: &[usize], pass: &Pass) -> Result<(Said, Vec<Placement>)> {
        let Some(cache) = self.cache else {
            let (pictures, placements) = self.open(batch)?;
            let (x, grid) = fitted(self.input, pictures.iter());
            let state = self.net.trunk(tape, x, grid, pass);
            return Ok((self.net.detect(tape, &state, pass), placements));
        };
        let keys: Vec<u64> = batch.iter().map(|&e| self.key(e)).collect();
        let read = |which: &[usize]| -> Result<(Tensor, Grid)> {
            let (pictures, placements) = self.open(&which.iter().map(|&i| batch[i]).collect::<Vec<_>>())?;
            which.iter().zip(placements).for_each(|(&i, place)| cache.keep_placement(keys[i], place));
            Ok(fitted(self.input, pictures.iter()))
        };
        let state = match cache.trunk(tape, self.net, &keys, pass, &read)? {
            Trunk::State(state) => state,
            Trunk::Pooled(_) => return Err(Error::Input("a detector's rows are not pooled".into())),
        };
        let mut placements = Vec::with_capacity(batch.len());
        for (key, example) in keys.iter().zip(batch) {
            placements.extend(match cache.placement(*key) {
                Some(kept) => vec![kept],
                None => self.open(&[*example])?.1,
            });
        }
        Ok((self.net.detect(tape, &state, pass), placements))
    }

    /// The boxes of some pictures as fractions of the network's input.
    fn truths(&self, batch: &[usize], placements: &[Placement]) -> Vec<Vec<LabelledBox>> {
        batch.iter().zip(placements).map(|(&example, placement)| self.boxes(example, placement)).collect()
    }

    fn loss_of(
        &self,
        tape: &Tape,
        outputs: &Said,
        truths: &[Vec<LabelledBox>],
        denominator: f64,
    ) -> Result<Var> {
        let found = loss(detector(self.net)?, &as_outputs(outputs), truths, denominator)?;
        let vars: Vec<&Var> = outputs.iter().map(|(values, ..)| values).collect();
        Ok(ops::given_loss(tape, &vars, found.total as f32, found.gradients))
    }
}

impl Objective for Detect<'_> {
    fn len(&self) -> usize {
        self.data.pictures.len()
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

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn describe(&self, example: usize) -> String {
        self.data.pictures[example].origin.clone()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let pass = Pass::of_step(tape, self.seed, epoch, batch.iter().map(|&e| e as u64), self.checkpoint);
        let (outputs, truths) = match self.augment.zip(self.seed.filter(|_| tape.is_recording())) {
            Some((augment, seed)) => self.augmented(tape, batch, augment, (seed, epoch), &pass)?,
            None => {
                let (outputs, placements) = self.plain(tape, batch, &pass)?;
                (outputs, self.truths(batch, &placements))
            }
        };
        Ok(self.loss_of(tape, &outputs, &truths, denominator)?)
    }

    fn measured(&self) -> Option<&dyn Measured> {
        Some(self)
    }
}

impl Measured for Detect<'_> {
    fn metrics(
        &self,
        params: &Params,
        batch_size: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> std::result::Result<Option<Metrics>, ObjectiveError> {
        let mut detections: Vec<Vec<Detection>> = Vec::with_capacity(self.len());
        let mut sizes = Vec::with_capacity(self.len());
        let all = scored(self, params, batch_size, progress, &mut |tape, batch, denominator| {
            let pass = Pass { active: self.active.clone(), ..Pass::default() };
            let (outputs, placements) = self.plain(tape, batch, &pass)?;
            sizes.extend(placements.iter().map(|p| (p.picture[0], p.picture[1])));
            detections.extend(found(self.net, &outputs, &placements, MEASURED_CONFIDENCE, &Nms::default())?);
            self.loss_of(tape, &outputs, &self.truths(batch, &placements), denominator)
        })?;
        let Some((loss, n)) = all else { return Ok(None) };
        let scenes: Vec<Scene> = self
            .data
            .pictures
            .iter()
            .zip(sizes.iter().zip(&detections))
            .map(|(picture, (size, found))| Scene {
                size: *size,
                truths: &picture.boxes,
                crowds: &[],
                detections: found,
            })
            .collect();
        let precisions = mean_average_precision(&self.data.classes, &scenes)?;
        Ok(Some(Metrics::of_detections(precisions, n).with_loss(loss)))
    }
}
