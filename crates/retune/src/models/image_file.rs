//! One file of an image network's weights, without a `config.json`: which network it is follows from the names and shapes in it.

use std::path::{Path, PathBuf};

use retune_formats::{TensorSource, safetensors, torch};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::models::{darknet, efficientnet, vgg, yolov8};

/// Tells an architecture by its tensors; `config.json` of what it is.
type Recognise = fn(&dyn TensorSource) -> Option<Value>;

/// The architectures that can be told so.
const KNOWN: &[Recognise] = &[vgg::recognise, efficientnet::recognise, yolov8::recognise];

/// An open file and what it is.
pub struct ImageFile {
    path: PathBuf,
    source: Box<dyn TensorSource>,
    config: Value,
    files: Vec<PathBuf>,
}

impl ImageFile {
    /// Opens a file of weights: `.safetensors`, what `torch.save` wrote (`.pth`, `.pt`), read as data, or darknet's `.cfg` with the `.weights`
    /// beside it.
    ///
    /// # Errors
    /// If it is neither, is damaged, or holds no network that is known.
    pub fn open(path: &Path) -> Result<ImageFile> {
        if matches!(extension(path).as_str(), "cfg" | "weights") {
            let darknet::Found { source, config, weights } = darknet::open(path)?;
            let (path, source) = (path.to_path_buf(), Box::new(source));
            return Ok(ImageFile { path, source, config, files: vec![weights] });
        }
        if extension(path) == "onnx" {
            let source = vgg::Onnx::open(path)?;
            let config = source.config().clone();
            let path = path.to_path_buf();
            return Ok(ImageFile { files: vec![path.clone()], path, source: Box::new(source), config });
        }
        let mut said = Map::new();
        let source: Box<dyn TensorSource> = match extension(path).as_str() {
            "safetensors" => Box::new(safetensors::File::open(path)?),
            "pth" | "pt" | "bin" => {
                let file = torch::File::open(path)?;
                said = file.metadata().clone();
                Box::new(file)
            }
            _ => {
                let what = "this is neither a Hugging Face folder (with config.json), nor a GGUF file, nor the weights of an image \
                            network (.safetensors, .pth, .pt, .onnx, or darknet's .cfg)";
                return Err(Error::Model { path: path.to_path_buf(), what: what.into() });
            }
        };
        if let Some(what) = yolov8::refusal(source.as_ref(), &said) {
            return Err(Error::Model { path: path.to_path_buf(), what });
        }
        let mut config = KNOWN.iter().find_map(|recognise| recognise(source.as_ref())).ok_or_else(|| {
            let first = source.tensors().first().map(|info| info.name.clone()).unwrap_or_default();
            let what = format!(
                "its tensors (the first is \"{first}\") are those of no image network that is known. These are: VGG with torchvision's \
                 names, EfficientNet-Lite with EfficientNet-PyTorch's, YOLOv8 with Ultralytics'"
            );
            Error::Model { path: path.to_path_buf(), what }
        })?;
        if config["model_type"] == "yolov8" {
            yolov8::describe(&mut config, &said);
        }
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
