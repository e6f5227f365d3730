//! Labelled pictures, for classification: a folder for each class, tables of paths and labels, or IDX files.
//!
//! Opening a data set reads names and labels, not pixels; [`Labelled::read`] decodes one picture.

mod cache;
mod folders;
mod idx;
pub(super) mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retune_formats::error::{Error, Result};

use super::decode;
use super::limits;
use super::picture::Picture;
use super::problems::Problems;
use super::splits::Splits;
use super::walk;
pub use cache::Cache;
pub use idx::Idx;

/// Pictures with a label each.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Names of the classes: sorted by letters, numbers by value.
    pub classes: Vec<String>,
    pub examples: Vec<Example>,
    /// What was passed over or looks odd, in words.
    pub warnings: Vec<String>,
}

/// One picture and its label.
#[derive(Clone, Debug)]
pub struct Example {
    pub source: Source,
    /// Index of its class.
    pub class: u32,
    /// Where it was named: the file itself, or "table:line".
    pub origin: String,
}

/// Where the pixels are.
#[derive(Clone, Debug)]
pub enum Source {
    File(PathBuf),
    /// A picture of an IDX file.
    Idx(Arc<Idx>, usize),
}

impl Source {
    /// Decodes it.
    pub fn read(&self) -> Result<Picture> {
        match self {
            Source::File(path) => decode::read(path),
            Source::Idx(idx, index) => idx.picture(*index),
        }
    }

    /// What a report calls it: the path, or "file[index]".
    pub fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Idx(idx, index) => format!("{}[{index}]", idx.path().display()),
        }
    }
}

/// An example before the classes are known.
struct Named {
    source: Source,
    label: String,
    origin: String,
}

impl Labelled {
    /// Opens a data set: a folder (of class folders, perhaps within `train` and `val`; of IDX files; of tables beside
    /// pictures), or a table (`.csv`, `.tsv`, `.json`, `.jsonl`). Every part gets the training part's classes.
    ///
    /// # Errors
    /// All problems at once: files that are missing, rows without a label, classes that the training part has not.
    pub fn open(path: &Path) -> Result<Splits<Labelled>, Problems> {
        if path.is_file() {
            return Ok(Splits::one(table::open(path)?));
        }
        let listing = walk::list(path)?;
        if let Some(found) = idx::find(&listing.files) {
            return found.map(|(images, labels)| idx::open(&images, &labels))?.with_one_vocabulary();
        }
        if listing.folders.is_empty()
            && let Some(found) = walk::tables(&listing.files)
        {
            return found.map(|path| table::open(&path))?.with_one_vocabulary();
        }
        match walk::split_folders(&listing.folders) {
            Some(parts) => parts.map(|part| folders::open(&part))?.with_one_vocabulary(),
            None => Ok(Splits::one(folders::open(path)?)),
        }
    }

    fn new(named: Vec<Named>, empty: &[String], warnings: Vec<String>) -> Result<Labelled> {
        let names: BTreeSet<&str> =
            named.iter().map(|n| n.label.as_str()).chain(empty.iter().map(String::as_str)).collect();
        let mut classes: Vec<String> = names.into_iter().map(str::to_string).collect();
        if classes.len() > limits::CLASSES {
            let path = Path::new(named.first().map_or("", |n| n.origin.as_str()));
            return Err(Error::limit(
                path,
                "the number of classes",
                classes.len() as u64,
                limits::CLASSES as u64,
            ));
        }
        if classes.iter().all(|name| name.parse::<i64>().is_ok()) {
            classes.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
        }
        let mut labelled = Labelled { classes, examples: Vec::with_capacity(named.len()), warnings };
        let order: std::collections::HashMap<&str, u32> =
            labelled.classes.iter().enumerate().map(|(i, name)| (name.as_str(), i as u32)).collect();
        for Named { source, label, origin } in named {
            labelled.examples.push(Example { source, class: order[label.as_str()], origin });
        }
        Ok(labelled)
    }

    pub fn len(&self) -> usize {
        self.examples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Pictures of each class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for example in &self.examples {
            counts[example.class as usize] += 1;
        }
        counts
    }

    /// Decodes the picture of an example.
    pub fn read(&self, index: usize) -> Result<Picture> {
        self.examples[index].source.read()
    }

    /// Some of the examples, in this order.
    pub fn subset(&self, indices: &[usize]) -> Labelled {
        let examples = indices.iter().map(|&i| self.examples[i].clone()).collect();
        Labelled { classes: self.classes.clone(), examples, warnings: Vec::new() }
    }

    /// The same examples with class indices of another list (a trained model's).
    ///
    /// # Errors
    /// Every label that is not in the list, once, with the place where it was met first.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Labelled, Problems> {
        let mut problems = Problems::default();
        let to = super::names::translation(&self.classes, classes);
        let mut told = BTreeSet::new();
        for example in &mut self.examples {
            match to[example.class as usize] {
                Some(class) => example.class = class,
                None if told.insert(example.class) => {
                    let name = &self.classes[example.class as usize];
                    let near =
                        if problems.is_full() { String::new() } else { super::names::nearest(name, classes) };
                    problems.push(Error::unsupported(
                        Path::new(&example.origin),
                        format!("the class {name:?} is not among the {} that are known{near}", classes.len()),
                        "correct the label, or train with this class",
                    ));
                }
                None => {}
            }
        }
        self.classes = classes.to_vec();
        problems.or(self)
    }
}

impl Splits<Labelled> {
    fn with_one_vocabulary(self) -> Result<Splits<Labelled>, Problems> {
        let classes = self.train.classes.clone();
        self.map(|part| part.with_classes(&classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    pub(super) fn png(path: &Path, grey: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, Picture::filled(3, 2, [grey; 3]).to_png()).unwrap();
    }

    #[test]
    fn a_folder_for_each_class() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        png(&at("dog/b.PNG"), 2);
        png(&at("dog/deep/a.png"), 3);
        png(&at("cat/x.png"), 1);
        fs::write(at("cat/.DS_Store"), "x").unwrap();
        fs::write(at("dog/notes.txt"), "x").unwrap();
        fs::create_dir(at("bird")).unwrap();
        let Splits { train, val, test } = Labelled::open(dir.path()).unwrap();
        assert!(val.is_none() && test.is_none());
        assert_eq!(train.classes, ["bird", "cat", "dog"]);
        assert_eq!(train.counts(), [0, 1, 2]);
        assert_eq!(train.read(0).unwrap().pixel(0, 0), [1; 3]);
        assert!(train.warnings.iter().any(|w| w.contains("bird")), "{:?}", train.warnings);
        assert!(train.warnings.iter().any(|w| w.contains("1 file")), "{:?}", train.warnings);
        assert_eq!(train.subset(&[2, 0]).counts(), [0, 1, 1]);
    }

    #[test]
    fn train_and_val_folders_are_parts_with_the_same_classes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["train/a/1.png", "train/b/1.png", "train/b/2.png", "val/b/3.png"] {
            png(&at(name), 0);
        }
        let parts = Labelled::open(dir.path()).unwrap();
        let val = parts.val.unwrap();
        assert_eq!((parts.train.len(), val.len(), val.examples[0].class), (3, 1, 1));
        assert_eq!(val.classes, ["a", "b"]);
        png(&at("val/bb/3.png"), 0);
        let message = Labelled::open(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("\"bb\"") && message.contains("did you mean \"b\"") && message.contains("3.png"),
            "{message}"
        );
    }

    #[test]
    fn folders_without_pictures_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Labelled::open(dir.path()).unwrap_err().to_string().contains("no pictures"));
        png(&dir.path().join("flat.png"), 0);
        let message = Labelled::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("a folder for each class"), "{message}");
        assert!(Labelled::open(&dir.path().join("none")).unwrap_err().is_io());
    }

    #[test]
    fn numbers_are_classes_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        for class in ["10", "9", "0"] {
            png(&dir.path().join(class).join("a.png"), 0);
        }
        assert_eq!(Labelled::open(dir.path()).unwrap().train.classes, ["0", "9", "10"]);
    }
}
