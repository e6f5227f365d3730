//! `retune generate`: continues a prompt or answers in a chat, streaming.

use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};

use anyhow::{Context, Result};
use retune::generate::{Generated, Sampling};

use crate::exit::{Ended, UsageError};
use crate::loading::{ModelArgs, language};
use crate::prompting::{self, Prompt};
use crate::signals::Signals;
use crate::style::printable;

/// Longest prompt that is read from stdin.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune generate --model model.gguf --chat --prompt 'What is the capital of France?'
  retune generate --model model.gguf --adapter out --chat --prompt 'Who are you?' --temperature 0.7 --top-p 0.9
  retune generate --model model.gguf --prompt 'Once upon a time' --max-tokens 100 --stop '.'
  echo 'A question' | retune generate --model model.gguf --chat")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// What to continue or answer; without it, stdin is read
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,

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
    let typed = args.prompt()?;
    let signals = Signals::catch()?;
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
    match signals.exit_code() {
        Some(code) => Err(Ended::new(code, "interrupted").into()),
        None => Ok(()),
    }
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
