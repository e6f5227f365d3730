//! Drawing: text, boxes with labels, hidden regions, and sheets of thumbnails for reports.

use font8x8::UnicodeFonts;

use super::boxes::BoxF;
use super::limits;
use super::picture::{Picture, Region};
use super::prepare::{Fit, Letterbox, Prepare};
use super::resize::Resample;

/// Right, in frames.
pub const GREEN: [u8; 3] = [38, 160, 65];
/// Wrong.
pub const RED: [u8; 3] = [210, 40, 40];

/// A colour for each class: twelve that can be told apart, then round again.
pub fn class_colour(class: u32) -> [u8; 3] {
    const COLOURS: [[u8; 3]; 12] = [
        [230, 57, 70],
        [29, 120, 220],
        [42, 157, 80],
        [244, 140, 6],
        [131, 56, 236],
        [0, 150, 160],
        [255, 0, 110],
        [120, 85, 50],
        [90, 110, 0],
        [60, 60, 160],
        [190, 110, 150],
        [70, 80, 90],
    ];
    COLOURS[class as usize % COLOURS.len()]
}

/// Side of a letter at size 1, in pixels.
pub const LETTER: usize = 8;

/// The 8 rows of a letter, the lowest bit on the left; what the font has not is a question mark.
fn glyph(letter: char) -> [u8; 8] {
    let fonts: [&dyn Fn(char) -> Option<[u8; 8]>; 3] =
        [&|c| font8x8::BASIC_FONTS.get(c), &|c| font8x8::LATIN_FONTS.get(c), &|c| {
            font8x8::GREEK_FONTS.get(c)
        }];
    let find = |c: char| fonts.iter().find_map(|font| font(c));
    find(letter).or_else(|| find('?')).unwrap_or([0; 8])
}

/// A line of text whose left upper corner is at (x, y); each pixel of the letters is a square of `size` pixels. What
/// falls outside the picture is not drawn.
pub fn text(picture: &mut Picture, x: i64, y: i64, line: &str, size: usize, colour: [u8; 3]) {
    let advance = (LETTER * size) as i64;
    for (i, letter) in line.chars().enumerate() {
        let left = x + i as i64 * advance;
        if left >= picture.width as i64 {
            return;
        }
        for (row, bits) in glyph(letter).into_iter().enumerate() {
            for column in (0..8).filter(|column| bits >> column & 1 == 1) {
                let at = Corners {
                    left: left + (column * size) as i64,
                    top: y + (row * size) as i64,
                    right: left + ((column + 1) * size) as i64,
                    bottom: y + ((row + 1) * size) as i64,
                };
                fill(picture, at, colour);
            }
        }
    }
}

/// A rectangle in whole pixels that may reach out of the picture.
#[derive(Clone, Copy)]
struct Corners {
    left: i64,
    top: i64,
    right: i64,
    bottom: i64,
}

fn fill(picture: &mut Picture, c: Corners, colour: [u8; 3]) {
    let (w, h) = (picture.width as i64, picture.height as i64);
    let (left, right) = (c.left.clamp(0, w) as usize, c.right.clamp(0, w) as usize);
    for y in c.top.clamp(0, h) as usize..c.bottom.clamp(0, h) as usize {
        if left < right {
            picture.row_mut(y)[3 * left..3 * right]
                .chunks_exact_mut(3)
                .for_each(|p| p.copy_from_slice(&colour));
        }
    }
}

/// The border of a rectangle, `width` pixels inwards.
fn frame(picture: &mut Picture, c: Corners, width: i64, colour: [u8; 3]) {
    fill(picture, Corners { bottom: c.top + width, ..c }, colour);
    fill(picture, Corners { top: c.bottom - width, ..c }, colour);
    fill(picture, Corners { right: c.left + width, ..c }, colour);
    fill(picture, Corners { left: c.right - width, ..c }, colour);
}

/// A box with its label on a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub bounds: BoxF,
    /// What stands on it; nothing if empty.
    pub label: String,
    pub colour: [u8; 3],
}

/// Draws boxes in the order given: a frame, and the label on a ground of its colour above it (or inside, at the border
/// of the picture). Lines and letters grow with the picture.
pub fn boxes(picture: &mut Picture, boxes: &[Drawn]) {
    let side = picture.width.min(picture.height);
    let (line, size) = ((side / 200).max(1) as i64, (side / 350).max(1));
    let letter = (LETTER * size) as i64;
    for Drawn { bounds, label, colour } in boxes.iter().filter(|b| b.bounds.is_proper()) {
        let [left, top, right, bottom] =
            bounds.to_pixels(picture.width, picture.height).map(|v| v.round() as i64);
        let corners = Corners { left, top, right: right.max(left + 1), bottom: bottom.max(top + 1) };
        frame(picture, corners, line, *colour);
        if label.is_empty() {
            continue;
        }
        let ground = letter + 2 * line;
        let y = if top >= ground { top - ground } else { top.max(0) };
        let width = label.chars().count() as i64 * letter + 2 * line;
        let x = left.min(picture.width as i64 - width).max(0);
        fill(picture, Corners { left: x, top: y, right: x + width, bottom: y + ground }, *colour);
        text(picture, x + line, y + line, label, size, readable_on(*colour));
    }
}

/// Black or white, whichever is read better on a colour.
fn readable_on([r, g, b]: [u8; 3]) -> [u8; 3] {
    if 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) > 150_000 { [0; 3] } else { [255; 3] }
}

/// How a region is made unrecognisable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hide {
    /// Smooth.
    #[default]
    Blur,
    /// Squares.
    Pixelate,
}

/// Mean colours that are left across the shorter side of a hidden box.
const CELLS: usize = 5;

/// Hides what is in boxes, grown by a tenth of their size to each side: the region is reduced to at most 5 mean colours
/// across its shorter side and enlarged again, so that nothing finer is left in the file that could be brought back.
/// Nothing outside the grown boxes changes.
pub fn hide(picture: &mut Picture, boxes: &[BoxF], how: Hide) {
    for bounds in boxes.iter().filter(|b| b.is_proper()) {
        let grown = BoxF { w: bounds.w * 1.2, h: bounds.h * 1.2, ..*bounds };
        let Some(inside) = grown.clipped() else { continue };
        let [l, t, r, b] = inside.to_pixels(picture.width, picture.height);
        let (x, y) = (l.floor() as usize, t.floor() as usize);
        let (right, bottom) =
            ((r.ceil() as usize).min(picture.width), (b.ceil() as usize).min(picture.height));
        if x >= right || y >= bottom {
            continue;
        }
        let region = Region { x, y, width: right - x, height: bottom - y };
        let cell = region.width.min(region.height).div_ceil(CELLS).max(2);
        let few = [region.width.div_ceil(cell), region.height.div_ceil(cell)];
        let small = picture.resized_region(region, few[0], few[1], Resample::Bilinear);
        let large = match how {
            Hide::Blur => small.resized(region.width, region.height, Resample::Bilinear),
            Hide::Pixelate => squares(&small, region.width, region.height),
        };
        picture.put(&large, x as i64, y as i64, picture.whole());
    }
}

/// Enlarged without interpolation.
fn squares(small: &Picture, width: usize, height: usize) -> Picture {
    let mut out = Picture::filled(width, height, [0; 3]);
    for y in 0..height {
        for x in 0..width {
            out.set(x, y, small.pixel(x * small.width / width, y * small.height / height));
        }
    }
    out
}

/// One picture of a sheet.
#[derive(Clone, Debug)]
pub struct Cell {
    pub picture: Picture,
    /// Lines below it; what is too long ends in "..".
    pub caption: Vec<String>,
    pub frame: [u8; 3],
}

/// Thumbnails of `side` x `side` pixels in rows of `columns`, framed, with captions, on white. Cells that would make the
/// sheet larger than [`limits::SHEET_PIXELS`] are left out.
pub fn sheet(cells: &[Cell], columns: usize, side: usize) -> Picture {
    const FRAME: usize = 4;
    const GAP: usize = 8;
    const LINE: usize = LETTER + 3;
    let (columns, side) = (columns.clamp(1, cells.len().max(1)), side.clamp(2 * LETTER, 1024));
    let lines = cells.iter().map(|cell| cell.caption.len()).max().unwrap_or(0);
    let (cell_width, cell_height) = (side + 2 * FRAME + GAP, side + 2 * FRAME + GAP + lines * LINE);
    let width = columns * cell_width + GAP;
    let rows = cells.len().div_ceil(columns).min(limits::SHEET_PIXELS / width / cell_height).max(1);
    let mut out = Picture::filled(width, rows * cell_height + GAP, [255; 3]);
    let fit = Fit::Letterbox { style: Letterbox::Ultralytics };
    let prepare = Prepare { fit, resample: Resample::Bilinear, ..Prepare::ultralytics(side) };
    for (i, cell) in cells.iter().take(rows * columns).enumerate() {
        let (x, y) = (GAP + i % columns * cell_width, GAP + i / columns * cell_height);
        let outer = side + 2 * FRAME;
        out.put(&Picture::filled(outer, outer, cell.frame), x as i64, y as i64, out.whole());
        out.put(&prepare.fit(&cell.picture).0, (x + FRAME) as i64, (y + FRAME) as i64, out.whole());
        for (line, caption) in cell.caption.iter().enumerate() {
            let at = y + outer + 3 + line * LINE;
            text(&mut out, x as i64, at as i64, &shortened(caption, outer / LETTER), 1, [30; 3]);
        }
    }
    out
}

/// At most `letters` letters.
fn shortened(caption: &str, letters: usize) -> String {
    if caption.chars().count() <= letters {
        return caption.to_string();
    }
    caption.chars().take(letters.saturating_sub(2)).chain("..".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::testing::made;

    fn count(p: &Picture, colour: [u8; 3]) -> usize {
        p.data.chunks(3).filter(|c| *c == colour).count()
    }

    #[test]
    fn letters_are_drawn_and_cut_at_the_border() {
        let mut p = Picture::filled(40, 10, [255; 3]);
        text(&mut p, 0, 0, "I", 1, [0; 3]);
        let one = count(&p, [0; 3]);
        assert!((12..30).contains(&one), "{one}");
        assert_ne!(glyph('ü'), glyph('?'));
        assert_eq!(glyph('漢'), glyph('?'));
        text(&mut p, -4, -4, "somewhat longer than the picture", 3, [9; 3]);
        let mut double = Picture::filled(20, 20, [255; 3]);
        text(&mut double, 0, 0, "I", 2, [0; 3]);
        assert_eq!(count(&double, [0; 3]), 4 * one);
    }

    #[test]
    fn frames_lie_on_the_box_and_labels_stay_inside() {
        let mut p = Picture::filled(100, 80, [255; 3]);
        let drawn = |corners, label: &str| Drawn {
            bounds: BoxF::from_pixels(corners, 100, 80),
            label: label.into(),
            colour: class_colour(1),
        };
        boxes(&mut p, &[drawn([20.0, 30.0, 60.0, 70.0], "")]);
        assert_eq!(count(&p, class_colour(1)), 2 * 40 + 2 * 38);
        assert_eq!(
            (p.pixel(20, 30), p.pixel(59, 69), p.pixel(40, 50)),
            (class_colour(1), class_colour(1), [255; 3])
        );
        boxes(
            &mut p,
            &[
                drawn([90.0, -5.0, 130.0, 200.0], "a label at the border 0.93"),
                drawn([0.0, 0.0, f32::NAN, 1.0], "x"),
            ],
        );
        assert_eq!(p.pixel(0, 0), class_colour(1));
    }

    #[test]
    fn hidden_regions_keep_a_few_colours_and_the_rest_is_untouched() {
        let mut noise = crate::draws::Draws::new(1, 2, 3);
        let data = (0..3 * 120 * 90).map(|_| noise.bits() as u8).collect();
        let p = Picture { width: 120, height: 90, data };
        let face = BoxF::from_pixels([30.0, 20.0, 80.0, 70.0], 120, 90);
        for how in [Hide::Blur, Hide::Pixelate] {
            let mut hidden = p.clone();
            hide(&mut hidden, &[face], how);
            let mut changed = 0;
            for y in 0..90 {
                for x in 0..120 {
                    let inside = (24..86).contains(&x) && (14..76).contains(&y);
                    assert!(inside || hidden.pixel(x, y) == p.pixel(x, y), "{x} {y}");
                    changed += usize::from(hidden.pixel(x, y) != p.pixel(x, y));
                }
            }
            assert!(changed > 3000, "{changed}");
            // What is left between neighbours is a fraction of what was there.
            let rough = |p: &Picture| -> u32 {
                (30..79).map(|x| p.pixel(x, 45)[0].abs_diff(p.pixel(x + 1, 45)[0])).map(u32::from).sum()
            };
            assert!(rough(&hidden) * 5 < rough(&p), "{} {}", rough(&hidden), rough(&p));
        }
        let mut pixelated = p.clone();
        hide(&mut pixelated, &[face], Hide::Pixelate);
        let colours: std::collections::HashSet<_> = (26..84)
            .flat_map(|x| (16..74).map(move |y| (x, y)))
            .map(|(x, y)| pixelated.pixel(x, y))
            .collect();
        assert!(colours.len() <= CELLS * CELLS, "{}", colours.len());
        hide(
            &mut pixelated,
            &[BoxF::from_pixels([-50.0, -50.0, 2.0, 2.0], 120, 90), BoxF::default()],
            Hide::Blur,
        );
    }

    #[test]
    fn a_sheet_has_a_framed_thumbnail_for_each_picture() {
        let cell = |frame| Cell {
            picture: made(50, 30),
            caption: vec!["truth: cat".into(), "a very long prediction".into()],
            frame,
        };
        let p = sheet(&[cell(GREEN), cell(RED), cell(GREEN)], 2, 64);
        assert_eq!((p.width, p.height), (2 * 80 + 8, 2 * 102 + 8));
        assert_eq!((count(&p, RED), count(&p, GREEN)), (72 * 72 - 64 * 64, 2 * (72 * 72 - 64 * 64)));
        assert_eq!(shortened("a very long prediction", 9), "a very ..");
        assert_eq!(sheet(&[], 5, 64).height, 88);
    }
}
