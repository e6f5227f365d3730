//! A detection example: one picture in a letterbox of random size and place, or a mosaic of four, then flips and colours;
//! the boxes go along.
//!
//! Mosaic (YOLOv4, Ultralytics): on a canvas of twice the input's size four pictures meet at a point, which is uniform
//! in the middle half of it; each is resized so that it fits the input. The input is the canvas' middle, scaled by g and
//! moved by t. Scale and shift are done in one resizing of each picture, so nothing is interpolated twice.

use std::borrow::Borrow;

use super::super::boxes::{BoxF, LabelledBox, Placement, visible};
use super::super::picture::{Picture, Region};
use super::super::prepare::{Fit, Letterbox, Prepare};
use super::{Augment, Key, colour};
use crate::draws::Draws;

/// A box with a side shorter than this many pixels of the input is dropped: nothing can be seen in it.
const SIDE_PIXELS: f32 = 2.0;

/// Augments an example. `load` gives pictures and their boxes: this one's, and those of three others of `examples` if
/// it becomes a mosaic. The picture comes in the size of `prepare`, the boxes as fractions of it.
pub fn example<P: Borrow<Picture>, E>(
    settings: &Augment,
    prepare: &Prepare,
    key: Key,
    examples: usize,
    mut load: impl FnMut(usize) -> Result<(P, Vec<LabelledBox>), E>,
) -> Result<(Picture, Vec<LabelledBox>), E> {
    let (first, boxes) = load(key.example)?;
    let first = (first.borrow(), &boxes[..]);
    let mut draws = key.draws("mosaic");
    let (mut picture, mut boxes) = if draws.chance(settings.mosaic) {
        mosaic(settings, prepare, key, first, || load(draws.below(examples.max(1))))?
    } else {
        letterbox(settings, prepare, key, first)
    };
    if key.draws("flip").chance(settings.flip) {
        picture.flip_horizontal();
        boxes.iter_mut().for_each(|b| b.bounds = b.bounds.flipped_horizontal());
    }
    if key.draws("flip_vertical").chance(settings.flip_vertical) {
        picture.flip_vertical();
        boxes.iter_mut().for_each(|b| b.bounds = b.bounds.flipped_vertical());
    }
    colour::jitter(&mut picture, &settings.jitter, key.draws("jitter"));
    Ok((picture, boxes))
}

fn fill(prepare: &Prepare) -> [u8; 3] {
    match prepare.fit {
        Fit::Letterbox { style } => style.fill(),
        _ => Letterbox::Ultralytics.fill(),
    }
}

/// One picture: the evaluation's letterbox, enlarged or reduced and moved.
fn letterbox(
    settings: &Augment,
    prepare: &Prepare,
    key: Key,
    (picture, boxes): (&Picture, &[LabelledBox]),
) -> (Picture, Vec<LabelledBox>) {
    if settings.scale == [1.0; 2] && settings.translate == 0.0 {
        let (out, placement) = prepare.fit(picture);
        return (out, kept(prepare, boxes, &placement, [0.0, 0.0, 1.0, 1.0]));
    }
    let view = View::draw(settings, prepare, &mut key.draws("view"));
    let (w, h) = (prepare.width as f32, prepare.height as f32);
    let scale = fitting(picture, prepare);
    let (pw, ph) = (picture.width as f32 * scale, picture.height as f32 * scale);
    let corners = [(w - pw) / 2.0, (h - ph) / 2.0, (w + pw) / 2.0, (h + ph) / 2.0];
    let mut canvas = Picture::filled(prepare.width, prepare.height, fill(prepare));
    let boxes = place(&mut canvas, prepare, picture, boxes, view.apply(corners), [0.0, 0.0, w, h]);
    (canvas, boxes)
}

fn mosaic<P: Borrow<Picture>, E>(
    settings: &Augment,
    prepare: &Prepare,
    key: Key,
    first: (&Picture, &[LabelledBox]),
    mut next: impl FnMut() -> Result<(P, Vec<LabelledBox>), E>,
) -> Result<(Picture, Vec<LabelledBox>), E> {
    let mut draws = key.draws("view");
    let view = View::draw(settings, prepare, &mut draws);
    let (w, h) = (prepare.width as f32, prepare.height as f32);
    // In coordinates whose origin is the left upper corner of the input: the canvas reaches from -w/2 to 3w/2.
    let meet = [draws.between(0.0, w), draws.between(0.0, h)];
    let mut canvas = Picture::filled(prepare.width, prepare.height, fill(prepare));
    let mut all = Vec::new();
    for quarter in 0..4 {
        let other = if quarter == 0 { None } else { Some(next()?) };
        let (picture, boxes) = other.as_ref().map_or(first, |(picture, boxes)| (picture.borrow(), boxes));
        let scale = fitting(picture, prepare);
        let (pw, ph) = (picture.width as f32 * scale, picture.height as f32 * scale);
        let (left, top) = (quarter % 2 == 0, quarter < 2);
        let (x, y) = (meet[0] - if left { pw } else { 0.0 }, meet[1] - if top { ph } else { 0.0 });
        let clip = [
            if left { -w / 2.0 } else { meet[0] },
            if top { -h / 2.0 } else { meet[1] },
            if left { meet[0] } else { 1.5 * w },
            if top { meet[1] } else { 1.5 * h },
        ];
        let corners = view.apply([x, y, x + pw, y + ph]);
        all.extend(place(&mut canvas, prepare, picture, boxes, corners, view.apply(clip)));
    }
    Ok((canvas, all))
}

/// The scale at which a picture just fits the input.
fn fitting(picture: &Picture, prepare: &Prepare) -> f32 {
    (prepare.width as f32 / picture.width as f32).min(prepare.height as f32 / picture.height as f32)
}

/// Enlarged by `scale` about the middle of the input, then moved.
struct View {
    scale: f32,
    middle: [f32; 2],
    shift: [f32; 2],
}

impl View {
    fn draw(settings: &Augment, prepare: &Prepare, draws: &mut Draws) -> View {
        let (w, h) = (prepare.width as f32, prepare.height as f32);
        let t = settings.translate;
        View {
            scale: draws.between(settings.scale[0], settings.scale[1]),
            middle: [w / 2.0, h / 2.0],
            shift: [draws.between(-t, t) * w, draws.between(-t, t) * h],
        }
    }

    /// Left, top, right, bottom in pixels.
    fn apply(&self, corners: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            let axis = i % 2;
            (corners[i] - self.middle[axis]) * self.scale + self.middle[axis] + self.shift[axis]
        })
    }
}

/// Draws a picture on the canvas so that it fills `corners` (in pixels, rounded), as far as it lies in `clip`; gives the
/// boxes that can be seen.
fn place(
    canvas: &mut Picture,
    prepare: &Prepare,
    picture: &Picture,
    boxes: &[LabelledBox],
    corners: [f32; 4],
    clip: [f32; 4],
) -> Vec<LabelledBox> {
    let (w, h) = (canvas.width as f32, canvas.height as f32);
    let [l, t, r, b] = corners.map(f32::round);
    let clip =
        [clip[0].round().max(0.0), clip[1].round().max(0.0), clip[2].round().min(w), clip[3].round().min(h)];
    if l.max(clip[0]) >= r.min(clip[2]) || t.max(clip[1]) >= b.min(clip[3]) {
        return Vec::new();
    }
    let size = [((r - l) as usize).max(1), ((b - t) as usize).max(1)];
    let small = picture.resized(size[0], size[1], prepare.resample);
    let region = Region {
        x: clip[0] as usize,
        y: clip[1] as usize,
        width: (clip[2] - clip[0]) as usize,
        height: (clip[3] - clip[1]) as usize,
    };
    canvas.put(&small, l as i64, t as i64, region);
    let placement = Placement {
        picture: [picture.width, picture.height],
        canvas: [canvas.width, canvas.height],
        scale: [size[0] as f32 / picture.width as f32, size[1] as f32 / picture.height as f32],
        offset: [l, t],
    };
    kept(prepare, boxes, &placement, [clip[0] / w, clip[1] / h, clip[2] / w, clip[3] / h])
}

/// Boxes on the canvas as far as they are seen; those of which too little is left are dropped.
fn kept(
    prepare: &Prepare,
    boxes: &[LabelledBox],
    placement: &Placement,
    window: [f32; 4],
) -> Vec<LabelledBox> {
    let moved = boxes.iter().map(|b| LabelledBox { bounds: placement.to_canvas(b.bounds), ..*b });
    let mut seen = visible(moved, window);
    let large =
        |b: &BoxF| b.w * prepare.width as f32 >= SIDE_PIXELS && b.h * prepare.height as f32 >= SIDE_PIXELS;
    seen.retain(|b| large(&b.bounds));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey picture with a bright square in the colour of its number, and the square's box.
    fn marked(example: usize) -> Result<(Picture, Vec<LabelledBox>), ()> {
        let (width, height) = (60 + 10 * (example % 3), 50);
        let mut p = Picture::filled(width, height, [60; 3]);
        let (x, y) = (5 + 6 * (example % 5), 8 + 5 * (example % 4));
        p.put(&Picture::filled(20, 16, colour_of(example)), x as i64, y as i64, p.whole());
        let corners = [x as f32, y as f32, x as f32 + 20.0, y as f32 + 16.0];
        Ok((
            p,
            vec![LabelledBox { class: example as u32, bounds: BoxF::from_pixels(corners, width, height) }],
        ))
    }

    fn colour_of(example: usize) -> [u8; 3] {
        [200, 200 - 30 * example as u8, 30 * example as u8]
    }

    /// What a box says must be where its colour is.
    fn check(out: &(Picture, Vec<LabelledBox>)) {
        let (p, boxes) = out;
        for b in boxes {
            let [l, t, r, bottom] = b.bounds.to_pixels(p.width, p.height);
            assert!(
                l >= -0.01 && t >= -0.01 && r <= p.width as f32 + 0.01 && bottom <= p.height as f32 + 0.01
            );
            let near = |x: f32, y: f32| {
                let pixel = p.pixel(x as usize, y as usize);
                pixel.iter().zip(colour_of(b.class as usize)).all(|(a, b)| a.abs_diff(b) < 12)
            };
            let inside = ((l + r) / 2.0, (t + bottom) / 2.0);
            assert!(near(inside.0, inside.1), "{b:?}");
            if r - l > 6.0 && bottom - t > 6.0 {
                assert!(near(l + 2.0, t + 2.0) && near(r - 2.5, bottom - 2.5), "{b:?}");
            }
            if l > 3.0 {
                assert!(!near(l - 2.5, inside.1), "{b:?}");
            }
        }
    }

    fn run(settings: &Augment, epoch: u64) -> (Picture, Vec<LabelledBox>) {
        let key = Key { seed: 3, epoch, example: 1 };
        super::example(settings, &Prepare::darknet(64, 64), key, 6, marked).unwrap()
    }

    fn geometry(mosaic: f32) -> Augment {
        Augment { mosaic, jitter: Default::default(), flip: 0.5, flip_vertical: 0.3, ..Augment::detect() }
    }

    #[test]
    fn boxes_stay_on_their_objects() {
        let mut several = 0;
        for epoch in 0..60 {
            check(&run(&geometry(0.0), epoch));
            let mosaic = run(&geometry(1.0), epoch);
            check(&mosaic);
            several += usize::from(mosaic.1.len() > 2);
        }
        assert!(several > 10, "{several}");
    }

    #[test]
    fn none_is_the_letterbox_and_the_key_decides() {
        let (p, boxes) = marked(1).unwrap();
        let prepare = Prepare::darknet(64, 64);
        let (fitted, placement) = prepare.fit(&p);
        let got = run(&Augment::none(), 7);
        assert_eq!(got.0, fitted);
        assert_eq!(got.1[0].bounds, placement.to_canvas(boxes[0].bounds));
        assert_eq!(run(&Augment::detect(), 4), run(&Augment::detect(), 4));
        assert_ne!(run(&Augment::detect(), 4).0, run(&Augment::detect(), 5).0);
    }

    #[test]
    fn what_leaves_the_picture_is_dropped() {
        let corner = |bounds| (Picture::filled(64, 64, [1; 3]), vec![LabelledBox { class: 0, bounds }]);
        let settings = Augment { scale: [2.0, 2.0], ..Augment::none() };
        let run = |bounds| {
            let key = Key { seed: 0, epoch: 0, example: 0 };
            super::example(&settings, &Prepare::darknet(64, 64), key, 1, |_| Ok::<_, ()>(corner(bounds)))
                .unwrap()
                .1
        };
        // At twice the size the middle half is seen.
        assert_eq!(run(BoxF { x: 0.1, y: 0.5, w: 0.2, h: 0.2 }).len(), 0);
        let half = run(BoxF { x: 0.25, y: 0.5, w: 0.2, h: 0.2 });
        assert!((half[0].bounds.w - 0.2).abs() < 0.01 && (half[0].bounds.x - 0.1).abs() < 0.01);
        assert_eq!(run(BoxF { x: 0.155, y: 0.5, w: 0.2, h: 0.2 }).len(), 0);
        assert_eq!(run(BoxF { x: 0.5, y: 0.5, w: 0.01, h: 0.2 }).len(), 0);
    }
}
