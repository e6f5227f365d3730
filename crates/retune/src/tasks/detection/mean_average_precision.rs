//! Mean average precision by COCO's definition, as pycocotools counts it.
//!
//! A detection is right if it overlaps a free truth of its class by IoU >= t; detections choose in order of their scores.
//! AP(class, t): mean over 101 recalls of the highest precision at that recall or more; mAP: mean over the classes that occur
//! and t = .50, .55 ... .95. At most 100 detections of a class in a picture count; crowds and truths outside an area range
//! neither help nor hurt.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::overlap::{Centred, intersection, iou, scaled};
use super::{BoxF, Detection, LabelledBox};
use crate::error::{Error, Result};
use crate::metrics::{ClassScores, Scores};

const THRESHOLDS: usize = 10;
const RECALLS: usize = 101;
const DETECTIONS_MAX: usize = 100;
/// In square pixels: all, small, medium, large.
const AREAS: [(f64, f64); 4] = [(0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10)];

/// One picture: what lies in it and what was found. Boxes are fractions of it.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Width and height in pixels, in which areas are counted.
    pub size: (usize, usize),
    pub truths: &'a [LabelledBox],
    /// Boxes around many objects of a class each (COCO's `iscrowd`).
    pub crowds: &'a [LabelledBox],
    pub detections: &'a [Detection],
}

/// What a set of pictures gave, each 0..=1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Precisions {
    /// mAP@50-95.
    pub map: f64,
    /// mAP@50 and mAP@75.
    pub map50: f64,
    pub map75: f64,
    /// mAP@50-95 of truths of less than 32 x 32 pixels, of less than 96 x 96, and of the others; `None` where there are none.
    pub small: Option<f64>,
    pub medium: Option<f64>,
    pub large: Option<f64>,
    /// The share of the truths that any detection finds, mean over classes and thresholds (COCO's AR@100).
    pub recall: f64,
    pub classes: Vec<ClassPrecision>,
    /// Where F1 is best; `None` if nothing was found.
    pub best: Option<OperatingPoint>,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassPrecision {
    /// Of the detections at the best confidence, right at IoU .5. Boxes in crowds count for nothing.
    #[serde(flatten)]
    pub class: ClassScores,
    /// AP@50-95 and AP@50; `None` if there are no truths.
    pub ap: Option<f64>,
    pub ap50: Option<f64>,
}

/// The confidence at which F1 over all classes together is best, at IoU .5.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Detections that score at least this much.
    pub confidence: f32,
    pub scores: Scores,
}

/// What came of a detection at one threshold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Hit,
    Miss,
    Ignored,
}

type Ranked = (f32, [Outcome; THRESHOLDS]);

/// The detections of a class in all pictures within one range of areas.
#[derive(Default)]
struct Class {
    /// In order of their scores.
    ranked: Vec<Ranked>,
    truths: usize,
}

/// The precisions of all pictures; classes are indices into `labels`.
///
/// # Errors
/// If there is no truth at all, or a class beyond `labels`.
pub fn mean_average_precision(labels: &[String], scenes: &[Scene]) -> Result<Precisions> {
    check(labels, scenes)?;
    let classes: Vec<[Class; 4]> =
        (0..labels.len()).into_par_iter().map(|class| of_class(class as u32, scenes)).collect();
    let all: Vec<&Class> = classes.iter().map(|ranges| &ranges[0]).collect();
    let over = |range: usize, thresholds: std::ops::Range<usize>| {
        mean(classes.iter().filter_map(|ranges| ranges[range].precision(thresholds.clone())))
    };
    let recalls = all.iter().filter(|class| class.truths > 0).map(|class| class.recall());
    let best = best_f1(&all);
    Ok(Precisions {
        map: over(0, 0..THRESHOLDS).unwrap_or(0.0),
        map50: over(0, 0..1).unwrap_or(0.0),
        map75: over(0, 5..6).unwrap_or(0.0),
        small: over(1, 0..THRESHOLDS),
        medium: over(2, 0..THRESHOLDS),
        large: over(3, 0..THRESHOLDS),
        recall: mean(recalls).unwrap_or(0.0),
        classes: labels.iter().zip(all).map(|(name, class)| class.named(name, best)).collect(),
        best,
    })
}

fn check(labels: &[String], scenes: &[Scene]) -> Result<()> {
    for (i, scene) in scenes.iter().enumerate() {
        let truths = scene.truths.iter().chain(scene.crowds).map(|truth| truth.class);
        let unknown =
            truths.chain(scene.detections.iter().map(|d| d.class)).find(|c| *c as usize >= labels.len());
        if let Some(class) = unknown {
            let (picture, classes) = (i + 1, labels.len());
            return Err(Error::Input(format!(
                "picture {picture} has a box of class {class}; there are {classes}"
            )));
        }
    }
    if scenes.iter().all(|scene| scene.truths.is_empty()) {
        return Err(Error::Input("no picture has a box: there is nothing to measure detections by".into()));
    }
    Ok(())
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0u32), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// .50, .55 ... .95, with the rounding that numpy's `linspace` gives them.
fn threshold(i: usize) -> f64 {
    if i + 1 == THRESHOLDS { 0.95 } else { 0.5 + i as f64 * ((0.95 - 0.5) / (THRESHOLDS - 1) as f64) }
}

/// One class in all pictures, for each range of areas.
fn of_class(class: u32, scenes: &[Scene]) -> [Class; 4] {
    let mut ranges: [Class; 4] = Default::default();
    for scene in scenes {
        let matching = Matching::of(class, scene);
        for (range, area) in ranges.iter_mut().zip(AREAS) {
            matching.within(area, range);
        }
    }
    for range in &mut ranges {
        // Stable: of equal scores the earlier picture's first.
        range.ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    }
    ranges
}

/// One class in one picture.
struct Matching {
    /// Score and area in pixels, best score first.
    detections: Vec<(f32, f64)>,
    /// Area in pixels; the crowds after the others.
    truths: Vec<f64>,
    crowds_from: usize,
    /// `overlaps[d][t]`.
    overlaps: Vec<Vec<f64>>,
}

impl Matching {
    fn of(class: u32, scene: &Scene) -> Matching {
        let (width, height) = (scene.size.0 as f64, scene.size.1 as f64);
        let of_class = |all: &[LabelledBox]| -> Vec<BoxF> {
            all.iter().filter(|truth| truth.class == class).map(|truth| truth.bounds).collect()
        };
        let mut truths = of_class(scene.truths);
        let crowds_from = truths.len();
        truths.extend(of_class(scene.crowds));
        let truths: Vec<Centred> = truths.iter().map(|bounds| scaled(bounds, width, height)).collect();
        let found = scene.detections.iter().filter(|d| d.class == class && !d.score.is_nan());
        let mut found: Vec<&Detection> = found.collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(DETECTIONS_MAX);
        let found: Vec<(f32, Centred)> =
            found.iter().map(|d| (d.score, scaled(&d.bounds, width, height))).collect();
        let overlap = |d: Centred, (t, truth): (usize, &Centred)| match t < crowds_from {
            true => iou(d, *truth),
            // The share of the detection that lies in the crowd.
            false => intersection(d, *truth) / (d[2] * d[3]),
        };
        Matching {
            overlaps: found
                .iter()
                .map(|(_, d)| truths.iter().enumerate().map(|truth| overlap(*d, truth)).collect())
                .collect(),
            detections: found.iter().map(|(score, d)| (*score, d[2] * d[3])).collect(),
            truths: truths.iter().map(|truth| truth[2] * truth[3]).collect(),
            crowds_from,
        }
    }

    /// Adds the detections and truths of one range of areas.
    fn within(&self, (least, most): (f64, f64), class: &mut Class) {
        let outside = |area: f64| area < least || area > most;
        let ignored = |t: usize| t >= self.crowds_from || outside(self.truths[t]);
        // Those that count first.
        let mut order: Vec<usize> = (0..self.truths.len()).collect();
        order.sort_by_key(|t| ignored(*t));
        class.truths += order.iter().filter(|t| !ignored(**t)).count();
        let mut outcomes = vec![[Outcome::Miss; THRESHOLDS]; self.detections.len()];
        for i in 0..THRESHOLDS {
            let mut taken = vec![false; self.truths.len()];
            for (d, outcomes) in outcomes.iter_mut().enumerate() {
                outcomes[i] = match self.choose(d, &order, &taken, threshold(i), ignored) {
                    Some(t) => {
                        taken[t] = true;
                        if ignored(t) { Outcome::Ignored } else { Outcome::Hit }
                    }
                    None if outside(self.detections[d].1) => Outcome::Ignored,
                    None => Outcome::Miss,
                };
            }
        }
        class
            .ranked
            .extend(self.detections.iter().zip(outcomes).map(|((score, _), outcome)| (*score, outcome)));
    }

    /// The truth that a detection overlaps most, of those that are free; one that counts before any that doesn't.
    fn choose(
        &self,
        d: usize,
        order: &[usize],
        taken: &[bool],
        threshold: f64,
        ignored: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut most = threshold.min(1.0 - 1e-10);
        let mut chosen: Option<usize> = None;
        for &t in order {
            if chosen.is_some_and(|c| !ignored(c)) && ignored(t) {
                break;
            }
            let free = !taken[t] || t >= self.crowds_from;
            if free && self.overlaps[d][t] >= most {
                most = self.overlaps[d][t];
                chosen = Some(t);
            }
        }
        chosen
    }
}

impl Class {
    /// The mean of the average precisions at some thresholds.
    fn precision(&self, thresholds: std::ops::Range<usize>) -> Option<f64> {
        (self.truths > 0).then(|| mean(thresholds.map(|i| self.average(i)))).flatten()
    }

    /// (Hits, detections that count) after each detection that counts.
    fn curve(&self, i: usize) -> Vec<(f64, f64)> {
        let counted = self.ranked.iter().filter(|(_, outcomes)| outcomes[i] != Outcome::Ignored);
        let sum = |state: &mut (f64, f64), (_, outcomes): &Ranked| {
            state.0 += f64::from(outcomes[i] == Outcome::Hit);
            state.1 += 1.0;
            Some(*state)
        };
        counted.scan((0.0, 0.0), sum).collect()
    }

    /// The average precision at threshold `i`.
    fn average(&self, i: usize) -> f64 {
        let curve = self.curve(i);
        let mut precisions: Vec<f64> =
            curve.iter().map(|(hits, found)| hits / (found + f64::EPSILON)).collect();
        for at in (1..precisions.len()).rev() {
            precisions[at - 1] = precisions[at - 1].max(precisions[at]);
        }
        let step = 1.0 / (RECALLS - 1) as f64;
        let recall = |r: usize| if r + 1 == RECALLS { 1.0 } else { r as f64 * step };
        let at = |r: usize| {
            let first = curve.partition_point(|(hits, _)| hits / (self.truths as f64) < recall(r));
            precisions.get(first).copied().unwrap_or(0.0)
        };
        (0..RECALLS).map(at).sum::<f64>() / RECALLS as f64
    }

    /// The share of the truths that are found, mean over the thresholds.
    fn recall(&self) -> f64 {
        let hits = |i: usize| self.ranked.iter().filter(|(_, outcomes)| outcomes[i] == Outcome::Hit).count();
        let found = (0..THRESHOLDS).map(hits).sum::<usize>();
        found as f64 / (THRESHOLDS * self.truths) as f64
    }

    fn named(&self, name: &str, best: Option<OperatingPoint>) -> ClassPrecision {
        let at_best = |(score, _): &&Ranked| best.is_some_and(|best| *score >= best.confidence);
        let count = |outcome: Outcome| {
            self.ranked.iter().filter(at_best).filter(|(_, outcomes)| outcomes[0] == outcome).count() as u64
        };
        let (hits, misses) = (count(Outcome::Hit), count(Outcome::Miss));
        let (predicted, support) = (hits + misses, self.truths as u64);
        let scores = Scores::of(hits, predicted, support);
        ClassPrecision {
            class: ClassScores { name: name.to_string(), scores, support, predicted },
            ap: self.precision(0..THRESHOLDS),
            ap50: self.precision(0..1),
        }
    }
}

/// The confidence with the best F1 of all classes together at IoU .5; the highest of equals.
fn best_f1(classes: &[&Class]) -> Option<OperatingPoint> {
    let truths = classes.iter().map(|class| class.truths as u64).sum();
    let all = classes.iter().flat_map(|class| &class.ranked);
    let counted = all.filter(|(_, outcomes)| outcomes[0] != Outcome::Ignored);
    let mut ranked: Vec<(f32, bool)> =
        counted.map(|(score, outcomes)| (*score, outcomes[0] == Outcome::Hit)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut found) = (0, 0);
    let mut best: Option<OperatingPoint> = None;
    for of_score in ranked.chunk_by(|a, b| a.0 == b.0) {
        hits += of_score.iter().filter(|(_, hit)| *hit).count() as u64;
        found += of_score.len() as u64;
        let scores = Scores::of(hits, found, truths);
        if best.is_none_or(|best| scores.f1 > best.scores.f1) {
            best = Some(OperatingPoint { confidence: of_score[0].0, scores });
        }
    }
    best
}
