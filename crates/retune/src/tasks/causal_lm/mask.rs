//! From a row to token ids and which of them are to be learned.
//!
//! The template is asked where answers stand: the conversation up to a turn, with the prompt to answer it, must be the
//! beginning of the conversation that includes the answer. What follows is the answer, up to its end-of-turn token.

use super::rows::Row;
use crate::run_file::TrainOn;
use crate::text::{Language, Message, SPECIAL_GUARD, Special};
use serde_json::Value;
use std::ops::Range;

/// A row as tokens, before anything is cut.
#[derive(Debug, Default, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// `target[i]`: `ids[i]` is predicted and counted in the loss. Never the first.
    pub target: Vec<bool>,
    /// The row had no answer with any text.
    pub empty: bool,
    /// Earlier answers could not be located, because the template changes them; only the last is learned.
    pub last_only: bool,
}

/// Writes a row as tokens with its mask.
///
/// # Errors
/// What the template or the tokenizer says.
pub fn tokens(
    language: &Language,
    row: &Row,
    train_on: TrainOn,
    special_in_text: bool,
) -> Result<Tokens, String> {
    let special = if special_in_text { Special::Parse } else { Special::AsText };
    let mut tokens = match row {
        Row::Chat { messages, train_from, .. } => chat(language, messages, *train_from)?,
        Row::Completion { prompt, completion } => {
            let text = format!("{prompt}{completion}");
            plain(language, &text, prompt.len(), special, completion.trim().is_empty())?
        }
        Row::Text(text) => plain(language, text, 0, special, text.trim().is_empty())?,
    };
    if train_on == TrainOn::All {
        tokens.target.fill(true);
    }
    if let Some(first) = tokens.target.first_mut() {
        *first = false; // nothing comes before it that could predict it
    }
    Ok(tokens)
}

/// Text without a template: BOS if the model wants one, EOS always.
fn plain(
    language: &Language,
    text: &str,
    answer_at: usize,
    special: Special,
    empty: bool,
) -> Result<Tokens, String> {
    let tokenizer = &language.tokenizer;
    let encoded = tokenizer.encode_with_offsets(text, special).map_err(|e| e.to_string())?;
    let mut tokens = Tokens { empty, ..Tokens::default() };
    if let Some(bos) =
        tokenizer.bos().filter(|bos| tokenizer.add_bos() && encoded.first().map(|t| t.0) != Some(*bos))
    {
        tokens.ids.push(bos);
        tokens.target.push(false);
    }
    for (id, range) in encoded {
        tokens.ids.push(id);
        tokens.target.push(range.end > answer_at);
    }
    end(language, &mut tokens);
    Ok(tokens)
}

/// Appends EOS as a target, unless an end token stands there already.
fn end(language: &Language, tokens: &mut Tokens) {
    let tokenizer = &language.tokenizer;
    let ended = tokens.ids.last().is_some_and(|id| tokenizer.eos_ids().contains(id));
    match (ended, tokenizer.eos()) {
        (true, _) => tokens.target.iter_mut().last().into_iter().for_each(|last| *last = true),
        (false, Some(eos)) => {
            tokens.ids.push(eos);
            tokens.target.push(true);
        }
        (false, None) => {}
    }
}

fn chat(language: &Language, messages: &[Message], train_from: usize) -> Result<Tokens, String> {
    let answered = |i: &usize| messages[*i].role == "assistant";
    let last = (0..messages.len()).rev().find(answered).unwrap_or(0);
    // Turns after the last answer cannot be learned from.
    let messages: Vec<Message> = messages[..=last].iter().map(|m| guarded(language, m)).collect();
    let learned: Vec<usize> = (train_from..messages.len())
        .filter(answered)
        .filter(|i| messages[*i].extra.get("weight").and_then(Value::as_f64) != Some(0.0))
        .collect();
    let text = render(language, &messages, false)?;

    let mut tokens = Tokens::default();
    let mut answers = Vec::with_capacity(learned.len());
    for &i in &learned {
        match answer(language, &messages, i, &text)? {
            Some(range) => answers.push((i, range)),
            None => tokens.last_only = true,
        }
    }
    if tokens.last_only {
        answers.retain(|(i, _)| *i == last);
    }
    if !answers.iter().any(|(i, _)| *i == last) && learned.contains(&last) {
        return Err(
            "the chat template does not show the last answer as it was given, so that it cannot be located"
                .into(),
        );
    }
    answers.retain(|(i, _)| says_something(&messages[*i]));
    tokens.empty = !learned.iter().any(|i| says_something(&messages[*i]));

    let encoded = language.tokenizer.encode_with_offsets(&text, Special::Parse).map_err(|e| e.to_string())?;
    tokens.ids = encoded.iter().map(|(id, _)| *id).collect();
    tokens.target = vec![false; encoded.len()];
    for (i, range) in answers {
        let range = without_guards(&text, range.start)..without_guards(&text, range.end);
        let inside = learnable(language, &encoded, &range);
        tokens.target[inside.clone()].fill(true);
        let ended = encoded[inside].last().is_some_and(|(id, _)| language.tokenizer.is_special(*id));
        if i == last && !ended {
            // A template without an end of turn: the text ends with the answer.
            let keep = tokens.target.iter().rposition(|t| *t).map_or(0, |at| at + 1);
            tokens.ids.truncate(keep);
            tokens.target.truncate(keep);
            end(language, &mut tokens);
        }
    }
    Ok(tokens)
}

fn says_something(message: &Message) -> bool {
    !message.content.trim().is_empty() || message.extra.contains_key("tool_calls")
}

/// The message with the names of special tokens in its texts broken: data are never commands to the model.
fn guarded(language: &Language, message: &Message) -> Message {
    fn inside(language: &Language, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(language.tokenizer.guard(text).into_owned()),
            Value::Array(items) => items.iter().map(|item| inside(language, item)).collect(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(k, v)| (k.clone(), inside(language, v))).collect())
            }
            other => other.clone(),
        }
    }
    Message {
        role: language.tokenizer.guard(&message.role).into_owned(),
        content: language.tokenizer.guard(&message.content).into_owned(),
        extra: message.extra.iter().map(|(k, v)| (k.clone(), inside(language, v))).collect(),
    }
}

fn render(language: &Language, messages: &[Message], prompt: bool) -> Result<String, String> {
    language.template.render(messages, prompt).map_err(|e| e.to_string())
}

/// Where in `text`, the whole conversation, the answer `i` stands with its end of turn. `None` if the template writes it
/// differently there from how it writes it as the last turn.
fn answer(
    language: &Language,
    messages: &[Message],
    i: usize,
    text: &str,
) -> Result<Option<Range<usize>>, String> {
    let through =
        if i + 1 == messages.len() { text.to_string() } else { render(language, &messages[..=i], false)? };
    if !text.starts_with(&through) {
        return Ok(None);
    }
    // A template may refuse a conversation without turns, or the prompt may hold what the answer leaves out (an opened
    // `<think>`): then the answer's own text is looked for.
    if let Ok(asked) = render(language, &messages[..i], true)
        && through.starts_with(&asked)
    {
        return Ok(Some(asked.len()..through.len()));
    }
    let before = render(language, &messages[..i], false).unwrap_or_default();
    let from = if through.starts_with(&before) { before.len() } else { 0 };
    let content = messages[i].content.trim();
    Ok(through[from..].rfind(content).map(|at| from + at..through.len()))
}

/// A position in a text with guards, as one in the text without.
fn without_guards(text: &str, at: usize) -> usize {
    at - text[..at].matches(SPECIAL_GUARD).count() * SPECIAL_GUARD.len_utf8()
}

/// The tokens of an answer: those that reach into its text, up to its last special token if only white space follows.
fn learnable(language: &Language, encoded: &[(u32, Range<usize>)], answer: &Range<usize>) -> Range<usize> {
    let start = encoded.partition_point(|(_, range)| range.end <= answer.start);
    let end = encoded.partition_point(|(_, range)| range.start < answer.end).max(start);
    let special = encoded[start..end].iter().rposition(|(id, _)| language.tokenizer.is_special(*id));
    match special {
        Some(at) => start..start + at + 1,
        None => start..end,
    }
}
