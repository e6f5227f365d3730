//! Pictures and their classes.

use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::metrics::Metric;
use retune::models::{HeadRequest, ImageModel, Model, ModelFiles, Net, Network};
use retune::nn::{Active, Head, Problem};
use retune::run_file::RunFile;
use retune::tasks::Task;
use retune::tasks::classification::{ClassWeights, HELD_OUT, Labels};
use retune::tasks::images::{self, ImageCache, ImageClassification, split_stratified};
use retune::train::Objective;
use retune_media::pictures::augment::Augment;
use retune_media::pictures::draw::{self, Cell};
use retune_media::pictures::{Labelled, Splits};
use serde_json::json;

use super::{Counts, Kept, Making, Passes, ReadRows, Spec, TaskData, View, head, image};
use crate::exit::UsageError;
use crate::previewing::{Asked, Preview, Seen, of_pictures};
use crate::style::count;

pub(super) const SPEC: Spec = Spec {
    tasks: &[Task::ImageClassification],
    read: |run, _, _| Ok(Box::new(Pictured::read(run)?)),
    measured: |path, with| Ok(Box::new(Pictured::for_model(path, with.model.image()?)?)),
};

/// Pictures of a report, and those that they are chosen from.
const SHOWN: usize = 24;
const LOOKED_AT: usize = 256;

/// Pictures to learn from, and held-out ones.
struct Pictured {
    train: Labelled,
    eval: Option<Labelled>,
    class_weights: Option<Vec<f32>>,
    /// How each picture is changed anew in every epoch.
    augment: Option<Augment>,
}

impl Pictured {
    /// Reads a run's pictures; which of them exist is checked, but none is decoded.
    ///
    /// # Errors
    /// All that is wrong with the data set, at once.
    fn read(run: &RunFile) -> Result<Pictured> {
        let Splits { train, val, test } = Labelled::open(&run.data)?;
        let train = match &run.labels {
            Some(labels) => train.with_classes(labels)?,
            None => train,
        };
        if train.is_empty() {
            bail!("{}: there are no pictures in it", run.data.display());
        }
        let (train, eval) = match (&run.eval_data, val.or(test)) {
            (Some(path), _) => {
                let held_out = Labelled::open(path)?.train.with_classes(&train.classes)?;
                (train, Some(held_out))
            }
            (None, Some(val)) => (train, Some(val)),
            (None, None) => {
                let share = run.eval_share.unwrap_or(HELD_OUT);
                let (kept, held_out) = split_stratified(&train, share, run.seed);
                (Labelled { warnings: train.warnings, ..kept }, Some(held_out))
            }
        };
        let eval = eval.filter(|eval| !eval.is_empty());
        let weights = ClassWeights::parse(&run.class_weights)?;
        let labels = Labels { names: train.classes.clone() };
        let counts: Vec<u64> = train.counts().into_iter().map(|n| n as u64).collect();
        let class_weights = weights.of(&labels, &counts).context("class_weights")?;
        Ok(Pictured { train, eval, class_weights, augment: None })
    }

    /// Pictures to be measured, with a model's own classes.
    ///
    /// # Errors
    /// As [`Pictured::read`]; if the model has no classifier.
    fn for_model(path: &Path, net: &ImageModel) -> Result<Pictured> {
        let Splits { train, val, test } = Labelled::open(path)?;
        let Head::Classifier(head) = net.head() else { bail!("the model has no classifier") };
        // Of a set with its own held-out part, that one is meant.
        let measured = test.or(val).unwrap_or(train).with_classes(&head.labels)?;
        let all = Pictured { train: measured, eval: None, class_weights: None, augment: None };
        all.plain(net, &all.train).check()?;
        Ok(all)
    }

    /// Some of them as examples, as they are.
    fn plain<'a>(&'a self, net: &'a ImageModel, data: &'a Labelled) -> ImageClassification<'a> {
        ImageClassification {
            net,
            data,
            input: net.input(),
            class_weights: self.class_weights.as_deref(),
            augment: None,
            seed: None,
            checkpoint: false,
            cache: None,
            active: Active::default(),
        }
    }

    /// A picture of an epoch as the network is given it, with its class or the shares of two.
    fn seen(&self, net: &ImageModel, seed: u64, (i, epoch): (usize, u64)) -> Result<Seen> {
        let augment = self.augment.as_ref();
        let seen = ImageClassification { seed: Some(seed), augment, ..self.plain(net, &self.train) };
        let mixed = seen.seen(i, epoch)?;
        let name = |example: usize| self.train.classes[self.train.examples[example].class as usize].clone();
        let share = |(example, share): &(usize, f32)| match *share {
            share if share < 1.0 => format!("{} {:.0} %", name(*example), 100.0 * share),
            _ => name(*example),
        };
        let truth = mixed.labels.iter().map(share).collect::<Vec<_>>().join(", ");
        let json = json!({"label": name(i), "width": mixed.picture.width, "height": mixed.picture.height});
        Ok(Seen { picture: mixed.picture, truth, json })
    }
}

impl ReadRows for Pictured {
    fn head(&self, run: &RunFile, files: &ModelFiles) -> Result<(HeadRequest, bool)> {
        head::classifier(run, files, (Problem::SingleLabel, &self.train.classes))
    }

    /// Only now is it known what of the network is frozen, and so whether pictures are changed.
    fn examples(self: Box<Self>, with: &Making) -> Result<Box<dyn TaskData>> {
        let (net, mut data) = (with.model.image()?, *self);
        let cacheable = ImageCache::bytes_each(net, &with.model.params) > 0;
        data.augment = with.run.augment.resolve(Augment::classify(), cacheable);
        data.plain(net, &data.train).check()?;
        Ok(Box::new(data))
    }
}

impl TaskData for Pictured {
    fn task(&self) -> Task {
        Task::ImageClassification
    }

    fn objective<'a>(&'a self, net: &'a Net, passes: Passes<'a>) -> Box<dyn Objective + 'a> {
        let Passes { seed, checkpoint, cache } = passes;
        let (seed, augment, cache) = (Some(seed), self.augment.as_ref(), cache.and_then(Kept::pictures));
        Box::new(ImageClassification {
            seed,
            checkpoint,
            cache,
            augment,
            ..self.plain(image(net), &self.train)
        })
    }

    fn eval<'a>(&'a self, net: &'a Net, cache: Option<&'a Kept>) -> Option<Box<dyn Objective + 'a>> {
        let cache = cache.and_then(Kept::pictures);
        Some(Box::new(ImageClassification { cache, ..self.plain(image(net), self.eval.as_ref()?) }))
    }

    fn measured<'a>(&'a self, view: &'a View<'a>) -> Box<dyn Objective + 'a> {
        let active = view.active.clone();
        Box::new(ImageClassification { active, ..self.plain(image(view.net), &self.train) })
    }

    fn retained(&self, path: &Path, with: &Making) -> Result<Box<dyn TaskData>> {
        with.knows_old_tasks(path)?;
        let train = Labelled::open(path)?.train.with_classes(&self.train.classes)?;
        let old = Pictured { train, eval: None, class_weights: None, augment: None };
        old.plain(with.model.image()?, &old.train).check()?;
        Ok(Box::new(old))
    }

    fn metric(&self, asked: Option<Metric>) -> Result<Metric> {
        let metric = asked.unwrap_or(Metric::Accuracy);
        metric.check(Problem::SingleLabel).map_err(|e| UsageError(e.to_string()))?;
        Ok(metric)
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.train.len(), ..Counts::default() }
    }

    fn held_out(&self) -> Option<usize> {
        self.eval.as_ref().map(Labelled::len)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("pictures", count(self.train.len() as u64))];
        let counts = self.train.counts();
        let names = self.train.classes.iter().zip(counts).map(|(name, n)| format!("{name} ({n})"));
        rows.push(("classes", names.collect::<Vec<_>>().join(", ")));
        let changed =
            if self.augment.is_some() { "each epoch anew" } else { "no (the trunk's rows are kept)" };
        rows.push(("augmented", changed.into()));
        rows
    }

    fn summary(&self) -> String {
        format!("{} pictures, {} classes", count(self.train.len() as u64), self.train.classes.len())
    }

    fn warnings(&self) -> Vec<String> {
        self.train.warnings.clone()
    }

    fn identity(&self, run: &RunFile) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("labels", self.train.classes.join(", ")),
            ("class_weights", run.class_weights.clone()),
            ("image_size", format!("{:?}", run.image_size)),
            ("keep_head", run.keep_head.to_string()),
            ("augment", toml::Value::try_from(&run.augment)?.to_string()),
        ])
    }

    fn stays(&self) -> bool {
        self.augment.is_none()
    }

    /// Wrong ones first, up to half of the sheet.
    fn sheet(&self, model: &Model) -> Result<Option<Vec<u8>>> {
        let data = self.eval.as_ref().unwrap_or(&self.train);
        let every = data.len().div_ceil(LOOKED_AT).max(1);
        let chosen: Vec<usize> = (0..data.len()).step_by(every).collect();
        let slots = vec![Some(0); chosen.len()];
        let looked_at =
            images::Pictures { slots: &slots, batch_size: 8, read: &|i| Ok(data.read(chosen[i])?) };
        let mut found = Vec::with_capacity(chosen.len());
        images::predict(model.image()?, &model.params, &looked_at, &mut |_, _, answer| {
            found.push(answer);
            anyhow::Ok(true)
        })?;
        let is_right = |i: usize| found[i].class == data.examples[chosen[i]].class;
        let (right, wrong): (Vec<usize>, Vec<usize>) = (0..found.len()).partition(|&i| is_right(i));
        let wrong = wrong.into_iter().take(SHOWN / 2);
        let shown: Vec<usize> = wrong.chain(right).take(SHOWN).collect();
        let name = |class: u32| data.classes.get(class as usize).cloned().unwrap_or_default();
        let mut cells = Vec::with_capacity(shown.len());
        for i in shown {
            let (answer, truth) = (&found[i], data.examples[chosen[i]].class);
            let p = answer.probabilities.get(answer.class as usize).copied().unwrap_or_default();
            cells.push(Cell {
                picture: data.read(chosen[i])?,
                caption: vec![name(truth), format!("{} {:.0} %", name(answer.class), 100.0 * p)],
                frame: if is_right(i) { draw::GREEN } else { draw::RED },
            });
        }
        Ok((!cells.is_empty()).then(|| draw::sheet(&cells, 6, 128).to_png()))
    }

    fn preview(&self, net: &Net, run: &RunFile, asked: Asked) -> Result<Preview> {
        let names = self.train.examples.iter().take(asked.rows).map(|e| e.origin.clone()).collect();
        let seen = |place| self.seen(image(net), run.seed, place);
        of_pictures(names, (self.augment.is_some(), asked), self.facts(), &seen)
    }
}
