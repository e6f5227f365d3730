//! Resizing, as the tools do it that models were trained with.
//!
//! - [`Resample::Bilinear`], [`Resample::Bicubic`]: Pillow 12's, to the byte. Each output pixel is the weighted mean of
//!   the pixels under a triangle (or cubic, a = -1/2) whose width grows with the reduction, so nothing aliases:
//!   w(x) ∝ k((x + 1/2 - c) / max(s, 1)), c = (i + 1/2) s, s = in / out; rows first, then columns, in fixed point.
//! - [`Resample::Plain`]: OpenCV's INTER_LINEAR, the two neighbours of (i + 1/2) s - 1/2.
//! - [`Resample::Darknet`]: darknet's, corner on corner: the two neighbours of i (in - 1) / (out - 1).

use serde::{Deserialize, Serialize};

use super::limits;
use super::picture::{Picture, Region};

/// How pixels are interpolated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    #[default]
    Bilinear,
    Bicubic,
    Plain,
    Darknet,
}

impl Picture {
    /// A copy of `width` x `height` pixels (both at least 1).
    pub fn resized(&self, width: usize, height: usize, resample: Resample) -> Picture {
        self.resized_region(self.whole(), width, height, resample)
    }

    /// A part of the picture, resized: the same as cutting it out and resizing that.
    pub fn resized_region(&self, region: Region, width: usize, height: usize, resample: Resample) -> Picture {
        assert!(width > 0 && height > 0 && region.width > 0 && region.height > 0, "a picture has pixels");
        match resample {
            Resample::Bilinear => antialiased(self, region, width, height, 1.0, triangle),
            Resample::Bicubic => antialiased(self, region, width, height, 2.0, cubic),
            _ if (region.width, region.height) == (width, height) => self.crop(region),
            Resample::Plain => two_taps(self, region, width, height, half_pixel),
            Resample::Darknet => two_taps(self, region, width, height, corner_on_corner),
        }
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Fixed point: a weight of 1 is 2^22, so that a sum of 8-bit values fits 32 bits.
const BITS: u32 = 22;

/// For each output pixel the first input pixel and the weights, all of them of one length (with zeros behind).
struct Weights {
    first: Vec<usize>,
    count: Vec<usize>,
    longest: usize,
    weights: Vec<i32>,
}

impl Weights {
    fn new(from: usize, to: usize, support: f64, kernel: fn(f64) -> f64) -> Weights {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = support * stretch;
        let longest = reach.ceil() as usize * 2 + 1;
        let mut w = Weights { first: Vec::new(), count: Vec::new(), longest, weights: vec![0; longest * to] };
        for i in 0..to {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let at = |x: usize| kernel(((x + first) as f64 - centre + 0.5) / stretch);
            let sum: f64 = (0..end - first).map(at).sum();
            for (x, out) in w.weights[i * longest..][..end - first].iter_mut().enumerate() {
                let share = if sum != 0.0 { at(x) / sum } else { at(x) };
                *out = (share * f64::from(1 << BITS) + 0.5f64.copysign(share)) as i32;
            }
            w.first.push(first);
            w.count.push(end - first);
        }
        w
    }

    /// First input pixel and weights of output pixel `i`.
    fn of(&self, i: usize) -> (usize, &[i32]) {
        (self.first[i], &self.weights[i * self.longest..][..self.count[i]])
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (BITS - 1);

fn antialiased(
    picture: &Picture,
    region: Region,
    width: usize,
    height: usize,
    support: f64,
    kernel: fn(f64) -> f64,
) -> Picture {
    let columns = (region.width != width).then(|| Weights::new(region.width, width, support, kernel));
    let rows = (region.height != height).then(|| Weights::new(region.height, height, support, kernel));
    match (columns, rows) {
        (Some(columns), Some(rows)) if width * region.height <= limits::PICTURE_PIXELS as usize => {
            down(&across(picture, region, &columns), &rows)
        }
        // A strip of a few pixels' width would become huge on the way.
        (Some(columns), Some(rows)) => {
            let low = down(&picture.crop(region), &rows);
            across(&low, low.whole(), &columns)
        }
        (Some(columns), None) => across(picture, region, &columns),
        (None, Some(rows)) => down(&picture.crop(region), &rows),
        (None, None) => picture.crop(region),
    }
}

/// Every row of a region resized.
fn across(picture: &Picture, region: Region, weights: &Weights) -> Picture {
    let width = weights.first.len();
    let mut out = Picture::filled(width, region.height, [0; 3]);
    for y in 0..region.height {
        let row = &picture.row(region.y + y)[3 * region.x..3 * (region.x + region.width)];
        for (x, pixel) in out.row_mut(y).chunks_exact_mut(3).enumerate() {
            let (first, weights) = weights.of(x);
            let mut sum = [HALF; 3];
            for (pixel, w) in row[3 * first..].chunks_exact(3).zip(weights) {
                for c in 0..3 {
                    sum[c] += i32::from(pixel[c]) * w;
                }
            }
            pixel.copy_from_slice(&sum.map(to_byte));
        }
    }
    out
}

/// Every column resized.
fn down(picture: &Picture, weights: &Weights) -> Picture {
    let height = weights.first.len();
    let mut data = Vec::with_capacity(3 * picture.width * height);
    let mut sums = vec![0; 3 * picture.width];
    for y in 0..height {
        let (first, weights) = weights.of(y);
        sums.fill(HALF);
        for (i, w) in weights.iter().enumerate() {
            for (sum, v) in sums.iter_mut().zip(picture.row(first + i)) {
                *sum += i32::from(*v) * w;
            }
        }
        data.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    Picture { width: picture.width, height, data }
}

/// An output pixel's left (upper) neighbour, its right one, and the share of the right one.
type Taps = (usize, usize, f32);

fn half_pixel(from: usize, to: usize, i: usize) -> Taps {
    let at = (i as f32 + 0.5) * (from as f64 / to as f64) as f32 - 0.5;
    let left = at.max(0.0) as usize;
    if left + 1 >= from { (from - 1, from - 1, 0.0) } else { (left, left + 1, at.max(0.0) - left as f32) }
}

fn corner_on_corner(from: usize, to: usize, i: usize) -> Taps {
    if from == 1 || i + 1 == to {
        return (from - 1, from - 1, 0.0);
    }
    let at = i as f32 * ((from - 1) as f32 / (to - 1) as f32);
    let left = (at as usize).min(from - 1);
    (left, (left + 1).min(from - 1), at - left as f32)
}

fn two_taps(
    picture: &Picture,
    region: Region,
    width: usize,
    height: usize,
    taps: fn(usize, usize, usize) -> Taps,
) -> Picture {
    let columns: Vec<Taps> = (0..width).map(|x| taps(region.width, width, x)).collect();
    let mut data = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let (top, bottom, down) = taps(region.height, height, y);
        let row = |y: usize| &picture.row(region.y + y)[3 * region.x..];
        let (top, bottom) = (row(top), row(bottom));
        for &(left, right, across) in &columns {
            for c in 0..3 {
                let between = |row: &[u8]| {
                    let (a, b) = (f32::from(row[3 * left + c]), f32::from(row[3 * right + c]));
                    (1.0 - across) * a + across * b
                };
                let (a, b) = (between(top), between(bottom));
                data.push(((1.0 - down) * a + down * b).round() as u8);
            }
        }
    }
    Picture { width, height, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::testing::{cases, made};

    /// Against Pillow and darknet's formula (to the byte) and OpenCV (whose fixed point is coarser: to one step).
    #[test]
    fn the_same_bytes_as_the_tools() {
        for case in cases("resize") {
            let (from, to) = (case.pair("from"), case.pair("to"));
            let resample: Resample = case.read("resample");
            let out = made(from.0, from.1).resized(to.0, to.1, resample);
            let most = out.data.iter().zip(case.bytes("rgb")).map(|(a, b)| a.abs_diff(b)).max();
            let allowed = if resample == Resample::Plain { 1 } else { 0 };
            assert_eq!(out.data.len(), case.bytes("rgb").len());
            assert!(most <= Some(allowed), "{from:?} to {to:?} {resample:?}: {most:?}");
        }
    }

    #[test]
    fn a_region_is_a_crop() {
        let p = made(23, 17);
        let region = Region { x: 3, y: 2, width: 11, height: 13 };
        for resample in [Resample::Bilinear, Resample::Bicubic, Resample::Plain, Resample::Darknet] {
            for (w, h) in [(5, 6), (11, 30), (40, 13), (1, 1), (11, 13)] {
                assert_eq!(p.resized_region(region, w, h, resample), p.crop(region).resized(w, h, resample));
            }
        }
    }

    #[test]
    fn one_colour_stays_one_colour() {
        let p = Picture::filled(13, 7, [250, 3, 128]);
        for resample in [Resample::Bilinear, Resample::Bicubic, Resample::Plain, Resample::Darknet] {
            for (w, h) in [(1, 1), (4, 3), (50, 20), (13, 1)] {
                assert_eq!(p.resized(w, h, resample), Picture::filled(w, h, [250, 3, 128]));
            }
        }
    }
}
