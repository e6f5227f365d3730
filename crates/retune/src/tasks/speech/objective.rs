//! The loss of transcripts given their sounds: `sum of -log p(next token | sound, tokens before) / denominator`, of the text's tokens alone.
//!
//! What the frozen part of the encoder gives is kept for each clip ([`SoundCache`]): where the whole encoder is frozen, it runs once a clip.

use rayon::prelude::*;
use retune_media::sound::LogMel;
use retune_tensor::ops::LossRows;
use retune_tensor::{Params, Segments, Tape, Tensor, Var, memory};

use super::data::{Clip, Dataset};
use super::measure::{Scoring, scored};
use super::tokens::{Labels, Request, SpeechTokens};
use super::transcribe::{self, Transcriber};
use super::window::AudioWindow;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::metrics::words::TranscribedRow;
use crate::models::{Network, Whisper};
use crate::nn::{Active, Hidden, LanguageModelHead, Pass, Rows};
use crate::objective::{Measured, Objective, ObjectiveError};
use crate::tasks::causal_lm::head_loss;
use crate::tasks::kept_rows::{KeptRows, Limits};
use crate::text::Tokenizer;

/// Clips with their labels, made for a model.
pub struct Examples {
    pub clips: Vec<Clip>,
    labels: Vec<Labels>,
    mel: LogMel,
    /// Frames of a whole window.
    whole: usize,
    /// Samples of each clip, where windows are cut to them.
    cut: Option<Vec<usize>>,
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
        let (mel, whole) = (LogMel::new(net.config().num_mel_bins), net.config().frames());
        Ok(Examples {
            clips: data.clips,
            labels: made.into_iter().flatten().collect(),
            mel,
            whole,
            cut: None,
        })
    }

    /// Sees each clip through such a window; `samples` are their lengths ([`Dataset::check`]).
    pub fn seen_through(self, window: AudioWindow, samples: Vec<usize>) -> Examples {
        Examples { cut: (window == AudioWindow::Clip).then_some(samples), ..self }
    }

    pub fn window(&self) -> AudioWindow {
        if self.cut.is_some() { AudioWindow::Clip } else { AudioWindow::Whole }
    }

    /// Frames of the windows of all clips.
    fn windows(&self) -> impl Iterator<Item = usize> + '_ {
        let samples =
            |example| self.cut.as_ref().and_then(|cut| cut.get(example).copied()).unwrap_or(usize::MAX / 2);
        (0..self.len()).map(move |example| self.window().frames(samples(example), self.whole))
    }

    pub fn len(&self) -> usize {
        self.clips.len()
    }

    pub fn is_empty(&self) -> bool {
        self.clips.is_empty()
    }

    /// The features `[frames, bands]` of some clips, and which belong to which.
    fn features(&self, examples: &[usize]) -> Result<(Tensor, Segments)> {
        let one = |&example: &usize| {
            let clip = &self.clips[example];
            let sound = clip.sound().map_err(|what| Error::Input(format!("{}: {what}", clip.source)))?;
            let frames = self.window().frames(sound.samples.len(), self.whole);
            Ok((frames, self.mel.frames(&sound.samples, frames)))
        };
        let parts: Vec<(usize, Vec<f32>)> = examples.par_iter().map(one).collect::<Result<_>>()?;
        let (frames, values): (Vec<usize>, Vec<Vec<f32>>) = parts.into_iter().unzip();
        let windows = Segments::from_lengths(&frames);
        Ok((Tensor::from_vec(windows.rows(), self.mel.bands(), values.concat()), windows))
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
    /// How clips are transcribed for the error rates; `None`: there is the loss alone.
    pub scoring: Option<&'a Scoring>,
}

impl SpeechToText<'_> {
    fn head(&self) -> Result<&LanguageModelHead> {
        self.net.language_model().ok_or_else(|| Error::Input("this Whisper has no head".into()))
    }

    fn sounds<'p>(&'p self, tape: &Tape<'p>, batch: &[usize], pass: &Pass) -> Result<Hidden> {
        let Some(cache) = self.cache else {
            let (features, windows) = self.data.features(batch)?;
            return Ok(self.net.encode(tape, &Var::constant(features), &windows, pass));
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

    fn window_frames(&self) -> Option<usize> {
        self.data.cut.as_ref()?;
        self.data.windows().max()
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

    fn measured(&self) -> Option<&dyn Measured> {
        self.scoring.filter(|scoring| scoring.rows_max > 0).map(|_| self as &dyn Measured)
    }
}

impl Measured for SpeechToText<'_> {
    /// The loss of all clips, and error rates of the chosen ones.
    fn metrics(
        &self,
        params: &Params,
        batch_size: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> std::result::Result<Option<Metrics>, ObjectiveError> {
        let all: Vec<usize> = (0..self.len()).collect();
        let total: f64 = all.iter().map(|&e| self.weight(e)).sum();
        let Some(scoring) = self.scoring else { return Err("there is nothing to transcribe with".into()) };
        let chosen = scoring.chosen(all.len());
        let window = self.data.window();
        let transcriber =
            Transcriber::over(self.net, params, scoring.vocabulary.clone(), self.active.clone())?
                .through(window);
        let (mut loss, mut rows, mut done) = (0.0, Vec::with_capacity(chosen.len()), 0);
        for batch in all.chunks(batch_size.max(1)) {
            let tape = Tape::inference(params);
            let value = self.loss(&tape, batch, 0, total)?;
            loss += f64::from(value.value().data().first().copied().unwrap_or(f32::NAN));
            for &example in batch.iter().filter(|example| chosen.binary_search(example).is_ok()) {
                let go_on = &mut || progress(done);
                let Some(row) = self.transcribed(params, &transcriber, scoring, example, go_on)? else {
                    return Ok(None);
                };
                rows.push(row);
            }
            done += batch.len();
            if !progress(done) && done < all.len() {
                return Ok(None);
            }
        }
        Ok(Some(Metrics::of_transcripts(rows, all.len()).with_loss(loss)))
    }
}

impl SpeechToText<'_> {
    /// A clip transcribed; where rows of a frozen encoder are kept, over them.
    fn transcribed(
        &self,
        params: &Params,
        transcriber: &Transcriber,
        scoring: &Scoring,
        example: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<TranscribedRow>> {
        let clip = &self.data.clips[example];
        let sound = clip.sound().map_err(|what| Error::Input(format!("{}: {what}", clip.source)))?;
        let heard = match self.cache {
            Some(_) => {
                let (tape, pass) = (Tape::inference(params), self.pass());
                Some(self.net.heard(&tape, &self.sounds(&tape, &[example], &pass)?))
            }
            None => None,
        };
        scored(transcriber, clip, (&sound, heard), &transcribe::Options::greedy(), scoring.normalizer, go_on)
    }

    fn pass(&self) -> Pass {
        Pass { active: self.active.clone(), ..Pass::default() }
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

    /// Bytes that are kept of all these clips.
    pub fn bytes<'e>(net: &Whisper, params: &Params, data: impl Iterator<Item = &'e Examples>) -> u64 {
        if frozen(net, params).is_none() {
            return 0;
        }
        let frames: usize = data.flat_map(Examples::windows).sum();
        4 * (frames / 2) as u64 * net.config().d_model as u64
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
        read: &dyn Fn(&[usize]) -> Result<(Tensor, Segments)>,
    ) -> Result<Hidden> {
        let failed = std::cell::RefCell::new(None);
        let names: Vec<Vec<u32>> = keys.iter().map(|key| vec![*key as u32, (*key >> 32) as u32]).collect();
        let compute = |which: &[usize]| match read(which) {
            Ok((features, windows)) => self.compute(tape.params(), net, features, &windows),
            Err(error) => {
                failed.borrow_mut().get_or_insert(error);
                (Tensor::zeros(which.len(), net.hidden_size()), vec![1; which.len()])
            }
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

    /// The rows of some windows, and how many each has.
    fn compute(
        &self,
        params: &Params,
        net: &Whisper,
        features: Tensor,
        windows: &Segments,
    ) -> (Tensor, Vec<usize>) {
        let tape = Tape::inference(params);
        let (features, pass) = (Var::constant(features), Pass::default());
        let hidden = match self.level {
            Level::Whole => net.encode(&tape, &features, windows, &pass),
            Level::Block(to) => net.lower_encoder(&tape, &features, windows, to, &pass),
        };
        (hidden.x.value().clone(), hidden.rows.segments.lengths())
    }
}

/// The highest cut below which nothing is trained: each part is run, and asked whether it met a trainable parameter.
fn frozen(net: &Whisper, params: &Params) -> Option<Level> {
    let mut found = None;
    memory::trace(|| {
        let pass = Pass::default();
        let windows = Segments::from_lengths(&[net.config().frames()]);
        let features = Var::constant(Tensor::zeros(windows.rows(), net.config().num_mel_bins));
        let met = |to: Option<usize>| {
            let tape = Tape::inference(params);
            match to {
                Some(to) => net.lower_encoder(&tape, &features, &windows, to, &pass),
                None => net.encode(&tape, &features, &windows, &pass),
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
    use crate::metrics::words::{ErrorRates, Normalizer, RowErrors};
    use crate::models::{Model, StorageChoice, fresh};
    use crate::run_file::{self, RunFile};
    use crate::tasks::speech::Vocabulary;
    use crate::tasks::speech::data::Options;
    use crate::tasks::speech::tokens::tests::tokenizer;
    use retune_tensor::Gradients;
    use serde_json::json;
    use std::path::Path;
    use std::sync::Arc;

    /// A tone at 16 kHz.
    fn sound(path: &Path, step: f32, samples: usize) {
        let data: Vec<u8> =
            (0..samples).flat_map(|i| (((i as f32 * step).sin() * 9_000.0) as i16).to_le_bytes()).collect();
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
            sound(&clips.join(format!("{name}.wav")), step, 6_400);
            std::fs::write(clips.join(format!("{name}.txt")), text).unwrap();
        }
        let options = Options { language: Some("en"), ..Options::default() };
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
                    scoring: None,
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
        // From the other end: the encoder's layers are counted first.
        let layers = model.net.blocks() as u32;
        let mut trained = |settings| {
            partial::attach(&mut model, &settings).unwrap();
            model.params.trainable()
        };
        let behind = run_file::Partial { freeze: Some(layers - 1), ..Default::default() };
        assert_eq!(trained(behind), trained(settings));
    }

    /// Clips of 0.4 s, which fill the window of 0.48 s, and one of 0.1 s: kept rows or not, together or alone, everything is the same, and error
    /// rates are those of transcribing each.
    #[test]
    fn windows_are_cut_to_clips_and_error_rates_are_those_of_transcripts() {
        let folder = tempfile::tempdir().unwrap();
        let (mut model, _) = small(folder.path());
        let clips = folder.path().join("clips");
        sound(&clips.join("c.wav"), 0.2, 1_600);
        std::fs::write(clips.join("c.txt"), "tick").unwrap();
        let data = Dataset::load(&clips, &Options { language: Some("en"), ..Options::default() }).unwrap();
        partial::attach(&mut model, &run_file::Partial { last_blocks: 1, ..Default::default() }).unwrap();
        let (net, names) = (model.speech().unwrap(), Arc::new(tokenizer(true)));
        let vocabulary = Arc::new(Vocabulary::of(&model, &names).unwrap());
        let (tokens, request) = (&vocabulary.tokens, Request::default());
        let samples = data.check(tokens, &names, request, || {}).unwrap();
        assert_eq!(samples, [6_400, 6_400, 1_600]);
        let read = |window| {
            let examples = Examples::new(data.clone(), net, &names, tokens, request).unwrap();
            examples.seen_through(window, samples.clone())
        };
        let (whole, cut) = (read(AudioWindow::Whole), read(AudioWindow::Clip));
        assert_eq!(cut.windows().collect::<Vec<_>>(), [48, 48, 30]);
        let scoring = Scoring { vocabulary: vocabulary.clone(), normalizer: Default::default(), rows_max: 3 };
        let cache = SoundCache::new(net, &model.params, Limits { memory: 1 << 20, folder: None }).unwrap();
        let of = |data, cache| SpeechToText {
            net,
            data,
            dropout_seed: None,
            checkpoint: false,
            cache,
            active: Active::default(),
            scoring: Some(&scoring),
        };
        let loss = |task: &SpeechToText, batch: &[usize]| {
            let tape = Tape::inference(&model.params);
            task.loss(&tape, batch, 0, 1.0).unwrap().value().data()[0]
        };
        let (plain, kept) = (of(&cut, None), of(&cut, Some(&cache)));
        assert_eq!((plain.window_frames(), of(&whole, None).window_frames()), (Some(48), None));
        assert_eq!(SoundCache::bytes(net, &model.params, [&cut].into_iter()), 4 * 16 * (24 + 24 + 15));
        let alone: f32 = [0, 1, 2].map(|example| loss(&plain, &[example])).iter().sum();
        let together = loss(&plain, &[0, 1, 2]);
        assert!((alone - together).abs() < 1e-4 * together, "{alone} {together}");
        assert_eq!(loss(&kept, &[2, 0]).to_bits(), loss(&plain, &[2, 0]).to_bits());
        // What fills its window is as in whole windows; what does not is not.
        assert_eq!(loss(&plain, &[0]).to_bits(), loss(&of(&whole, None), &[0]).to_bits());
        assert_ne!(loss(&plain, &[2]), loss(&of(&whole, None), &[2]));

        let metrics = |task: &SpeechToText| {
            let found = task.measured().unwrap().metrics(&model.params, 2, &mut |_| true);
            found.unwrap().unwrap()
        };
        for (examples, window) in [(&whole, AudioWindow::Whole), (&cut, AudioWindow::Clip)] {
            let found = metrics(&of(examples, None));
            let transcriber = Transcriber::new(&model, &names, Active::default()).unwrap().through(window);
            let greedy = transcribe::Options::greedy();
            for (row, clip) in found.transcribed.iter().zip(&data.clips) {
                let sound = clip.sound().unwrap();
                let options = transcribe::Options { language: clip.language, ..greedy.clone() };
                let text = transcriber.transcribe(&sound.samples, &options, &mut |_| true).unwrap().unwrap();
                let errors = RowErrors::of(Normalizer::English, &clip.text, &text.text());
                assert_eq!(*row, TranscribedRow::new(clip.source.to_string(), &errors));
            }
            let rates: ErrorRates = found.transcribed.iter().collect();
            assert_eq!((found.wer, found.cer, rates.rows), (Some(rates.wer()), Some(rates.cer()), 3));
            let weight: f64 = (0..3).map(|e| plain.weight(e)).sum();
            let mean = f64::from(loss(&of(examples, None), &[0, 1, 2])) / weight;
            assert!((found.loss.unwrap() - mean).abs() < 1e-5 * mean);
        }
        assert_eq!(metrics(&kept), metrics(&plain));
        let mut asked = 0;
        let stopped = plain.measured().unwrap().metrics(&model.params, 2, &mut |_| {
            asked += 1;
            asked < 3
        });
        assert!(stopped.unwrap().is_none());
    }

    /// Room of 32 positions: for a prefix, the prompt and the text.
    #[test]
    fn a_prefix_leaves_room_for_texts_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (model, data) = small(folder.path());
        let names = Arc::new(tokenizer(true));
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
            assert!(
                told.contains(&format!("the {rows} virtual ones")) && told.contains("num_virtual_tokens")
            );
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
