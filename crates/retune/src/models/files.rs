//! A model on disk: a Hugging Face folder, a GGUF file, a file of an image network's weights, a Whisper of CTranslate2.

use std::path::{Path, PathBuf};

use retune_formats::bitsandbytes::QuantizationConfig;
use retune_formats::folder::ModelFolder;
use retune_formats::{TensorSource, gguf};

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::image_file::ImageFile;
use crate::models::whisper::SpeechFolder;
use crate::text::Language;

/// The open files of a model. Cheap to clone: the files are shared.
#[derive(Clone)]
pub enum ModelFiles {
    Folder(std::sync::Arc<ModelFolder>),
    Gguf(std::sync::Arc<gguf::File>),
    /// An image network's file of weights, which tells its architecture by the names in it.
    Image(std::sync::Arc<ImageFile>),
    /// A Whisper model in CTranslate2's form.
    Speech(std::sync::Arc<SpeechFolder>),
}

impl ModelFiles {
    /// Opens a folder with `config.json`, or a `.gguf` file.
    pub fn open(path: &Path) -> Result<ModelFiles> {
        if SpeechFolder::is_one(path) {
            return Ok(ModelFiles::Speech(std::sync::Arc::new(SpeechFolder::open(path)?)));
        }
        if path.is_dir() {
            return Ok(ModelFiles::Folder(std::sync::Arc::new(ModelFolder::open(path)?)));
        }
        if !path.exists() {
            let what =
                "there is no such file or folder; give a Hugging Face folder, a .gguf file, or the weights of an image network".to_string();
            return Err(Error::Model { path: path.to_path_buf(), what });
        }
        if !gguf::File::is_gguf(path) {
            return Ok(ModelFiles::Image(std::sync::Arc::new(ImageFile::open(path)?)));
        }
        Ok(ModelFiles::Gguf(std::sync::Arc::new(gguf::File::open(path)?)))
    }

    pub fn source(&self) -> &dyn TensorSource {
        match self {
            ModelFiles::Folder(folder) => folder.weights(),
            ModelFiles::Gguf(file) => file.as_ref(),
            ModelFiles::Image(file) => file.source(),
            ModelFiles::Speech(folder) => folder.source(),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            ModelFiles::Folder(folder) => folder.path(),
            ModelFiles::Gguf(file) => file.path(),
            ModelFiles::Image(file) => file.path(),
            ModelFiles::Speech(folder) => folder.path(),
        }
    }

    /// `config.json`, or what stands for it.
    ///
    /// # Errors
    /// Of a GGUF file, which has none.
    pub fn config(&self) -> Result<Config<'_>> {
        match self {
            ModelFiles::Folder(folder) => {
                Ok(Config { path: folder.path().join("config.json"), value: folder.config() })
            }
            ModelFiles::Image(file) => Ok(Config { path: file.path().to_path_buf(), value: file.config() }),
            ModelFiles::Speech(folder) => {
                Ok(Config { path: folder.path().to_path_buf(), value: folder.config() })
            }
            ModelFiles::Gguf(file) => {
                let what = "a GGUF file has no config.json".to_string();
                Err(Error::Model { path: file.path().to_path_buf(), what })
            }
        }
    }

    /// `model_type` of `config.json`, or GGUF's `general.architecture`.
    pub fn model_type(&self) -> Result<String> {
        match self {
            ModelFiles::Image(file) => {
                Ok(file.config()["model_type"].as_str().unwrap_or_default().to_string())
            }
            ModelFiles::Speech(_) => Ok("whisper".into()),
            ModelFiles::Folder(folder) => {
                let found = folder.config().get("model_type").and_then(|v| v.as_str());
                found.map(String::from).ok_or_else(|| Error::Model {
                    path: folder.path().join("config.json"),
                    what: "it has no \"model_type\"".into(),
                })
            }
            ModelFiles::Gguf(file) => Ok(file.metadata().str("general.architecture")?.to_string()),
        }
    }

    /// How bitsandbytes quantised the model, if its `config.json` says so.
    ///
    /// # Errors
    /// If the model was quantised by another method, or the settings make no sense.
    pub fn quantization_config(&self) -> Result<Option<QuantizationConfig>> {
        match self {
            ModelFiles::Folder(folder) => {
                Ok(QuantizationConfig::of(&folder.path().join("config.json"), folder.config())?)
            }
            ModelFiles::Gguf(_) | ModelFiles::Image(_) | ModelFiles::Speech(_) => Ok(None),
        }
    }

    /// The model's tokenizer and chat template.
    pub fn language(&self) -> Result<Language> {
        if let Ok(spec) = super::spec_of(self)
            && spec.reads == super::Reads::Pictures
        {
            let what = format!("a {} model reads pictures: there is no tokenizer", spec.name);
            return Err(Error::Model { path: self.path().to_path_buf(), what });
        }
        match self {
            ModelFiles::Folder(folder) => Ok(Language::from_folder(folder)?),
            ModelFiles::Gguf(file) => Ok(Language::from_gguf(file)?),
            ModelFiles::Speech(folder) => folder.language(),
            ModelFiles::Image(file) => {
                let what = "it reads pictures: there is no tokenizer".to_string();
                Err(Error::Model { path: file.path().to_path_buf(), what })
            }
        }
    }

    /// The files that hold the weights: their hash identifies the base of an adapter.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match self {
            ModelFiles::Folder(folder) => folder.weights().files().map(Path::to_path_buf).collect(),
            ModelFiles::Gguf(file) => vec![file.path().to_path_buf()],
            ModelFiles::Image(file) => file.files().to_vec(),
            ModelFiles::Speech(folder) => vec![folder.weights()],
        }
    }
}
