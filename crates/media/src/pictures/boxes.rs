//! Boxes around objects: centre, width and height as fractions of the picture, and where a picture lies on a canvas.
//!
//! IoU(a, b) = |a ∩ b| / |a ∪ b|.

use serde::{Deserialize, Serialize};

/// A box: centre (x, y), width and height, as fractions of the picture's width and height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BoxF {
    pub x: f32,
    pub y: f32,
    pub w: f32,
    pub h: f32,
}

/// A box and the index of its class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelledBox {
    pub class: u32,
    pub bounds: BoxF,
}

impl BoxF {
    /// From left, top, right, bottom.
    pub fn from_corners([left, top, right, bottom]: [f32; 4]) -> BoxF {
        BoxF { x: (left + right) / 2.0, y: (top + bottom) / 2.0, w: right - left, h: bottom - top }
    }

    /// Left, top, right, bottom.
    pub fn corners(&self) -> [f32; 4] {
        let (w, h) = (self.w / 2.0, self.h / 2.0);
        [self.x - w, self.y - h, self.x + w, self.y + h]
    }

    /// From left, top, right, bottom in pixels of a picture.
    pub fn from_pixels(corners: [f32; 4], width: usize, height: usize) -> BoxF {
        let [l, t, r, b] = corners;
        let (w, h) = (width as f32, height as f32);
        BoxF::from_corners([l / w, t / h, r / w, b / h])
    }

    /// Left, top, right, bottom in pixels of a picture.
    pub fn to_pixels(&self, width: usize, height: usize) -> [f32; 4] {
        let [l, t, r, b] = self.corners();
        let (w, h) = (width as f32, height as f32);
        [l * w, t * h, r * w, b * h]
    }

    /// Zero for a box turned inside out.
    pub fn area(&self) -> f32 {
        self.w.max(0.0) * self.h.max(0.0)
    }

    /// What both cover, in the same fractions squared.
    pub fn intersection(&self, other: &BoxF) -> f32 {
        let ([al, at, ar, ab], [bl, bt, br, bb]) = (self.corners(), other.corners());
        (ar.min(br) - al.max(bl)).max(0.0) * (ab.min(bb) - at.max(bt)).max(0.0)
    }

    /// Intersection over union, 0 to 1; 0 if both are empty.
    pub fn iou(&self, other: &BoxF) -> f32 {
        let both = self.intersection(other);
        let union = self.area() + other.area() - both;
        if union > 0.0 { both / union } else { 0.0 }
    }

    /// The part inside a window (left, top, right, bottom), if any.
    pub fn clipped_to(&self, window: [f32; 4]) -> Option<BoxF> {
        let ([l, t, r, b], [wl, wt, wr, wb]) = (self.corners(), window);
        let (l, t, r, b) = (l.max(wl), t.max(wt), r.min(wr), b.min(wb));
        (l < r && t < b).then(|| BoxF::from_corners([l, t, r, b]))
    }

    /// The part inside the picture, if any.
    pub fn clipped(&self) -> Option<BoxF> {
        self.clipped_to([0.0, 0.0, 1.0, 1.0])
    }

    /// As if left and right had changed places.
    pub fn flipped_horizontal(self) -> BoxF {
        BoxF { x: 1.0 - self.x, ..self }
    }

    /// As if top and bottom had changed places.
    pub fn flipped_vertical(self) -> BoxF {
        BoxF { y: 1.0 - self.y, ..self }
    }

    /// All four numbers are finite and both sides longer than zero.
    pub fn is_proper(&self) -> bool {
        [self.x, self.y, self.w, self.h].iter().all(|v| v.is_finite()) && self.w > 0.0 && self.h > 0.0
    }
}

/// Where a picture lies on a canvas: canvas pixel = `scale` * picture pixel + `offset`, in x and y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Width and height of the picture.
    pub picture: [usize; 2],
    /// Width and height of the canvas.
    pub canvas: [usize; 2],
    pub scale: [f32; 2],
    pub offset: [f32; 2],
}

impl Placement {
    /// A box of the picture, as fractions of the canvas. It may stick out of it.
    pub fn to_canvas(&self, b: BoxF) -> BoxF {
        let map = |v: f32, axis: usize| {
            (v * self.picture[axis] as f32 * self.scale[axis] + self.offset[axis]) / self.canvas[axis] as f32
        };
        let [l, t, r, b] = b.corners();
        BoxF::from_corners([map(l, 0), map(t, 1), map(r, 0), map(b, 1)])
    }

    /// A box of the canvas, as fractions of the picture. It may stick out of it.
    pub fn to_picture(&self, b: BoxF) -> BoxF {
        let map = |v: f32, axis: usize| {
            (v * self.canvas[axis] as f32 - self.offset[axis]) / self.scale[axis] / self.picture[axis] as f32
        };
        let [l, t, r, b] = b.corners();
        BoxF::from_corners([map(l, 0), map(t, 1), map(r, 0), map(b, 1)])
    }
}

/// The share of a box's area that must stay visible for the box to be kept when a picture is cut.
pub const VISIBLE_SHARE: f32 = 0.1;

/// What is left of boxes of which only a window (left, top, right, bottom) is seen: clipped to it, and dropped when
/// less than a tenth of their area stays ([`VISIBLE_SHARE`]).
pub fn visible(boxes: impl IntoIterator<Item = LabelledBox>, window: [f32; 4]) -> Vec<LabelledBox> {
    let keep = |b: LabelledBox| {
        let bounds = b.bounds.clipped_to(window)?;
        (bounds.area() >= VISIBLE_SHARE * b.bounds.area()).then_some(LabelledBox { bounds, ..b })
    };
    boxes.into_iter().filter_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corners(l: f32, t: f32, r: f32, b: f32) -> BoxF {
        BoxF::from_corners([l, t, r, b])
    }

    #[test]
    fn iou_of_known_boxes() {
        let a = corners(0.0, 0.0, 0.5, 0.5);
        assert!((a.iou(&a) - 1.0).abs() < 1e-6);
        assert!((a.iou(&corners(0.25, 0.25, 0.75, 0.75)) - 1.0 / 7.0).abs() < 1e-6);
        assert_eq!(a.iou(&corners(0.6, 0.6, 0.9, 0.9)), 0.0);
        assert_eq!(BoxF::default().iou(&BoxF::default()), 0.0);
    }

    #[test]
    fn a_placement_maps_there_and_back() {
        let placement =
            Placement { picture: [640, 480], canvas: [416, 416], scale: [0.65, 0.65], offset: [0.0, 52.0] };
        let b = corners(0.1, 0.2, 0.6, 0.9);
        let there = placement.to_canvas(b);
        let top = there.corners()[1] * 416.0;
        assert!((top - (0.2 * 480.0 * 0.65 + 52.0)).abs() < 1e-3, "{top}");
        let back = placement.to_picture(there);
        for (a, b) in back.corners().iter().zip(b.corners()) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn a_tenth_must_stay_visible() {
        let label = |bounds| LabelledBox { class: 1, bounds };
        let boxes =
            [corners(-0.8, 0.2, 0.2, 0.4), corners(-0.95, 0.2, 0.05, 0.4), corners(1.5, 0.0, 2.0, 1.0)];
        let left = visible(boxes.map(label), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(left.len(), 1);
        assert!((left[0].bounds.area() - 0.04).abs() < 1e-6);
    }
}
