//! Labelled pictures of a run: read before the model is opened, since their classes decide its head.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::models::{ImageModel, Model, Network};
use retune::nn::{Active, Head};
use retune::run_file::RunFile;
use retune::tasks::classification::{ClassWeights, HELD_OUT, Labels};
use retune::tasks::images::{self, ImageCache, ImageClassification, split_stratified};
use retune_media::pictures::augment::Augment;
use retune_media::pictures::draw::{self, Cell};
use retune_media::pictures::{Labelled, Picture, Splits};

use retune_tensor::Params;

use crate::style::count;

/// Pictures of a report, and those that they are chosen from.
const SHOWN: usize = 24;
const LOOKED_AT: usize = 256;

/// Writes a picture into a folder under a name that is free: none replaces another, nor what was there before.
pub fn write_beside(picture: &Picture, folder: &Path, stem: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let free = |n: usize| {
        let name = if n == 0 { format!("{stem}.png") } else { format!("{stem}-{n}.png") };
        folder.join(name)
    };
    let to = (0..).map(free).find(|path| !path.exists()).context("no free name")?;
    picture.write(&to)?;
    Ok(to)
}

/// Pictures to learn from, and held-out ones.
pub struct Pictured {
    pub train: Labelled,
    pub eval: Option<Labelled>,
    pub class_weights: Option<Vec<f32>>,
    /// How each picture is changed anew in every epoch.
    pub augment: Option<Augment>,
}

impl Pictured {
    /// Reads a run's pictures; which of them exist is checked, but none is decoded.
    ///
    /// # Errors
    /// All that is wrong with the data set, at once.
    pub fn read(run: &RunFile) -> Result<Pictured> {
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
    pub fn for_model(path: &Path, net: &ImageModel) -> Result<Pictured> {
        let Splits { train, val, test } = Labelled::open(path)?;
        let Head::Classifier(head) = net.head() else { bail!("the model has no classifier") };
        // Of a set with its own held-out part, that one is meant.
        let measured = test.or(val).unwrap_or(train).with_classes(&head.labels)?;
        let all = Pictured { train: measured, eval: None, class_weights: None, augment: None };
        all.objective(net, &all.train).check()?;
        Ok(all)
    }

    /// Decides how pictures are changed, now that it is known what of the network is frozen.
    pub fn choose_augmentation(&mut self, run: &RunFile, net: &ImageModel, params: &Params) {
        let cacheable = ImageCache::bytes_each(net, params) > 0;
        self.augment = run.augment.resolve(Augment::classify(), cacheable);
    }

    /// Other pictures with the same classes: of an old task.
    ///
    /// # Errors
    /// As [`Pictured::read`].
    pub fn others(&self, path: &Path) -> Result<Pictured> {
        let train = Labelled::open(path)?.train.with_classes(&self.train.classes)?;
        Ok(Pictured { train, eval: None, class_weights: None, augment: None })
    }

    /// Whether pictures are the same in every epoch, so that what a frozen trunk gives can be kept.
    pub fn is_cached(&self) -> bool {
        self.augment.is_none()
    }

    /// Some of them as examples, as they are.
    pub fn objective<'a>(&'a self, net: &'a ImageModel, data: &'a Labelled) -> ImageClassification<'a> {
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

    /// Held-out pictures with what is true and what the model says of them, as one PNG: wrong ones first, up to half of the sheet.
    ///
    /// # Errors
    /// If a picture cannot be read.
    pub fn sheet(&self, model: &Model) -> Result<Option<Vec<u8>>> {
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

    /// Counts for the report.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("pictures", count(self.train.len() as u64))];
        let counts = self.train.counts();
        let names = self.train.classes.iter().zip(counts).map(|(name, n)| format!("{name} ({n})"));
        rows.push(("classes", names.collect::<Vec<_>>().join(", ")));
        let changed =
            if self.augment.is_some() { "each epoch anew" } else { "no (the trunk's rows are kept)" };
        rows.push(("augmented", changed.into()));
        rows
    }
}
