//! Pictures and the boxes of their objects.

use std::path::Path;

use anyhow::{Result, bail};
use retune::metrics::Metric;
use retune::models::{HeadRequest, ImageModel, Model, ModelFiles, Net, image_head};
use retune::nn::Active;
use retune::run_file::{PoolingChoice, RunFile};
use retune::tasks::Task;
use retune::tasks::classification::HELD_OUT;
use retune::tasks::detection::{Detect, Detection, LabelledBox, Nms, detector, predict};
use retune::tasks::images::{self, ImageCache};
use retune::train::Objective;
use retune_media::pictures::Splits;
use retune_media::pictures::annotations::{Annotations, Rules};
use retune_media::pictures::augment::Augment;
use retune_media::pictures::draw::{self, Cell, Drawn};
use retune_tensor::rng::Stream;
use serde_json::{Value, json};

use super::{Counts, Kept, Making, Passes, ReadRows, Spec, TaskData, View, image};
use crate::exit::UsageError;
use crate::previewing::{Asked, Preview, Seen, of_pictures};
use crate::style::count;

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::ObjectDetection],
    read: |run, _, _| Ok(Box::new(Detected::read(run)?)),
    measured: |path, with| Ok(Box::new(Detected::for_model(path, with.model.image()?)?)),
};

/// Most boxes of a previewed picture that bear their labels: more would hide it.
const LABELLED: usize = 40;
/// Pictures of a report, and the score from which on boxes are drawn.
const SHOWN: usize = 9;
const CONFIDENCE: f32 = 0.3;

/// Pictures to learn from, and held-out ones.
struct Detected {
    train: Annotations,
    eval: Option<Annotations>,
    /// How each picture is changed anew in every epoch.
    augment: Option<Augment>,
}

impl Detected {
    /// Reads a run's annotations; no picture is decoded.
    ///
    /// # Errors
    /// All that is wrong with them, at once.
    fn read(run: &RunFile) -> Result<Detected> {
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
    fn for_model(path: &Path, net: &ImageModel) -> Result<Detected> {
        let Splits { train, val, test } = Annotations::open(path, Rules::Strict)?;
        // Of a set with its own held-out part, that one is meant.
        let measured = test.or(val).unwrap_or(train).with_classes(&detector(net)?.labels)?;
        Ok(Detected { train: measured, eval: None, augment: None })
    }

    /// Some of them as examples, as they are.
    fn plain<'a>(&'a self, net: &'a ImageModel, data: &'a Annotations) -> Detect<'a> {
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

    fn boxes(&self) -> usize {
        self.train.pictures.iter().map(|picture| picture.boxes.len()).sum()
    }

    /// A picture of an epoch as the network is given it, with its boxes drawn.
    fn seen(&self, net: &ImageModel, seed: u64, (i, epoch): (usize, u64)) -> Result<Seen> {
        let augment = self.augment.as_ref();
        let seen = Detect { seed: Some(seed), augment, ..self.plain(net, &self.train) };
        let (mut picture, boxes) = seen.seen(i, epoch)?;
        let (width, height) = (picture.width, picture.height);
        let name = |class: u32| self.train.classes[class as usize].clone();
        let drawn = |b: &LabelledBox| Drawn {
            bounds: b.bounds,
            label: if boxes.len() <= LABELLED { name(b.class) } else { String::new() },
            colour: draw::class_colour(b.class),
        };
        draw::boxes(&mut picture, &boxes.iter().map(drawn).collect::<Vec<_>>());
        let object =
            |b: &LabelledBox| json!({"label": name(b.class), "box": b.bounds.to_pixels(width, height)});
        let objects: Vec<Value> = boxes.iter().map(object).collect();
        let json = json!({"objects": objects, "width": width, "height": height});
        Ok(Seen { picture, truth: self.counted(&boxes), json })
    }

    /// How many boxes of each class.
    fn counted(&self, boxes: &[LabelledBox]) -> String {
        let number = |class: usize| boxes.iter().filter(|b| b.class as usize == class).count();
        let each = self.train.classes.iter().enumerate().map(|(class, name)| (name, number(class)));
        let each: Vec<String> =
            each.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", count(n as u64))).collect();
        if each.is_empty() { "no boxes".into() } else { each.join(", ") }
    }
}

impl ReadRows for Detected {
    fn head(&self, run: &RunFile, files: &ModelFiles) -> Result<(HeadRequest, bool)> {
        if run.pooling != PoolingChoice::Auto {
            let what = "pooling is for classifiers; a detector looks at every pixel";
            return Err(UsageError(what.into()).into());
        }
        let labels = self.train.classes.clone();
        let own = files.config().ok().and_then(|config| image_head::labels(&config).ok());
        let keep = run.keep_head && own.is_some_and(|own| own == labels);
        let (seed, image_size) = (run.seed, run.image_size());
        Ok((HeadRequest::Detector { labels, keep, seed, image_size }, !keep))
    }

    /// Only now is it known what of the network is frozen, and so whether pictures are changed.
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        let (net, mut data) = (with.model.image()?, *self);
        let cacheable = ImageCache::bytes_each(net, &with.model.params) > 0;
        data.augment = with.run.augment.resolve(Augment::detect(), cacheable);
        data.plain(net, &data.train).check()?;
        Ok(Box::new(data))
    }
}

impl TaskData for Detected {
    fn task(&self) -> Task {
        Task::ObjectDetection
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, cache } = passes;
        let (seed, augment, cache) = (Some(seed), self.augment.as_ref(), cache.and_then(Kept::pictures));
        Box::new(Detect { seed, checkpoint, cache, augment, ..self.plain(image(net), &self.train) })
    }

    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let cache = cache.and_then(Kept::pictures);
        Some(Box::new(Detect { cache, ..self.plain(image(net), self.eval.as_ref()?) }))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        Box::new(Detect { active: view.active.clone(), ..self.plain(image(view.net), &self.train) })
    }

    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        with.knows_old_tasks(path)?;
        let train = Annotations::open(path, Rules::Strict)?.train.with_classes(&self.train.classes)?;
        let old = Detected { train, eval: None, augment: None };
        old.plain(with.model.image()?, &old.train).check()?;
        Ok(Box::new(old))
    }

    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        let metric = asked.unwrap_or(Metric::Map50);
        if Metric::OF_DETECTIONS.contains(&metric) {
            return Ok(metric);
        }
        let known: Vec<&str> = Metric::OF_DETECTIONS.iter().map(|metric| metric.name()).collect();
        let what = format!("metric = \"{metric}\" is not for boxes; there are {}", known.join(", "));
        Err(UsageError(what).into())
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.train.len(), ..Counts::default() }
    }

    fn held_out(&self) -> Option<usize> {
        self.eval.as_ref().map(Annotations::len)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let names =
            self.train.classes.iter().zip(self.train.counts()).map(|(name, n)| format!("{name} ({n})"));
        let changed =
            if self.augment.is_some() { "each epoch anew" } else { "no (the trunk's values are kept)" };
        vec![
            ("pictures", count(self.train.pictures.len() as u64)),
            ("boxes", count(self.boxes() as u64)),
            ("classes", names.collect::<Vec<_>>().join(", ")),
            ("augmented", changed.into()),
        ]
    }

    fn summary(&self) -> String {
        let (pictures, boxes) = (self.train.len() as u64, self.boxes() as u64);
        format!("{} pictures, {} boxes, {} classes", count(pictures), count(boxes), self.train.classes.len())
    }

    fn warnings(&self) -> Vec<String> {
        self.train.notes.iter().chain(self.eval.iter().flat_map(|eval| &eval.notes)).cloned().collect()
    }

    fn identity(&self, run: &RunFile) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("labels", self.train.classes.join(", ")),
            ("image_size", format!("{:?}", run.image_size)),
            ("keep_head", run.keep_head.to_string()),
            ("augment", toml::Value::try_from(&run.augment)?.to_string()),
        ])
    }

    fn stays(&self) -> bool {
        self.augment.is_none()
    }

    /// True boxes are white.
    fn sheet(&self, model: &Model) -> Result<Option<Vec<u8>>> {
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

    fn preview(&self, net: &Net, run: &RunFile, asked: Asked) -> Result<Preview> {
        let names =
            self.train.pictures.iter().take(asked.rows).map(|p| p.path.display().to_string()).collect();
        let seen = |place| self.seen(image(net), run.seed, place);
        of_pictures(names, (self.augment.is_some(), asked), self.facts(), &seen)
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
