//! The head of a detector: the files' own, or one of other classes that keeps what the files' says of boxes.
//!
//! Rows that say something of a class are drawn `N(0, 0.01)`, with biases at `log(p / (1 - p))`, p = 0.01: at first every box is improbable, so
//! that the many empty cells do not drown the others (arXiv:1708.02002, section 4.1).

use retune_tensor::rng::Stream;
use retune_tensor::{Layout, ParamId, Tensor};

use crate::error::{Error, Result};
use crate::models::HeadRequest;
use crate::models::graph::square;
use crate::models::loader::Loader;
use crate::nn::detector::{Detector, Generation};
use crate::nn::{DetectorHead, Head, Linear, Scale};

/// Standard deviation of drawn rows.
const STD: f32 = 0.01;
/// `log(0.01 / 0.99)`.
const PRIOR: f32 = -4.595_12;
/// Rows of an anchor that say nothing of a class: the box and its objectness.
const BOX_ROWS: usize = 5;

/// What the rows of one of the last convolutions mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartRows {
    /// For each of so many anchors the box, objectness, classes.
    Anchors(usize),
    /// So many rows of the box alone.
    Bounds(usize),
    /// A row for each class.
    Classes,
}

impl PartRows {
    fn count(self, classes: usize) -> usize {
        match self {
            PartRows::Anchors(anchors) => anchors * (BOX_ROWS + classes),
            PartRows::Bounds(rows) => rows,
            PartRows::Classes => classes,
        }
    }

    /// The row for `from` classes that says what row `at` for `to` classes does; `None` of a row that is about a class.
    fn kept(self, at: usize, from: usize, to: usize) -> Option<usize> {
        match self {
            PartRows::Anchors(_) => {
                let (anchor, row) = (at / (BOX_ROWS + to), at % (BOX_ROWS + to));
                (row < BOX_ROWS).then_some(anchor * (BOX_ROWS + from) + row)
            }
            PartRows::Bounds(_) => Some(at),
            PartRows::Classes => None,
        }
    }

    /// Whether a row's bias begins at the prior in a new network.
    fn has_prior(self, at: usize, classes: usize) -> bool {
        match self {
            PartRows::Anchors(_) => at % (BOX_ROWS + classes) >= BOX_ROWS - 1,
            PartRows::Bounds(_) => false,
            PartRows::Classes => true,
        }
    }
}

/// One of the last convolutions, of single pixels.
pub struct Part {
    /// Module path.
    pub path: String,
    /// The number of the trunk's output that it reads.
    pub output: usize,
    pub channels: usize,
    pub rows: PartRows,
}

/// A detector's head that may be built.
pub struct DetectionHead {
    /// Those of each scale.
    pub scales: Vec<Vec<Part>>,
    pub generation: Generation,
    /// Classes of the files.
    pub labels: Vec<String>,
}

/// What becomes of the classes.
struct Wanted {
    labels: Vec<String>,
    /// Rows of classes stay as they are in the files.
    same: bool,
    seed: u64,
}

/// The classes that a detector gets.
///
/// # Errors
/// If something else than a detector is asked for.
pub fn labels_for(request: &HeadRequest, labels: &[String]) -> Result<Vec<String>> {
    match request {
        HeadRequest::AsFile => Ok(labels.to_vec()),
        HeadRequest::Detector { labels, .. } if labels.is_empty() => {
            Err(Error::Input("a detector needs a class at least".into()))
        }
        HeadRequest::Detector { labels, .. } => Ok(labels.clone()),
        HeadRequest::Classifier { .. } => Err(Error::Input(
            "the model finds objects in pictures: it has no classifier; use the task for detection".into(),
        )),
        HeadRequest::LanguageModel | HeadRequest::None => Err(Error::Input(
            "the model finds objects in pictures, and this is for models that read text".into(),
        )),
    }
}

impl DetectionHead {
    /// The head that `request` asks for; strides are set when the network is finished.
    ///
    /// # Errors
    /// If something else than a detector is asked for, or tensors have wrong shapes.
    pub fn build(self, loader: &mut Loader, request: &HeadRequest) -> Result<Head> {
        let labels = labels_for(request, &self.labels)?;
        let (keep, seed) = match request {
            HeadRequest::Detector { keep, seed, .. } => (*keep, *seed),
            _ => (true, 0),
        };
        let wanted = Wanted { same: keep && labels == self.labels, labels, seed };
        let from = self.labels.len();
        let mut scales = Vec::with_capacity(self.scales.len());
        for parts in &self.scales {
            let mut built = Vec::with_capacity(parts.len());
            for part in parts {
                built.push((part.output, part.build(loader, from, &wanted)?));
            }
            scales.push(Scale { parts: built, stride: 1 });
        }
        let detector = Detector { labels: wanted.labels, generation: self.generation, input: (0, 0) };
        detector.check_settings()?;
        Ok(Head::Detector(DetectorHead { detector, scales }))
    }
}

impl Part {
    fn build(&self, loader: &mut Loader, from: usize, wanted: &Wanted) -> Result<Linear> {
        let rows = self.rows.count(wanted.labels.len());
        let (weight, bias) = self.tensors(loader, from, wanted)?;
        loader.params.get_mut(weight).layout = Layout::Kernel(1, 1);
        Ok(Linear {
            sliding: Some(square(1, 1, 0)),
            layout: Layout::Kernel(1, 1),
            ..Linear::new(self.path.as_str(), weight, Some(bias), (rows, self.channels))
        })
    }

    fn tensors(&self, loader: &mut Loader, from: usize, wanted: &Wanted) -> Result<(ParamId, ParamId)> {
        let (name, bias_name) = (format!("{}.weight", self.path), format!("{}.bias", self.path));
        let (channels, to) = (self.channels, wanted.labels.len());
        let (old_rows, rows) = (self.rows.count(from), self.rows.count(to));
        let old =
            (loader.values(&name, &[old_rows, channels, 1, 1])?, loader.values(&bias_name, &[old_rows])?);
        let shape = [rows, channels, 1, 1];
        let (Some(weight), Some(bias)) = old else {
            let weight = loader.kernel(&name, &shape, (1, 1))?;
            let prior = |at: usize| if self.rows.has_prior(at, to) { PRIOR } else { 0.0 };
            let bias = Tensor::from_fn(1, rows, |_, at| prior(at));
            return Ok((weight, loader.given(&bias_name, &[rows], bias)));
        };
        let kept = |at: usize| if wanted.same { Some(at) } else { self.rows.kept(at, from, to) };
        let stream = Stream::named(wanted.seed, &name);
        let weight = Tensor::from_fn(rows, channels, |row, c| match kept(row) {
            Some(old) => weight[old * channels + c],
            None => STD * stream.normal((row * channels + c) as u64),
        });
        let bias = Tensor::from_fn(1, rows, |_, row| kept(row).map_or(PRIOR, |old| bias[old]));
        Ok((loader.given(&name, &shape, weight), loader.given(&bias_name, &[rows], bias)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_boxes_keep_their_place() {
        let rows = PartRows::Anchors(3);
        assert_eq!((rows.count(80), rows.count(1)), (255, 18));
        let kept: Vec<_> = (0..12).map(|at| rows.kept(at, 80, 1)).collect();
        let some = |range: std::ops::Range<usize>| range.map(Some);
        let want: Vec<_> = some(0..5).chain([None]).chain(some(85..90)).chain([None]).collect();
        assert_eq!(kept, want);
        assert_eq!(PartRows::Bounds(64).kept(63, 80, 1), Some(63));
        assert_eq!(PartRows::Classes.kept(0, 80, 80), None);
        assert!(
            rows.has_prior(4, 80)
                && !rows.has_prior(3, 80)
                && rows.has_prior(5, 80)
                && !rows.has_prior(85, 80)
        );
    }

    #[test]
    fn a_detector_is_no_classifier() {
        let labels = vec!["a".to_string()];
        let message = labels_for(&HeadRequest::None, &labels).unwrap_err().to_string();
        assert!(message.contains("finds objects"), "{message}");
        let none = HeadRequest::Detector { labels: Vec::new(), keep: true, seed: 0, image_size: None };
        assert!(labels_for(&none, &labels).is_err());
    }
}
