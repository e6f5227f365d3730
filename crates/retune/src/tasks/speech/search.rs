//! The tokens of one window: greedy, sampled or by beam search, under Whisper's rules for what may follow what.
//!
//! With timestamps these come in pairs around each segment, never go back, begin within the first second, and are taken whenever all of
//! them together are likelier than the likeliest word (Radford et al., 2022, section 4.5).

use std::cmp::Ordering;

use retune_tensor::Params;
use retune_tensor::rng::{Stream, fnv1a};

use super::tokens::{SpeechTokens, Suppress};
use crate::models::Whisper;
use crate::models::whisper::{Heard, Spoken};

/// Steps of 0.02 s that the first time may be at most: 1 s.
const FIRST_STEPS: u32 = 50;

/// How tokens are looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// So many texts side by side, of which the likeliest are kept; 1 takes the likeliest token each time.
    Beam(usize),
    /// The likeliest of `texts` that are drawn at a temperature.
    Sampled { temperature: f32, texts: usize, seed: u64 },
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Without prompt and end.
    pub ids: Vec<u32>,
    /// The mean of the tokens' log probabilities, the end's among them.
    pub mean_logprob: f64,
}

/// One window and what may be written about it.
pub struct Window<'a> {
    pub net: &'a Whisper,
    pub params: &'a Params,
    pub tokens: &'a SpeechTokens,
    pub suppress: &'a Suppress,
    pub heard: &'a Heard,
    pub timestamps: bool,
    /// Most tokens of the text.
    pub most: usize,
}

/// A text in the making.
struct Text {
    spoken: Spoken,
    ids: Vec<u32>,
    sum: f64,
    /// Log probabilities of what may come next.
    next: Vec<f32>,
    ended: bool,
}

impl Text {
    fn mean(&self) -> f64 {
        self.sum / (self.ids.len() + 1) as f64
    }
}

impl Window<'_> {
    /// Writes on from a text that has its prompt, behind which the model gave `logits`. `None` if `go_on` answers no.
    pub fn search(
        &self,
        prompt: &Spoken,
        logits: &[f32],
        how: Search,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Option<Found> {
        let next = self.next(logits, &[]);
        let first =
            || Text { spoken: prompt.fork(), ids: Vec::new(), sum: 0.0, next: next.clone(), ended: false };
        let texts = match how {
            Search::Beam(width) => self.beam(first(), width.max(1), go_on)?,
            Search::Sampled { temperature, texts, seed } => {
                let all = (0..texts.max(1)).map(|_| first()).collect();
                self.sampled(all, temperature, seed, go_on)?
            }
        };
        let best = texts.into_iter().max_by(|a, b| a.mean().total_cmp(&b.mean()))?;
        Some(Found { mean_logprob: best.mean(), ids: best.ids })
    }

    /// Each text goes on by itself with tokens that are drawn.
    fn sampled(
        &self,
        mut texts: Vec<Text>,
        temperature: f32,
        seed: u64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Option<Vec<Text>> {
        for step in 0..self.most {
            for (i, text) in texts.iter_mut().enumerate().filter(|(_, text)| !text.ended) {
                let stream = Stream::new(seed, fnv1a(format!("text {i}").as_bytes()));
                let id = drawn(&text.next, temperature, stream.uniform_f64(step as u64));
                text.sum += f64::from(text.next[id as usize]);
                match id == self.tokens.end {
                    true => text.ended = true,
                    false => text.ids.push(id),
                }
            }
            if texts.iter().all(|text| text.ended) {
                break;
            }
            self.advance(&mut texts, go_on)?;
        }
        Some(texts)
    }

    /// The `width` likeliest texts, step by step, until as many have ended.
    fn beam(&self, first: Text, width: usize, go_on: &mut dyn FnMut() -> bool) -> Option<Vec<Text>> {
        let (mut texts, mut done) = (vec![first], Vec::new());
        for _ in 0..self.most {
            let mut ways: Vec<(f64, usize, u32)> = Vec::new();
            for (from, text) in texts.iter().enumerate() {
                let likeliest = likeliest(&text.next, width + 1);
                ways.extend(
                    likeliest.into_iter().map(|id| (text.sum + f64::from(text.next[id as usize]), from, id)),
                );
            }
            ways.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
            let mut chosen = Vec::new();
            for (sum, from, id) in ways.into_iter().filter(|way| way.0 > f64::NEG_INFINITY) {
                if chosen.len() == width {
                    break;
                }
                match id == self.tokens.end {
                    false => chosen.push((sum, from, id)),
                    true if done.len() < width => done.push(ended(&texts[from], sum)),
                    true => {}
                }
                if width == 1 && !done.is_empty() {
                    break;
                }
            }
            if done.len() >= width || chosen.is_empty() {
                break;
            }
            texts = grown(texts, &chosen);
            self.advance(&mut texts, go_on)?;
        }
        // What has not ended counts where too little has.
        texts.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        let missing = width.saturating_sub(done.len());
        done.extend(texts.into_iter().take(missing));
        Some(done)
    }

    /// One step of the model for all texts that go on.
    fn advance(&self, texts: &mut [Text], go_on: &mut dyn FnMut() -> bool) -> Option<()> {
        if !go_on() {
            return None;
        }
        let mut open: Vec<&mut Text> = texts.iter_mut().filter(|text| !text.ended).collect();
        let ids: Vec<u32> = open.iter().filter_map(|text| text.ids.last().copied()).collect();
        let mut spoken: Vec<&mut Spoken> = open.iter_mut().map(|text| &mut text.spoken).collect();
        let logits = self.net.step(self.params, self.heard, &mut spoken, &ids);
        for (row, text) in open.into_iter().enumerate() {
            text.next = self.next(logits.row(row), &text.ids);
        }
        Some(())
    }

    /// Log probabilities of what may follow `written`; what may not is -inf.
    fn next(&self, logits: &[f32], written: &[u32]) -> Vec<f32> {
        let mut out = logits.to_vec();
        let mut never = |id: u32| {
            if let Some(x) = out.get_mut(id as usize) {
                *x = f32::NEG_INFINITY;
            }
        };
        self.suppress.always.iter().for_each(|id| never(*id));
        never(self.tokens.no_timestamps);
        if written.is_empty() {
            self.suppress.first.iter().for_each(|id| never(*id));
        }
        let first = (self.tokens.first_timestamp as usize).min(out.len());
        if self.timestamps {
            self.order_times(&mut out, written);
        } else {
            out[first..].fill(f32::NEG_INFINITY);
        }
        log_softmax(&mut out);
        if self.timestamps {
            let (text, times) = out.split_at_mut(first);
            let together: f64 = times.iter().map(|x| f64::from(*x).exp()).sum();
            let likeliest = text.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if together.ln() > f64::from(likeliest) {
                text.fill(f32::NEG_INFINITY);
                log_softmax(&mut out);
            }
        }
        out
    }

    /// Times in pairs and in order.
    fn order_times(&self, out: &mut [f32], written: &[u32]) {
        let first = (self.tokens.first_timestamp as usize).min(out.len());
        let end = (self.tokens.end as usize).min(first);
        let is_time = |id: &u32| *id >= self.tokens.first_timestamp;
        let last_is = written.last().is_some_and(is_time);
        let before_is = written.len() < 2 || written.iter().rev().nth(1).is_some_and(is_time);
        match (last_is, before_is) {
            (true, true) => out[first..].fill(f32::NEG_INFINITY),
            (true, false) => out[..end].fill(f32::NEG_INFINITY),
            _ => {}
        }
        if let Some(last) = written.iter().rev().find(|id| is_time(id)) {
            // Segments are not empty, and do not go back.
            let from = if last_is && !before_is { *last } else { last.saturating_add(1) };
            let from = (from as usize).clamp(first, out.len());
            out[first..from].fill(f32::NEG_INFINITY);
        }
        if written.is_empty() {
            out[..first].fill(f32::NEG_INFINITY);
            let last = (first + FIRST_STEPS as usize + 1).min(out.len());
            out[last..].fill(f32::NEG_INFINITY);
        }
    }
}

/// A text that ends here.
fn ended(text: &Text, sum: f64) -> Text {
    Text { spoken: text.spoken.fork(), ids: text.ids.clone(), sum, next: Vec::new(), ended: true }
}

/// The chosen texts, each one token longer. Caches are moved where nothing else needs them.
fn grown(texts: Vec<Text>, chosen: &[(f64, usize, u32)]) -> Vec<Text> {
    let mut texts: Vec<Option<Text>> = texts.into_iter().map(Some).collect();
    let mut out = Vec::with_capacity(chosen.len());
    for (i, (sum, from, id)) in chosen.iter().enumerate() {
        let again = chosen[i + 1..].iter().any(|(_, other, _)| other == from);
        let text = match (again, &texts[*from]) {
            (true, Some(text)) => Some((text.spoken.fork(), text.ids.clone())),
            _ => texts[*from].take().map(|text| (text.spoken, text.ids)),
        };
        let Some((spoken, mut ids)) = text else { continue };
        ids.push(*id);
        out.push(Text { spoken, ids, sum: *sum, next: Vec::new(), ended: false });
    }
    out
}

/// The ids of the `n` largest, the largest first; of equal ones the lowest id first.
fn likeliest(values: &[f32], n: usize) -> Vec<u32> {
    let order =
        |a: &u32, b: &u32| -> Ordering { values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)) };
    let mut ids: Vec<u32> = (0..values.len() as u32).collect();
    let n = n.min(ids.len());
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_by(order);
    ids
}

/// A token drawn from `softmax(log probabilities / temperature)` by a number in [0, 1).
fn drawn(values: &[f32], temperature: f32, at: f64) -> u32 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| f64::from((x - largest) / temperature.max(1e-3)).exp();
    let total: f64 = values.iter().map(|x| weight(*x)).sum();
    let mut left = at * total;
    let mut last = 0;
    for (id, x) in values.iter().enumerate().filter(|(_, x)| **x > f32::NEG_INFINITY) {
        last = id as u32;
        left -= weight(*x);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// In place; all -inf stays so.
fn log_softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return;
    }
    let total: f64 = values.iter().map(|x| f64::from(x - largest).exp()).sum();
    let shift = largest + total.ln() as f32;
    values.iter_mut().for_each(|x| *x -= shift);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Model, StorageChoice};
    use crate::nn::Active;
    use crate::tasks::speech::{Request, SpeechTask, Vocabulary, language_code};
    use retune_formats::{TensorSource, safetensors};
    use retune_tensor::Tensor;
    use serde_json::Value;
    use std::path::Path;

    /// A tiny random multilingual Whisper against transformers' `generate` (scripts/reference/make_whisper_multilingual.py): which language is
    /// heard, the forced tokens, the greedy ids under the suppress lists, without and with times.
    #[test]
    fn languages_and_texts_are_the_references() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/whisper_multilingual");
        let model = Model::load(&folder, StorageChoice::F32).unwrap();
        let vocabulary = Vocabulary::of(&model, &model.files.language().unwrap().tokenizer).unwrap();
        let (net, params, tokens) = (model.speech().unwrap(), &model.params, &vocabulary.tokens);
        assert!(tokens.multilingual && tokens.languages.len() == 6);
        let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        let cases: Value = serde_json::from_str(&text).unwrap();
        let values = safetensors::File::open(folder.join("cases.safetensors")).unwrap();
        let values = values.read_f32("features").unwrap();
        let ids = |value: &Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let mut compared = 0;
        for (clip, case) in cases["clips"].as_array().unwrap().iter().enumerate() {
            let features = Tensor::from_fn(48, 80, |t, band| values[(clip * 80 + band) * 48 + t]);
            let heard = net.hear(params, features, Active::default());
            let mut spoken = net.begin(params, &heard, 48);
            let first = net.step(params, &heard, &mut [&mut spoken], &[tokens.start]);
            let found = tokens.language_probabilities(first.row(0));
            assert_eq!(found[0].0, case["detected"].as_str().unwrap());
            for (code, probability) in &found {
                let wanted = case["probabilities"][code].as_f64().unwrap();
                assert!((probability - wanted).abs() < 1e-5, "{code}: {probability} {wanted}");
            }
            for written in case["written"].as_array().unwrap() {
                let language = written["language"].as_str().unwrap_or(found[0].0);
                let request = Request {
                    language: language_code(language).ok(),
                    task: SpeechTask::from_name(written["task"].as_str().unwrap()).unwrap(),
                    timestamps: written["timestamps"].as_bool().unwrap(),
                };
                let prompt = tokens.prompt(request).unwrap();
                assert_eq!(prompt, ids(&written["prompt"]));
                let mut spoken = net.begin(params, &heard, 48);
                let logits = net.step(params, &heard, &mut [&mut spoken], &prompt);
                let window = Window {
                    net,
                    params,
                    tokens,
                    suppress: vocabulary.suppress(),
                    heard: &heard,
                    timestamps: request.timestamps,
                    most: 24,
                };
                let said = window.search(&spoken, logits.row(0), Search::Beam(1), &mut || true).unwrap();
                assert_eq!(said.ids, ids(&written["ids"]), "clip {clip}, {request:?}");
                compared += said.ids.len();
            }
        }
        assert!(compared > 200, "{compared} tokens");
    }

    #[test]
    fn the_likeliest_in_order() {
        assert_eq!(likeliest(&[0.0, 3.0, f32::NEG_INFINITY, 3.0, 1.0], 3), [1, 3, 4]);
        assert_eq!(likeliest(&[1.0], 5), [0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut values = [0.25f32.ln(), f32::NEG_INFINITY, 0.75f32.ln()];
        assert_eq!([0.0, 0.2, 0.3, 0.999].map(|at| drawn(&values, 1.0, at)), [0, 0, 2, 2]);
        log_softmax(&mut values);
        assert!((values[2].exp() - 0.75).abs() < 1e-6 && values[1] == f32::NEG_INFINITY);
    }
}
