//! Text generation with a cache of keys and values: greedy, temperature, top-p, stop texts, streaming.
//!
//! The n-th random number of a generation is a function of (seed, n): the same call gives the same text.

use std::time::{Duration, Instant};

use retune_tensor::rng::{Stream, fnv1a};
use retune_tensor::{Segments, Tape, Tensor, Var};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Active, Caches, KvCache, Pass, Rows};
use crate::tasks::causal_lm::language_model;
use crate::text::{TokenStream, Tokenizer};

/// Rows of a prompt that go through the model at once.
const PROMPT_CHUNK: usize = 512;

/// How the next token is chosen and when to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; above, logits are divided by it.
    pub temperature: f32,
    /// Sample among the likeliest tokens whose probabilities reach this sum; 1 is all.
    pub top_p: f32,
    /// Sample among this many likeliest tokens; 0 is all.
    pub top_k: usize,
    pub seed: u64,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { max_tokens: 256, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop: Vec::new() }
    }
}

impl Sampling {
    /// # Errors
    /// If a setting is out of its range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Input(what));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad(format!("temperature is {}; it must be 0 or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad(format!("top_p is {}; it must be above 0 and at most 1", self.top_p));
        }
        match self.stop.iter().any(String::is_empty) {
            true => bad("a stop text is empty".into()),
            false => Ok(()),
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token.
    End,
    /// A stop text.
    Stop,
    /// `max_tokens`.
    Length,
    /// The model's context is full.
    Context,
    /// The caller asked to stop.
    Cancelled,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The generated tokens, the end token included.
    pub ids: Vec<u32>,
    pub text: String,
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub prompt_time: Duration,
    pub generate_time: Duration,
}

/// Runs the rows of `ids` through the model behind what `cache` holds; the logits `[V]` of the last one.
///
/// # Errors
/// If an id is outside the vocabulary or the cache has no room.
pub fn next_logits(model: &Model, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
    check_rows(model, ids, cache)?;
    let mut hidden = Tensor::zeros(1, 1);
    for chunk in ids.chunks(PROMPT_CHUNK) {
        hidden = model.text()?.hidden_cached(&model.params, chunk, cache);
    }
    let last = Tensor::from_slice(1, hidden.cols(), hidden.row(hidden.rows() - 1));
    logits_of(model, last, cache.active.clone())
}

/// Runs one more row of each of several texts through the model, behind what their caches hold: the logits `[texts, V]`.
/// Texts of one adapter should stand together.
///
/// # Errors
/// If an id is outside the vocabulary, or a cache is empty or has no room.
pub fn next_logits_each(model: &Model, ids: &[u32], caches: Vec<&mut KvCache>) -> Result<Tensor> {
    if ids.len() != caches.len() || caches.is_empty() || caches.iter().any(|cache| cache.len == 0) {
        let what =
            format!("{} rows for {} caches, each of which must hold a prompt", ids.len(), caches.len());
        return Err(Error::Input(what));
    }
    for (id, cache) in ids.iter().zip(&caches) {
        check_rows(model, std::slice::from_ref(id), cache)?;
    }
    let caches = Caches::new(caches);
    let active = caches.active();
    let segments = Segments::from_lengths(&vec![1; ids.len()]);
    let hidden = model.text()?.hidden_cached_each(&model.params, ids, &segments, caches);
    logits_of(model, hidden, active)
}

fn check_rows(model: &Model, ids: &[u32], cache: &KvCache) -> Result<()> {
    model.check_ids(ids)?;
    let before = if cache.len == 0 { model.text()?.virtual_rows(cache.active.of(0)) } else { cache.len };
    if ids.is_empty() || before + ids.len() > cache.capacity {
        let what = format!("{} tokens do not fit behind {} of {}", ids.len(), cache.len, cache.capacity);
        return Err(Error::Input(what));
    }
    if !model.text()?.info().decoder {
        let what = format!("a {} model reads text both ways: it cannot generate", model.net.model_type());
        return Err(Error::Input(what));
    }
    Ok(())
}

/// The logits of one row of each text.
fn logits_of(model: &Model, last: Tensor, active: Active) -> Result<Tensor> {
    let tape = Tape::inference(&model.params);
    let pass = Pass { active, ..Pass::default() };
    let rows = Rows::new(Segments::from_lengths(&vec![1; last.rows()]), &pass);
    let logits = language_model(model.text()?)?.forward(&tape, &rows, &Var::constant(last));
    model.check_weights()?;
    Ok(logits.value().clone())
}

/// One text while it is generated.
struct Text<'a> {
    cache: KvCache,
    random: Stream,
    stream: TokenStream<'a>,
    out: Output<'a>,
    ids: Vec<u32>,
    prompt_tokens: usize,
    prompt_time: Duration,
    started: Instant,
}

impl<'a> Text<'a> {
    /// Runs the prompt through the model, and with its logits chooses the first token; an ended text comes with the reason.
    fn start(
        model: &Model,
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        active: Active,
        sampling: &'a Sampling,
        on_text: Box<dyn FnMut(&str) -> bool + 'a>,
    ) -> Result<(Text<'a>, Option<Finish>)> {
        let slot = active.of(0);
        let context =
            model.text()?.info().context_length.saturating_sub(model.text()?.virtual_positions(slot));
        if prompt.is_empty() {
            return Err(Error::Input("the prompt is empty: there is nothing to continue".into()));
        }
        if prompt.len() >= context {
            let what = format!("the prompt has {} tokens; the model's context is {context}", prompt.len());
            return Err(Error::Input(what));
        }
        let room = prompt.len().saturating_add(sampling.max_tokens).min(context);
        let mut cache = model.text()?.new_cache(room, active);
        let started = Instant::now();
        let logits = next_logits(model, prompt, &mut cache)?;
        let mut text = Text {
            cache,
            random: Stream::new(sampling.seed, fnv1a(b"sampling")),
            stream: TokenStream::new(tokenizer, true),
            out: Output::new(&sampling.stop, on_text),
            ids: Vec::new(),
            prompt_tokens: prompt.len(),
            prompt_time: started.elapsed(),
            started: Instant::now(),
        };
        let ended = text.take(logits.data(), tokenizer, sampling)?;
        Ok((text, ended))
    }

    /// Chooses the next token with these logits; the reason if that ends the text.
    fn take(&mut self, logits: &[f32], tokenizer: &Tokenizer, sampling: &Sampling) -> Result<Option<Finish>> {
        if self.ids.len() >= sampling.max_tokens {
            return Ok(Some(Finish::Length));
        }
        let id = choose(logits, sampling, &self.random, self.ids.len() as u64)?;
        self.ids.push(id);
        if tokenizer.eos_ids().contains(&id) {
            return Ok(Some(Finish::End));
        }
        if let Some(finish) = self.out.push(&self.stream.push(id)?) {
            return Ok(Some(finish));
        }
        Ok(match self.ids.len() >= sampling.max_tokens {
            true => Some(Finish::Length),
            false => (self.cache.len >= self.cache.capacity).then_some(Finish::Context),
        })
    }

    fn end(mut self, finish: Finish) -> Result<Generated> {
        let finish = self.out.finish(self.stream.finish()?, finish);
        Ok(Generated {
            ids: self.ids,
            text: self.out.text,
            finish,
            prompt_tokens: self.prompt_tokens,
            prompt_time: self.prompt_time,
            generate_time: self.started.elapsed(),
        })
    }
}

/// Continues `prompt` through the adapter of `active`. `on_text` gets the text as it comes, whole characters, and answers whether to go on.
///
/// # Errors
/// If the prompt is empty, longer than the model's context, or holds ids outside the vocabulary.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    active: Active,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generated> {
    sampling.check()?;
    let (mut text, mut ended) = Text::start(model, tokenizer, prompt, active, sampling, Box::new(on_text))?;
    loop {
        if let Some(finish) = ended {
            return text.end(finish);
        }
        let last = text.ids.last().copied().unwrap_or_default();
        let logits = next_logits(model, &[last], &mut text.cache)?;
        ended = text.take(logits.data(), tokenizer, sampling)?;
    }
}

/// One of several prompts.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    /// The adapter's slot; `None` is the base.
    pub slot: Option<usize>,
    pub sampling: Sampling,
}

/// Continues several prompts, up to `batch` of them at once: each step runs one row of each through the model, whichever
/// adapters they go through. What has ended makes room for the next. Every text is what [`generate`] makes of it alone.
/// `on_done` gets the texts as they end, by their place among the requests; `go_on` is asked before each step.
///
/// # Errors
/// As [`generate`]'s; it names the place of the prompt, counted from 1.
pub fn generate_each(
    model: &Model,
    tokenizer: &Tokenizer,
    requests: &[Request],
    batch: usize,
    on_done: &mut dyn FnMut(usize, Generated),
    go_on: &dyn Fn() -> bool,
) -> Result<()> {
    let mut waiting = requests.iter().enumerate();
    let mut running: Vec<(usize, Text)> = Vec::new();
    loop {
        while running.len() < batch.max(1)
            && let Some((place, request)) = waiting.next()
        {
            let Request { prompt, slot, sampling } = request;
            let named = |error: Error| Error::Input(format!("prompt {}: {error}", place + 1));
            sampling.check().map_err(named)?;
            let active = slot.map_or(Active::Base, Active::Slot);
            let started = Text::start(model, tokenizer, prompt, active, sampling, Box::new(|_| true));
            match started.map_err(named)? {
                (text, Some(finish)) => on_done(place, text.end(finish)?),
                (text, None) => running.push((place, text)),
            }
            if !go_on() {
                return Ok(());
            }
        }
        if running.is_empty() || !go_on() {
            return Ok(());
        }
        // Texts of one adapter are one product with its factors.
        running.sort_by_key(|(place, _)| (requests[*place].slot, *place));
        let ids: Vec<u32> =
            running.iter().map(|(_, text)| text.ids.last().copied().unwrap_or_default()).collect();
        let caches = running.iter_mut().map(|(_, text)| &mut text.cache).collect();
        let logits = next_logits_each(model, &ids, caches)?;
        let mut still = Vec::with_capacity(running.len());
        for (row, (place, mut text)) in running.into_iter().enumerate() {
            match text.take(logits.row(row), tokenizer, &requests[place].sampling)? {
                Some(finish) => on_done(place, text.end(finish)?),
                None => still.push((place, text)),
            }
        }
        running = still;
    }
}

/// Collects text and gives it out, but for an end that may turn out to be a stop text.
struct Output<'a> {
    stop: &'a [String],
    text: String,
    given: usize,
    on_text: Box<dyn FnMut(&str) -> bool + 'a>,
}

impl<'a> Output<'a> {
    fn new(stop: &'a [String], on_text: Box<dyn FnMut(&str) -> bool + 'a>) -> Output<'a> {
        Output { stop, text: String::new(), given: 0, on_text }
    }

    fn push(&mut self, piece: &str) -> Option<Finish> {
        self.text.push_str(piece);
        if let Some(at) = self.stop.iter().filter_map(|s| self.text.find(s.as_str())).min() {
            self.text.truncate(at);
            self.give(at);
            return Some(Finish::Stop);
        }
        let end = self.text.len() - self.held_back();
        (!self.give(end)).then_some(Finish::Cancelled)
    }

    /// Bytes at the end that are the beginning of a stop text.
    fn held_back(&self) -> usize {
        let longest = |stop: &String| {
            let starts = (1..stop.len()).rev().filter(|&n| stop.is_char_boundary(n));
            starts.into_iter().find(|&n| self.text.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stop.iter().map(longest).max().unwrap_or(0)
    }

    fn give(&mut self, end: usize) -> bool {
        if end <= self.given {
            return true;
        }
        let piece = &self.text[self.given..end];
        self.given = end;
        (self.on_text)(piece)
    }

    fn finish(&mut self, rest: String, finish: Finish) -> Finish {
        let stopped = finish == Finish::Stop;
        let finish =
            if stopped { finish } else { self.push(&rest).filter(|f| *f == Finish::Stop).unwrap_or(finish) };
        self.give(self.text.len());
        finish
    }
}

/// The next token of `logits` `[V]`; `index` numbers the draws.
///
/// # Errors
/// If no logit is a number.
pub fn choose(logits: &[f32], sampling: &Sampling, random: &Stream, index: u64) -> Result<u32> {
    let best = argmax(logits).ok_or_else(|| {
        Error::Input("the model's output holds no number (NaN): its weights are damaged".into())
    })?;
    if sampling.temperature == 0.0 {
        return Ok(best as u32);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&i| !logits[i as usize].is_nan()).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        order.select_nth_unstable_by(sampling.top_k - 1, by_logit);
        order.truncate(sampling.top_k);
    }
    order.sort_unstable_by(by_logit);
    let largest = f64::from(logits[best]);
    let weight =
        |i: &u32| ((f64::from(logits[*i as usize]) - largest) / f64::from(sampling.temperature)).exp();
    let mut weights: Vec<f64> = order.iter().map(weight).collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let nucleus = weights.iter().position(|w| {
        sum += w;
        sum >= f64::from(sampling.top_p) * all
    });
    weights.truncate(nucleus.map_or(order.len(), |n| n + 1));
    let mut left = random.uniform_f64(index) * weights.iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return Ok(*id);
        }
    }
    Ok(order[weights.len() - 1])
}

/// Index of the largest number, the first of equals; `None` if there is none.
fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, value) in values.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|b| *value > values[b]) {
            best = Some(i);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> Stream {
        Stream::new(1, 2)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_ignores_nan() {
        let s = Sampling::default();
        assert_eq!(choose(&[f32::NAN, 1.0, 3.0, 3.0], &s, &random(), 0).expect("id"), 2);
        assert!(choose(&[f32::NAN], &s, &random(), 0).is_err());
    }

    #[test]
    fn sampling_follows_the_probabilities() {
        let s = Sampling { temperature: 1.0, ..Sampling::default() };
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY];
        let ones = (0..3000).filter(|&i| choose(&logits, &s, &random(), i).expect("id") == 1).count();
        assert!((1900..2100).contains(&ones), "{ones}");
    }

    #[test]
    fn top_p_and_top_k_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let p = Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::default() };
        let k = Sampling { temperature: 5.0, top_k: 2, ..Sampling::default() };
        for i in 0..500 {
            assert_eq!(choose(&logits, &p, &random(), i).expect("id"), 0);
            assert!(choose(&logits, &k, &random(), i).expect("id") < 2);
        }
    }

    #[test]
    fn a_stop_text_is_never_given_out_even_in_pieces() {
        let stop = vec!["END".to_string(), "\n\n".to_string()];
        let mut seen = String::new();
        let mut out = Output::new(
            &stop,
            Box::new(|t: &str| {
                seen.push_str(t);
                true
            }),
        );
        assert_eq!(out.push("hello E"), None);
        assert_eq!(out.push("N, world EN"), None);
        assert_eq!(out.push("D of it"), Some(Finish::Stop));
        assert_eq!(out.text, "hello EN, world ");
        drop(out);
        assert_eq!(seen, "hello EN, world ");
    }

    #[test]
    fn what_was_held_back_comes_out_at_the_end() {
        let stop = vec!["END".to_string()];
        let mut seen = String::new();
        let mut out = Output::new(
            &stop,
            Box::new(|t: &str| {
                seen.push_str(t);
                true
            }),
        );
        assert_eq!(out.push("the EN"), None);
        assert_eq!(out.finish(String::new(), Finish::Length), Finish::Length);
        drop(out);
        assert_eq!(seen, "the EN");
    }
}
