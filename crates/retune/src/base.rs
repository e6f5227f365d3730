//! Which base an adapter was made for: the BLAKE3 hash of its weight files, written as `base.json` beside the adapter.
//!
//! A folder that [`crate::export`] wrote from a GGUF holds the same values in other bytes; its own `base.json` names
//! the file that it came from, and either hash is accepted.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use retune_formats::{Error as FormatError, atomic, bitsandbytes, json, limits};
use retune_tensor::ParamId;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::{Model, ModelFiles};
use crate::nn::Head;

/// The file beside an adapter, and in an exported model's folder.
pub const BASE_FILE: &str = "base.json";

/// A base model, recognisable wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// Where it lay, for people.
    pub path: String,
    pub model_type: String,
    /// Of the bytes of its weight files, one after the other in the order of their names.
    pub blake3: String,
    /// Values in all its tensors.
    pub parameters: u64,
    /// BLAKE3 of the names and shapes of its tensors: the same for another quantisation of the same model.
    pub shapes: String,
    /// The hash of the base whose values this one has, in other bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_from: Option<String>,
    /// How its linears were quantised while it was loaded (`nf4+dq`); `None`: they had the values of the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<String>,
}

impl BaseIdentity {
    /// Of a loaded model. The files are hashed once in the life of the program.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(model: &Model) -> Result<BaseIdentity> {
        let blake3 = hash_files(&model.files.weight_files())?;
        let (parameters, shapes) = shapes(model);
        let origin = origin(&model.files, &blake3);
        let loaded = quantised_while_loading(model).map(str::to_string);
        Ok(BaseIdentity {
            path: model.files.path().display().to_string(),
            model_type: model.net.model_type(),
            quantised: loaded.or_else(|| origin.as_ref()?.quantised.clone()),
            exported_from: origin.and_then(|own| own.exported_from),
            blake3,
            parameters,
            shapes,
        })
    }

    /// Writes `base.json` into a folder, atomically.
    pub fn write(&self, folder: &Path) -> retune_formats::Result<()> {
        let value = serde_json::to_value(self).unwrap_or_default();
        atomic::write_bytes(&folder.join(BASE_FILE), json::to_python_text(&value).as_bytes())
    }

    /// `base.json` of a folder, if it is there.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(folder: &Path) -> Result<Option<BaseIdentity>> {
        let path = folder.join(BASE_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let value = json::read(&path, limits::CONFIG_BYTES)?;
        serde_json::from_value(value).map(Some).map_err(|e| Error::Adapter {
            path,
            what: format!("it does not name a base model ({e}); remove it to go on without that check"),
        })
    }

    pub(crate) fn is(&self, other: &BaseIdentity) -> bool {
        let names = |id: &BaseIdentity| [Some(id.blake3.clone()), id.exported_from.clone()];
        let theirs = names(other);
        names(self).iter().flatten().any(|hash| theirs.iter().flatten().any(|other| other == hash))
    }
}

/// Writes `base.json` beside an adapter for this model.
///
/// # Errors
/// If the model's files cannot be read or the folder cannot be written.
pub fn record(model: &Model, adapter: &Path) -> Result<BaseIdentity> {
    let identity = BaseIdentity::of(model)?;
    identity.write(adapter)?;
    Ok(identity)
}

/// Is the adapter in this folder for this model? The answer is a note worth showing, if there is one.
///
/// # Errors
/// If `base.json` names another base, unless `any_base`; if it is damaged or the model cannot be read.
pub fn check(model: &Model, adapter: &Path, any_base: bool) -> Result<Option<String>> {
    let Some(wanted) = BaseIdentity::read(adapter)? else {
        let what = "it does not say which base it is for (no base.json): only names and shapes were checked";
        return Ok(Some(format!("adapter {}: {what}", adapter.display())));
    };
    let found = BaseIdentity::of(model)?;
    if wanted.is(&found) {
        return Ok(
            other_storage(&wanted, &found).map(|what| format!("adapter {}: {what}", adapter.display()))
        );
    }
    let kind = if wanted.shapes == found.shapes {
        "the same architecture with other weights, perhaps another quantisation or version"
    } else {
        "a model of another shape"
    };
    let short = |id: &BaseIdentity| {
        let hash: String = id.blake3.chars().take(12).collect();
        format!("{} ({} with {} parameters, blake3 {hash}…)", id.path, id.model_type, id.parameters)
    };
    let what = format!("it was made for {}, and this model is {}: {kind}", short(&wanted), short(&found));
    match any_base {
        true => Ok(Some(format!("adapter {}: {what}", adapter.display()))),
        false => Err(Error::Adapter {
            path: adapter.to_path_buf(),
            what: format!(
                "{what}. Give the model that it was made for, or --any-base to use it all the same"
            ),
        }),
    }
}

/// How the linears of a model were quantised while it was loaded, if they were.
fn quantised_while_loading(model: &Model) -> Option<&'static str> {
    let tensors = model.files.source().tensors();
    if tensors.iter().any(|info| bitsandbytes::owner(&info.name).is_some()) {
        return None;
    }
    let mut storages = model.params.iter().map(|(_, param)| param.weight.storage());
    storages.find(|storage| storage.quantized().is_some()).map(|storage| storage.format())
}

/// What to say of an adapter that was trained on the values of another storage of its base.
fn other_storage(wanted: &BaseIdentity, found: &BaseIdentity) -> Option<String> {
    let named = |id: &BaseIdentity| match &id.quantised {
        Some(name) => format!("quantised to {name}"),
        None => "as its files have it".to_string(),
    };
    (wanted.quantised != found.quantised).then(|| {
        let (then, here) = (named(wanted), named(found));
        format!("it was trained on this base {then}, which is {here} here: its answers may differ a little")
    })
}

/// What a folder that we exported says about where its values come from, if it still holds them.
fn origin(files: &ModelFiles, blake3: &str) -> Option<BaseIdentity> {
    let ModelFiles::Folder(folder) = files else { return None };
    // A damaged record is no record: the folder is then a base like any other.
    let own = BaseIdentity::read(folder.path()).ok().flatten()?;
    Some(own).filter(|own| own.exported_from.is_some() && own.blake3 == blake3)
}

/// Number of values, and the hash of names and shapes in the order of the names.
fn shapes(model: &Model) -> (u64, String) {
    let mut parameters = 0;
    let mut lines = Vec::new();
    let head: Vec<ParamId> = match model.net.head() {
        // A classifier is the task's, not the base's.
        Head::Classifier(_) => {
            model.net.head().linears().iter().flat_map(|l| [Some(l.weight), l.bias]).flatten().collect()
        }
        _ => Vec::new(),
    };
    for (_, param) in model.params.iter().filter(|(id, param)| !param.adapter && !head.contains(id)) {
        parameters += param.elements() as u64;
        lines.push(format!("{} {:?}\n", param.name, param.shape));
    }
    lines.sort();
    (parameters, blake3::hash(lines.concat().as_bytes()).to_hex().to_string())
}

type State = (PathBuf, u64, Option<SystemTime>);

/// BLAKE3 over the bytes of the files, one after the other in the order of their names. Remembered while neither their
/// lengths nor their times change.
///
/// # Errors
/// If a file cannot be read.
pub fn hash_files(files: &[PathBuf]) -> Result<String> {
    static KNOWN: Mutex<Option<HashMap<Vec<State>, String>>> = Mutex::new(None);
    let mut files = files.to_vec();
    files.sort();
    let key = files.iter().map(|path| state(path)).collect::<Result<Vec<_>>>()?;
    let known = || KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(hash) = known().get_or_insert_default().get(&key) {
        return Ok(hash.clone());
    }
    let mut hasher = blake3::Hasher::new();
    for path in &files {
        feed(path, &mut hasher)?;
    }
    let hash = hasher.finalize().to_hex().to_string();
    known().get_or_insert_default().insert(key, hash.clone());
    Ok(hash)
}

fn state(path: &Path) -> Result<State> {
    let meta = fs::metadata(path).map_err(FormatError::io(path, "open"))?;
    let real = fs::canonicalize(path).map_err(FormatError::io(path, "open"))?;
    Ok((real, meta.len(), meta.modified().ok()))
}

fn feed(path: &Path, hasher: &mut blake3::Hasher) -> Result<()> {
    let mut file = fs::File::open(path).map_err(FormatError::io(path, "open"))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => drop(hasher.update(buffer.get(..n).unwrap_or_default())),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FormatError::io(path, "read")(e).into()),
        }
    }
}
