//! YOLO txt: a text file for each picture, a line for each object, `class cx cy w h`, all but the class as fractions.
//!
//! `…/images/…/a.jpg` has its labels in `…/labels/…/a.txt`. A line with more numbers, `class x1 y1 x2 y2 x3 y3 …`, is an
//! outline and becomes the box around it. Names come from `data.yaml`, `classes.txt` or `*.names`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result, quote};
use retune_formats::labels;

use super::super::boxes::LabelledBox;
use super::super::decode::is_picture_name;
use super::super::limits;
use super::super::problems::Problems;
use super::super::splits::Splits;
use super::super::walk;
use super::build::{Build, Note, Place};
use super::data_yaml::DataYaml;
use super::{Annotations, Rules};

/// A data set described by a `data.yaml`.
pub fn open_yaml(path: &Path, rules: Rules) -> Result<Splits<Annotations>, Problems> {
    let yaml = DataYaml::read(path)?;
    let part = |entries: &[String]| -> Result<Option<Annotations>, Problems> {
        if entries.is_empty() {
            return Ok(None);
        }
        let mut pictures = Vec::new();
        for entry in entries {
            pictures.extend(yaml.pictures(path, entry)?);
        }
        open_pictures(path, pictures, beside_images, Some(yaml.names.clone()), rules).map(Some)
    };
    let Some(train) = part(&yaml.train)? else {
        return Err(Error::missing(path, "it names no training pictures", "add `train: images/train`").into());
    };
    Ok(Splits { train, val: part(&yaml.val)?, test: part(&yaml.test)? })
}

/// `images/` and `labels/`, each with `train`, `val`, `test` inside or not.
pub fn open_folders(
    root: &Path,
    images: &Path,
    labels: &Path,
    rules: Rules,
) -> Result<Splits<Annotations>, Problems> {
    let names = class_names(root)?;
    let parts = match walk::split_folders(&walk::list(images)?.folders) {
        Some(parts) => parts,
        None => Splits::one(images.to_path_buf()),
    };
    let beside = |picture: &Path| {
        let inner = picture.strip_prefix(images).unwrap_or(picture);
        labels.join(inner).with_extension("txt")
    };
    let parts = parts.map(|part| -> Result<Annotations, Problems> {
        let pictures = walk::pictures(&part)?.0;
        let mut set = open_pictures(&part, pictures, beside, names.clone(), rules)?;
        let inner = part.strip_prefix(images).unwrap_or(&part);
        set.notes.extend(orphans(&set, &labels.join(inner), beside)?);
        Ok(set)
    })?;
    if names.is_some() { Ok(parts) } else { Ok(numbered(parts)) }
}

/// Pictures and their `.txt` side by side, as darknet has them.
pub fn open_mixed(folder: &Path, rules: Rules) -> Result<Annotations, Problems> {
    let beside = |picture: &Path| picture.with_extension("txt");
    open_pictures(folder, walk::pictures(folder)?.0, beside, class_names(folder)?, rules)
}

/// Without names every part counts its own classes: all get the longest list.
fn numbered(mut parts: Splits<Annotations>) -> Splits<Annotations> {
    let all = [Some(&parts.train), parts.val.as_ref(), parts.test.as_ref()];
    let longest = all.into_iter().flatten().max_by_key(|p| p.classes.len()).map(|p| p.classes.clone());
    for part in [Some(&mut parts.train), parts.val.as_mut(), parts.test.as_mut()].into_iter().flatten() {
        part.classes = longest.clone().unwrap_or_default();
    }
    parts
}

/// The label file of a picture by Ultralytics' rule: the last folder `images` becomes `labels`.
fn beside_images(picture: &Path) -> PathBuf {
    let parts: Vec<_> = picture.components().collect();
    let last = parts.iter().rposition(|part| part.as_os_str() == "images");
    let path: PathBuf = parts
        .iter()
        .enumerate()
        .map(|(i, part)| if Some(i) == last { "labels".as_ref() } else { part.as_os_str() })
        .collect();
    path.with_extension("txt")
}

fn open_pictures(
    source: &Path,
    mut pictures: Vec<PathBuf>,
    label_file: impl Fn(&Path) -> PathBuf,
    names: Option<Vec<String>>,
    rules: Rules,
) -> Result<Annotations, Problems> {
    pictures.sort();
    pictures.dedup();
    let mut build = Build::new(rules, names);
    for path in pictures {
        let labels = label_file(&path);
        if labels.is_file() {
            match Bytes::open(&labels).and_then(|f| f.read_text("labels", limits::LABEL_FILE_BYTES)) {
                Ok(text) => read_labels(&mut build, path, &labels, &text),
                Err(e) => build.problems.push(e),
            }
        } else {
            build.note(Note::Unlabelled, || path.display().to_string());
            let origin = path.display().to_string();
            build.picture(path, None, Vec::new(), origin);
        }
    }
    build.finish(source)
}

fn read_labels(build: &mut Build, path: PathBuf, labels: &Path, text: &str) {
    let mut boxes = Vec::new();
    let mut lines = 0;
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if !line.trim().is_empty() {
            lines += 1;
            object(build, Place::Line(labels, i + 1), &mut boxes, line);
        }
    }
    if lines == 0 {
        build.note(Note::Empty, || labels.display().to_string());
    }
    build.picture(path, None, boxes, labels.display().to_string());
}

/// One line.
fn object(build: &mut Build, place: Place, boxes: &mut Vec<LabelledBox>, line: &str) {
    let mut fields = line.split_ascii_whitespace();
    let class = fields.next().unwrap_or_default();
    let mut numbers = Vec::new();
    for field in fields {
        match field.parse::<f64>() {
            Ok(number) => numbers.push(number),
            Err(_) => return build.refuse(place, format!("{} is not a number", quote(field))),
        }
    }
    let corners = match numbers[..] {
        [x, y, w, h] => [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0],
        [_, _, _, _, _, _, ..] if numbers.len() % 2 == 0 => {
            build.note(Note::Polygon, || place.name());
            around(&numbers)
        }
        _ => {
            let what = format!(
                "{} numbers after the class; wanted 4 (cx cy w h), or the points x y of an outline",
                numbers.len()
            );
            return build.refuse(place, what);
        }
    };
    if let Some(class) = build.class_number(place, class) {
        build.add(place, boxes, class, corners);
    }
}

/// The box around points; NaN if one of them is.
fn around(points: &[f64]) -> [f64; 4] {
    let pick = |axis: usize, less: bool| {
        points.iter().skip(axis).step_by(2).copied().reduce(|a, b| match () {
            () if a.is_nan() || b.is_nan() => f64::NAN,
            () if less => a.min(b),
            () => a.max(b),
        })
    };
    [pick(0, true), pick(1, true), pick(0, false), pick(1, false)].map(|v| v.unwrap_or(f64::NAN))
}

/// A note on label files that belong to no picture.
fn orphans(
    set: &Annotations,
    labels: &Path,
    label_file: impl Fn(&Path) -> PathBuf,
) -> Result<Option<String>> {
    if !labels.is_dir() {
        return Ok(None);
    }
    let known: HashSet<PathBuf> = set.pictures.iter().map(|p| label_file(&p.path)).collect();
    let files = walk::list(labels)?.files;
    let mut without = files
        .iter()
        .filter(|f| super::extension(f) == "txt" && walk::name(f) != "classes.txt" && !known.contains(*f));
    let Some(first) = without.next() else { return Ok(None) };
    let n = 1 + without.count();
    Ok(Some(format!("{n} label files without a picture were passed over (first: {})", first.display())))
}

/// Names one a line, from `classes.txt`, `*.names`, here or in `labels/`.
pub fn class_names(folder: &Path) -> Result<Option<Vec<String>>> {
    let mut files = walk::list(folder)?.files;
    let inner = folder.join("labels").join("classes.txt");
    if inner.is_file() {
        files.push(inner);
    }
    let is_names = |f: &&PathBuf| walk::name(f) == "classes.txt" || super::extension(f) == "names";
    let Some(path) = files.iter().find(is_names) else { return Ok(None) };
    labels::read(path).map(Some)
}

impl DataYaml {
    /// The pictures of an entry: a folder, a `.txt` of paths, or one picture; relative to `path:` and to the file.
    fn pictures(&self, yaml: &Path, entry: &str) -> Result<Vec<PathBuf>> {
        let folder = yaml.parent().unwrap_or(Path::new(""));
        let root = self.path.as_deref().map_or(folder.to_path_buf(), |path| folder.join(path));
        // Roboflow writes `../train/images` for what lies beside the file.
        let inner = entry.trim_start_matches("../");
        let candidates = [root.join(entry), folder.join(entry), folder.join(inner)];
        let Some(found) = candidates.iter().find(|c| c.exists()) else {
            let what = format!("there is no {} (for `{entry}`)", candidates[0].display());
            return Err(Error::missing(
                yaml,
                what,
                "correct `path` or the entry; both may be relative to the file",
            ));
        };
        if found.is_dir() {
            return Ok(walk::pictures(found)?.0);
        }
        if super::extension(found) != "txt" {
            return Ok(vec![found.clone()]);
        }
        let text = Bytes::open(found)?.read_text("a list of pictures", limits::COCO_BYTES)?;
        let here = found.parent().unwrap_or(Path::new(""));
        let mut pictures = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let picture = [here.join(line.trim()), root.join(line.trim())].into_iter().find(|p| p.is_file());
            match picture.filter(|p| is_picture_name(p)) {
                Some(picture) => pictures.push(picture),
                None => {
                    let what = format!("there is no picture {}", quote(line.trim()));
                    return Err(Error::Record { path: found.clone(), line: i + 1, what });
                }
            }
        }
        Ok(pictures)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, pixels, refused, tree};
    use super::*;

    #[test]
    fn images_and_labels() {
        let dir = tree(&[
            ("images/a.png", ""),
            ("images/b.png", ""),
            ("images/c.png", ""),
            ("labels/a.txt", "1 0.5 0.5 0.2 0.4\r\n\n0 0.1 0.2 0.2 0.4\n0 0.1 0.2 0.2 0.4\n"),
            ("labels/b.txt", ""),
            ("labels/z.txt", "0 0.5 0.5 1 1"),
            ("classes.txt", "cat\ndog\n"),
        ]);
        let set = open(&dir).train;
        assert_eq!(set.classes, ["cat", "dog"]);
        assert_eq!(pixels(&set.pictures[0].boxes), [[1, 40, 15, 60, 35], [0, 0, 0, 20, 20]]);
        assert!(set.pictures[1].boxes.is_empty() && set.pictures[2].boxes.is_empty());
        let notes = set.notes.join("; ");
        for part in
            ["twice", "empty label file", "1 picture without a label file", "1 label files without a picture"]
        {
            assert!(notes.contains(part), "{part}: {notes}");
        }
        assert_eq!(set.counts(), [1, 1]);
    }

    #[test]
    fn a_data_yaml_with_parts_and_names() {
        let yaml = "# a set\npath: .\ntrain: images/train\nval: images/val # evaluated on\nnc: 2\nnames:\n  0: cat\n  1: 'big dog'\n";
        let dir = tree(&[
            ("data.yaml", yaml),
            ("images/train/a.jpg", ""),
            ("images/val/b.jpg", ""),
            ("labels/train/a.txt", "1 0.5 0.5 0.5 0.5\n"),
            ("labels/val/b.txt", "0 0.1 0.1 0.3 0.1 0.3 0.5\n"),
        ]);
        let parts = open(&dir);
        assert_eq!(parts.train.classes, ["cat", "big dog"]);
        assert_eq!(pixels(&parts.train.pictures[0].boxes), [[1, 25, 13, 75, 38]]);
        let val = parts.val.unwrap();
        assert_eq!(pixels(&val.pictures[0].boxes), [[0, 10, 5, 30, 25]]);
        assert!(val.notes[0].contains("outlines") && val.notes[0].contains("b.txt:1"), "{:?}", val.notes);
    }

    #[test]
    fn bad_lines_are_named_all_at_once() {
        let dir = tree(&[
            ("images/a.png", ""),
            (
                "labels/a.txt",
                "0 0.5 0.5 0.2 0.2\n5 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n0 nan 0.5 0.2 0.2\n0 0.5 0.5 0.2\n0 x 0.5 0.2 0.2\n0 320 240 40 40\n",
            ),
            ("classes.txt", "cat\n"),
        ]);
        let message = refused(&dir);
        for part in [
            "a.txt:2: class 5",
            "a.txt:3: the box has no area",
            "a.txt:4: a number",
            "a.txt:5: 3 numbers",
            "a.txt:6: `x`",
            "a.txt:7: the box lies wholly outside",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let lenient = Annotations::open(dir.path(), Rules::Lenient).unwrap().train;
        assert_eq!(lenient.counts(), [1]);
        assert!(lenient.notes[0].contains("6 boxes could not be"), "{:?}", lenient.notes);
    }

    #[test]
    fn parts_without_names_count_together_and_txt_may_lie_beside() {
        let dir = tree(&[
            ("images/train/a.png", ""),
            ("images/val/b.png", ""),
            ("labels/train/a.txt", "0 .5 .5 .1 .1"),
            ("labels/val/b.txt", "2 .5 .5 .1 .1"),
        ]);
        let parts = open(&dir);
        assert_eq!((parts.train.classes.len(), parts.val.unwrap().classes.len()), (3, 3));
        let dir = tree(&[("a.png", ""), ("a.txt", "0 .5 .5 .1 .1"), ("obj.names", "ball")]);
        assert_eq!(open(&dir).train.classes, ["ball"]);
    }

    #[test]
    fn a_data_yaml_that_leads_nowhere_says_so() {
        let dir = tree(&[("data.yaml", "train: images/nowhere\nnames: [a]\n")]);
        assert!(refused(&dir).contains("nowhere"));
        let dir = tree(&[("data.yaml", "names: [a]\n")]);
        assert!(refused(&dir).contains("train: images/train"));
    }
}
