//! Parts, turns and rectangles: what of a picture is seen, without its colours.

use super::super::picture::{Picture, Region};
use crate::draws::Draws;

/// The part that a random resized crop takes: its area is a share of the picture's between the two of `scale`, its
/// shape e^u, u uniform between the logarithms of the two of `ratio`. Ten tries; then the largest middle part whose
/// shape is in the range (torchvision's RandomResizedCrop).
pub fn crop(picture: &Picture, scale: [f32; 2], ratio: [f32; 2], draws: &mut Draws) -> Region {
    let (w, h) = (picture.width as f32, picture.height as f32);
    for _ in 0..10 {
        let area = w * h * draws.between(scale[0], scale[1]);
        let shape = draws.between(ratio[0].ln(), ratio[1].ln()).exp();
        let (cw, ch) = ((area * shape).sqrt().round() as usize, (area / shape).sqrt().round() as usize);
        if cw > 0 && ch > 0 && cw <= picture.width && ch <= picture.height {
            let x = draws.below(picture.width - cw + 1);
            let y = draws.below(picture.height - ch + 1);
            return Region { x, y, width: cw, height: ch };
        }
    }
    let shape = w / h;
    let (cw, ch) = match () {
        () if shape < ratio[0] => (picture.width, (w / ratio[0]).round() as usize),
        () if shape > ratio[1] => ((h * ratio[1]).round() as usize, picture.height),
        () => (picture.width, picture.height),
    };
    let (cw, ch) = (cw.clamp(1, picture.width), ch.clamp(1, picture.height));
    Region { x: (picture.width - cw) / 2, y: (picture.height - ch) / 2, width: cw, height: ch }
}

/// Turned clockwise about the middle, interpolated between the four neighbours; what comes from outside the picture is
/// the nearest pixel of its border, so that no black corners betray the turn.
pub fn rotated(picture: &Picture, degrees: f32) -> Picture {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (w, h) = (picture.width, picture.height);
    let middle = [(w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0];
    let mut data = Vec::with_capacity(picture.data.len());
    for y in 0..h {
        for x in 0..w {
            let (dx, dy) = (x as f32 - middle[0], y as f32 - middle[1]);
            let from = [middle[0] + cos * dx + sin * dy, middle[1] - sin * dx + cos * dy];
            data.extend(between(picture, from));
        }
    }
    Picture { width: w, height: h, data }
}

/// The colour at a place between pixels.
fn between(picture: &Picture, [x, y]: [f32; 2]) -> [u8; 3] {
    let tap = |at: f32, size: usize| {
        let at = at.clamp(0.0, size as f32 - 1.0);
        let left = at as usize;
        (left, (left + 1).min(size - 1), at - left as f32)
    };
    let ((left, right, across), (top, bottom, down)) = (tap(x, picture.width), tap(y, picture.height));
    let corners =
        [(left, top), (right, top), (left, bottom), (right, bottom)].map(|(x, y)| picture.pixel(x, y));
    std::array::from_fn(|c| {
        let [a, b, d, e] = corners.map(|pixel| f32::from(pixel[c]));
        let (a, b) = (a + across * (b - a), d + across * (e - d));
        (a + down * (b - a)).round() as u8
    })
}

/// Random erasing (Zhong et al., 2020): a rectangle of 2 to 33 % of the area and a shape of 0.3 to 3.3 becomes the mean
/// colour of photos, 0 after normalisation. Nothing if ten tries give none that fits.
pub fn erase(picture: &mut Picture, draws: &mut Draws) {
    const MEAN: [u8; 3] = [124, 116, 104];
    let (w, h) = (picture.width as f32, picture.height as f32);
    for _ in 0..10 {
        let area = w * h * draws.between(0.02, 0.33);
        let shape = draws.between(0.3f32.ln(), 3.3f32.ln()).exp();
        let (ew, eh) = ((area * shape).sqrt().round() as usize, (area / shape).sqrt().round() as usize);
        if ew > 0 && eh > 0 && ew < picture.width && eh < picture.height {
            let (x, y) = (draws.below(picture.width - ew + 1), draws.below(picture.height - eh + 1));
            picture.put(&Picture::filled(ew, eh, MEAN), x as i64, y as i64, picture.whole());
            return;
        }
    }
}

/// CutMix's rectangle: sides sqrt(1 - lambda) of the picture's, about a uniform centre, cut at the border.
pub fn cutmix_region(width: usize, height: usize, lambda: f64, draws: &mut Draws) -> Region {
    let share = (1.0 - lambda).max(0.0).sqrt();
    let mut side = |size: usize| {
        let half = (size as f64 * share / 2.0) as usize;
        let centre = draws.below(size);
        let (from, to) = (centre.saturating_sub(half), (centre + half).min(size));
        (from, to - from)
    };
    let ((x, width), (y, height)) = (side(width), side(height));
    Region { x, y, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::testing::made;

    #[test]
    fn crops_have_the_area_and_shape_they_should() {
        let p = Picture::filled(200, 100, [0; 3]);
        let mut shares = Vec::new();
        for example in 0..300 {
            let r = crop(&p, [0.2, 0.6], [0.75, 4.0 / 3.0], &mut Draws::new(1, 0, example));
            assert!(r.x + r.width <= 200 && r.y + r.height <= 100);
            let shape = r.width as f32 / r.height as f32;
            assert!((0.72..1.38).contains(&shape), "{r:?}");
            shares.push((r.width * r.height) as f32 / 20_000.0);
        }
        assert!(shares.iter().all(|s| (0.19..0.61).contains(s)));
        assert!(shares.iter().any(|s| *s < 0.25) && shares.iter().any(|s| *s > 0.4));
        // No part of the right shape covers 0.9 of a strip: the middle.
        let r =
            crop(&Picture::filled(100, 10, [0; 3]), [0.9, 0.9], [0.75, 4.0 / 3.0], &mut Draws::new(1, 0, 0));
        assert_eq!(r, Region { x: 43, y: 0, width: 13, height: 10 });
        let one = Picture::filled(1, 1, [0; 3]);
        assert_eq!(crop(&one, [0.01, 0.02], [0.75, 1.3], &mut Draws::new(1, 0, 0)), one.whole());
    }

    #[test]
    fn turning_by_nothing_changes_nothing_and_by_quarters_moves_corners() {
        let p = made(9, 9);
        assert_eq!(rotated(&p, 0.0), p);
        let quarter = rotated(&p, 90.0);
        for (x, y) in [(0, 0), (3, 7), (8, 8)] {
            let (a, b) = (quarter.pixel(8 - y, x), p.pixel(x, y));
            assert!(a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 1), "{a:?} {b:?}");
        }
    }

    #[test]
    fn erased_and_cut_out_parts_have_the_right_size() {
        let mut p = Picture::filled(40, 30, [0; 3]);
        erase(&mut p, &mut Draws::new(3, 1, 4));
        let erased = p.data.chunks(3).filter(|p| p[0] == 124).count() as f32 / 1200.0;
        assert!((0.01..0.35).contains(&erased), "{erased}");
        let mut areas = 0;
        for example in 0..100 {
            let r = cutmix_region(40, 40, 0.75, &mut Draws::new(3, 1, example));
            assert!(r.x + r.width <= 40 && r.y + r.height <= 40 && r.width <= 20);
            areas = areas.max(r.width * r.height);
        }
        assert_eq!(areas, 400);
        assert_eq!(cutmix_region(40, 40, 1.0, &mut Draws::new(1, 0, 0)).width, 0);
    }
}
