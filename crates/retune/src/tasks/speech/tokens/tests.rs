//! On a tokenizer of bytes with Whisper's special tokens, and on the real tiny.en's where its file is named.

use super::*;
use crate::text::TokenizerFiles;
use serde_json::{Map, json};

/// GPT-2's letters for bytes.
fn byte_letters() -> Vec<char> {
    let plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 255;
    let letter = |b: u32| {
        next += u32::from(!plain(b));
        char::from_u32(if plain(b) { b } else { next }).unwrap()
    };
    (0..256).map(letter).collect()
}

/// Bytes as tokens 0 to 255, then Whisper's special ones. Its post-processor adds start tokens, as real ones do.
pub(in crate::tasks::speech) fn tokenizer(named_times: bool) -> Tokenizer {
    let vocab: Map<String, Value> =
        byte_letters().into_iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let mut names: Vec<String> = vec![END.into(), START.into()];
    names.extend(LANGUAGES[..99].iter().map(|(code, _)| format!("<|{code}|>")));
    let others = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"];
    names.extend(others.map(|name| format!("<|{name}|>")));
    if named_times {
        names.extend((0..=LAST_STEP).map(|step| format!("<|{:.2}|>", f64::from(step) / STEPS)));
    }
    let added = names.iter().zip(256..).map(|(name, id)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": !name.contains('.')})
    });
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": level, "decoder": level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(START), special(NO_TIMESTAMPS), {"Sequence": {"id": "A", "type_id": 0}}, special(END)],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                START: {"id": START, "ids": [257], "tokens": [START]},
                NO_TIMESTAMPS: {"id": NO_TIMESTAMPS, "ids": [362], "tokens": [NO_TIMESTAMPS]},
                END: {"id": END, "ids": [256], "tokens": [END]},
            },
        },
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let text = file.to_string();
    Tokenizer::from_files(&TokenizerFiles { origin: "here", tokenizer: &text, ..Default::default() }).unwrap()
}

fn request(language: &str) -> Request {
    Request { language: language_code(language).ok(), ..Request::default() }
}

#[test]
fn roles_are_found_by_name() {
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    assert!(tokens.multilingual && tokens.languages.len() == 99);
    assert_eq!((tokens.end, tokens.start, tokens.first_timestamp), (256, 257, tokens.no_timestamps + 1));
    assert_eq!(SpeechTokens::new(&tokenizer(false), None).unwrap().first_timestamp, tokens.first_timestamp);
    assert_eq!(tokens.language_of(258), Some("en"));
    assert_eq!((tokens.time(tokens.timestamp(1.234)), tokens.time(5)), (Some(1.24), None));
    assert_eq!(tokens.time(tokens.timestamp(99.0)), Some(30.0));
}

#[test]
fn prompts() {
    let tokens = SpeechTokens::new(&tokenizer(false), None).unwrap();
    let french = tokens.languages.iter().find(|(code, _)| *code == "fr").unwrap().1;
    let (start, none) = (tokens.start, tokens.no_timestamps);
    assert_eq!(tokens.prompt(request("french")).unwrap(), [start, french, tokens.transcribe, none]);
    let wanted = Request { task: SpeechTask::Translate, timestamps: true, ..request("fr") };
    assert_eq!(tokens.prompt(wanted).unwrap(), [start, french, tokens.translate]);
    let message = |request| tokens.prompt(request).unwrap_err().to_string();
    assert!(message(Request::default()).contains("say which one"));
    assert!(message(request("yue")).contains("no token for the language cantonese"));
    let english = SpeechTokens::new(&tokenizer(false), Some(false)).unwrap();
    assert_eq!(english.prompt(request("en")).unwrap(), [start, none]);
    assert_eq!(english.prompt(Request::default()).unwrap(), [start, none]);
    assert!(english.prompt(request("fr")).unwrap_err().to_string().contains("no token for french"));
    assert!(english.prompt(wanted).unwrap_err().to_string().contains("cannot translate"));
}

#[test]
fn start_and_end_tokens_stand_once_and_prompts_carry_no_loss() {
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let text = names.encode(" Ça va", Special::AsText).unwrap();
    let wanted = [tokens.prompt(request("fr")).unwrap(), text, vec![tokens.end]].concat();
    for given in [
        "Ça va",
        "  Ça va\n",
        "<|startoftranscript|><|fr|><|transcribe|><|notimestamps|>Ça va<|endoftext|>",
        "<|startoftranscript|><|startoftranscript|> <|fr|> <|notimestamps|> Ça va <|endoftext|><|endoftext|>",
        "<|0.00|> Ça va<|2.00|>",
    ] {
        let labels = tokens.labels(&names, given, &[], request("fr")).unwrap();
        assert_eq!(labels.ids, wanted, "{given}");
        assert_eq!(labels.target.iter().position(|t| *t), Some(4), "{given}");
        assert!(labels.target[4..].iter().all(|t| *t) && labels.target.len() == wanted.len());
    }
    // The text may say its language and task.
    let labels = tokens.labels(&names, "<|fr|><|translate|>Hello", &[], Request::default()).unwrap();
    assert_eq!(labels.ids[2], tokens.translate);
    // Languages without spaces begin without one.
    let labels = tokens.labels(&names, "好", &[], request("zh")).unwrap();
    assert_eq!(labels.ids.len(), 4 + 3 + 1);
}

#[test]
fn times() {
    let names = tokenizer(false);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let timed = Request { timestamps: true, ..request("en") };
    let segment = |start, end, text: &str| Segment { start, end, text: text.into() };
    let segments = [segment(0.0, 1.5, "one"), segment(2.0, 3.014, "two")];
    let labels = tokens.labels(&names, "one two", &segments, timed).unwrap();
    let marked = tokens.labels(&names, "<|0.00|> one<|1.50|><|2.00|> two<|3.02|>", &[], timed).unwrap();
    assert_eq!(labels, marked);
    assert_eq!(
        labels.ids[..4],
        [tokens.start, tokens.languages[0].1, tokens.transcribe, tokens.first_timestamp]
    );
    assert_eq!(labels.target[..4], [false, false, false, true]);
    let found = tokens.segments(&names, &labels.ids[3..], 30.0, 30.0).unwrap();
    assert_eq!(found, [segment(30.0, 31.5, "one"), segment(32.0, 33.02, "two")]);
    // Without times anywhere it is a transcript without.
    assert_eq!(tokens.labels(&names, "one", &[], timed).unwrap().ids[3], tokens.no_timestamps);
    let plain = names.encode(" one", Special::AsText).unwrap();
    assert_eq!(tokens.segments(&names, &plain, 0.0, 7.5).unwrap(), [segment(0.0, 7.5, "one")]);
    for (text, segments) in [
        ("<|2.00|> one<|1.00|>", vec![]),
        ("<|0.00|> one<|31.00|>", vec![]),
        ("one", vec![segment(2.0, 1.0, "one")]),
        ("one", vec![segment(0.0, f64::NAN, "one")]),
    ] {
        let message = tokens.labels(&names, text, &segments, timed).unwrap_err();
        assert!(message.contains("30 s"), "{message}");
    }
}

#[test]
fn what_cannot_be_learned_is_told() {
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let message = |text: &str| tokens.labels(&names, text, &[], request("fr")).unwrap_err();
    assert_eq!(message(" <|startoftranscript|><|endoftext|> "), "there is no text");
    assert!(message("un <|endoftext|> deux").contains("special token <|endoftext|>"));
    assert!(message("<|en|>one").contains("<|en|>, but its language is `fr`"));
    assert!(message(&"x".repeat(448)).contains("takes 454 tokens"));
    let longest = tokens.labels(&names, &"x".repeat(442), &[], request("fr")).unwrap();
    assert_eq!(longest.ids.len(), TOKENS_MAX);
    let previous = tokens.previous(&names, &"x".repeat(999)).unwrap();
    assert_eq!((previous.len(), previous[0]), (224, tokens.previous));
}

#[test]
fn suppressed_tokens() {
    let config = json!({"suppress_tokens": [1, 2, -1], "begin_suppress_tokens": [220]});
    assert_eq!(Suppress::from_config(&config), Some(Suppress { always: vec![1, 2], first: vec![220] }));
    let config = json!({"suppress_ids": [3], "suppress_ids_begin": []});
    assert_eq!(Suppress::from_config(&config), Some(Suppress { always: vec![3], first: vec![] }));
    assert_eq!(Suppress::from_config(&json!({})), None);
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let suppress = Suppress::of(&names, &tokens).unwrap();
    assert!(suppress.always.contains(&u32::from(b'#')) && suppress.always.contains(&tokens.start));
    assert_eq!(suppress.first, [u32::from(b' '), tokens.end]);
}

/// The real tiny.en: its folder has tokenizer.json and CTranslate2's config.json.
#[test]
fn the_real_tokenizer() {
    let Ok(folder) = std::env::var("RETUNE_WHISPER_FOLDER") else {
        eprintln!("skipped: RETUNE_WHISPER_FOLDER names no folder of Whisper tiny.en");
        return;
    };
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let text = read("tokenizer.json");
    let names =
        Tokenizer::from_files(&TokenizerFiles { origin: &folder, tokenizer: &text, ..Default::default() })
            .unwrap();
    let tokens = SpeechTokens::new(&names, None).unwrap();
    assert_eq!(tokens.prompt(Request::default()).unwrap(), [50_257, 50_362]);
    assert_eq!((tokens.multilingual, tokens.end, tokens.first_timestamp), (false, 50_256, 50_363));
    let config: Value = serde_json::from_str(&read("config.json")).unwrap();
    let (mut wanted, found) =
        (Suppress::from_config(&config).unwrap(), Suppress::of(&names, &tokens).unwrap());
    wanted.always.sort_unstable();
    assert_eq!(found, wanted);
}
