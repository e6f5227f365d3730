//! The tokenizer and chat template of the real SmolLM2 against transformers, tokenizers and llama.cpp.
//!
//! Needs the model's GGUF file: `RETUNE_TEST_SMOLLM2=/path/to/SmolLM2-135M-Instruct.Q4_1.gguf`. Skipped, saying so,
//! without it.

use retune::text::{Language, Message, Special, TokenStream, Tokenizer, TokenizerFiles};
use retune_formats::gguf;
use serde_json::Value;

fn language() -> Option<Language> {
    let Some(path) = std::env::var_os("RETUNE_TEST_SMOLLM2") else {
        eprintln!("SKIPPED: RETUNE_TEST_SMOLLM2 does not name SmolLM2's GGUF file (`retune fetch` gets it)");
        return None;
    };
    Some(Language::from_gguf(&gguf::File::open(path).unwrap()).unwrap())
}

fn cases() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tokenizer/smollm2_cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_text_becomes_the_same_tokens() {
    let Some(Language { tokenizer, .. }) = language() else { return };
    for case in cases()["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, Special::Parse).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), text);
        let mut stream = TokenStream::new(&tokenizer, false);
        let streamed: String = expected.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(streamed + &stream.finish().unwrap(), text);
        let literal = tokenizer.encode(text, Special::AsText).unwrap();
        assert!(literal.iter().all(|id| !tokenizer.is_special(*id)), "{text:?}");
        assert_eq!(tokenizer.decode(&literal, true).unwrap(), text);
    }
}

#[test]
fn every_conversation_becomes_the_same_tokens() {
    let Some(Language { tokenizer, template }) = language() else { return };
    for case in cases()["conversations"].as_array().unwrap() {
        let turns = case["messages"].as_array().unwrap();
        let messages: Vec<Message> = turns
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let text = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text, Special::Parse).unwrap(), ids(&case["ids"]));
    }
}

#[test]
fn special_tokens_and_ends() {
    let Some(Language { tokenizer, .. }) = language() else { return };
    for (name, id) in cases()["special_tokens"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as u32;
        assert_eq!(tokenizer.token_to_id(name), Some(id));
        assert!(tokenizer.is_special(id));
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 49152));
    assert_eq!(tokenizer.eos_ids().iter().copied().collect::<Vec<_>>(), [0, 2]);
    assert!(!tokenizer.add_bos());
}

#[test]
fn the_folder_written_from_it_gives_the_same_tokens() {
    let Some(language) = language() else { return };
    let files = language.folder_files().unwrap();
    if let Some(out) = std::env::var_os("RETUNE_TEST_KEEP") {
        files
            .iter()
            .for_each(|(name, text)| std::fs::write(std::path::Path::new(&out).join(name), text).unwrap());
    }
    let text = |name: &str| &files.iter().find(|(file, _)| *file == name).unwrap().1;
    let config: Value = serde_json::from_str(text("tokenizer_config.json")).unwrap();
    let files = TokenizerFiles {
        tokenizer: text("tokenizer.json"),
        tokenizer_config: Some(&config),
        ..TokenizerFiles::default()
    };
    let folder = Tokenizer::from_files(&files).unwrap();
    for case in cases()["texts"].as_array().unwrap() {
        assert_eq!(folder.encode(case["text"].as_str().unwrap(), Special::Parse).unwrap(), ids(&case["ids"]));
    }
    assert_eq!(folder.vocab_size(), language.tokenizer.vocab_size());
}
