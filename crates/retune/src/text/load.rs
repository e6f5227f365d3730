//! A model's tokenizer and chat template, from where its files keep them.

use super::{ChatTemplate, Error, GgufVocab, Result, Tokenizer, TokenizerFiles};
use retune_formats::TensorSource;
use retune_formats::folder::ModelFolder;
use std::sync::Arc;

use retune_formats::gguf;

/// All that is needed to write a conversation as tokens and to read the answer.
pub struct Language {
    pub tokenizer: Arc<Tokenizer>,
    pub template: ChatTemplate,
}

impl Language {
    /// From the metadata of a GGUF file (`tokenizer.*`).
    ///
    /// # Errors
    /// [`Error`] names the file and the key.
    pub fn from_gguf(file: &gguf::File) -> Result<Self> {
        let metadata = file.metadata();
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |role: &str| metadata.opt_u32(&key(&format!("{role}_token_id")));
        let owned = |list: Option<&[String]>| list.map(<[String]>::to_vec);
        let vocab = GgufVocab {
            origin: file.path().display().to_string(),
            model: metadata.str(&key("model"))?.to_string(),
            pre: metadata.opt_str(&key("pre"))?.map(str::to_string),
            tokens: metadata.array_str(&key("tokens"))?.to_vec(),
            token_types: metadata.opt_array_i32(&key("token_type"))?.map(<[i32]>::to_vec),
            scores: metadata.opt_array_f32(&key("scores"))?.map(<[f32]>::to_vec),
            merges: owned(metadata.opt_array_str(&key("merges"))?),
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            cls: id("cls")?,
            sep: id("seperator")?,
            add_bos: metadata.opt_bool(&key("add_bos_token"))?,
            add_space_prefix: metadata.opt_bool(&key("add_space_prefix"))?,
        };
        let tokenizer = Tokenizer::from_gguf(vocab)?;
        let template = ChatTemplate::new(metadata.opt_str("tokenizer.chat_template")?, &tokenizer)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template })
    }

    /// From a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json` and so on.
    ///
    /// # Errors
    /// [`Error`] names the file; a folder without `tokenizer.json` is one.
    pub fn from_folder(folder: &ModelFolder) -> Result<Self> {
        let origin = folder.path().display().to_string();
        let tokenizer_json = folder.tokenizer()?.ok_or_else(|| Error::Tokenizer {
            origin: origin.clone(),
            problem: "tokenizer.json is missing; save the tokenizer as a fast tokenizer \
                      (AutoTokenizer.from_pretrained(…).save_pretrained(…)) into this folder"
                .into(),
        })?;
        let tokenizer = Tokenizer::from_files(&TokenizerFiles {
            origin: &origin,
            tokenizer: &tokenizer_json,
            tokenizer_config: folder.tokenizer_config()?.as_ref(),
            special_tokens_map: folder.special_tokens_map()?.as_ref(),
            generation_config: folder.generation_config(),
            config: Some(folder.config()),
        })?;
        let template =
            ChatTemplate::new(folder.chat_templates()?.get("default").map(String::as_str), &tokenizer)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template })
    }
}
