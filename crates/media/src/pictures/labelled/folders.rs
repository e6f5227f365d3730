//! A folder for each class: `data/CLASS/…/picture.jpg`, as torchvision's ImageFolder.

use std::path::Path;

use retune_formats::error::{Error, Result};

use super::super::walk;
use super::{Labelled, Named, Source};

pub fn open(folder: &Path) -> Result<Labelled> {
    let listing = walk::list(folder)?;
    let (mut named, mut empty, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let mut others = listing.files.len();
    for class in &listing.folders {
        let label = walk::name(class);
        let (pictures, rest) = walk::pictures(class)?;
        others += rest;
        if pictures.is_empty() {
            warnings.push(format!("{}: no pictures in the folder of class {label:?}", class.display()));
            empty.push(label.clone());
        }
        named.extend(pictures.into_iter().map(|path| Named {
            origin: path.display().to_string(),
            source: Source::File(path),
            label: label.clone(),
        }));
    }
    if named.is_empty() {
        let what = "there are no pictures in its folders";
        let remedy = "put the pictures into a folder for each class, DATA/CLASS/picture.jpg, or name a table of paths and labels";
        return Err(Error::missing(folder, what, remedy));
    }
    if others > 0 {
        let files = if others == 1 { "1 file that is".into() } else { format!("{others} files that are") };
        warnings.push(format!("{}: {files} no picture of a class passed over", folder.display()));
    }
    Labelled::new(named, &empty, warnings)
}
