//! Settings of tasks that learn from pictures.

use serde::{Deserialize, Serialize};

/// Which changes pictures go through, anew in every epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AugmentPreset {
    /// The standard ones, unless a part of the network is frozen whose values are then kept from epoch to epoch.
    #[default]
    Auto,
    None,
    Standard,
}

impl AugmentPreset {
    /// As it is written.
    pub const NAMES: &[&str] = &["auto", "none", "standard"];
}

/// Settings of `[augment]`; what is `None` is as the preset says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    pub preset: AugmentPreset,
    pub flip: Option<f64>,
    pub flip_vertical: Option<f64>,
    /// Least share of the area that is cut out.
    pub crop: Option<f64>,
    pub rotate: Option<f64>,
    pub brightness: Option<f64>,
    pub contrast: Option<f64>,
    pub saturation: Option<f64>,
    pub hue: Option<f64>,
    pub erase: Option<f64>,
    pub mixup: Option<f64>,
    pub cutmix: Option<f64>,
    pub mosaic: Option<f64>,
    /// Sizes between 1 - zoom and 1 + zoom.
    pub zoom: Option<f64>,
    pub translate: Option<f64>,
}

impl Augment {
    /// What is done to pictures; `None`: nothing. `standard` is the task's own choice, `cacheable` whether something is frozen that could be kept.
    pub fn resolve(
        &self,
        standard: retune_media::pictures::augment::Augment,
        cacheable: bool,
    ) -> Option<retune_media::pictures::augment::Augment> {
        let given = *self != Augment { preset: self.preset, ..Augment::default() };
        let mut a = match self.preset {
            AugmentPreset::Standard => standard,
            AugmentPreset::Auto if !cacheable && !given => standard,
            AugmentPreset::Auto | AugmentPreset::None => retune_media::pictures::augment::Augment::none(),
        };
        let set = |to: &mut f32, from: Option<f64>| {
            if let Some(x) = from {
                *to = x as f32;
            }
        };
        set(&mut a.flip, self.flip);
        set(&mut a.flip_vertical, self.flip_vertical);
        set(&mut a.crop_scale[0], self.crop);
        set(&mut a.rotate, self.rotate);
        set(&mut a.jitter.brightness, self.brightness);
        set(&mut a.jitter.contrast, self.contrast);
        set(&mut a.jitter.saturation, self.saturation);
        set(&mut a.jitter.hue, self.hue);
        set(&mut a.erase, self.erase);
        set(&mut a.mixup, self.mixup);
        set(&mut a.cutmix, self.cutmix);
        set(&mut a.mosaic, self.mosaic);
        set(&mut a.translate, self.translate);
        if let Some(zoom) = self.zoom {
            a.scale = [1.0 - zoom as f32, 1.0 + zoom as f32];
        }
        Some(a).filter(|a| !a.is_none())
    }
}
