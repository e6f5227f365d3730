//! Augmentation: the settings with their ranges and defaults, and what happens to an example in which order.
//!
//! Every number is a function of (seed, epoch, example): see [`Key`]. docs/pictures.md has each formula.

mod classify;
pub mod colour;
mod detect;
mod geometry;

use serde::{Deserialize, Serialize};

use crate::draws::Draws;
pub use classify::{Mixed, example as classify_example};
pub use detect::example as detect_example;

/// What decides all random numbers of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's.
    pub seed: u64,
    pub epoch: u64,
    /// Index of the example in the training data.
    pub example: usize,
}

impl Key {
    /// The draws of a purpose.
    fn draws(self, purpose: &str) -> Draws {
        Draws::new(self.seed, self.epoch, self.example as u64).stream(purpose)
    }
}

/// Which augmentations, and how strong. Probabilities and shares are 0 to 1; 0 (or `[1, 1]`) switches one off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Probability that left and right change places.
    pub flip: f32,
    /// Probability that top and bottom change places.
    pub flip_vertical: f32,
    /// Classification: the share of the picture's area that is cut out, between these two; 0.01 to 1.
    pub crop_scale: [f32; 2],
    /// Classification: width over height of the part, between these two; 0.1 to 10.
    pub crop_ratio: [f32; 2],
    /// Classification: turned by up to this many degrees to either side; 0 to 45.
    pub rotate: f32,
    /// Colours.
    pub jitter: Jitter,
    /// Classification: probability that a rectangle is erased.
    pub erase: f32,
    /// Classification: alpha of mixup's Beta(alpha, alpha); 0 to 10, 0 is off.
    pub mixup: f32,
    /// Classification: alpha of CutMix's; 0 to 10, 0 is off. With both, each takes half of the examples.
    pub cutmix: f32,
    /// Detection: probability of a mosaic of four pictures.
    pub mosaic: f32,
    /// Detection: the picture's size relative to its letterbox, between these two; 0.1 to 4.
    pub scale: [f32; 2],
    /// Detection: moved by up to this share of the input's side; 0 to 0.5.
    pub translate: f32,
}

/// How much colours may change: a factor between 1 - v and 1 + v, or a turn of the hue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jitter {
    /// Of all channels; 0 to 1.
    pub brightness: f32,
    /// Of the distance from the mean grey; 0 to 1.
    pub contrast: f32,
    /// Of the distance from a pixel's own grey; 0 to 1.
    pub saturation: f32,
    /// Turned by up to this share of the circle; 0 to 0.5.
    pub hue: f32,
}

impl Default for Augment {
    fn default() -> Augment {
        Augment::none()
    }
}

impl Augment {
    /// Nothing at all: the pictures as evaluation sees them.
    pub fn none() -> Augment {
        Augment {
            flip: 0.0,
            flip_vertical: 0.0,
            crop_scale: [1.0; 2],
            crop_ratio: [0.75, 4.0 / 3.0],
            rotate: 0.0,
            jitter: Jitter::default(),
            erase: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
            mosaic: 0.0,
            scale: [1.0; 2],
            translate: 0.0,
        }
    }

    /// For classifiers that are fine-tuned on some hundreds or thousands of photos.
    pub fn classify() -> Augment {
        let jitter = Jitter { brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.02 };
        Augment { flip: 0.5, crop_scale: [0.35, 1.0], jitter, ..Augment::none() }
    }

    /// For detectors.
    pub fn detect() -> Augment {
        let jitter = Jitter { brightness: 0.4, contrast: 0.0, saturation: 0.5, hue: 0.015 };
        Augment { flip: 0.5, jitter, mosaic: 0.5, scale: [0.5, 1.5], translate: 0.1, ..Augment::none() }
    }

    /// Without what mixes examples, for the last epochs of a run: a detector should end on whole pictures.
    pub fn without_mixing(&self) -> Augment {
        Augment { mixup: 0.0, cutmix: 0.0, mosaic: 0.0, ..self.clone() }
    }

    /// True if every example comes out as it went in.
    pub fn is_none(&self) -> bool {
        *self == Augment { crop_ratio: self.crop_ratio, ..Augment::none() }
    }

    /// Holds every setting to its range.
    ///
    /// # Errors
    /// One line for each setting that is outside.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let mut value = |name: &str, v: f32, most: f32| {
            if !(0.0..=most).contains(&v) {
                problems.push(format!("`{name}` is {v}; it must be between 0 and {most}"));
            }
        };
        value("flip", self.flip, 1.0);
        value("flip_vertical", self.flip_vertical, 1.0);
        value("rotate", self.rotate, 45.0);
        value("jitter.brightness", self.jitter.brightness, 1.0);
        value("jitter.contrast", self.jitter.contrast, 1.0);
        value("jitter.saturation", self.jitter.saturation, 1.0);
        value("jitter.hue", self.jitter.hue, 0.5);
        value("erase", self.erase, 1.0);
        value("mixup", self.mixup, 10.0);
        value("cutmix", self.cutmix, 10.0);
        value("mosaic", self.mosaic, 1.0);
        value("translate", self.translate, 0.5);
        let mut range = |name: &str, [low, high]: [f32; 2], least: f32, most: f32| {
            if !(least <= low && low <= high && high <= most) {
                problems.push(format!(
                    "`{name}` is [{low}, {high}]; it must be [low, high] with {least} <= low <= high <= {most}"
                ));
            }
        };
        range("crop_scale", self.crop_scale, 0.01, 1.0);
        range("crop_ratio", self.crop_ratio, 0.1, 10.0);
        range("scale", self.scale, 0.1, 4.0);
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_held() {
        for good in [Augment::none(), Augment::classify(), Augment::detect()] {
            assert_eq!(good.check(), Ok(()));
            let text = serde_json::to_string(&good).unwrap();
            assert_eq!(serde_json::from_str::<Augment>(&text).unwrap(), good);
        }
        assert!(Augment::none().is_none() && !Augment::detect().is_none());
        let bad = Augment { flip: f32::NAN, scale: [2.0, 1.0], crop_scale: [0.0, 1.0], ..Augment::none() };
        let problems = bad.check().unwrap_err();
        assert!(
            problems.len() == 3 && problems[0].contains("flip") && problems[2].contains("[2, 1]"),
            "{problems:?}"
        );
        assert!(serde_json::from_str::<Augment>("{\"flpi\": 1}").is_err());
    }
}
