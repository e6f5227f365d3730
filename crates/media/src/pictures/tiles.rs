//! Large photos cut into tiles that overlap, with their boxes: how aerial photos come to a detector.

use super::boxes::{LabelledBox, Placement, visible};
use super::picture::{Picture, Region};

/// The tiles of a picture: `size` x `size` pixels (less where the picture is smaller), at least `overlap` (0 to
/// `size` - 1) pixels shared between neighbours, row by row. They are spread evenly and cover everything.
pub fn tiles(width: usize, height: usize, size: usize, overlap: usize) -> Vec<Region> {
    let (columns, rows) = (starts(width, size, overlap), starts(height, size, overlap));
    let side = |at: usize, whole: usize| size.min(whole - at);
    let row = |&y: &usize| {
        columns
            .iter()
            .map(move |&x| Region { x, y, width: side(x, width), height: side(y, height) })
            .collect::<Vec<_>>()
    };
    rows.iter().flat_map(row).collect()
}

/// Where the tiles of one axis begin.
fn starts(whole: usize, size: usize, overlap: usize) -> Vec<usize> {
    assert!(size > overlap, "tiles of {size} pixels cannot overlap by {overlap}");
    if whole <= size {
        return vec![0];
    }
    let steps = (whole - size).div_ceil(size - overlap);
    (0..=steps).map(|i| ((whole - size) * i + steps / 2) / steps).collect()
}

/// One tile and the boxes that can be seen in it, as fractions of the tile: clipped, and dropped when less than a tenth
/// of their area is left.
pub fn cut(picture: &Picture, boxes: &[LabelledBox], tile: Region) -> (Picture, Vec<LabelledBox>) {
    let placement = placement(tile, picture.width, picture.height);
    let moved = boxes.iter().map(|b| LabelledBox { bounds: placement.to_canvas(b.bounds), ..*b });
    (picture.crop(tile), visible(moved, [0.0, 0.0, 1.0, 1.0]))
}

/// Where the photo lies if the tile is the canvas: `to_picture` brings what was found in a tile back to the photo.
pub fn placement(tile: Region, width: usize, height: usize) -> Placement {
    Placement {
        picture: [width, height],
        canvas: [tile.width, tile.height],
        scale: [1.0; 2],
        offset: [-(tile.x as f32), -(tile.y as f32)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::boxes::BoxF;
    use crate::pictures::testing::made;

    #[test]
    fn tiles_cover_everything_and_overlap() {
        for (width, height, size, overlap) in
            [(1000, 700, 400, 50), (400, 400, 400, 100), (401, 90, 400, 0), (5, 9, 4, 3)]
        {
            let all = tiles(width, height, size, overlap);
            let mut covered = vec![false; width * height];
            for tile in &all {
                assert!(tile.x + tile.width <= width && tile.y + tile.height <= height);
                assert_eq!((tile.width, tile.height), (size.min(width), size.min(height)));
                for y in tile.y..tile.y + tile.height {
                    covered[y * width + tile.x..][..tile.width].fill(true);
                }
            }
            assert!(covered.iter().all(|c| *c));
            for pair in all.windows(2).filter(|pair| pair[0].y == pair[1].y) {
                assert!(pair[0].x + size >= pair[1].x + overlap, "{pair:?}");
            }
        }
        assert_eq!(tiles(1000, 400, 400, 50).len(), 3);
    }

    #[test]
    fn boxes_go_into_the_tile_and_back() {
        let p = made(100, 80);
        let label = |corners| LabelledBox { class: 2, bounds: BoxF::from_pixels(corners, 100, 80) };
        let boxes =
            [label([45.0, 20.0, 65.0, 40.0]), label([0.0, 0.0, 10.0, 10.0]), label([29.0, 20.0, 41.0, 30.0])];
        let tile = Region { x: 40, y: 10, width: 50, height: 50 };
        let (cut, seen) = cut(&p, &boxes, tile);
        assert_eq!(cut.pixel(0, 0), p.pixel(40, 10));
        assert_eq!(seen.len(), 1);
        let [l, t, r, b] = seen[0].bounds.to_pixels(50, 50);
        assert!(
            (l - 5.0).abs() < 1e-3
                && (t - 10.0).abs() < 1e-3
                && (r - 25.0).abs() < 1e-3
                && (b - 30.0).abs() < 1e-3
        );
        let back = placement(tile, 100, 80).to_picture(seen[0].bounds);
        assert!(back.iou(&boxes[0].bounds) > 0.999);
    }
}
