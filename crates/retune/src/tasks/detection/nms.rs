//! Non-maximum suppression: of boxes that overlap, the one with the highest score stays.
//!
//! Greedy, best score first; among equal scores the lower class, then the earlier one. The order of the result is that order.

use super::overlap::{Centred, iou, scaled};
use super::{BoxF, Detection};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nms {
    /// A box goes if it overlaps a kept one by more (IoU).
    pub overlap: f32,
    /// Whether boxes of other classes suppress each other too.
    pub across_classes: bool,
    /// Whether a box is told of its best class alone, or of each that scores enough.
    pub best_class: bool,
    /// Most boxes kept of a picture.
    pub detections_max: usize,
    /// Most boxes looked at, the best ones.
    pub candidates_max: usize,
}

impl Default for Nms {
    fn default() -> Nms {
        Nms {
            overlap: 0.45,
            across_classes: false,
            best_class: false,
            detections_max: 300,
            candidates_max: 30_000,
        }
    }
}

/// The detections of one picture that stay. A score that is NaN never does.
pub fn nms(mut candidates: Vec<Detection>, settings: &Nms) -> Vec<Detection> {
    candidates.retain(|candidate| !candidate.score.is_nan());
    if settings.best_class {
        // The classes of a box follow each other.
        let best =
            |box_: &[Detection]| box_.iter().copied().reduce(|a, b| if b.score > a.score { b } else { a });
        candidates = candidates.chunk_by(|a, b| a.bounds == b.bounds).filter_map(best).collect();
    }
    // Stable: equals stay in their order.
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.class.cmp(&b.class)));
    candidates.truncate(settings.candidates_max);
    let mut kept: Vec<(Detection, Centred)> = Vec::new();
    for candidate in candidates {
        if kept.len() >= settings.detections_max {
            break;
        }
        let bounds = unit(&candidate.bounds);
        let beaten = kept.iter().any(|(other, theirs)| {
            (settings.across_classes || other.class == candidate.class)
                && iou(bounds, *theirs) > f64::from(settings.overlap)
        });
        if !beaten {
            kept.push((candidate, bounds));
        }
    }
    kept.into_iter().map(|(detection, _)| detection).collect()
}

fn unit(bounds: &BoxF) -> Centred {
    scaled(bounds, 1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: f32, class: u32, score: f32) -> Detection {
        Detection { class, score, bounds: BoxF { x, y: 0.5, w: 0.2, h: 0.2 } }
    }

    #[test]
    fn the_best_of_each_class_stays() {
        // Overlaps: .50 and .51 by .905, .50 and .56 by .538, .51 and .56 by .6.
        let all = vec![at(0.51, 0, 0.8), at(0.5, 0, 0.9), at(0.56, 0, 0.7), at(0.5, 1, 0.6), at(0.9, 0, 0.1)];
        let kept = |settings: Nms| nms(all.clone(), &settings).iter().map(|d| d.score).collect::<Vec<_>>();
        assert_eq!(kept(Nms::default()), [0.9, 0.6, 0.1]);
        assert_eq!(kept(Nms { overlap: 0.55, ..Nms::default() }), [0.9, 0.7, 0.6, 0.1]);
        assert_eq!(kept(Nms { across_classes: true, ..Nms::default() }), [0.9, 0.1]);
        assert_eq!(kept(Nms { best_class: true, ..Nms::default() }), [0.9, 0.6, 0.1]);
        assert_eq!(kept(Nms { detections_max: 2, ..Nms::default() }), [0.9, 0.6]);
        assert_eq!(kept(Nms { candidates_max: 2, ..Nms::default() }), [0.9]);
    }

    #[test]
    fn of_the_classes_of_one_box_the_best_may_stay_alone() {
        let all = vec![at(0.5, 0, 0.6), at(0.5, 1, 0.8), at(0.5, 2, 0.7), at(0.9, 0, 0.3)];
        assert_eq!(nms(all.clone(), &Nms::default()).len(), 4);
        let kept = nms(all, &Nms { best_class: true, ..Nms::default() });
        assert_eq!(kept, [at(0.5, 1, 0.8), at(0.9, 0, 0.3)]);
    }

    #[test]
    fn ties_and_nan() {
        let all = vec![at(0.5, 1, 0.5), at(0.51, 0, 0.5), at(0.5, 0, 0.5), at(0.1, 0, f32::NAN)];
        let kept = nms(all, &Nms::default());
        assert_eq!(kept, [at(0.51, 0, 0.5), at(0.5, 1, 0.5)]);
    }

    /// Against the definition: a box stays if no kept box before it overlaps it.
    #[test]
    fn thousands_of_boxes() {
        let stream = retune_tensor::rng::Stream::new(7, 1);
        let draw = |i: u64| stream.uniform(i);
        let all: Vec<Detection> = (0..2000)
            .map(|i| Detection {
                class: (draw(6 * i) * 4.0) as u32,
                score: draw(6 * i + 1),
                bounds: BoxF {
                    x: draw(6 * i + 2),
                    y: draw(6 * i + 3),
                    w: 0.05 + 0.2 * draw(6 * i + 4),
                    h: 0.05 + 0.2 * draw(6 * i + 5),
                },
            })
            .collect();
        let settings = Nms { detections_max: usize::MAX, ..Nms::default() };
        let kept = nms(all.clone(), &settings);
        assert!(kept.len() > 100 && kept.windows(2).all(|w| w[0].score >= w[1].score));
        for one in &all {
            let beaten = kept.iter().any(|other| {
                other != one
                    && other.class == one.class
                    && other.score >= one.score
                    && iou(unit(&one.bounds), unit(&other.bounds)) > 0.45f32.into()
            });
            assert_ne!(beaten, kept.contains(one));
        }
    }
}
