//! The loss of transcripts given their sounds: `sum of -log p(next token | sound, tokens before) / denominator`, of the text's tokens alone.
//!
//! What the frozen part of the encoder gives is kept for each clip ([`SoundCache`]): where the whole encoder is frozen, it runs once a clip.

use rayon::prelude::*;
use retune_media::sound::LogMel;
use retune_tensor::ops::LossRows;
use retune_tensor::{Params, Segments, Tape, Tensor, Var, memory};

use super::data::{Clip, Dataset};
use super::tokens::{Labels, Request, SpeechTokens};
use crate::error::{Error, Result};
use crate::models::{Network, Whisper};
use crate::nn::{Active, Hidden, LanguageModelHead, Pass, Rows};
use crate::objective::{Objective, ObjectiveError};
use crate::tasks::causal_lm::head_loss;
use crate::tasks::kept_rows::{KeptRows, Limits};
use crate::text::Tokenizer;

/// Clips with their labels, made for a model.
pub struct Examples {
    pub clips: Vec<Clip>,
    labels: Vec<Labels>,
    mel: LogMel,
    frames: usize,
}

impl Examples {
    /// Tokenises all transcripts. Clips are decoded when they are needed ([`Dataset::check`] decodes all of them once).
    ///
    /// # Errors
    /// All rows whose texts make no labels, or more tokens than the model has positions.
    pub fn new(
        data: Dataset,
        net: &Whisper,
        tokenizer: &Tokenizer,
        tokens: &SpeechTokens,
        request: Request,
    ) -> Result<Examples> {
        net.check_room(Some(0), super::TOKENS_MIN)?;
        let make = |clip: &Clip| {
            // Only the times of segments need to know where a clip was cut.
            let timed = request.timestamps && clip.part.is_some();
            let start = if timed { clip.sound()?.start } else { clip.part.map_or(0.0, |part| part.start) };
            let labels = clip.labels(tokens, tokenizer, request, start)?;
            net.check_ids(&labels.ids).map_err(|e| e.to_string())?;
            Ok(labels)
        };
        let made: Vec<std::result::Result<Labels, String>> = data.clips.par_iter().map(make).collect();
        let wrong =
            made.iter().zip(&data.clips).filter_map(|(labels, clip)| Some((clip, labels.as_ref().err()?)));
        let told: Vec<String> = wrong.map(|(clip, what)| format!("{}: {what}", clip.source)).collect();
        if !told.is_empty() {
            let shown = told.iter().take(super::SHOWN_MAX).cloned().collect::<Vec<_>>().join("\n");
            let more = told.len().saturating_sub(super::SHOWN_MAX);
            let rest = if more > 0 { format!("\nand {more} more rows") } else { String::new() };
            return Err(Error::Input(format!("{shown}{rest}")));
        }
        let (mel, frames) = (LogMel::new(net.config().num_mel_bins), net.config().frames());
        Ok(Examples { clips: data.clips, labels: made.into_iter().flatten().collect(), mel, frames })
    }

    pub fn len(&self) -> usize {
        self.clips.len()
    }

    pub fn is_empty(&self) -> bool {
        self.clips.is_empty()
    }

    /// The features `[clips frames, bands]` of some clips.
    fn features(&self, examples: &[usize]) -> Result<Tensor> {
        let one = |&example: &usize| {
            let clip = &self.clips[example];
            let sound = clip.sound().map_err(|what| Error::Input(format!("{}: {what}", clip.source)))?;
            Ok(self.mel.frames(&sound.samples, self.frames))
        };
        let parts: Vec<Vec<f32>> = examples.par_iter().map(one).collect::<Result<_>>()?;
        Ok(Tensor::from_vec(examples.len() * self.frames, self.mel.bands(), parts.concat()))
    }
}

/// A data set of clips seen through a model.
pub struct SpeechToText<'a> {
    pub net: &'a Whisper,
    pub data: &'a Examples,
    /// Seed of the dropout masks; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    /// Blocks are run again in the backward pass.
    pub checkpoint: bool,
    /// The rows of the frozen part of the encoder, where they are kept.
    pub cache: Option<&'a SoundCache>,
    pub active: Active,
}

impl SpeechToText<'_> {
    fn head(&self) -> Result<&LanguageModelHead> {
        self.net.language_model().ok_or_else(|| Error::Input("this Whisper has no head".into()))
    }

    fn sounds<'p>(&'p self, tape: &Tape<'p>, batch: &[usize], pass: &Pass) -> Result<Hidden> {
        let Some(cache) = self.cache else {
            let features = Var::constant(self.data.features(batch)?);
            return Ok(self.net.encode(tape, &features, batch.len(), pass));
        };
        let keys: Vec<u64> = batch.iter().map(|&e| self.data.clips[e].key).collect();
        let read = |which: &[usize]| {
            let examples: Vec<usize> = which.iter().map(|&i| batch[i]).collect();
            self.data.features(&examples)
        };
        cache.sounds(tape, self.net, &keys, pass, &read)
    }
}

impl Objective for SpeechToText<'_> {
    fn len(&self) -> usize {
        self.data.len()
    }

    /// Tokens that the decoder reads: all but the last.
    fn rows(&self, example: usize) -> usize {
        self.data.labels[example].ids.len().saturating_sub(1)
    }

    fn targets(&self, example: usize) -> usize {
        self.data.labels[example].target.iter().skip(1).filter(|target| **target).count()
    }

    fn weight(&self, example: usize) -> f64 {
        self.targets(example) as f64
    }

    fn describe(&self, example: usize) -> String {
        self.data.clips[example].source.to_string()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let keys = batch.iter().map(|&e| self.data.clips[e].key);
        let pass = Pass::of_step(tape, self.dropout_seed, epoch, keys, self.checkpoint);
        let pass = Pass { active: self.active.clone(), ..pass };
        let sound = self.sounds(tape, batch, &pass)?;
        let texts = Packed::of(batch.iter().map(|&e| &self.data.labels[e]), denominator);
        let hidden = self.net.decode(tape, &sound, &texts.ids, &texts.segments, &pass);
        drop(sound);
        Ok(head_loss(tape, self.head()?, &hidden, &texts.labels))
    }
}

/// Transcripts laid end to end: what the decoder reads, and what it is to say next.
struct Packed {
    ids: Vec<u32>,
    segments: Segments,
    labels: LossRows,
}

impl Packed {
    fn of<'l>(texts: impl Iterator<Item = &'l Labels>, denominator: f64) -> Packed {
        let (mut ids, mut lengths) = (Vec::new(), Vec::new());
        let mut labels = LossRows { denominator: denominator as f32, ..LossRows::default() };
        for text in texts {
            let read = text.ids.len().saturating_sub(1);
            let next = text.ids.iter().zip(&text.target).skip(1).enumerate();
            for (i, (&id, _)) in next.filter(|(_, (_, target))| **target) {
                labels.rows.push(ids.len() + i);
                labels.targets.push(id);
                labels.weights.push(1.0);
            }
            ids.extend_from_slice(&text.ids[..read]);
            lengths.push(read);
        }
        Packed { ids, segments: Segments::from_lengths(&lengths), labels }
    }
}

/// Up to where the encoder is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// The rows that this of its blocks reads.
    Block(usize),
    /// Its last rows.
    Whole,
}

/// Rows of the frozen part of the encoder, by the clips' keys.
pub struct SoundCache {
    level: Level,
    kept: KeptRows,
}

impl SoundCache {
    /// A cache for a model as it is going to be trained; `None` if the encoder's first layers are trained.
    pub fn new(net: &Whisper, params: &Params, limits: Limits) -> Option<SoundCache> {
        Some(SoundCache { level: frozen(net, params)?, kept: KeptRows::new(limits) })
    }

    /// Bytes that are kept of each clip.
    pub fn bytes_each(net: &Whisper, params: &Params) -> u64 {
        let rows = net.config().max_source_positions as u64 * net.config().d_model as u64;
        frozen(net, params).map_or(0, |_| 4 * rows)
    }

    /// Clips whose rows are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// [`Whisper::encode`] of clips of these keys; `read` makes the features of some of them.
    ///
    /// # Errors
    /// What `read` says.
    pub fn sounds<'p>(
        &self,
        tape: &Tape<'p>,
        net: &'p Whisper,
        keys: &[u64],
        pass: &Pass,
        read: &dyn Fn(&[usize]) -> Result<Tensor>,
    ) -> Result<Hidden> {
        let failed = std::cell::RefCell::new(None);
        let names: Vec<Vec<u32>> = keys.iter().map(|key| vec![*key as u32, (*key >> 32) as u32]).collect();
        let rows = net.config().max_source_positions;
        let compute = |which: &[usize]| {
            let x = match read(which) {
                Ok(features) => self.compute(tape.params(), net, features, which.len()),
                Err(error) => {
                    failed.borrow_mut().get_or_insert(error);
                    Tensor::zeros(which.len() * rows, net.hidden_size())
                }
            };
            (x, vec![rows; which.len()])
        };
        let (x, lengths) = self.kept.rows(&names, &compute);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let rows = Rows::new(Segments::from_lengths(&lengths), pass);
        let hidden = Hidden { x: Var::constant(x), rows };
        Ok(match self.level {
            Level::Whole => hidden,
            Level::Block(from) => net.upper_encoder(tape, hidden, from, pass),
        })
    }

    fn compute(&self, params: &Params, net: &Whisper, features: Tensor, clips: usize) -> Tensor {
        let tape = Tape::inference(params);
        let (features, pass) = (Var::constant(features), Pass::default());
        let hidden = match self.level {
            Level::Whole => net.encode(&tape, &features, clips, &pass),
            Level::Block(to) => net.lower_encoder(&tape, &features, clips, to, &pass),
        };
        hidden.x.value().clone()
    }
}

/// The highest cut below which nothing is trained: each part is run, and asked whether it met a trainable parameter.
fn frozen(net: &Whisper, params: &Params) -> Option<Level> {
    let mut found = None;
    memory::trace(|| {
        let pass = Pass::default();
        let features = Var::constant(Tensor::zeros(net.config().frames(), net.config().num_mel_bins));
        let met = |to: Option<usize>| {
            let tape = Tape::inference(params);
            match to {
                Some(to) => net.lower_encoder(&tape, &features, 1, to, &pass),
                None => net.encode(&tape, &features, 1, &pass),
            };
            tape.met_trainable()
        };
        found = match met(None) {
            false => Some(Level::Whole),
            true => (0..=net.config().encoder_layers).rev().find(|&to| !met(Some(to))).map(Level::Block),
        };
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{partial, prefix};
    use crate::models::{Model, StorageChoice, fresh};
    use crate::run_file::{self, RunFile};
    use crate::tasks::speech::data::Options;
    use crate::tasks::speech::tokens::tests::tokenizer;
    use crate::tasks::speech::transcribe::{self, Transcriber};
    use retune_tensor::Gradients;
    use serde_json::json;
    use std::path::Path;

    /// A tone of 0.4 s at 16 kHz.
    fn sound(path: &Path, step: f32) {
        let data: Vec<u8> =
            (0..6_400).flat_map(|i| (((i as f32 * step).sin() * 9_000.0) as i16).to_le_bytes()).collect();
        let mut out = b"RIFF".to_vec();
        out.extend((36 + data.len() as u32).to_le_bytes());
        out.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        std::fs::write(path, out).unwrap();
    }

    /// A new model of the vocabulary of bytes, and a folder of two clips.
    fn small(folder: &Path) -> (Model, Dataset) {
        let config = json!({
            "model_type": "whisper", "vocab_size": 1864, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
            "max_source_positions": 24, "max_target_positions": 32,
        });
        let model = folder.join("model");
        fresh::write_folder(Path::new("config.json"), &config, 1, None, &[], &model).unwrap();
        let clips = folder.join("clips");
        std::fs::create_dir(&clips).unwrap();
        for (name, step, text) in [("a", 0.1, "low"), ("b", 0.4, "high up")] {
            sound(&clips.join(format!("{name}.wav")), step);
            std::fs::write(clips.join(format!("{name}.txt")), text).unwrap();
        }
        let options = Options { language: Some("en"), task: None };
        (Model::load(&model, StorageChoice::F32).unwrap(), Dataset::load(&clips, &options).unwrap())
    }

    #[test]
    fn the_frozen_encoder_runs_once_and_nothing_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (mut model, data) = small(folder.path());
        let (names, request) = (tokenizer(true), Request::default());
        let tokens = SpeechTokens::new(&names, None).unwrap();
        let examples = Examples::new(data, model.speech().unwrap(), &names, &tokens, request).unwrap();
        let settings = run_file::Partial { last_blocks: 1, ..Default::default() };
        partial::attach(&mut model, &settings).unwrap();
        let mut losses = Vec::new();
        let limits = Limits { memory: 1 << 20, folder: None };
        let cache = SoundCache::new(model.speech().unwrap(), &model.params, limits).unwrap();
        assert_eq!(cache.level, Level::Whole);
        for _ in 0..4 {
            let mut gradients = Gradients::new();
            {
                let of = |cache| SpeechToText {
                    net: model.speech().unwrap(),
                    data: &examples,
                    dropout_seed: Some(1),
                    checkpoint: false,
                    cache,
                    active: Active::default(),
                };
                let (plain, kept) = (of(None), of(Some(&cache)));
                let total: f64 = (0..2).map(|e| plain.weight(e)).sum();
                let loss = |objective: &SpeechToText| {
                    let tape = Tape::inference(&model.params);
                    objective.loss(&tape, &[0, 1], 0, total).unwrap().value().data()[0]
                };
                assert_eq!(loss(&plain).to_bits(), loss(&kept).to_bits());
                let tape = Tape::new(&model.params);
                let value = kept.loss(&tape, &[0, 1], 0, total).unwrap();
                losses.push(value.value().data()[0]);
                tape.backward(&value, Tensor::scalar(1.0), &mut gradients);
            }
            for (id, g) in gradients.iter() {
                let mut step = g.clone();
                step.scale_assign(-0.1);
                model.params.tensor_mut(id).unwrap().add_assign(&step);
            }
        }
        assert_eq!(cache.len(), 2);
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
        let whole = run_file::Partial { last_blocks: 2, ..Default::default() };
        partial::attach(&mut model, &whole).unwrap();
        let cache = SoundCache::new(model.speech().unwrap(), &model.params, Limits::default()).unwrap();
        assert_eq!(cache.level, Level::Block(1));
    }

    /// Room of 32 positions: for a prefix, the prompt and the text.
    #[test]
    fn a_prefix_leaves_room_for_texts_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (model, data) = small(folder.path());
        let names = tokenizer(true);
        let tokens = SpeechTokens::new(&names, None).unwrap();
        let with_prefix = |rows: u32| {
            let mut model = Model::load(model.files.path(), StorageChoice::F32).unwrap();
            let prefix = run_file::Prefix { num_virtual_tokens: rows, ..Default::default() };
            prefix::attach(&mut model, &prefix, &RunFile::default()).unwrap();
            model
        };
        let read = |model: &Model| {
            let made =
                Examples::new(data.clone(), model.speech().unwrap(), &names, &tokens, Request::default());
            made.err().map(|error| error.to_string())
        };
        for rows in [27, 31] {
            let model = with_prefix(rows);
            let told = read(&model).unwrap();
            assert!(told.contains(&format!("the {rows} virtual ones")) && told.contains("num_virtual_tokens"));
            let refused = Transcriber::new(&model, &names, Active::default()).err().unwrap().to_string();
            assert_eq!(told, refused);
            Transcriber::new(&model, &names, Active::Base).unwrap();
        }
        // The shorter text fits beside 20, the longer does not: start, language, task, no times, 8 letters, the end.
        let told = read(&with_prefix(20)).unwrap();
        assert!(told.lines().count() == 1 && told.contains("b.txt:1: 13 tokens and the 20"), "{told}");
        let model = with_prefix(26);
        let transcriber = Transcriber::new(&model, &names, Active::default()).unwrap();
        let options = transcribe::Options { language: Some("en"), ..Default::default() };
        let samples: Vec<f32> = (0..6_400).map(|i| (i as f32 * 0.2).sin() * 0.3).collect();
        assert!(transcriber.transcribe(&samples, &options, &mut |_| true).unwrap().is_some());
    }

    #[test]
    fn each_token_is_predicted_from_those_before() {
        let labels = |ids: &[u32], prompt: usize| Labels {
            ids: ids.to_vec(),
            target: (0..ids.len()).map(|i| i >= prompt).collect(),
        };
        let (a, b) = (labels(&[1, 2, 30, 40, 9], 2), labels(&[1, 50, 9], 1));
        let packed = Packed::of([&a, &b].into_iter(), 5.0);
        assert_eq!(packed.ids, [1, 2, 30, 40, 1, 50]);
        assert_eq!(packed.segments.lengths(), [4, 2]);
        assert_eq!(packed.labels.rows, [1, 2, 3, 4, 5]);
        assert_eq!(packed.labels.targets, [30, 40, 9, 50, 9]);
    }
}
