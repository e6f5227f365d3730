//! Names in folders, sorted, so that a data set has the same order on every disk.

use std::fs;
use std::path::{Path, PathBuf};

use retune_formats::error::{Error, Result};

use super::decode::{EXTENSIONS, is_picture_name};
use super::limits;
use super::splits::{Splits, TEST, TRAIN, VAL};

/// How deep folders are searched.
const DEPTH: usize = 16;

/// What a folder holds, sorted by name; hidden names (`.DS_Store`, `._a.jpg`) are passed over.
pub struct Listing {
    pub folders: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
}

pub fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing { folders: Vec::new(), files: Vec::new() };
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        if name(&path).starts_with('.') || name(&path) == "__MACOSX" {
            continue;
        }
        if path.is_dir() {
            listing.folders.push(path)
        } else {
            listing.files.push(path)
        }
        if listing.files.len() > limits::PICTURES {
            return Err(Error::limit(
                folder,
                "the number of files",
                listing.files.len() as u64,
                limits::PICTURES as u64,
            ));
        }
    }
    listing.folders.sort();
    listing.files.sort();
    Ok(listing)
}

/// All pictures in a folder and the folders in it, sorted, and the number of files that are none.
pub fn pictures(folder: &Path) -> Result<(Vec<PathBuf>, usize)> {
    let mut found = (Vec::new(), 0);
    search(folder, DEPTH, &mut found)?;
    Ok(found)
}

fn search(folder: &Path, depth: usize, found: &mut (Vec<PathBuf>, usize)) -> Result<()> {
    let listing = list(folder)?;
    let before = found.0.len() + listing.files.len();
    if before > limits::PICTURES {
        return Err(Error::limit(folder, "the number of pictures", before as u64, limits::PICTURES as u64));
    }
    let (pictures, others): (Vec<_>, Vec<_>) =
        listing.files.into_iter().partition(|path| is_picture_name(path));
    found.0.extend(pictures);
    found.1 += others.len();
    for inner in listing.folders {
        if depth == 0 {
            return Err(Error::unsupported(
                &inner,
                format!("folders lie more than {DEPTH} deep"),
                "is there a link to a folder above? Pictures are searched no deeper",
            ));
        }
        search(&inner, depth - 1, found)?;
    }
    Ok(())
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The file of a picture that annotations name: that one, or, if it is missing or of a kind that is not read (`.tif`),
/// one beside it whose name differs in the ending alone.
pub fn picture_file(path: &Path) -> Option<PathBuf> {
    if is_picture_name(path) && path.is_file() {
        return Some(path.to_path_buf());
    }
    let endings = EXTENSIONS.iter().flat_map(|ending| [ending.to_string(), ending.to_ascii_uppercase()]);
    let twin = endings.map(|ending| path.with_extension(ending)).find(|twin| twin.is_file());
    twin.or_else(|| path.is_file().then(|| path.to_path_buf()))
}

/// The sub-folders of a data set that is split: a training one and at least one of the others.
pub fn split_folders(folders: &[PathBuf]) -> Option<Splits<PathBuf>> {
    let find = |names: &[&str]| {
        folders.iter().find(|path| names.contains(&name(path).to_ascii_lowercase().as_str())).cloned()
    };
    let (val, test) = (find(VAL), find(TEST));
    let train = find(TRAIN)?;
    (val.is_some() || test.is_some()).then_some(Splits { train, val, test })
}

/// The tables of a folder: one, or one for each part (`train.csv`, `val.csv`).
pub fn tables(files: &[PathBuf]) -> Option<Splits<PathBuf>> {
    let is_table = |path: &&PathBuf| {
        path.extension().is_some_and(|e| ["csv", "tsv", "jsonl"].iter().any(|t| e.eq_ignore_ascii_case(t)))
    };
    let tables: Vec<&PathBuf> = files.iter().filter(is_table).collect();
    let part = |names: &[&str]| {
        let named = |path: &&&PathBuf| {
            path.file_stem().is_some_and(|s| names.iter().any(|n| s.eq_ignore_ascii_case(n)))
        };
        tables.iter().find(named).map(|path| path.to_path_buf())
    };
    match (part(TRAIN), &tables[..]) {
        (Some(train), _) => Some(Splits { train, val: part(VAL), test: part(TEST) }),
        (None, [only]) => Some(Splits::one(only.to_path_buf())),
        (None, _) => None,
    }
}
