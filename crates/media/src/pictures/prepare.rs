//! From a picture to what a network reads: fitted into the input's size, then (v / 255 - mean) / std, channel by channel.

use serde::{Deserialize, Serialize};

use super::boxes::Placement;
use super::picture::{Picture, Region};
use super::resize::Resample;

/// How a picture comes to the size of the network's input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Fit {
    /// The shorter side is resized to `shorter`, then the middle is cut out (torchvision's evaluation transform).
    Crop { shorter: usize },
    /// Both sides are resized, whatever becomes of the shape.
    Stretch,
    /// The whole picture, its shape kept, in the middle; what is left of the canvas is grey.
    Letterbox { style: Letterbox },
}

/// Whose letterbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Letterbox {
    /// Sizes are rounded down, the grey is 0.5 (128 of 255).
    Darknet,
    /// Sizes are rounded to the nearest, the grey is 114 of 255.
    Ultralytics,
}

impl Letterbox {
    /// The grey around the picture.
    pub fn fill(self) -> [u8; 3] {
        match self {
            Letterbox::Darknet => [128; 3],
            Letterbox::Ultralytics => [114; 3],
        }
    }

    /// Size of the picture on the canvas, and the left upper corner.
    fn place(self, picture: [usize; 2], canvas: [usize; 2]) -> ([usize; 2], [usize; 2]) {
        let [pw, ph] = picture;
        let [cw, ch] = canvas;
        match self {
            Letterbox::Darknet => {
                let size =
                    if cw * ph < ch * pw { [cw, ph * cw / pw] } else { [pw * ch / ph, ch] }.map(|v| v.max(1));
                (size, [(cw - size[0]) / 2, (ch - size[1]) / 2])
            }
            Letterbox::Ultralytics => {
                let scale = (ch as f64 / ph as f64).min(cw as f64 / pw as f64);
                let size =
                    |v: usize, most: usize| ((v as f64 * scale).round_ties_even() as usize).clamp(1, most);
                let size = [size(pw, cw), size(ph, ch)];
                // Half a pixel left over goes to the right and the bottom.
                let offset = |canvas: usize, size: usize| {
                    ((canvas - size) as f64 / 2.0 - 0.1).max(0.0).round() as usize
                };
                (size, [offset(cw, size[0]), offset(ch, size[1])])
            }
        }
    }
}

/// Order of the channels that a network reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    #[default]
    Rgb,
    Bgr,
}

/// (v / 255 - mean) / std; mean and std are of red, green and blue, whatever the order of the channels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Normalise {
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub channels: Channels,
}

impl Default for Normalise {
    /// v / 255 in RGB order.
    fn default() -> Normalise {
        Normalise { mean: [0.0; 3], std: [1.0; 3], channels: Channels::Rgb }
    }
}

impl Normalise {
    /// The means and deviations of ImageNet that torchvision's models were trained with.
    pub const IMAGENET: Normalise =
        Normalise { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], channels: Channels::Rgb };

    /// (v - 127) / 128, as EfficientNet-Lite reads it.
    pub const EFFICIENTNET_LITE: Normalise =
        Normalise { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3], channels: Channels::Rgb };

    /// Fills `out` (`3 * width * height` numbers) with the pixels, `[height * width, 3]`.
    pub fn write(&self, picture: &Picture, out: &mut [f32]) {
        let table: [[f32; 256]; 3] =
            std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - self.mean[c]) / self.std[c]));
        let order = if self.channels == Channels::Bgr { [2, 1, 0] } else { [0, 1, 2] };
        assert_eq!(
            out.len(),
            picture.data.len(),
            "numbers of a {} x {} picture",
            picture.width,
            picture.height
        );
        for (out, pixel) in out.chunks_exact_mut(3).zip(picture.data.chunks_exact(3)) {
            for (out, c) in out.iter_mut().zip(order) {
                *out = table[c][usize::from(pixel[c])];
            }
        }
    }

    /// The pixels as `[height * width, 3]`.
    pub fn rows(&self, picture: &Picture) -> Vec<f32> {
        let mut out = vec![0.0; picture.data.len()];
        self.write(picture, &mut out);
        out
    }
}

/// From this ratio of the sides on a picture is a strip.
const LONGEST: usize = 16;

/// What a network wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    pub width: usize,
    pub height: usize,
    pub fit: Fit,
    #[serde(default)]
    pub resample: Resample,
    #[serde(default)]
    pub normalise: Normalise,
}

impl Prepare {
    /// torchvision's evaluation transform: the shorter side to `shorter`, the middle `size` x `size`, ImageNet's means.
    pub fn torchvision(shorter: usize, size: usize) -> Prepare {
        let fit = Fit::Crop { shorter };
        Prepare {
            width: size,
            height: size,
            fit,
            resample: Resample::Bilinear,
            normalise: Normalise::IMAGENET,
        }
    }

    /// darknet's: a letterbox on grey, v / 255.
    pub fn darknet(width: usize, height: usize) -> Prepare {
        let fit = Fit::Letterbox { style: Letterbox::Darknet };
        Prepare { width, height, fit, resample: Resample::Darknet, normalise: Normalise::default() }
    }

    /// Ultralytics': a letterbox on grey 114, v / 255.
    pub fn ultralytics(size: usize) -> Prepare {
        let fit = Fit::Letterbox { style: Letterbox::Ultralytics };
        Prepare { width: size, height: size, fit, resample: Resample::Plain, normalise: Normalise::default() }
    }

    /// The picture in the input's size, and where it lies there. Sizes must not be 0.
    pub fn fit(&self, picture: &Picture) -> (Picture, Placement) {
        let (from, to) = ([picture.width, picture.height], [self.width, self.height]);
        match self.fit {
            Fit::Stretch => {
                let out = picture.resized(self.width, self.height, self.resample);
                (out, placement(from, to, to, [0.0; 2]))
            }
            Fit::Crop { shorter } => self.cropped(picture, shorter),
            Fit::Letterbox { style } => {
                let (size, at) = style.place(from, to);
                let mut out = Picture::filled(self.width, self.height, style.fill());
                let small = picture.resized(size[0], size[1], self.resample);
                out.put(&small, at[0] as i64, at[1] as i64, out.whole());
                (out, placement(from, to, size, at.map(|v| v as f32)))
            }
        }
    }

    /// The middle of the picture whose shorter side is `shorter`; a side that is too short gets black borders.
    fn cropped(&self, picture: &Picture, shorter: usize) -> (Picture, Placement) {
        let (w, h) = (picture.width, picture.height);
        if w.max(h) > LONGEST * w.min(h) {
            return self.middle(picture, shorter);
        }
        // torchvision: the longer side is rounded down.
        let size = if w <= h { [shorter, shorter * h / w] } else { [shorter * w / h, shorter] };
        let small = picture.resized(size[0], size[1], self.resample);
        let offset = |size: usize, to: usize| {
            let room = size as f64 - to as f64;
            // Borders are split with the smaller half first, cuts are rounded half to even, as torchvision does.
            if room < 0.0 { (-room / 2.0).floor() as i64 } else { -((room / 2.0).round_ties_even() as i64) }
        };
        let at = [offset(size[0], self.width), offset(size[1], self.height)];
        let mut out = Picture::filled(self.width, self.height, [0; 3]);
        out.put(&small, at[0], at[1], Region { x: 0, y: 0, width: self.width, height: self.height });
        (out, placement([w, h], [self.width, self.height], size, at.map(|v| v as f32)))
    }

    /// [`Prepare::cropped`] of a strip: only its middle can be seen, and the whole would become huge.
    fn middle(&self, picture: &Picture, shorter: usize) -> (Picture, Placement) {
        let (w, h) = (picture.width, picture.height);
        let most = LONGEST * w.min(h);
        let (width, height) = (w.min(most), h.min(most));
        let part = Region { x: (w - width) / 2, y: (h - height) / 2, width, height };
        let (out, mut placement) = self.cropped(&picture.crop(part), shorter);
        placement.picture = [w, h];
        placement.offset[0] -= part.x as f32 * placement.scale[0];
        placement.offset[1] -= part.y as f32 * placement.scale[1];
        (out, placement)
    }

    /// The network's numbers, `[height * width, 3]`, and where the picture lies among them.
    pub fn rows(&self, picture: &Picture) -> (Vec<f32>, Placement) {
        let (fitted, placement) = self.fit(picture);
        (self.normalise.rows(&fitted), placement)
    }
}

/// A picture resized to `size` whose left upper corner lies at `offset`.
fn placement(picture: [usize; 2], canvas: [usize; 2], size: [usize; 2], offset: [f32; 2]) -> Placement {
    let scale = std::array::from_fn(|axis| size[axis] as f32 / picture[axis] as f32);
    Placement { picture, canvas, scale, offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::boxes::BoxF;
    use crate::pictures::testing::{cases, made};

    #[test]
    fn the_same_numbers_as_torchvision() {
        for case in cases("torchvision") {
            let (from, shorter, size) = (case.pair("from"), case.number("shorter"), case.number("size"));
            let (rows, _) = Prepare::torchvision(shorter, size).rows(&made(from.0, from.1));
            let expected = case.numbers("rows");
            assert_eq!(rows.len(), expected.len());
            for (a, b) in rows.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5, "{from:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn letterboxes_lie_where_the_tools_put_them() {
        for case in cases("letterbox") {
            let (from, to) = (case.pair("from"), case.pair("to"));
            let (size, at) = case.read::<Letterbox>("style").place([from.0, from.1], [to.0, to.1]);
            assert_eq!((size, at), (case.read("size"), case.read("at")), "{from:?} in {to:?}");
        }
    }

    #[test]
    fn boxes_go_with_the_picture() {
        let p = made(60, 40);
        let b = BoxF::from_pixels([6.0, 4.0, 30.0, 36.0], 60, 40);
        for (prepare, expected) in [
            (Prepare::darknet(32, 32), [3.2, 7.1, 16.0, 23.9]),
            (Prepare { fit: Fit::Stretch, ..Prepare::darknet(30, 80) }, [3.0, 8.0, 15.0, 72.0]),
            (Prepare::torchvision(20, 20), [-2.0, 2.0, 10.0, 18.0]),
        ] {
            let (_, placement) = prepare.fit(&p);
            let there = placement.to_canvas(b);
            for (a, e) in there.to_pixels(prepare.width, prepare.height).iter().zip(expected) {
                assert!((a - e).abs() < 0.3, "{prepare:?}: {a} {e}");
            }
            let back = placement.to_picture(there);
            assert!(back.iou(&b) > 0.9999);
        }
    }

    #[test]
    fn grey_fills_and_channels_turn() {
        let (out, _) = Prepare::darknet(40, 40).fit(&Picture::filled(40, 10, [1, 2, 3]));
        assert_eq!((out.pixel(0, 0), out.pixel(0, 20), out.pixel(39, 39)), ([128; 3], [1, 2, 3], [128; 3]));
        let bgr = Normalise { mean: [0.0; 3], std: [1.0 / 255.0; 3], channels: Channels::Bgr };
        let rows = bgr.rows(&Picture::filled(1, 1, [1, 2, 3]));
        assert!(rows.iter().zip([3.0, 2.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-5));
        // Thinner than a pixel, in every fit: still a picture.
        let thin = Picture::filled(2000, 1, [7; 3]);
        for fit in [Fit::Stretch, Fit::Crop { shorter: 8 }, Fit::Letterbox { style: Letterbox::Ultralytics }]
        {
            let (out, _) = Prepare { fit, ..Prepare::darknet(8, 8) }.fit(&thin);
            assert!(out.data.contains(&7));
        }
    }
}
