//! A folder of sounds: with a table that names them, or each with its text in a file of the same name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use retune_formats::bytes::Bytes;
use retune_media::sound;

use super::rows::{self, CLIPS, Row, Rows};
use crate::tasks::speech::error::{Error, Result, Source};

/// Tables that a folder may be described by, the first that there is.
const TABLES: [&str; 4] = ["metadata.jsonl", "metadata.csv", "metadata.tsv", "train.tsv"];
/// Files in a folder, and folders in one another.
const FILES_MAX: usize = 4 << 20;
const DEPTH_MAX: usize = 8;
/// Longest text beside a sound, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Texts that are none of a sound.
const NOTICES: [&str; 3] = ["readme", "license", "licence"];

/// The rows of a folder.
pub(super) fn read(folder: &Path) -> Result<Rows> {
    let found = TABLES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    match found {
        // Common Voice's: without its clips beside it, a train.tsv is just a file.
        Some(table) if !table.ends_with("train.tsv") || folder.join(CLIPS).is_dir() => rows::read(&table),
        _ => pairs(folder),
    }
}

/// Sounds and texts of the same name, in this folder and those in it.
fn pairs(folder: &Path) -> Result<Rows> {
    let mut stems: BTreeMap<PathBuf, (Vec<PathBuf>, Option<PathBuf>)> = BTreeMap::new();
    let mut todo = vec![(folder.to_path_buf(), 0)];
    let mut files = 0;
    while let Some((folder, depth)) = todo.pop() {
        let failed = |source: io::Error| Error::Folder { path: folder.display().to_string(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            files += 1;
            if hidden || files > FILES_MAX {
                continue;
            }
            if path.is_dir() {
                todo.extend((depth < DEPTH_MAX && !path.is_symlink()).then(|| (path, depth + 1)));
            } else if sound::is_sound(&path) {
                stems.entry(path.with_extension("")).or_default().0.push(path);
            } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
                let stem = path.with_extension("");
                stems.entry(stem).or_default().1 = Some(path);
            }
        }
    }
    if stems.values().all(|(sounds, _)| sounds.is_empty()) {
        let what = format!(
            "there are no sounds in it: give a manifest ({}, .csv, .tsv, .jsonl), or pairs like x.wav and x.txt",
            TABLES.join(", ")
        );
        return Err(Error::Data { file: folder.display().to_string(), what });
    }
    Ok(stems.into_iter().filter_map(|(stem, (sounds, text))| pair(&stem, sounds, text)).collect())
}

fn pair(
    stem: &Path,
    mut sounds: Vec<PathBuf>,
    text: Option<PathBuf>,
) -> Option<(Source, std::result::Result<Row, String>)> {
    let at = |path: &Path| Source { file: path.display().to_string().into(), line: 1 };
    sounds.sort();
    match (&sounds[..], text) {
        ([sound], Some(text)) => Some((at(&text), read_pair(sound, &text))),
        ([sound], None) => {
            Some((at(sound), Err(format!("its text is missing: write it into {}.txt", stem.display()))))
        }
        ([], text) => {
            let name = stem.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let notice = NOTICES.iter().any(|notice| name.starts_with(notice));
            let alone = || Err("there is no sound of this name beside it".to_string());
            text.filter(|_| !notice).map(|text| (at(&text), alone()))
        }
        ([first, second, ..], _) => {
            let what = format!("{} has the same name: one sound for a text", second.display());
            Some((at(first), Err(what)))
        }
    }
}

fn read_pair(sound: &Path, text: &Path) -> std::result::Result<Row, String> {
    let read = Bytes::open(text).and_then(|bytes| bytes.read_text("text", TEXT_BYTES_MAX));
    let said = read.map_err(|e| e.to_string())?;
    let said = said.trim_start_matches('\u{feff}').split_whitespace().collect::<Vec<_>>().join(" ");
    match said.is_empty() {
        true => Err(format!("the text of {} is empty", sound.display())),
        false => Ok(Row { audio: sound.to_path_buf(), text: said, ..Row::default() }),
    }
}
