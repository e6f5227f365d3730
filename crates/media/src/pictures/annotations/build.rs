//! What all formats share: the rules for boxes, the classes, the notes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use retune_formats::error::Error;

use super::super::boxes::{BoxF, LabelledBox};
use super::super::limits;
use super::super::problems::Problems;
use super::{Annotated, Annotations, Rules};

/// Where a box was read.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Line(&'a Path, usize),
    /// An annotation of a COCO file, by its id.
    Annotation(&'a Path, u64),
}

impl Place<'_> {
    pub fn error(self, what: impl Into<String>) -> Error {
        match self {
            Place::Line(path, line) => Error::Record { path: path.to_path_buf(), line, what: what.into() },
            Place::Annotation(path, id) => {
                let what = format!("annotation {id}: {}", what.into());
                Error::Invalid { path: path.to_path_buf(), format: "COCO", what }
            }
        }
    }

    pub fn name(self) -> String {
        match self {
            Place::Line(path, line) => format!("{}:{line}", path.display()),
            Place::Annotation(path, id) => format!("{}, annotation {id}", path.display()),
        }
    }
}

/// What is counted for the notes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    Clipped,
    Dropped,
    Duplicate,
    Polygon,
    Crowd,
    Empty,
    Unlabelled,
}

impl Note {
    fn words(self, n: usize) -> String {
        let boxes = if n == 1 { "1 box".to_string() } else { format!("{n} boxes") };
        let pictures = if n == 1 { "1 picture".to_string() } else { format!("{n} pictures") };
        match self {
            Note::Clipped => format!("{boxes} reached out of the picture: clipped"),
            Note::Dropped => format!("{boxes} could not be: left out"),
            Note::Duplicate => format!("{boxes} stood there twice: kept once"),
            Note::Polygon => format!("{n} outlines were turned into the boxes around them"),
            Note::Crowd => format!("{n} crowds (iscrowd) were left out: they are no single objects"),
            Note::Empty => format!("{pictures} with an empty label file: no objects in them"),
            Note::Unlabelled => format!("{pictures} without a label file: taken as pictures without objects"),
        }
    }
}

/// By how much a box may reach out of its picture before that is worth a note: a pixel of a thousand.
const ROUNDING: f64 = 1e-3;

/// Collects the pictures of a data set.
pub struct Build {
    rules: Rules,
    /// Names by index. Fixed names come from the data; without them every name that is met gets the next index.
    classes: Vec<String>,
    fixed: bool,
    index: HashMap<String, u32>,
    pictures: Vec<Annotated>,
    notes: BTreeMap<Note, (usize, String)>,
    pub problems: Problems,
}

impl Build {
    pub fn new(rules: Rules, classes: Option<Vec<String>>) -> Build {
        let fixed = classes.is_some();
        let classes = classes.unwrap_or_default();
        let index = classes.iter().enumerate().map(|(i, name)| (name.clone(), i as u32)).collect();
        let (pictures, notes, problems) = (Vec::new(), BTreeMap::new(), Problems::default());
        Build { rules, classes, fixed, index, pictures, notes, problems }
    }

    pub fn note(&mut self, note: Note, place: impl FnOnce() -> String) {
        self.notes.entry(note).or_insert_with(|| (0, place())).0 += 1;
    }

    /// The index of a class by its name.
    pub fn class(&mut self, place: Place, name: &str) -> Option<u32> {
        if let Some(&index) = self.index.get(name) {
            return Some(index);
        }
        let what = match () {
            () if name.is_empty() => "the class is empty".into(),
            () if self.fixed => {
                let told = self.rules == Rules::Strict && !self.problems.is_full();
                let near =
                    if told { super::super::names::nearest(name, &self.classes) } else { String::new() };
                format!("the class {name:?} is not among the {} of the data set{near}", self.classes.len())
            }
            () if self.classes.len() >= limits::CLASSES => format!("more than {} classes", limits::CLASSES),
            () => {
                let index = self.classes.len() as u32;
                self.classes.push(name.to_string());
                self.index.insert(name.to_string(), index);
                return Some(index);
            }
        };
        self.refuse(place, what);
        None
    }

    /// The index of a class by its number, which must be one of the names'.
    pub fn class_number(&mut self, place: Place, number: &str) -> Option<u32> {
        let most = if self.fixed { self.classes.len() } else { limits::CLASSES };
        match number.parse::<u32>() {
            Ok(class) if (class as usize) < most => {
                for next in self.classes.len()..=class as usize {
                    self.classes.push(next.to_string());
                }
                return Some(class);
            }
            Ok(class) if self.fixed => {
                let last = self.classes.len().saturating_sub(1);
                self.refuse(
                    place,
                    format!("class {class} is out of range: the data set names {most} classes, 0 to {last}"),
                );
            }
            Ok(class) => {
                self.refuse(place, format!("class {class} is out of range: at most {most} classes are read"))
            }
            Err(_) => self.refuse(place, format!("the class is {number:?}; wanted its number, 0 or more")),
        }
        None
    }

    /// A bad box: an error, or left out.
    pub fn refuse(&mut self, place: Place, what: impl Into<String>) {
        match self.rules {
            Rules::Strict => self.problems.push(place.error(what)),
            Rules::Lenient => self.note(Note::Dropped, || place.name()),
        }
    }

    /// Adds a box (left, top, right, bottom, as fractions of the picture) if it keeps the rules.
    pub fn add(&mut self, place: Place, boxes: &mut Vec<LabelledBox>, class: u32, corners: [f64; 4]) {
        let [l, t, r, b] = corners;
        if !corners.iter().all(|v| v.is_finite()) {
            return self.refuse(place, "a number of the box is not finite");
        }
        if r < l || b < t {
            return self.refuse(
                place,
                format!("the box has a negative size: {:.4} x {:.4} of the picture", r - l, b - t),
            );
        }
        if r == l || b == t {
            return self.refuse(place, "the box has no area: one of its sides is 0");
        }
        if l >= 1.0 || t >= 1.0 || r <= 0.0 || b <= 0.0 {
            let hint =
                if r > 2.0 || b > 2.0 { "; are these pixels of another size, or not fractions?" } else { "" };
            return self.refuse(place, format!("the box lies wholly outside the picture: left {l:.3}, top {t:.3}, right {r:.3}, bottom {b:.3} of its size{hint}"));
        }
        if boxes.len() >= limits::BOXES {
            let what = format!("more than {} boxes in one picture", limits::BOXES);
            return self.problems.push(place.error(what));
        }
        if [-l, -t, r - 1.0, b - 1.0].iter().any(|out| *out > ROUNDING) {
            self.note(Note::Clipped, || place.name());
        }
        let clipped = [l.max(0.0), t.max(0.0), r.min(1.0), b.min(1.0)].map(|v| v as f32);
        let bounds = BoxF::from_corners(clipped);
        if !bounds.is_proper() {
            return self
                .refuse(place, "the box has no area: one of its sides is too short to be told from 0");
        }
        boxes.push(LabelledBox { class, bounds });
    }

    /// Adds a picture; of equal boxes one is kept.
    pub fn picture(
        &mut self,
        path: PathBuf,
        size: Option<(usize, usize)>,
        boxes: Vec<LabelledBox>,
        origin: String,
    ) {
        let mut seen = std::collections::HashSet::new();
        let mut kept = Vec::with_capacity(boxes.len());
        for b in boxes {
            // A millionth of the picture: the same numbers written with another count of digits.
            let key = [b.bounds.x, b.bounds.y, b.bounds.w, b.bounds.h].map(|v| (v * 1e6).round() as i64);
            if seen.insert((b.class, key)) {
                kept.push(b);
            } else {
                self.note(Note::Duplicate, || origin.clone());
            }
        }
        self.pictures.push(Annotated { path, size, boxes: kept, origin });
    }

    /// The data set, or its problems. Names that came as they were met are sorted.
    pub fn finish(mut self, source: &Path) -> Result<Annotations, Problems> {
        if self.pictures.is_empty() && self.problems.list.is_empty() {
            return Err(
                Error::missing(source, "there are no pictures", "is it the right file or folder?").into()
            );
        }
        if !self.fixed && !self.index.is_empty() {
            self.sort_classes();
        }
        self.pictures.sort_by(|a, b| a.path.cmp(&b.path));
        let told =
            |(note, (n, first)): (&Note, &(usize, String))| format!("{} (first: {first})", note.words(*n));
        let notes = self.notes.iter().map(told).collect();
        self.problems.or(Annotations { classes: self.classes, pictures: self.pictures, notes })
    }

    fn sort_classes(&mut self) {
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by(|&a, &b| self.classes[a].cmp(&self.classes[b]));
        let mut to = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            to[old] = new as u32;
        }
        self.classes.sort();
        for b in self.pictures.iter_mut().flat_map(|picture| &mut picture.boxes) {
            b.class = to[b.class as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(corners: [f64; 4], rules: Rules) -> (Vec<LabelledBox>, Build) {
        let mut build = Build::new(rules, Some(vec!["a".into()]));
        let mut boxes = Vec::new();
        build.add(Place::Line(Path::new("f.txt"), 3), &mut boxes, 0, corners);
        (boxes, build)
    }

    #[test]
    fn every_rule_names_file_and_line() {
        for (corners, word) in [
            ([0.1, 0.1, 0.1, 0.5], "no area"),
            ([0.5, 0.1, 0.1, 0.5], "negative"),
            ([1.2, 0.1, 1.4, 0.5], "wholly outside"),
            ([-0.3, 0.1, 0.0, 0.5], "wholly outside"),
            ([120.0, 0.1, 240.0, 0.5], "pixels"),
            ([f64::NAN, 0.1, 0.2, 0.5], "finite"),
            ([0.1, 0.1, f64::INFINITY, 0.5], "finite"),
            ([0.5, 0.1, 0.5 + 1e-12, 0.5], "no area"),
        ] {
            let (boxes, build) = add(corners, Rules::Strict);
            let message = build.problems.to_string();
            assert!(boxes.is_empty() && message.contains("f.txt:3: ") && message.contains(word), "{message}");
            let (boxes, mut build) = add(corners, Rules::Lenient);
            build.picture("p.png".into(), None, boxes, "f.txt".into());
            let set = build.finish(Path::new(".")).unwrap();
            assert_eq!(set.notes, ["1 box could not be: left out (first: f.txt:3)"]);
        }
    }

    #[test]
    fn boxes_that_reach_out_are_clipped_and_those_by_a_hair_without_a_word() {
        let (boxes, build) = add([-0.1, 0.2, 0.5, 1.3], Rules::Strict);
        assert_eq!(boxes[0].bounds.corners().map(|v| (v * 100.0).round()), [0.0, 20.0, 50.0, 100.0]);
        assert_eq!(build.notes.len(), 1);
        let (boxes, build) = add([-0.0005, 0.2, 0.5, 1.0000001], Rules::Strict);
        assert!(boxes.len() == 1 && build.notes.is_empty());
    }

    #[test]
    fn classes_are_counted_named_and_held_to_the_list() {
        let place = Place::Line(Path::new("f.txt"), 1);
        let mut build = Build::new(Rules::Strict, Some(vec!["cat".into(), "dog".into()]));
        assert_eq!((build.class_number(place, "1"), build.class(place, "cat")), (Some(1), Some(0)));
        for bad in ["2", "-1", "x", "4294967296", "1.5"] {
            assert_eq!(build.class_number(place, bad), None);
        }
        assert_eq!(build.class(place, "dogs"), None);
        let message = build.problems.to_string();
        assert!(message.contains("0 to 1") && message.contains("did you mean \"dog\""), "{message}");
        let mut free = Build::new(Rules::Strict, None);
        assert_eq!((free.class_number(place, "2"), free.classes.join(" ")), (Some(2), "0 1 2".into()));
        assert_eq!(free.class_number(place, "4000000000"), None);
    }
}
