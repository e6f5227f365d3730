//! Word and character error rates of clips, transcribed greedily: the same in training, `retune eval` and `retune transcribe --data`.

use std::sync::Arc;

use super::data::{Clip, Sound};
use super::transcribe::{Options, Progress, Transcriber, Vocabulary};
use crate::error::Result;
use crate::metrics::words::{NormalizerChoice, RowErrors, TranscribedRow};
use crate::models::whisper::Heard;

/// How the clips of an evaluation are transcribed and compared.
#[derive(Clone)]
pub struct Scoring {
    pub vocabulary: Arc<Vocabulary>,
    pub normalizer: NormalizerChoice,
    /// Most clips that are transcribed: of more, as many at even distances.
    pub rows_max: usize,
}

impl Options {
    /// As texts are measured: the likeliest token each time, and no second try.
    pub fn greedy() -> Options {
        Options { beam_size: 1, temperatures: vec![0.0], ..Options::default() }
    }
}

impl Scoring {
    /// The chosen ones of so many clips.
    pub fn chosen(&self, clips: usize) -> Vec<usize> {
        let many = self.rows_max.min(clips);
        (0..many).map(|i| i * clips / many.max(1)).collect()
    }
}

/// Transcribes a clip and compares; `heard` is what the decoder looks at of it, where that is known. `None` if `go_on` answers no.
///
/// # Errors
/// If the model cannot do what is asked.
pub fn scored(
    transcriber: &Transcriber,
    clip: &Clip,
    (sound, heard): (&Sound, Option<Heard>),
    options: &Options,
    normalizer: NormalizerChoice,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<TranscribedRow>> {
    let own = Options {
        language: clip.language.or(options.language),
        task: clip.task.unwrap_or(options.task),
        ..options.clone()
    };
    let found = transcriber.transcribe_heard(&sound.samples, heard, &own, &mut |_: Progress| go_on())?;
    Ok(found.map(|found| {
        let errors = RowErrors::of(normalizer.of(found.language), &clip.text, &found.text());
        TranscribedRow::new(clip.source.to_string(), &errors)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Model, StorageChoice};
    use std::path::Path;

    #[test]
    fn chosen_clips_lie_at_even_distances() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/whisper_multilingual");
        let model = Model::load(&folder, StorageChoice::F32).unwrap();
        let tokenizer = model.files.language().unwrap().tokenizer;
        let vocabulary = Arc::new(Vocabulary::of(&model, &tokenizer).unwrap());
        let of = |rows_max, clips| {
            Scoring { vocabulary: vocabulary.clone(), normalizer: NormalizerChoice::Auto, rows_max }
                .chosen(clips)
        };
        assert_eq!(of(3, 9), [0, 3, 6]);
        assert_eq!(of(3, 2), [0, 1]);
        assert_eq!(of(4, 6), [0, 1, 3, 4]);
        assert!(of(0, 5).is_empty() && of(5, 0).is_empty());
    }
}
