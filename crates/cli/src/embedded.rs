//! The model inside the program: a Llama of 0.9 million parameters that `recipes/tiny` trained from nothing, and rows to
//! fine-tune it on. For trying things without a network.
//!
//! It is unpacked into the cache, into a folder that is named after its content, which appears whole or not at all:
//! another version of the program has its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use retune_formats::atomic;
use sha2::{Digest, Sha256};

use crate::fetch::{TEMPORARY_PREFIX, cache_folder};

/// What the user types for it.
pub const NAME: &str = "tiny";
pub const WHAT: &str = "inside the program: a Llama of 0.9 M parameters, and 54 rows to fine-tune it on";
pub const LICENCE: &str = "Apache-2.0; data BSD-3-Clause";

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../assets/tiny/", $path)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "data/train.jsonl",
    "data/heldout.jsonl",
    "data/LICENSE",
];

/// Where the unpacked files lie.
pub struct Tiny {
    /// A Hugging Face folder.
    pub model: PathBuf,
    pub train: PathBuf,
    pub heldout: PathBuf,
    pub was_cached: bool,
}

impl Tiny {
    fn at(folder: PathBuf, was_cached: bool) -> Tiny {
        let data = folder.join("data");
        Tiny {
            train: data.join("train.jsonl"),
            heldout: data.join("heldout.jsonl"),
            model: folder,
            was_cached,
        }
    }
}

/// Bytes of all files.
pub fn bytes() -> u64 {
    FILES.iter().map(|(_, content)| content.len() as u64).sum()
}

/// Unpacks the model into the cache, unless it lies there.
///
/// # Errors
/// If there is no cache folder, or it cannot be written.
pub fn unpack() -> Result<Tiny> {
    unpack_into(&cache_folder()?)
}

/// The unpacked folder, if it is there; without any check.
pub fn cached() -> Option<PathBuf> {
    cache_folder().ok().map(|cache| cache.join(folder_name())).filter(|folder| folder.is_dir())
}

/// The path itself, or the embedded model's if it is called `tiny` and there is no such file.
pub fn resolve(model: &Path) -> Result<PathBuf> {
    match model == Path::new(NAME) && !model.exists() {
        true => Ok(unpack()?.model),
        false => Ok(model.to_owned()),
    }
}

fn folder_name() -> String {
    let mut hasher = Sha256::new();
    for (path, content) in FILES {
        hasher.update((path.len() as u64).to_le_bytes());
        hasher.update(path);
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    }
    let digest: String = hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{NAME}-{digest}")
}

fn unpack_into(cache: &Path) -> Result<Tiny> {
    let folder = cache.join(folder_name());
    if is_whole(&folder) {
        return Ok(Tiny::at(folder, true));
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot replace the damaged {}", folder.display()))?;
    }
    fs::create_dir_all(cache)
        .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
    let work = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(cache)
        .with_context(|| format!("cannot write into the cache folder {}", cache.display()))?;
    let staged = work.path().join(NAME);
    for (path, content) in FILES {
        let path = staged.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&staged))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match atomic::publish_dir(&staged, &folder) {
        Ok(()) => Ok(Tiny::at(folder, false)),
        // Another process was faster: its folder is as good.
        Err(_) if is_whole(&folder) => Ok(Tiny::at(folder, true)),
        Err(error) => Err(error.into()),
    }
}

fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(path, content)| fs::read(folder.join(path)).is_ok_and(|found| found == *content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_once_and_again_if_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let first = unpack_into(cache.path()).unwrap();
        assert!(!first.was_cached && first.train.is_file() && first.heldout.is_file());
        assert!(unpack_into(cache.path()).unwrap().was_cached);
        fs::write(first.model.join("tokenizer.json"), "{}").unwrap();
        let again = unpack_into(cache.path()).unwrap();
        assert!(!again.was_cached && is_whole(&again.model));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "something was left behind");
        assert!(bytes() < 3 << 20);
    }

    #[test]
    fn other_names_are_paths() {
        assert_eq!(resolve(Path::new("some/model")).unwrap(), Path::new("some/model"));
    }
}
