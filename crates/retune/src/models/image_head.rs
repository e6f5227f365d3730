//! The classifier of an image network: the files' own, kept or replaced by one of other classes.

use retune_media::pictures::Prepare;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::heads;
use crate::models::loader::Loader;
use crate::models::{HeadRequest, ModelFiles};
use crate::nn::{Classifier, Head, Linear, Pooling, Problem};

/// Largest picture side that a configuration may ask for.
const SIDE_MAX: usize = 1 << 14;

/// A classifier that may be built.
pub struct ImageHead<'a> {
    /// Module path of the last linear.
    pub path: &'a str,
    /// Channels that it reads.
    pub width: usize,
    pub pooling: Pooling,
    /// What tensors of heads begin with; those that are not used are let lie.
    pub prefixes: &'a [&'a str],
}

impl ImageHead<'_> {
    /// The head that `request` asks for.
    ///
    /// # Errors
    /// If the files have no such head where one is needed, or tensors of wrong shapes.
    pub fn build(
        &self,
        loader: &mut Loader,
        files: Option<&ModelFiles>,
        request: &HeadRequest,
    ) -> Result<Head> {
        let head = match request {
            HeadRequest::AsFile => {
                let labels = match files {
                    Some(files) => labels(&files.config()?)?,
                    None => fresh_labels(loader)?,
                };
                let out = self.linear(loader, labels.len(), true, 0)?;
                Head::Classifier(self.classifier(Problem::SingleLabel, labels, out))
            }
            HeadRequest::Classifier { problem, labels, keep, seed, .. } => {
                let out = self.linear(loader, labels.len(), *keep, *seed)?;
                Head::Classifier(self.classifier(*problem, labels.clone(), out))
            }
            HeadRequest::Detector { .. } => return Err(no_detector()),
            HeadRequest::LanguageModel | HeadRequest::None => Head::None,
        };
        self.prefixes.iter().for_each(|prefix| loader.ignore_under(prefix));
        Ok(head)
    }

    fn classifier(&self, problem: Problem, labels: Vec<String>, out: Linear) -> Classifier {
        Classifier { problem, pooling: self.pooling, dense: None, out, labels }
    }

    fn linear(&self, loader: &mut Loader, labels: usize, keep: bool, seed: u64) -> Result<Linear> {
        let (weight, bias) = (format!("{}.weight", self.path), format!("{}.bias", self.path));
        let fits = loader.is_fresh() || loader.shape(&weight)?.as_deref() == Some(&[labels, self.width]);
        let (weight, bias) = match keep && fits {
            true => (loader.matrix_f32(&weight, labels, self.width)?, loader.vector(&bias, labels, None)?),
            false => (loader.drawn(&weight, labels, self.width, seed), loader.zeros(&bias, labels)),
        };
        Ok(Linear::new(self.path, weight, Some(bias), (labels, self.width)))
    }
}

/// Of a model that says nothing of boxes.
pub fn no_detector() -> Error {
    let what = "the model is no detector: it says nothing of where objects are; use one (darknet's YOLO, YOLOv8) to find objects";
    Error::Input(what.into())
}

/// Of a pooling that a classifier of this network cannot have.
pub fn no_pooling(network: &str, asked: Pooling, known: &str) -> Error {
    let asked = format!("{asked:?}").to_lowercase();
    Error::Input(format!("pooling = \"{asked}\": a classifier on {network} reads its last pixels by {known}"))
}

/// The pooling that a caller asks for.
pub fn pooling(request: &HeadRequest) -> Option<Pooling> {
    match request {
        HeadRequest::Classifier { pooling, .. } => *pooling,
        _ => None,
    }
}

/// The size of the pictures that a caller asks for: height and width.
pub fn size(request: &HeadRequest) -> Option<(usize, usize)> {
    match request {
        HeadRequest::Classifier { image_size, .. } | HeadRequest::Detector { image_size, .. } => *image_size,
        _ => None,
    }
}

/// The names of the classes in `config.json`.
///
/// # Errors
/// If they make no sense.
pub fn labels(config: &Config) -> Result<Vec<String>> {
    heads::labels_of(config.value).map_err(|what| config.fail(what))
}

fn fresh_labels(loader: &Loader) -> Result<Vec<String>> {
    loader.fresh_config().map_or_else(|| Ok(vec!["LABEL_0".into(), "LABEL_1".into()]), labels)
}

/// How pictures become numbers, from `config.json`.
///
/// # Errors
/// If a number makes no sense.
pub fn input_of(config: &Config, value: &Value) -> Result<Prepare> {
    let input: Prepare = serde_json::from_value(value.clone())
        .map_err(|e| config.fail(format!("\"image_input\" does not say how pictures are read: {e}")))?;
    let sides = [input.height, input.width];
    if sides.iter().any(|side| !(1..=SIDE_MAX).contains(side)) {
        return Err(config.fail(format!("\"image_input\" has sides {sides:?}; 1 to {SIDE_MAX} are possible")));
    }
    let bad = |x: &f32| !x.is_finite();
    if input.normalise.mean.iter().any(bad) || input.normalise.std.iter().any(|x| bad(x) || *x <= 0.0) {
        return Err(config.fail("\"image_input\" has a mean or standard deviation that is no use"));
    }
    Ok(input)
}
