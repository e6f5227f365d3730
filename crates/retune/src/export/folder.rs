//! Where an exported model goes: refusals, a hidden folder to write in, and the move to the final names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use retune_formats::Error as FormatError;
use retune_formats::atomic::{Disk, Real};

use crate::base::BASE_FILE;
use crate::error::{Error, Result};
use crate::models::ModelFiles;

/// Its presence says that the model is whole.
pub const CONFIG: &str = "config.json";
pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const GENERATION: &str = "generation_config.json";

/// The texts of a tokenizer, whatever its kind.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Is this a file that an export writes, so that an older one must go?
fn is_ours(name: &str) -> bool {
    let shard = |name: &str| {
        let middle = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
        middle.is_some_and(|m| m.contains("-of-"))
    };
    [CONFIG, SINGLE, INDEX, GENERATION, BASE_FILE].contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || shard(name)
}

/// A hidden folder inside the target; it and all in it vanish if they are not published.
pub struct Staging {
    target: PathBuf,
    hidden: PathBuf,
    /// The target was made for this export.
    made: bool,
}

impl Staging {
    /// Checks that `target` may take a model, makes it, and a folder to write in.
    pub fn open(target: &Path, base: &ModelFiles, overwrite: bool) -> Result<Staging> {
        let made = !target.exists();
        if !made {
            check(target, base, overwrite)?;
        }
        fs::create_dir_all(target).map_err(FormatError::io(target, "create"))?;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(".export-{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let staging = Staging { target: target.to_path_buf(), hidden: target.join(name), made };
        fs::create_dir(&staging.hidden).map_err(FormatError::io(target, "write into"))?;
        Ok(staging)
    }

    /// The hidden folder.
    pub fn path(&self) -> &Path {
        &self.hidden
    }

    /// Moves every file to its final name, the configuration last, and removes what an older model left. Returns the
    /// names.
    pub fn publish(mut self) -> Result<Vec<String>> {
        let mut names = list(&self.hidden)?;
        let target = &self.target;
        names.sort_by_key(|name| (name == CONFIG, name.clone()));
        // From here to the end there is no configuration, so nobody takes the mixture for a model.
        let stale: Vec<String> = list(target)?.into_iter().filter(|name| is_ours(name)).collect();
        for name in stale.iter().filter(|n| *n == CONFIG).chain(stale.iter().filter(|n| !names.contains(n))) {
            let path = target.join(name);
            match Real.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FormatError::io(&path, "remove")(e).into());
                }
                _ => {}
            }
        }
        for name in &names {
            let path = target.join(name);
            if name == CONFIG {
                Real.sync_dir(target).map_err(FormatError::io(target, "sync"))?;
            }
            Real.rename(&self.hidden.join(name), &path)
                .map_err(FormatError::io(&path, "rename a file to"))?;
        }
        Real.sync_dir(target).map_err(FormatError::io(target, "sync"))?;
        self.made = false;
        names.sort();
        Ok(names)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // An error is on its way already, or all is done: nothing more can be said about leftovers.
        let _ = fs::remove_dir_all(&self.hidden);
        if self.made {
            let _ = fs::remove_dir(&self.target);
        }
    }
}

fn list(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(FormatError::io(folder, "list"))? {
        let entry = entry.map_err(FormatError::io(folder, "list"))?;
        if !entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Checks that a model may be written to the file `target`.
pub fn check_file(target: &Path, base: &ModelFiles, overwrite: bool) -> Result<()> {
    let refuse = |what: &str| Err(Error::Export { path: target.to_path_buf(), what: what.into() });
    if target.is_dir() {
        return refuse("this is a folder; name a file to write to");
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    let own: Vec<&Path> = match base {
        ModelFiles::Gguf(_) => vec![base.path()],
        ModelFiles::Image(file) => file.files().iter().map(AsRef::as_ref).chain([file.path()]).collect(),
        ModelFiles::Folder(_) | ModelFiles::Speech(_) => Vec::new(),
    };
    if target.exists() && own.into_iter().any(|own| real(target) == real(own)) {
        return refuse("this is the model's own file, which is never changed; give another");
    }
    if target.exists() && !overwrite {
        return refuse("this file exists; give another, or --overwrite to replace it");
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.map_or(Ok(()), fs::create_dir_all).map_err(FormatError::io(target, "make the folder of"))?)
}

fn check(target: &Path, base: &ModelFiles, overwrite: bool) -> Result<()> {
    let refuse = |what: String| Err(Error::Export { path: target.to_path_buf(), what });
    if !target.is_dir() {
        return refuse("this is a file; give a folder to write the model to".into());
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    if matches!(base, ModelFiles::Folder(_)) && real(target) == real(base.path()) {
        return refuse("this is the model's own folder, which is never changed; give another".into());
    }
    if target.join("adapter_config.json").exists() {
        let what =
            "an adapter lies in this folder, and transformers would put it on the model again; give another";
        return refuse(what.into());
    }
    match list(target)?.into_iter().filter(|name| is_ours(name)).min() {
        Some(name) if !overwrite => refuse(format!(
            "{name} lies there already; give another folder, or --overwrite to replace the model"
        )),
        _ => Ok(()),
    }
}
