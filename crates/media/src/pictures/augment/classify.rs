//! A classification example: random resized crop (or the evaluation's fit), flips, turn, colours, erasing, then mixup or
//! CutMix with another example.
//!
//! mixup (Zhang et al., 2018): v = lambda a + (1 - lambda) b, labels likewise, lambda ~ Beta(alpha, alpha). CutMix (Yun
//! et al., 2019): a rectangle of b lies in a; lambda is the share of a that is seen.

use std::borrow::Borrow;

use super::super::picture::Picture;
use super::super::prepare::Prepare;
use super::{Augment, Key, colour, geometry};

/// A picture in the input's size, and whose labels it bears: (example, weight), the weights' sum is 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    pub picture: Picture,
    pub labels: Vec<(usize, f32)>,
}

/// Augments an example. `load` decodes the pictures that are needed: this one, and perhaps one other of `examples`.
pub fn example<P: Borrow<Picture>, E>(
    settings: &Augment,
    prepare: &Prepare,
    key: Key,
    examples: usize,
    mut load: impl FnMut(usize) -> Result<P, E>,
) -> Result<Mixed, E> {
    let mut picture = single(settings, prepare, key, load(key.example)?.borrow());
    let mut labels = vec![(key.example, 1.0)];
    if let Some((kind, lambda, other)) = partner(settings, key, examples) {
        // The other one is augmented as itself, but not as it is in its own place of the epoch.
        let theirs = Key { example: other, seed: key.seed ^ ((key.example as u64 + 1) << 32), ..key };
        let second = single(settings, prepare, theirs, load(other)?.borrow());
        let kept = match kind {
            Mixing::Mixup => mixup(&mut picture, &second, lambda),
            Mixing::CutMix => cutmix(&mut picture, &second, lambda, key),
        };
        labels = vec![(key.example, kept), (other, 1.0 - kept)];
    }
    Ok(Mixed { picture, labels })
}

/// One picture by itself.
fn single(settings: &Augment, prepare: &Prepare, key: Key, picture: &Picture) -> Picture {
    let mut out = if settings.crop_scale == [1.0; 2] {
        prepare.fit(picture).0
    } else {
        let region =
            geometry::crop(picture, settings.crop_scale, settings.crop_ratio, &mut key.draws("crop"));
        picture.resized_region(region, prepare.width, prepare.height, prepare.resample)
    };
    if key.draws("flip").chance(settings.flip) {
        out.flip_horizontal();
    }
    if key.draws("flip_vertical").chance(settings.flip_vertical) {
        out.flip_vertical();
    }
    if settings.rotate > 0.0 {
        out = geometry::rotated(&out, key.draws("rotate").between(-settings.rotate, settings.rotate));
    }
    colour::jitter(&mut out, &settings.jitter, key.draws("jitter"));
    let mut draws = key.draws("erase");
    if draws.chance(settings.erase) {
        geometry::erase(&mut out, &mut draws);
    }
    out
}

enum Mixing {
    Mixup,
    CutMix,
}

/// With whom an example is mixed, how, and the share that it keeps.
fn partner(settings: &Augment, key: Key, examples: usize) -> Option<(Mixing, f32, usize)> {
    let mut draws = key.draws("mix");
    let half = draws.chance(0.5);
    let (kind, alpha) = match (settings.mixup > 0.0, settings.cutmix > 0.0) {
        (false, false) => return None,
        (true, true) if half => (Mixing::CutMix, settings.cutmix),
        (true, _) => (Mixing::Mixup, settings.mixup),
        (false, true) => (Mixing::CutMix, settings.cutmix),
    };
    let lambda = draws.beta(f64::from(alpha)) as f32;
    Some((kind, lambda, draws.below(examples.max(1))))
}

/// Blends, and gives the share that is kept.
fn mixup(picture: &mut Picture, other: &Picture, lambda: f32) -> f32 {
    for (a, b) in picture.data.iter_mut().zip(&other.data) {
        *a = (lambda * f32::from(*a) + (1.0 - lambda) * f32::from(*b)).round() as u8;
    }
    lambda
}

fn cutmix(picture: &mut Picture, other: &Picture, lambda: f32, key: Key) -> f32 {
    let (width, height) = (picture.width, picture.height);
    let region = geometry::cutmix_region(width, height, f64::from(lambda), &mut key.draws("cutmix"));
    picture.put(other, 0, 0, region);
    1.0 - (region.width * region.height) as f32 / (width * height) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::augment::Jitter;
    use crate::pictures::testing::made;

    fn load(example: usize) -> Result<Picture, ()> {
        Ok(made(20 + example, 16))
    }

    fn run(settings: &Augment, epoch: u64, example: usize) -> Mixed {
        super::example(settings, &Prepare::torchvision(12, 12), Key { seed: 5, epoch, example }, 4, load)
            .unwrap()
    }

    fn everything() -> Augment {
        Augment {
            rotate: 10.0,
            erase: 0.5,
            mixup: 0.4,
            cutmix: 1.0,
            flip_vertical: 0.3,
            ..Augment::classify()
        }
    }

    #[test]
    fn the_key_decides_on_any_thread() {
        let all: Vec<Mixed> = (0..8).map(|i| run(&everything(), i / 4, i as usize % 4)).collect();
        let threads: Vec<_> = (0..8)
            .rev()
            .map(|i| (i, std::thread::spawn(move || run(&everything(), i / 4, i as usize % 4))))
            .collect();
        for (i, thread) in threads {
            assert_eq!(thread.join().unwrap(), all[i as usize]);
        }
        assert_ne!(all[0], all[4]);
        let other = super::example(
            &everything(),
            &Prepare::torchvision(12, 12),
            Key { seed: 6, epoch: 0, example: 0 },
            4,
            load,
        );
        assert_ne!(other.unwrap(), all[0]);
    }

    #[test]
    fn none_is_what_evaluation_sees() {
        let (fitted, _) = Prepare::torchvision(12, 12).fit(&made(21, 16));
        let got = run(&Augment::none(), 3, 1);
        assert_eq!(got, Mixed { picture: fitted, labels: vec![(1, 1.0)] });
    }

    #[test]
    fn flips_come_as_often_as_asked_and_do_not_move_other_numbers() {
        let flips =
            |settings: &Augment| -> Vec<Picture> { (0..200).map(|e| run(settings, e, 0).picture).collect() };
        let plain = flips(&Augment { jitter: Jitter { hue: 0.2, ..Jitter::default() }, ..Augment::none() });
        let flipped = flips(&Augment {
            flip: 0.5,
            jitter: Jitter { hue: 0.2, ..Jitter::default() },
            ..Augment::none()
        });
        let mut turned = 0;
        for (a, b) in plain.iter().zip(&flipped) {
            let mut mirror = a.clone();
            mirror.flip_horizontal();
            assert!(a == b || &mirror == b);
            turned += usize::from(&mirror == b);
        }
        assert!((70..130).contains(&turned), "{turned}");
    }

    #[test]
    fn labels_are_weighted_by_what_is_seen() {
        let pictures =
            |i: usize| Ok::<_, ()>(Picture::filled(12, 12, if i == 0 { [0; 3] } else { [200; 3] }));
        let prepare = Prepare::torchvision(12, 12);
        for (settings, kind) in [
            (Augment { mixup: 1.0, ..Augment::none() }, "mixup"),
            (Augment { cutmix: 1.0, ..Augment::none() }, "cutmix"),
        ] {
            let mut mixed = 0;
            for epoch in 0..30 {
                let key = Key { seed: 1, epoch, example: 0 };
                let out = super::example(&settings, &prepare, key, 5, pictures).unwrap();
                let mean = out.picture.data.iter().map(|&v| f32::from(v)).sum::<f32>() / (3.0 * 144.0);
                let theirs: f32 = out.labels.iter().filter(|(i, _)| *i != 0).map(|(_, w)| w).sum();
                assert!((mean - 200.0 * theirs).abs() < 1.0, "{kind}: {mean} {theirs}");
                assert!((out.labels.iter().map(|(_, w)| w).sum::<f32>() - 1.0).abs() < 1e-6);
                mixed += usize::from(theirs > 0.0);
            }
            assert!(mixed > 10, "{kind}: {mixed}");
        }
    }

    #[test]
    fn a_picture_that_cannot_be_read_ends_it() {
        let failed = super::example(
            &Augment::none(),
            &Prepare::torchvision(4, 4),
            Key { seed: 0, epoch: 0, example: 0 },
            1,
            |_| Err::<Picture, _>("gone"),
        );
        assert_eq!(failed.unwrap_err(), "gone");
    }
}
