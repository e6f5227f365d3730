//! One file of an image network's weights, without a `config.json`: which network it is follows from the names and shapes in it.

use std::path::{Path, PathBuf};

use retune_formats::{TensorSource, safetensors, torch};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::vgg;

/// Tells an architecture by its tensors; `config.json` of what it is.
type Recognise = fn(&dyn TensorSource) -> Option<Value>;

/// The architectures that can be told so.
const KNOWN: &[Recognise] = &[vgg::recognise];

/// An open file and what it is.
pub struct ImageFile {
    path: PathBuf,
    source: Box<dyn TensorSource>,
    config: Value,
    files: Vec<PathBuf>,
}

impl ImageFile {
    /// Opens a file of weights: `.safetensors`, or what `torch.save` wrote (`.pth`, `.pt`), read as data.
    ///
    /// # Errors
    /// If it is neither, is damaged, or holds no network that is known.
    pub fn open(path: &Path) -> Result<ImageFile> {
        let source: Box<dyn TensorSource> = match extension(path).as_str() {
            "safetensors" => Box::new(safetensors::File::open(path)?),
            "pth" | "pt" | "bin" => Box::new(torch::File::open(path)?),
            _ => {
                let what = "this is neither a Hugging Face folder (with config.json), nor a GGUF file, nor the weights of an image \
                            network (.safetensors, .pth, .pt)";
                return Err(Error::Model { path: path.to_path_buf(), what: what.into() });
            }
        };
        let config = KNOWN.iter().find_map(|recognise| recognise(source.as_ref())).ok_or_else(|| {
            let first = source.tensors().first().map(|info| info.name.clone()).unwrap_or_default();
            let what = format!(
                "its tensors (the first is \"{first}\") are those of no image network that is known: VGG with torchvision's names is"
            );
            Error::Model { path: path.to_path_buf(), what }
        })?;
        let path = path.to_path_buf();
        Ok(ImageFile { files: vec![path.clone()], path, source, config })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn source(&self) -> &dyn TensorSource {
        self.source.as_ref()
    }

    /// What would be its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The files whose bytes are the weights.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}
