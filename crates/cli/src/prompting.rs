//! From what a person types to the ids that a model continues, and answers to questions.

use anyhow::{Result, bail};
use retune::generate::{Generated, Sampling, generate};
use retune::models::Model;
use retune::nn::Active;
use retune::tasks::causal_lm::Row;
use retune::text::{Language, Message, Special};
use retune_formats::records::Records;
use std::path::Path;

/// A prompt as the model gets it.
pub enum Prompt<'a> {
    /// Continued as it stands.
    Plain(&'a str),
    /// Put into the model's chat template as the user's turn.
    Chat { system: Option<&'a str>, user: &'a str },
}

impl Prompt<'_> {
    /// The ids to continue. What people type is text: the names of special tokens in it command nothing.
    pub fn ids(&self, language: &Language) -> Result<Vec<u32>> {
        let tokenizer = &language.tokenizer;
        match self {
            Prompt::Plain(text) => {
                let mut ids = tokenizer.encode(text, Special::AsText)?;
                if let Some(bos) =
                    tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos))
                {
                    ids.insert(0, bos);
                }
                Ok(ids)
            }
            Prompt::Chat { system, user } => {
                let message = |role: &str, text: &str| Message::new(role, tokenizer.guard(text));
                let mut messages: Vec<Message> = system.iter().map(|text| message("system", text)).collect();
                messages.push(message("user", user));
                let text = language.template.render(&messages, true)?;
                Ok(tokenizer.encode(&text, Special::Parse)?)
            }
        }
    }
}

/// A question that a model is asked before and after training.
pub struct Question {
    pub text: String,
    is_chat: bool,
}

/// Tokens of a sample answer: enough to see the manner.
const ANSWER_TOKENS: usize = 48;

/// Rows that are looked through for questions.
const ROWS_MAX: usize = 10_000;

/// A few distinct questions from all over a data file; none if its rows ask nothing.
pub fn questions(path: &Path, count: usize) -> Result<Vec<Question>> {
    let mut found: Vec<Question> = Vec::new();
    for record in Records::open(path)?.take(ROWS_MAX) {
        let (text, is_chat) = match Row::parse(&record?.value) {
            Ok(row @ Row::Chat { .. }) => (row.question().to_owned(), true),
            Ok(row @ Row::Completion { .. }) => (row.question().to_owned(), false),
            _ => continue,
        };
        // Rows with the same question usually stand together.
        if !text.trim().is_empty() && found.last().is_none_or(|last| last.text != text) {
            found.push(Question { text, is_chat });
        }
    }
    let every = found.len().div_ceil(count.max(1)).max(1);
    Ok(found.into_iter().step_by(every).take(count).collect())
}

impl Question {
    fn prompt(&self) -> Prompt<'_> {
        match self.is_chat {
            true => Prompt::Chat { system: None, user: &self.text },
            false => Prompt::Plain(&self.text),
        }
    }

    /// Tokens of the question and its answer, at most.
    pub fn rows(&self, language: &Language) -> Result<usize> {
        Ok(self.prompt().ids(language)?.len() + ANSWER_TOKENS)
    }

    /// The likeliest answer.
    pub fn answer(&self, model: &Model, language: &Language) -> Result<String> {
        let prompt = self.prompt();
        let sampling = Sampling { max_tokens: ANSWER_TOKENS, ..Sampling::default() };
        let generated = run(model, language, &prompt, &sampling, &mut |_| true)?;
        Ok(generated.text.trim().to_owned())
    }
}

/// Continues a prompt.
pub fn run(
    model: &Model,
    language: &Language,
    prompt: &Prompt,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generated> {
    let ids = prompt.ids(language)?;
    if ids.is_empty() {
        bail!("the prompt is empty: there is nothing to continue");
    }
    Ok(generate(model, &language.tokenizer, &ids, Active::default(), sampling, on_text)?)
}
