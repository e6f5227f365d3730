//! A CTranslate2 folder of a Whisper model (`model.bin`, `tokenizer.json`, `config.json`), seen as a folder of transformers' would be: its
//! variables by Hugging Face names, fused projections cut into their parts.
//!
//! `self_attention/linear_0` are queries, keys and values one below the other, `attention/linear_1` keys and values; transformers' keys have no
//! bias, CTranslate2's one of zeros.

use std::path::{Path, PathBuf};

use retune_formats::{Dtype, TensorInfo, TensorSource, ctranslate2, json, limits};
use serde_json::Value;

use super::WhisperConfig;
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, Language, Tokenizer, TokenizerFiles};

/// The file of weights in such a folder.
const WEIGHTS: &str = "model.bin";
/// Most bytes of a `tokenizer.json`.
const TOKENIZER_BYTES: u64 = 64 << 20;

/// An open folder.
pub struct SpeechFolder {
    folder: PathBuf,
    view: View,
    config: Value,
    /// CTranslate2's own `config.json`: lists of tokens.
    settings: Value,
}

/// The variables by other names.
struct View {
    file: ctranslate2::File,
    tensors: Vec<TensorInfo>,
}

impl SpeechFolder {
    /// Whether a path is such a folder, or the file in it.
    pub fn is_one(path: &Path) -> bool {
        let file = if path.is_dir() { path.join(WEIGHTS) } else { path.to_path_buf() };
        file.file_name().is_some_and(|name| name == WEIGHTS) && ctranslate2::File::open(&file).is_ok()
    }

    /// Opens a folder, or the `model.bin` in one.
    ///
    /// # Errors
    /// If a file is damaged, the model is not a Whisper one, or its weights are quantised.
    pub fn open(path: &Path) -> Result<SpeechFolder> {
        let folder = match path.is_dir() {
            true => path.to_path_buf(),
            false => path.parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        let file = ctranslate2::File::open(folder.join(WEIGHTS))?;
        let config = WhisperConfig::from_ctranslate2(&file)?;
        let settings = folder.join("config.json");
        let settings = match settings.is_file() {
            true => json::read(&settings, limits::CONFIG_BYTES)?,
            false => Value::Null,
        };
        let tensors = tensors(&file, &config)?;
        Ok(SpeechFolder { view: View { file, tensors }, config: config.to_json(), settings, folder })
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    pub fn source(&self) -> &dyn TensorSource {
        &self.view
    }

    /// What would be transformers' `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// CTranslate2's `config.json`, which lists tokens.
    pub fn settings(&self) -> &Value {
        &self.settings
    }

    /// The file whose bytes are the weights.
    pub fn weights(&self) -> PathBuf {
        self.folder.join(WEIGHTS)
    }

    /// The tokenizer in the folder.
    ///
    /// # Errors
    /// If there is no `tokenizer.json`, or it is damaged.
    pub fn language(&self) -> Result<Language> {
        let path = self.folder.join("tokenizer.json");
        let fail = |what: String| Error::Model { path: path.clone(), what };
        let size = std::fs::metadata(&path).map_err(|e| {
            fail(format!("cannot read the tokenizer ({e}); a CTranslate2 folder needs its tokenizer.json"))
        })?;
        if size.len() > TOKENIZER_BYTES {
            return Err(fail(format!("its {} bytes are more than a tokenizer has", size.len())));
        }
        let text =
            std::fs::read_to_string(&path).map_err(|e| fail(format!("cannot read the tokenizer ({e})")))?;
        let tokenizer = Tokenizer::from_files(&TokenizerFiles {
            origin: &self.folder.display().to_string(),
            tokenizer: &text,
            tokenizer_config: None,
            special_tokens_map: None,
            generation_config: None,
            config: None,
        })?;
        let template = ChatTemplate::new(None, &tokenizer)?;
        Ok(Language { tokenizer: tokenizer.into(), template })
    }
}

/// All tensors that transformers' model has, each at its place in the file.
fn tensors(file: &ctranslate2::File, config: &WhisperConfig) -> Result<Vec<TensorInfo>> {
    let mut list = List { file, tensors: Vec::new() };
    for conv in ["conv1", "conv2"] {
        list.both(&format!("encoder/{conv}"), &format!("model.encoder.{conv}"))?;
    }
    for (side, layers) in [("encoder", config.encoder_layers), ("decoder", config.decoder_layers)] {
        list.whole(
            &format!("{side}/position_encodings/encodings"),
            &format!("model.{side}.embed_positions.weight"),
        )?;
        for layer in 0..layers {
            list.layer(
                &format!("{side}/layer_{layer}"),
                &format!("model.{side}.layers.{layer}"),
                side == "decoder",
            )?;
        }
        list.norm(&format!("{side}/layer_norm"), &format!("model.{side}.layer_norm"))?;
    }
    list.whole("decoder/embeddings/weight", "model.decoder.embed_tokens.weight")?;
    if !config.tie_word_embeddings {
        list.whole("decoder/projection/weight", "proj_out.weight")?;
    }
    Ok(list.tensors)
}

struct List<'a> {
    file: &'a ctranslate2::File,
    tensors: Vec<TensorInfo>,
}

impl List<'_> {
    fn layer(&mut self, from: &str, to: &str, is_decoder: bool) -> Result<()> {
        let at = format!("{from}/self_attention");
        self.norm(&format!("{at}/layer_norm"), &format!("{to}.self_attn_layer_norm"))?;
        self.fused(&format!("{at}/linear_0"), &format!("{to}.self_attn"), &["q_proj", "k_proj", "v_proj"])?;
        self.both(&format!("{at}/linear_1"), &format!("{to}.self_attn.out_proj"))?;
        if is_decoder {
            let at = format!("{from}/attention");
            self.norm(&format!("{at}/layer_norm"), &format!("{to}.encoder_attn_layer_norm"))?;
            self.both(&format!("{at}/linear_0"), &format!("{to}.encoder_attn.q_proj"))?;
            self.fused(&format!("{at}/linear_1"), &format!("{to}.encoder_attn"), &["k_proj", "v_proj"])?;
            self.both(&format!("{at}/linear_2"), &format!("{to}.encoder_attn.out_proj"))?;
        }
        self.norm(&format!("{from}/ffn/layer_norm"), &format!("{to}.final_layer_norm"))?;
        self.both(&format!("{from}/ffn/linear_0"), &format!("{to}.fc1"))?;
        self.both(&format!("{from}/ffn/linear_1"), &format!("{to}.fc2"))
    }

    fn norm(&mut self, from: &str, to: &str) -> Result<()> {
        self.whole(&format!("{from}/gamma"), &format!("{to}.weight"))?;
        self.whole(&format!("{from}/beta"), &format!("{to}.bias"))
    }

    /// Weight and bias.
    fn both(&mut self, from: &str, to: &str) -> Result<()> {
        self.whole(&format!("{from}/weight"), &format!("{to}.weight"))?;
        self.whole(&format!("{from}/bias"), &format!("{to}.bias"))
    }

    /// Projections one below the other.
    fn fused(&mut self, from: &str, to: &str, names: &[&str]) -> Result<()> {
        for (part, name) in names.iter().enumerate() {
            self.part(&format!("{from}/weight"), &format!("{to}.{name}.weight"), part, names.len())?;
            if *name != "k_proj" {
                self.part(&format!("{from}/bias"), &format!("{to}.{name}.bias"), part, names.len())?;
            }
        }
        Ok(())
    }

    fn whole(&mut self, from: &str, to: &str) -> Result<()> {
        self.part(from, to, 0, 1)
    }

    /// One of `parts` equal parts of a variable's rows.
    fn part(&mut self, from: &str, to: &str, part: usize, parts: usize) -> Result<()> {
        let fail = |what: String| Error::Model { path: self.file.path().to_path_buf(), what };
        let info = self.file.get(from)?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let what = format!(
                "variable \"{from}\" is quantised ({}), which only CTranslate2 computes with; convert the model with --quantization float16",
                info.dtype
            );
            return Err(fail(what));
        }
        let found = info.part(to, part, parts);
        self.tensors.push(found.ok_or_else(|| {
            fail(format!("variable \"{from}\" of shape {:?} is not {parts} projections", info.shape))
        })?);
        Ok(())
    }
}

impl TensorSource for View {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|info| info.name == name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> retune_formats::Result<()> {
        self.file.read_at(info, byte_offset, out)
    }

    fn check_unchanged(&self, info: &TensorInfo) -> retune_formats::Result<()> {
        self.file.check_unchanged(info)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
