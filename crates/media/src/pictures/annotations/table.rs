//! A table of boxes, as DeepForest and RetinaNet have it: `image_path, xmin, ymin, xmax, ymax, label`, a row for each box.
//!
//! Coordinates are pixels. A row with a path alone is a picture without objects. Paths are relative to the table's folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use retune_formats::Error;
use retune_formats::records::Records;
use serde_json::Value;

use super::super::boxes::LabelledBox;
use super::super::decode;
use super::super::labelled::table::{LABELS, PATHS, column};
use super::super::limits;
use super::super::problems::Problems;
use super::super::walk;
use super::build::{Build, Place};
use super::{Annotations, Rules};

const CORNERS: [&[&str]; 4] =
    [&["xmin", "x1", "left"], &["ymin", "y1", "top"], &["xmax", "x2", "right"], &["ymax", "y2", "bottom"]];

/// A picture while its rows are read; without a size it could not be opened, which was told.
struct Rows {
    path: PathBuf,
    size: Option<(usize, usize)>,
    boxes: Vec<LabelledBox>,
    origin: String,
}

pub fn open(path: &Path, rules: Rules) -> Result<Annotations, Problems> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut build = Build::new(rules, None);
    let (mut pictures, mut index): (Vec<Rows>, HashMap<String, usize>) = (Vec::new(), HashMap::new());
    for record in Records::open(path)? {
        let record = record?;
        let place = Place::Line(path, record.line);
        let name = match column(&record.value, PATHS, "the picture's file") {
            Ok(name) if !name.is_empty() => name,
            Ok(_) => {
                build.problems.push(place.error("the path is empty"));
                continue;
            }
            Err(what) => {
                build.problems.push(place.error(what));
                // Without the column every row would say the same.
                break;
            }
        };
        let at = *index.entry(name).or_insert_with_key(|name| {
            let named = folder.join(name);
            let file = walk::picture_file(&named).unwrap_or(named);
            let size =
                decode::read_size(&file).map_err(|e| build.problems.push(place.error(e.to_string()))).ok();
            pictures.push(Rows { path: file, size, boxes: Vec::new(), origin: place.name() });
            pictures.len() - 1
        });
        if pictures.len() > limits::PICTURES {
            return Err(Error::limit(
                path,
                "the number of pictures",
                pictures.len() as u64,
                limits::PICTURES as u64,
            )
            .into());
        }
        row(&mut build, place, &record.value, &mut pictures[at]);
    }
    for Rows { path, size, boxes, origin } in pictures {
        build.picture(path, size, boxes, origin);
    }
    build.finish(path)
}

fn row(build: &mut Build, place: Place, value: &Value, rows: &mut Rows) {
    let Some((w, h)) = rows.size else { return };
    let texts = CORNERS.map(|names| column(value, names, "the box"));
    let mut corners = [0.0; 4];
    for (corner, text) in corners.iter_mut().zip(&texts) {
        match text.as_deref().map(|text| (text, text.parse::<f64>())) {
            Ok((_, Ok(number))) => *corner = number,
            Ok(("", _)) if texts.iter().all(|text| text.as_deref() == Ok("")) => return,
            Ok((text, Err(_))) => return build.refuse(place, format!("{text:?} is not a number of pixels")),
            Err(what) => return build.problems.push(place.error(what)),
        }
    }
    let (w, h) = (w as f64, h as f64);
    let corners = [corners[0] / w, corners[1] / h, corners[2] / w, corners[3] / h];
    match column(value, LABELS, "the label") {
        Ok(label) => {
            if let Some(class) = build.class(place, &label) {
                build.add(place, &mut rows.boxes, class, corners);
            }
        }
        Err(what) => build.problems.push(place.error(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open as open_dir, pixels, refused, tree};

    #[test]
    fn a_table_as_deepforest_writes_it() {
        let csv = "image_path,xmin,ymin,xmax,ymax,label\na.png,10,5,30.5,40,Tree\nb.png,,,,,\na.png,0,0,100,50,Dead\na.png,90,10,110,30,Tree\nc.tif,1,1,9,9,Tree\n";
        let dir = tree(&[("boxes.csv", csv), ("a.png", ""), ("b.png", ""), ("c.jpg", "")]);
        let set = open_dir(&dir).train;
        assert_eq!(set.classes, ["Dead", "Tree"]);
        assert_eq!(
            pixels(&set.pictures[0].boxes),
            [[1, 10, 5, 31, 40], [0, 0, 0, 100, 50], [1, 90, 10, 100, 30]]
        );
        assert_eq!((set.len(), set.pictures[1].boxes.len(), set.pictures[0].size), (3, 0, Some((100, 50))));
        assert!(set.notes[0].contains("clipped") && set.notes[0].contains("boxes.csv:5"), "{:?}", set.notes);
        assert!(set.pictures[0].origin.ends_with("boxes.csv:2"));
        assert!(set.pictures[2].path.ends_with("c.jpg"), "in place of c.tif");
    }

    #[test]
    fn bad_rows_are_named_all_at_once() {
        let csv = "image_path,xmin,ymin,xmax,ymax,label\nno.png,1,1,5,5,x\na.png,1,1,1,5,x\na.png,1,one,1,5,x\na.png,1,1,3,5,\na.png,200,1,300,5,x\n,1,1,2,2,x\nno.png,1,1,5,5,x\n";
        let dir = tree(&[("train.csv", csv), ("a.png", "")]);
        let message = refused(&dir);
        for part in [
            "train.csv:2: ",
            "no.png",
            "train.csv:3: the box has no area",
            "train.csv:4: \"one\"",
            "train.csv:5: the class is empty",
            "train.csv:6: the box lies wholly outside",
            "train.csv:7: the path is empty",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("csv:8"), "a missing picture is told once: {message}");
        let dir = tree(&[("t.csv", "image_path,xmin,ymin,xmax,label\na.png,1,1,5,x\n"), ("a.png", "")]);
        assert!(refused(&dir).contains("no column of the box (ymax"), "{}", refused(&dir));
    }
}
