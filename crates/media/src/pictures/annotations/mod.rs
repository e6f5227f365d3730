//! Boxes around objects as the tools write them: YOLO txt, COCO json, VOC xml, and tables.
//!
//! Opening a data set reads names and boxes, not pixels. What is done with bad boxes is the same for every format: see
//! [`Rules`] and docs/pictures.md.

mod build;
mod coco;
mod data_yaml;
mod table;
mod voc;
mod yolo;

use std::path::{Path, PathBuf};

use retune_formats::error::{Error, Result, quote};

use super::boxes::LabelledBox;
use super::decode;
use super::picture::Picture;
use super::problems::Problems;
use super::splits::Splits;
use super::walk;

/// Pictures with the boxes of their objects.
#[derive(Clone, Debug)]
pub struct Annotations {
    /// Names of the classes: in the data's own order where it has one, else sorted.
    pub classes: Vec<String>,
    /// Sorted by path; every picture once, those without objects too.
    pub pictures: Vec<Annotated>,
    /// What was clipped, dropped or missing: how often, and where first.
    pub notes: Vec<String>,
}

/// One picture and the boxes in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotated {
    pub path: PathBuf,
    /// Width and height, where the annotations say them.
    pub size: Option<(usize, usize)>,
    pub boxes: Vec<LabelledBox>,
    /// Where the boxes were read: the label file, or "table:line" of the first.
    pub origin: String,
}

/// What is done with boxes that cannot be: class out of range, no area, wholly outside the picture, not a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// An error that names file and line.
    #[default]
    Strict,
    /// They are left out, and counted in the notes.
    Lenient,
}

impl Annotated {
    /// Decodes the picture.
    ///
    /// # Errors
    /// As [`decode::read`]; and when its shape is not the one that the boxes were made for.
    pub fn read(&self) -> Result<Picture> {
        let picture = decode::read(&self.path)?;
        if let Some((w, h)) = self.size {
            // A picture that was only made smaller keeps its boxes.
            let (have, want) = ((picture.width * h) as f64, (picture.height * w) as f64);
            if (have / want - 1.0).abs() > 0.02 {
                let found = (picture.width, picture.height);
                let turned = if found == (h, w) { " (turned by its EXIF orientation?)" } else { "" };
                let what = format!(
                    "the boxes of {} are for {w} x {h} pixels, the picture has {} x {}{turned}",
                    self.origin, found.0, found.1
                );
                return Err(Error::unsupported(
                    &self.path,
                    what,
                    "annotate the picture again as it is shown, or correct the size",
                ));
            }
        }
        Ok(picture)
    }
}

impl Annotations {
    /// Opens a data set; what it is follows from what is there:
    ///
    /// - a file `.yaml` (YOLO), `.json` (COCO), `.csv`, `.tsv`, `.jsonl` (a table) or `.xml` (VOC, one picture);
    /// - a folder with one of these (`data.yaml`, `annotations/instances_*.json`, `_annotations.coco.json`, …), with
    ///   `images/` and `labels/`, with `Annotations/` and `JPEGImages/`, with pictures and `.txt` side by side, or with
    ///   `train/`, `val/`, `test/` of these.
    ///
    /// # Errors
    /// All problems at once, with file and line.
    pub fn open(path: &Path, rules: Rules) -> Result<Splits<Annotations>, Problems> {
        if path.is_dir() { folder(path, rules) } else { file(path, rules) }
    }

    /// Number of boxes of each class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for b in self.pictures.iter().flat_map(|picture| &picture.boxes) {
            counts[b.class as usize] += 1;
        }
        counts
    }

    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// Some of the pictures, in this order.
    pub fn subset(&self, indices: &[usize]) -> Annotations {
        let pictures = indices.iter().map(|&i| self.pictures[i].clone()).collect();
        Annotations { classes: self.classes.clone(), pictures, notes: Vec::new() }
    }

    /// The same boxes with class indices of another list (a trained model's).
    ///
    /// # Errors
    /// Every class that occurs and is not in the list.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Annotations, Problems> {
        let mut problems = Problems::default();
        let to = super::names::translation(&self.classes, classes);
        let mut told = vec![false; self.classes.len()];
        for picture in &mut self.pictures {
            for b in &mut picture.boxes {
                let old = b.class as usize;
                match to[old] {
                    Some(class) => b.class = class,
                    None if !told[old] => {
                        told[old] = true;
                        let name = &self.classes[old];
                        let near = if problems.is_full() {
                            String::new()
                        } else {
                            super::names::nearest(name, classes)
                        };
                        problems.push(Error::unsupported(
                            Path::new(&picture.origin),
                            format!(
                                "the class {name:?} is not among the {} that are known{near}",
                                classes.len()
                            ),
                            "correct the label, or train with this class",
                        ));
                    }
                    None => {}
                }
            }
        }
        self.classes = classes.to_vec();
        problems.or(self)
    }
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

fn file(path: &Path, rules: Rules) -> Result<Splits<Annotations>, Problems> {
    match extension(path).as_str() {
        "yaml" | "yml" => yolo::open_yaml(path, rules),
        "json" => Ok(Splits::one(coco::open(path, rules)?)),
        "xml" => Ok(Splits::one(voc::open_files(&[path.to_path_buf()], None, rules)?)),
        "csv" | "tsv" | "jsonl" | "ndjson" => Ok(Splits::one(table::open(path, rules)?)),
        other => {
            let what = format!(
                "boxes are read from .yaml, .json, .xml, .csv, .tsv or .jsonl, or from a folder; this name ends in {}",
                quote(other)
            );
            Err(Error::unsupported(path, what, "name the data set's folder or one of these files").into())
        }
    }
}

fn folder(path: &Path, rules: Rules) -> Result<Splits<Annotations>, Problems> {
    let mut listing = walk::list(path)?;
    // What `retune fetch` leaves beside the files that it fetched.
    listing.files.retain(|file| walk::name(file) != "fetched.json");
    let with =
        |ending: &str| -> Vec<&PathBuf> { listing.files.iter().filter(|f| extension(f) == ending).collect() };
    let sub = |name: &str| listing.folders.iter().find(|f| walk::name(f).eq_ignore_ascii_case(name));
    let yaml: Vec<&PathBuf> = [with("yaml"), with("yml")].concat();
    if let Some(yaml) = yaml.iter().find(|f| walk::name(f).starts_with("data.")).or(yaml.first()) {
        return yolo::open_yaml(yaml, rules);
    }
    if let (Some(images), Some(labels)) = (sub("images"), sub("labels")) {
        return yolo::open_folders(path, images, labels, rules);
    }
    if let Some(found) = coco::find(&listing)? {
        return found.map(|json| coco::open(&json, rules))?.with_one_vocabulary();
    }
    if let Some(annotations) = sub("Annotations") {
        return voc::open_folder(path, annotations, rules);
    }
    if let Some(parts) = walk::split_folders(&listing.folders) {
        return parts.map(|part| Ok::<_, Problems>(folder(&part, rules)?.train))?.with_one_vocabulary();
    }
    if !with("xml").is_empty() {
        let files: Vec<PathBuf> = with("xml").into_iter().cloned().collect();
        return Ok(Splits::one(voc::open_files(&files, None, rules)?));
    }
    if let Some(found) = walk::tables(&listing.files) {
        return found.map(|path| table::open(&path, rules))?.with_one_vocabulary();
    }
    if !with("txt").is_empty() {
        return Ok(Splits::one(yolo::open_mixed(path, rules)?));
    }
    let what = "no boxes are found here";
    let remedy = "wanted: data.yaml, images/ and labels/, a COCO .json, VOC .xml files, or a table with image_path, xmin, ymin, xmax, ymax, label";
    Err(Error::missing(path, what, remedy).into())
}

impl Splits<Annotations> {
    /// Gives every part the training part's classes.
    fn with_one_vocabulary(self) -> Result<Splits<Annotations>, Problems> {
        let classes = self.train.classes.clone();
        self.map(|part| part.with_classes(&classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Writes files under a new folder: texts as they are, `.png`/`.jpg` names as pictures of 100 x 50 pixels.
    pub(super) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if decode::is_picture_name(&path) {
                Picture::filled(100, 50, [7; 3]).write(&path).unwrap();
            } else {
                fs::write(path, text).unwrap();
            }
        }
        dir
    }

    /// Class, then left, top, right, bottom in pixels of 100 x 50, rounded.
    pub(super) fn pixels(boxes: &[LabelledBox]) -> Vec<[i32; 5]> {
        let round = |b: &LabelledBox| {
            let [l, t, r, bottom] = b.bounds.to_pixels(100, 50).map(|v| v.round() as i32);
            [b.class as i32, l, t, r, bottom]
        };
        boxes.iter().map(round).collect()
    }

    pub(super) fn open(dir: &tempfile::TempDir) -> Splits<Annotations> {
        Annotations::open(dir.path(), Rules::Strict).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(super) fn refused(dir: &tempfile::TempDir) -> String {
        Annotations::open(dir.path(), Rules::Strict).unwrap_err().to_string()
    }

    #[test]
    fn a_picture_of_another_shape_than_its_boxes_is_refused() {
        let dir = tree(&[("a.png", "")]);
        let annotated =
            |size| Annotated { path: dir.path().join("a.png"), size, boxes: vec![], origin: "x.xml".into() };
        assert!(annotated(None).read().is_ok() && annotated(Some((400, 200))).read().is_ok());
        let message = annotated(Some((50, 100))).read().unwrap_err().to_string();
        assert!(
            message.contains("EXIF") && message.contains("50 x 100") && message.contains("x.xml"),
            "{message}"
        );
    }

    #[test]
    fn a_folder_of_nothing_says_what_is_wanted() {
        let dir = tree(&[("a.png", "")]);
        assert!(refused(&dir).contains("data.yaml"));
        let file = Annotations::open(&dir.path().join("a.png"), Rules::Strict).unwrap_err().to_string();
        assert!(file.contains("`png`"), "{file}");
    }
}
