//! Colours changed as Pillow and torchvision change them: brightness, contrast, saturation, hue.
//!
//! The first three blend with a degenerate picture d: v' = d + f (v - d), cut to 0 … 255 and rounded down, where d is
//! black, the mean grey of the picture, or the pixel's own grey; grey = (19595 r + 38470 g + 7471 b + 2^15) / 2^16. The
//! hue h of (h, s, v) becomes h + shift, on a circle of length 1.

use super::super::picture::Picture;
use super::Jitter;
use crate::draws::Draws;

/// All of it, in this order, with factors drawn between 1 - v and 1 + v.
pub fn jitter(picture: &mut Picture, jitter: &Jitter, mut draws: Draws) {
    // All four are drawn, so that switching one off does not change the others.
    let mut around = |v: f32, middle: f32| draws.between(middle - v, middle + v);
    let factors = [
        around(jitter.brightness, 1.0),
        around(jitter.contrast, 1.0),
        around(jitter.saturation, 1.0),
        around(jitter.hue, 0.0),
    ];
    if jitter.brightness > 0.0 {
        brightness(picture, factors[0]);
    }
    if jitter.contrast > 0.0 {
        contrast(picture, factors[1]);
    }
    if jitter.saturation > 0.0 {
        saturation(picture, factors[2]);
    }
    if jitter.hue > 0.0 {
        hue(picture, factors[3]);
    }
}

fn grey(pixel: &[u8]) -> u8 {
    let [r, g, b] = [u32::from(pixel[0]), u32::from(pixel[1]), u32::from(pixel[2])];
    ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
}

fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // `as` cuts to 0 … 255 and rounds down.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

/// Blends with black.
pub fn brightness(picture: &mut Picture, factor: f32) {
    let table: [u8; 256] = std::array::from_fn(|v| blend(0, v as u8, factor));
    picture.data.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// Blends with the picture's mean grey.
pub fn contrast(picture: &mut Picture, factor: f32) {
    let sum: u64 = picture.data.chunks_exact(3).map(|p| u64::from(grey(p))).sum();
    let pixels = (picture.data.len() / 3).max(1);
    let mean = (sum as f64 / pixels as f64 + 0.5) as u8;
    let table: [u8; 256] = std::array::from_fn(|v| blend(mean, v as u8, factor));
    picture.data.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// Blends with the grey picture.
pub fn saturation(picture: &mut Picture, factor: f32) {
    for pixel in picture.data.chunks_exact_mut(3) {
        let grey = grey(pixel);
        pixel.iter_mut().for_each(|v| *v = blend(grey, *v, factor));
    }
}

/// Turns the hue by a share of the circle.
pub fn hue(picture: &mut Picture, shift: f32) {
    for pixel in picture.data.chunks_exact_mut(3) {
        let (h, s, v) = to_hsv([pixel[0], pixel[1], pixel[2]].map(|v| f32::from(v) / 255.0));
        let rgb = to_rgb((h + shift).rem_euclid(1.0), s, v);
        for (out, v) in pixel.iter_mut().zip(rgb) {
            *out = (v * 255.0).round() as u8;
        }
    }
}

fn to_hsv([r, g, b]: [f32; 3]) -> (f32, f32, f32) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = most - least;
    if range == 0.0 {
        return (0.0, 0.0, most);
    }
    let sixth = match () {
        () if most == r => (g - b) / range,
        () if most == g => 2.0 + (b - r) / range,
        () => 4.0 + (r - g) / range,
    };
    ((sixth / 6.0).rem_euclid(1.0), range / most, most)
}

fn to_rgb(h: f32, s: f32, v: f32) -> [f32; 3] {
    let sixth = (h * 6.0).floor();
    let f = h * 6.0 - sixth;
    let (p, q, t) = (v * (1.0 - s), v * (1.0 - s * f), v * (1.0 - s * (1.0 - f)));
    match sixth as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::testing::{cases, made};

    #[test]
    fn the_same_colours_as_pillow_and_torchvision() {
        for case in cases("colour") {
            let (kind, by): (String, f32) = (case.read("kind"), case.read("by"));
            let mut p = made(12, 9);
            let allowed = match kind.as_str() {
                "brightness" => (brightness(&mut p, by), 0),
                "contrast" => (contrast(&mut p, by), 0),
                "saturation" => (saturation(&mut p, by), 0),
                _ => (hue(&mut p, by), 1),
            };
            let most = p.data.iter().zip(case.bytes("rgb")).map(|(a, b)| a.abs_diff(b)).max();
            assert!(most <= Some(allowed.1), "{kind} {by}: {most:?}");
        }
    }

    #[test]
    fn jitter_of_nothing_changes_nothing_and_each_part_stands_alone() {
        let p = made(8, 8);
        let changed = |settings: Jitter| {
            let mut q = p.clone();
            jitter(&mut q, &settings, Draws::new(1, 2, 3));
            q
        };
        assert_eq!(changed(Jitter::default()), p);
        let brightness_alone = Jitter { brightness: 0.5, ..Jitter::default() };
        let mut both = changed(brightness_alone);
        assert_ne!(both, p);
        jitter(&mut both, &Jitter { hue: 0.3, ..Jitter::default() }, Draws::new(1, 2, 3));
        assert_eq!(both, changed(Jitter { hue: 0.3, ..brightness_alone }));
    }
}
