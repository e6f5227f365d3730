//! Trains a byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019) for a new model.
//!
//! Words are cut by GPT-2's expression, digits stand alone, and all 256 bytes are in the alphabet: any text has tokens.

use super::error::{Error, Result};
use super::tokenizer::contained;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

/// Ids 0, 1, 2: padding (and between documents), begin and end of a turn.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The special tokens and the bytes.
const VOCAB_MIN: usize = SPECIALS.len() + 256;
const VOCAB_MAX: usize = 1 << 20;
/// A pair that occurs once is no pattern.
const MIN_FREQUENCY: u64 = 2;

/// ChatML, as SmolLM2 and Qwen write it, without a system message of its own.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A trained tokenizer.
#[derive(Debug)]
pub struct NewTokenizer {
    /// Tokens in all: what was asked for, or fewer if the texts have no more patterns.
    pub vocab_size: usize,
    /// `tokenizer.json`, `tokenizer_config.json` (with a ChatML template) and `generation_config.json`, by name.
    pub files: Vec<(&'static str, String)>,
    /// `bos_token_id`, `eos_token_id` and `pad_token_id` for `config.json`.
    pub ids: [(&'static str, u32); 3],
}

/// Learns `vocab_size` tokens from texts. The same texts give the same tokenizer.
///
/// # Errors
/// If `vocab_size` is below the 259 tokens that are always there, or there is no text.
pub fn train_bpe(texts: &[String], vocab_size: usize) -> Result<NewTokenizer> {
    if !(VOCAB_MIN..=VOCAB_MAX).contains(&vocab_size) {
        return Err(wrong(format!(
            "a vocabulary of {vocab_size} tokens: {VOCAB_MIN} to {VOCAB_MAX} are possible"
        )));
    }
    if texts.iter().all(String::is_empty) {
        return Err(wrong("there is no text to learn from".into()));
    }
    let tokenizer = contained(|| train(texts, vocab_size)).map_err(wrong)?;
    let size = tokenizer.get_vocab_size(true);
    let text = |value: &Value| serde_json::to_string_pretty(value).map(|text| text + "\n");
    let files = serde_json::to_value(&tokenizer).and_then(|json| {
        Ok(vec![
            ("tokenizer.json", text(&json)?),
            ("tokenizer_config.json", text(&tokenizer_config())?),
            ("generation_config.json", text(&generation_config())?),
        ])
    });
    Ok(NewTokenizer { vocab_size: size, files: files.map_err(|e| wrong(e.to_string()))?, ids: ids() })
}

fn wrong(problem: String) -> Error {
    Error::Tokenizer { origin: "training a tokenizer".into(), problem }
}

fn train(texts: &[String], vocab_size: usize) -> tokenizers::Result<Bpe> {
    let mut tokenizer = Bpe::new(BPE::default());
    let steps: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), byte_level().into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(byte_level()));
    let specials = SPECIALS.iter().map(|name| AddedToken::from(*name, true)).collect();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(MIN_FREQUENCY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials)
        .build();
    tokenizer.train(&mut trainer, texts.iter().map(String::as_str))?;
    Ok(tokenizer)
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn ids() -> [(&'static str, u32); 3] {
    [("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 0)]
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": SPECIALS[1],
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "unk_token": SPECIALS[0],
        "chat_template": CHAT_TEMPLATE,
    })
}

fn generation_config() -> Value {
    ids()
        .into_iter()
        .map(|(name, id)| (name.to_string(), id.into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{ChatTemplate, Message, Special, Tokenizer, TokenizerFiles};

    fn load(new: &NewTokenizer) -> (Tokenizer, ChatTemplate) {
        let file = |name: &str| &new.files.iter().find(|(n, _)| *n == name).unwrap().1;
        let config: Value = serde_json::from_str(file("tokenizer_config.json")).unwrap();
        let generation: Value = serde_json::from_str(file("generation_config.json")).unwrap();
        let files = TokenizerFiles {
            tokenizer: file("tokenizer.json"),
            tokenizer_config: Some(&config),
            generation_config: Some(&generation),
            ..TokenizerFiles::default()
        };
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        let template = ChatTemplate::new(config["chat_template"].as_str(), &tokenizer).unwrap();
        (tokenizer, template)
    }

    #[test]
    fn learns_words_and_reads_any_text_back() {
        let texts: Vec<String> = (0..40).map(|i| format!("the quick tokenizer, number {i}\n")).collect();
        let new = train_bpe(&texts, 275).unwrap();
        assert_eq!(new.vocab_size, 275);
        assert_eq!(format!("{:?}", new.files), format!("{:?}", train_bpe(&texts, 275).unwrap().files));
        let (tokenizer, template) = load(&new);
        let text = "the quick Ünïcode 日本 2024\t<|im_end|> \u{0}";
        let ids = tokenizer.encode(text, Special::AsText).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert!(tokenizer.encode("the quick tokenizer", Special::AsText).unwrap().len() < 8);
        let chat = [Message::new("user", "hi")];
        let written = template.render(&chat, true).unwrap();
        assert_eq!(written, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(tokenizer.eos_ids().iter().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn refuses_what_cannot_be() {
        let texts = ["some text".to_string()];
        assert!(train_bpe(&texts, 258).unwrap_err().to_string().contains("259"));
        assert!(train_bpe(&[], 300).is_err());
    }
}
