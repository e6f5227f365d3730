//! The real Whisper tiny.en, as CTranslate2 has it, on President Kennedy's sentence of eleven seconds: word for word.
//!
//! `RETUNE_TEST_WHISPER=/folder` (with `model.bin`) and `RETUNE_TEST_JFK=/jfk.wav`; `retune fetch NAME --print-path` names both. Skipped,
//! saying so, without them.

use std::path::PathBuf;

use retune::models::{Model, StorageChoice};
use retune::nn::Active;
use retune::tasks::speech::transcribe::Options;
use retune::tasks::speech::{Format, Transcriber, Transcript};
use retune_media::sound;

const SAID: &str = "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country.";

#[test]
fn word_for_word() {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(folder), Some(jfk)) = (path("RETUNE_TEST_WHISPER"), path("RETUNE_TEST_JFK")) else {
        eprintln!("SKIPPED: RETUNE_TEST_WHISPER and RETUNE_TEST_JFK name no model and no sound");
        return;
    };
    let model = Model::load(&folder, StorageChoice::AsIs).unwrap_or_else(|e| panic!("{e}"));
    let language = model.files.language().unwrap_or_else(|e| panic!("{e}"));
    let transcriber = Transcriber::new(&model, &language.tokenizer, Active::default()).expect("transcriber");
    let samples = sound::load(&jfk).unwrap_or_else(|e| panic!("{e}"));
    let hear = |samples: &[f32], options: &Options| -> Transcript {
        transcriber.transcribe(samples, options, &mut |_| true).expect("transcript").expect("not interrupted")
    };
    let plain = hear(&samples, &Options::default());
    assert_eq!((plain.text().as_str(), plain.language), (SAID, Some("en")));
    let beams = hear(&samples, &Options { beam_size: 3, ..Options::default() });
    assert_eq!(beams.text(), SAID);

    let timed = hear(&samples, &Options { timestamps: true, ..Options::default() });
    let words = |text: &str| text.to_lowercase().replace([',', '.'], "");
    assert_eq!(words(&timed.text()), words(SAID));
    let (first, last) = (&timed.segments[0], &timed.segments[timed.segments.len() - 1]);
    assert!(first.start < 1.0 && (9.5..=11.1).contains(&last.end), "{:?}", timed.segments);
    assert!(Format::Srt.write(&timed.segments, timed.language).starts_with("1\n00:00:00,"));

    // Longer than a window: three times with silence between, nothing lost and nothing twice.
    let mut long = Vec::new();
    for _ in 0..3 {
        long.extend_from_slice(&samples);
        long.extend(std::iter::repeat_n(0.0, 2 * sound::SAMPLE_RATE));
    }
    for timestamps in [false, true] {
        let all = hear(&long, &Options { timestamps, ..Options::default() });
        assert_eq!(words(&all.text()).matches("my fellow americans").count(), 3, "{}", all.text());
    }
    assert_eq!(hear(&vec![0.0; 5 * sound::SAMPLE_RATE], &Options::default()).segments, []);
    let french = Options { language: Some("fr"), ..Options::default() };
    let refused = transcriber.transcribe(&samples, &french, &mut |_| true).unwrap_err().to_string();
    assert!(refused.contains("french"), "{refused}");
    // An interrupted transcription has no result.
    assert!(transcriber.transcribe(&samples, &Options::default(), &mut |_| false).expect("fine").is_none());
}
