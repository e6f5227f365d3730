//! The tokenizer of an exported model: a folder's files byte for byte, or a GGUF's vocabulary as such files.

use std::fs;
use std::path::{Path, PathBuf};

use retune_formats::{Error as FormatError, atomic, gguf, json};

use super::folder::{GENERATION, TOKENIZER_FILES};
use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::text::Language;

/// Terms under which the weights may be passed on go with them.
const TERMS: &[&str] = &["LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md"];

/// Writes the texts into `out`; a GGUF's language is returned for the configuration. `context_length` is of a model that reads text: others have no
/// tokenizer that could be missed.
pub fn write(
    files: &ModelFiles,
    context_length: Option<usize>,
    out: &Path,
    notes: &mut Vec<String>,
) -> Result<Option<Language>> {
    let (folder, has_tokenizer) = match files {
        ModelFiles::Folder(folder) => (folder.path(), context_length.is_some()),
        ModelFiles::Speech(folder) => (folder.path(), true),
        ModelFiles::Image(_) => return Ok(None),
        ModelFiles::Gguf(file) => return from_gguf(file, context_length.unwrap_or_default(), out, notes),
    };
    if copy_texts(folder, out)? == 0 && has_tokenizer {
        notes.push("the model's folder has no tokenizer, so none was written".into());
    }
    Ok(None)
}

fn from_gguf(
    file: &gguf::File,
    context_length: usize,
    out: &Path,
    notes: &mut Vec<String>,
) -> Result<Option<Language>> {
    if file.metadata().get("tokenizer.ggml.model").is_none() {
        notes.push("the GGUF file has no tokenizer, so none was written".into());
        return Ok(None);
    }
    let language = Language::from_gguf(file)?;
    for (name, mut text) in language.folder_files()? {
        if name == GENERATION && language.tokenizer.eos_ids().is_empty() {
            continue;
        }
        if name == "tokenizer_config.json" {
            text = for_transformers(&out.join(name), &text, context_length)?;
        }
        atomic::write_bytes(&out.join(name), text.as_bytes())?;
    }
    Ok(Some(language))
}

/// Adds what the model knows and the tokenizer does not: its longest text, and that it takes no token types.
fn for_transformers(path: &Path, text: &str, context_length: usize) -> Result<String> {
    let mut config = json::parse(path, text)?;
    if let Some(fields) = config.as_object_mut() {
        fields.insert("model_max_length".into(), context_length.into());
        fields.insert("model_input_names".into(), serde_json::json!(["input_ids", "attention_mask"]));
    }
    Ok(json::to_python_text(&config))
}

/// Copies what is there; how many files of a tokenizer.
fn copy_texts(from: &Path, out: &Path) -> Result<usize> {
    let mut copied = 0;
    for name in TOKENIZER_FILES.iter().chain([&GENERATION]).chain(TERMS) {
        if let Some(source) = inside(from, name)? {
            copy(&source, &out.join(name))?;
            copied += usize::from(TOKENIZER_FILES.contains(name));
        }
    }
    Ok(copied)
}

/// The file of this name, if it lies in the folder itself or, as in the hub's cache, in the `blobs` beside it: a link
/// must not bring a file of the user's into a model that may be given away.
fn inside(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let real = fs::canonicalize(&path).map_err(FormatError::io(&path, "open"))?;
    let home = fs::canonicalize(folder).map_err(FormatError::io(folder, "open"))?;
    let blobs =
        home.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|p| p.join("blobs"));
    if real.parent() == Some(&home) || (blobs.is_some() && real.parent() == blobs.as_deref()) {
        return Ok(Some(real));
    }
    let what =
        format!("it is a link out of the model's folder, to {}; put the file itself there", real.display());
    Err(Error::Export { path, what })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = fs::File::open(from).map_err(FormatError::io(from, "open"))?;
    let copied = atomic::write_file(to, |out| {
        std::io::copy(&mut source, out).map(drop).map_err(FormatError::io(to, "copy"))
    });
    Ok(copied?)
}
