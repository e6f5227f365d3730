//! `retune generate`: continues a prompt or answers in a chat, streaming.

use std::cell::RefCell;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::generate::{Generated, Request, Sampling, generate_each};
use retune::tasks::causal_lm::Row;
use retune_formats::records::Records;

use crate::exit::{Ended, UsageError};
use crate::loading::{BASE, ModelArgs, head_for, language, set_threads, tell_streamed};
use crate::prompting::{self, Prompt};
use crate::signals::Signals;
use crate::style::{bold, dim, printable};

/// Longest prompt that is read from stdin.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune generate --model model.gguf --chat --prompt 'What is the capital of France?'
  retune generate --model model.gguf --adapter out --chat --prompt 'Who are you?' --temperature 0.7 --top-p 0.9
  retune generate --model model.gguf --prompt 'Once upon a time' --max-tokens 100 --stop '.'
  echo 'A question' | retune generate --model model.gguf --chat
  retune generate --model model.gguf --adapter formal --adapter rude --data prompts.jsonl --json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// What to continue or answer; without it, stdin is read
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,

    /// A file of prompts: rows with a prompt (or text, question, messages), and perhaps the `adapter` to answer with, by
    /// its folder's name ("base" is none), and a `seed`. The base is loaded once
    #[arg(long, value_name = "PATH", conflicts_with = "prompt")]
    data: Option<PathBuf>,

    /// Prompts of --data that are answered at once: each step is one pass for all of them, whichever adapters they go
    /// through; the answers are those that each gets alone
    #[arg(long, value_name = "N", default_value_t = 8, requires = "data",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch_size: u32,

    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,

    /// The system's turn before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,

    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,

    /// Sample among the likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,

    /// Sample among this many likeliest tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,

    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// A text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let sampling = args.sampling();
    sampling.check().map_err(|error| UsageError(error.to_string()))?;
    let signals = Signals::catch()?;
    if let Some(path) = &args.data {
        return answer_all(args, path, &sampling, json, &signals);
    }
    let typed = args.prompt()?;
    let model = args.model.load()?;
    let language = language(&model.files)?;
    let prompt = match args.chat {
        true => Prompt::Chat { system: args.system.as_deref(), user: &typed },
        false => Prompt::Plain(&typed),
    };
    let mut failure = None;
    let generated = prompting::run(&model, &language, &prompt, &sampling, &mut |text| {
        if let Err(error) = give(text, json) {
            failure = Some(error);
        }
        failure.is_none() && signals.exit_code().is_none()
    })?;
    failure.map_or(Ok(()), Err)?;
    end(&generated, json)?;
    tell_streamed(&model, json);
    match signals.exit_code() {
        Some(code) => Err(Ended::new(code, "interrupted").into()),
        None => Ok(()),
    }
}

/// A prompt of a file, and the place of its adapter among those given.
struct Asked {
    prompt: String,
    is_chat: bool,
    slot: Option<usize>,
    /// Its own seed.
    seed: Option<u64>,
}

/// Answers the prompts of a file, each through its own adapter.
fn answer_all(args: &Args, path: &Path, sampling: &Sampling, json: bool, signals: &Signals) -> Result<()> {
    if !args.model.adapter_weights.is_empty() {
        return Err(UsageError(
            "--adapter-weights adds adapters up; with --data each has its own slot".into(),
        )
        .into());
    }
    let asked = read_prompts(args, path)?;
    set_threads(args.model.machine.threads)?;
    let (head, _) = head_for(&args.model.files()?, &args.model.adapter)?;
    let base = asked.iter().any(|row| row.slot.is_none());
    let (model, first) = args.model.load_slots(&head, &args.model.adapter, base)?;
    let language = language(&model.files)?;
    let mut requests = Vec::new();
    for (index, row) in asked.iter().enumerate() {
        let prompt = match row.is_chat || args.chat {
            true => Prompt::Chat { system: args.system.as_deref(), user: &row.prompt },
            false => Prompt::Plain(&row.prompt),
        };
        let ids =
            prompt.ids(&language).with_context(|| format!("prompt {} of {}", index + 1, path.display()))?;
        let sampling = Sampling { seed: row.seed.unwrap_or(sampling.seed), ..sampling.clone() };
        requests.push(Request { prompt: ids, slot: row.slot.map(|place| first + place), sampling });
    }
    let mut made: Vec<Option<Generated>> = asked.iter().map(|_| None).collect();
    let mut shown = 0;
    let failure = RefCell::new(None);
    let mut on_done = |place: usize, generated: Generated| {
        made[place] = Some(generated);
        // Answers are given out in the order of the file.
        while let Some(generated) = made.get_mut(shown).and_then(Option::take) {
            if let Err(error) = answered(args, &asked[shown], &generated, json) {
                failure.borrow_mut().get_or_insert(error);
            }
            shown += 1;
        }
    };
    let go_on = || signals.exit_code().is_none() && failure.borrow().is_none();
    let batch = args.batch_size as usize;
    generate_each(&model, &language.tokenizer, &requests, batch, &mut on_done, &go_on)
        .with_context(|| path.display().to_string())?;
    failure.into_inner().map_or(Ok(()), Err)?;
    match signals.exit_code() {
        Some(code) => Err(Ended::new(code, "interrupted").into()),
        None => Ok(()),
    }
}

/// Shows one answer.
fn answered(args: &Args, row: &Asked, made: &Generated, json: bool) -> Result<()> {
    let adapter = row.slot.map_or(BASE.to_owned(), |slot| args.model.adapter[slot].display().to_string());
    let mut out = stdout().lock();
    if json {
        let line = serde_json::json!({
            "prompt": row.prompt, "adapter": adapter, "text": made.text, "tokens": made.ids.len(),
            "finish": format!("{:?}", made.finish).to_lowercase(),
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}  {}", bold(&printable(&row.prompt)), dim(&adapter))?;
        writeln!(out, "{}\n", printable(made.text.trim()))?;
    }
    Ok(out.flush()?)
}

fn read_prompts(args: &Args, path: &Path) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for record in Records::open(path)? {
        let record = record?;
        let place = || format!("{}:{}", path.display(), record.line);
        let text = |key: &str| record.value.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let (prompt, is_chat) = match text("prompt") {
            Some(prompt) => (prompt, false),
            None => {
                let row = Row::parse(&record.value).map_err(anyhow::Error::msg).with_context(place)?;
                (row.question().to_owned(), matches!(row, Row::Chat { .. }))
            }
        };
        if prompt.trim().is_empty() {
            bail!("{}: the prompt is empty", place());
        }
        let slot = args.model.named(text("adapter").as_deref()).with_context(place)?;
        let seed = match record.value.get("seed") {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => match value.as_u64() {
                Some(seed) => Some(seed),
                None => bail!("{}: seed is {value}; a whole number from 0 on was expected", place()),
            },
        };
        asked.push(Asked { prompt, is_chat, slot, seed });
    }
    Ok(asked)
}

impl Args {
    fn sampling(&self) -> Sampling {
        Sampling {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.clone(),
        }
    }

    fn prompt(&self) -> Result<String> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        if stdin().is_terminal() {
            return Err(UsageError("no prompt: give --prompt TEXT, or pipe it in".into()).into());
        }
        let mut text = String::new();
        stdin()
            .lock()
            .take(PROMPT_BYTES_MAX)
            .read_to_string(&mut text)
            .context("cannot read the prompt from stdin")?;
        Ok(text.trim_end_matches('\n').to_owned())
    }
}

/// Shows a piece of text as soon as it is there.
fn give(text: &str, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({"event": "text", "text": text}))?;
    } else if out.is_terminal() {
        write!(out, "{}", printable(text))?;
    } else {
        write!(out, "{text}")?;
    }
    Ok(out.flush()?)
}

fn end(generated: &Generated, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let tokens = generated.ids.len();
    let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    // The first token comes with the prompt.
    let speed = rate(tokens.saturating_sub(1), generated.generate_time);
    let prompt_speed = rate(generated.prompt_tokens, generated.prompt_time);
    if json {
        let line = serde_json::json!({
            "event": "done", "text": generated.text, "tokens": tokens, "prompt_tokens": generated.prompt_tokens,
            "tokens_per_s": speed, "prompt_tokens_per_s": prompt_speed,
            "finish": format!("{:?}", generated.finish).to_lowercase(),
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(out)?;
    if stderr().is_terminal() {
        eprintln!(
            "{tokens} tokens, {speed:.0} tokens/s; prompt {} tokens, {prompt_speed:.0} tokens/s",
            generated.prompt_tokens
        );
    }
    Ok(())
}
