//! Pictures with boxes of a run: read before the model is opened, since their classes decide its head.

use std::path::Path;

use anyhow::{Result, bail};
use retune::models::{ImageModel, Model};
use retune::nn::Active;
use retune::run_file::RunFile;
use retune::tasks::classification::HELD_OUT;
use retune::tasks::detection::{Detect, Detection, LabelledBox, Nms, detector, predict};
use retune::tasks::images::{self, ImageCache};
use retune_media::pictures::Splits;
use retune_media::pictures::annotations::{Annotations, Rules};
use retune_media::pictures::augment::Augment;
use retune_media::pictures::draw::{self, Cell, Drawn};
use retune_tensor::Params;
use retune_tensor::rng::Stream;

use crate::style::count;

/// Pictures of a report, and the score from which on boxes are drawn.
const SHOWN: usize = 9;
const CONFIDENCE: f32 = 0.3;

/// Pictures to learn from, and held-out ones.
pub struct Detected {
    pub train: Annotations,
    pub eval: Option<Annotations>,
    /// How each picture is changed anew in every epoch.
    pub augment: Option<Augment>,
}

impl Detected {
    /// Reads a run's annotations; no picture is decoded.
    ///
    /// # Errors
    /// All that is wrong with them, at once.
    pub fn read(run: &RunFile) -> Result<Detected> {
        let Splits { train, val, test } = Annotations::open(&run.data, Rules::Strict)?;
        let train = match &run.labels {
            Some(labels) => train.with_classes(labels)?,
            None => train,
        };
        if train.pictures.iter().all(|picture| picture.boxes.is_empty()) {
            bail!("{}: there are no boxes in it to learn from", run.data.display());
        }
        let (train, eval) = match (&run.eval_data, val.or(test)) {
            (Some(path), _) => {
                let held_out = Annotations::open(path, Rules::Strict)?.train.with_classes(&train.classes)?;
                (train, Some(held_out))
            }
            (None, Some(val)) => (train, Some(val)),
            (None, None) => split(train, run.eval_share.unwrap_or(HELD_OUT), run.seed),
        };
        // What has no box at all cannot be measured.
        let eval = eval.filter(|eval| eval.pictures.iter().any(|picture| !picture.boxes.is_empty()));
        Ok(Detected { train, eval, augment: None })
    }

    /// Pictures to be measured, with a model's own classes.
    ///
    /// # Errors
    /// As [`Detected::read`]; if the model is no detector.
    pub fn for_model(path: &Path, net: &ImageModel) -> Result<Detected> {
        let Splits { train, val, test } = Annotations::open(path, Rules::Strict)?;
        // Of a set with its own held-out part, that one is meant.
        let measured = test.or(val).unwrap_or(train).with_classes(&detector(net)?.labels)?;
        Ok(Detected { train: measured, eval: None, augment: None })
    }

    /// Other pictures with the same classes: of an old task.
    ///
    /// # Errors
    /// As [`Detected::read`].
    pub fn others(&self, path: &Path) -> Result<Detected> {
        let train = Annotations::open(path, Rules::Strict)?.train.with_classes(&self.train.classes)?;
        Ok(Detected { train, eval: None, augment: None })
    }

    /// Decides how pictures are changed, now that it is known what of the network is frozen.
    pub fn choose_augmentation(&mut self, run: &RunFile, net: &ImageModel, params: &Params) {
        let cacheable = ImageCache::bytes_each(net, params) > 0;
        self.augment = run.augment.resolve(Augment::detect(), cacheable);
    }

    /// Whether pictures are the same in every epoch, so that what a frozen trunk gives can be kept.
    pub fn is_cached(&self) -> bool {
        self.augment.is_none()
    }

    /// Some of them as examples, as they are.
    pub fn objective<'a>(&'a self, net: &'a ImageModel, data: &'a Annotations) -> Detect<'a> {
        Detect {
            net,
            data,
            input: net.input(),
            augment: None,
            seed: None,
            checkpoint: false,
            cache: None,
            active: Active::default(),
        }
    }

    /// Held-out pictures with the boxes that are true (white) and those that the model finds, as one PNG.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn sheet(&self, model: &Model) -> Result<Option<Vec<u8>>> {
        let data = self.eval.as_ref().unwrap_or(&self.train);
        let every = data.pictures.len().div_ceil(SHOWN).max(1);
        let chosen: Vec<usize> = (0..data.pictures.len()).step_by(every).take(SHOWN).collect();
        let slots = vec![Some(0); chosen.len()];
        let looked_at = images::Pictures {
            slots: &slots,
            batch_size: 4,
            read: &|i| Ok(data.pictures[chosen[i]].read()?),
        };
        let settings = (CONFIDENCE, &Nms::default());
        let mut cells = Vec::with_capacity(chosen.len());
        predict(model.image()?, &model.params, &looked_at, settings, &mut |i, mut picture, found| {
            let annotated = &data.pictures[chosen[i]];
            let truth = |b: &LabelledBox| Drawn { bounds: b.bounds, label: String::new(), colour: [255; 3] };
            let truths: Vec<Drawn> = annotated.boxes.iter().map(truth).collect();
            draw::boxes(&mut picture, &truths);
            draw::boxes(&mut picture, &drawn(&found, &data.classes, false));
            let name = annotated.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let caption = vec![name, format!("{} boxes, {} found", truths.len(), found.len())];
            cells.push(Cell { picture, caption, frame: [200; 3] });
            anyhow::Ok(true)
        })?;
        Ok((!cells.is_empty()).then(|| draw::sheet(&cells, 3, 320).to_png()))
    }

    /// What is odd about the data.
    pub fn warnings(&self) -> Vec<String> {
        self.train.notes.iter().chain(self.eval.iter().flat_map(|eval| &eval.notes)).cloned().collect()
    }

    /// Counts for the report.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let boxes: usize = self.train.pictures.iter().map(|picture| picture.boxes.len()).sum();
        let names =
            self.train.classes.iter().zip(self.train.counts()).map(|(name, n)| format!("{name} ({n})"));
        let changed =
            if self.augment.is_some() { "each epoch anew" } else { "no (the trunk's values are kept)" };
        vec![
            ("pictures", count(self.train.pictures.len() as u64)),
            ("boxes", count(boxes as u64)),
            ("classes", names.collect::<Vec<_>>().join(", ")),
            ("augmented", changed.into()),
        ]
    }
}

/// Boxes as they are drawn, each in its class's colour; with names and scores if wished.
pub fn drawn(found: &[Detection], classes: &[String], labelled: bool) -> Vec<Drawn> {
    let one = |d: &Detection| {
        let name = classes.get(d.class as usize).map_or("", String::as_str);
        let label = if labelled { format!("{name} {:.2}", d.score) } else { String::new() };
        Drawn { bounds: d.bounds, label, colour: draw::class_colour(d.class) }
    };
    // The best ones on top.
    found.iter().rev().map(one).collect()
}

/// Splits off a share of the pictures, drawn from the seed; at least one stays to learn from.
fn split(all: Annotations, share: f64, seed: u64) -> (Annotations, Option<Annotations>) {
    let stream = Stream::named(seed, "held-out pictures");
    let mut order: Vec<usize> = (0..all.pictures.len()).collect();
    order.sort_by(|&a, &b| stream.uniform(a as u64).total_cmp(&stream.uniform(b as u64)).then(a.cmp(&b)));
    let held = ((order.len() as f64 * share).round() as usize).min(order.len().saturating_sub(1));
    let (held, kept) = order.split_at(held);
    let sorted = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part
    };
    let held = (!held.is_empty()).then(|| all.subset(&sorted(held)));
    (Annotations { notes: all.notes.clone(), ..all.subset(&sorted(kept)) }, held)
}
