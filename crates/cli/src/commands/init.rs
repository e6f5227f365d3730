//! `retune init`: writes a new model with random weights, and trains its tokenizer; or a commented run file to begin with.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use retune::models::{Quantisation, fresh};
use retune::tasks::causal_lm::Row;
use retune::text::{NewTokenizer, train_bpe};
use retune::train::plan::human;
use retune_formats::json;
use retune_formats::records::Records;
use serde_json::Value;

use crate::style::{bold, count};
use crate::tasks::did_you_mean;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune init --config model --out new              the same shape and tokenizer, random weights
  retune init --config config.json --train-tokenizer rows.jsonl --out new
  retune init --recipe classify --out run.toml      a commented run file: set its model and data, then `retune train run.toml`
  retune init --config config.json --storage nf4 --out new    quantised at once: larger models than memory holds

Matrices are drawn from N(0, initializer_range), projections into the residual stream from a narrower one
(divided by sqrt(2 x layers)); norms are 1, biases 0. The weights have the configuration's \"dtype\".
Train the model with `retune train --method full --storage f32`.")]
pub struct Args {
    /// A config.json, or a model's folder, whose tokenizer is then copied
    #[arg(long, value_name = "DIR|FILE", required_unless_present = "recipe")]
    config: Option<PathBuf>,

    /// Write this run file instead of a model
    #[arg(long, value_name = "chat|classify|continue-pretraining|low-memory", value_parser = recipe,
          conflicts_with_all = ["config", "train_tokenizer", "seed", "storage"])]
    recipe: Option<&'static Recipe>,

    /// The folder to write, which must not exist or be empty; of a recipe, the file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Write the blocks' linears quantised, as bitsandbytes does
    #[arg(long, value_name = "nf4|fp4|int4|int8", value_parser = PossibleValuesParser::new(Quantisation::NAMES))]
    storage: Option<String>,

    /// Of storage nf4, fp4 and int4: quantise the blocks' constants as well
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    double_quant: bool,

    /// The same seed gives the same weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Train a byte-level BPE tokenizer on the texts of these rows; may be given several times
    #[arg(long, value_name = "DATA")]
    train_tokenizer: Vec<PathBuf>,

    /// Tokens of the new tokenizer; without it, the configuration's vocab_size
    #[arg(long, value_name = "N", requires = "train_tokenizer")]
    vocab_size: Option<usize>,
}

/// A run file of the repository's `recipes/`.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    name: &'static str,
    text: &'static str,
}

const RECIPES: &[Recipe] = &[
    Recipe { name: "chat", text: include_str!("../../../../recipes/chat.toml") },
    Recipe { name: "classify", text: include_str!("../../../../recipes/classify.toml") },
    Recipe {
        name: "continue-pretraining",
        text: include_str!("../../../../recipes/continue-pretraining.toml"),
    },
    Recipe { name: "low-memory", text: include_str!("../../../../recipes/low-memory.toml") },
];

fn recipe(text: &str) -> Result<&'static Recipe, String> {
    let names = || RECIPES.iter().map(|recipe| recipe.name);
    RECIPES.iter().find(|recipe| recipe.name == text).ok_or_else(|| {
        format!("one of {}{}", names().collect::<Vec<_>>().join(", "), did_you_mean(text, names()))
    })
}

/// What makes up a tokenizer in a model's folder; not all folders have all.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];
const CONFIG_BYTES_MAX: u64 = 16 << 20;
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

pub fn run(args: &Args, as_json: bool) -> Result<()> {
    let config = match (&args.config, args.recipe) {
        (Some(config), _) => config,
        (None, Some(recipe)) => return write_recipe(recipe, &args.out, as_json),
        (None, None) => bail!("give --config or --recipe"),
    };
    let origin = crate::embedded::resolve(config)?;
    let path = if origin.is_dir() { origin.join("config.json") } else { origin.clone() };
    let mut config = json::read(&path, CONFIG_BYTES_MAX)?;
    let files = match &args.train_tokenizer[..] {
        [] if origin.is_dir() => copied(&origin)?,
        [] => vec![],
        data => {
            let tokenizer = train_tokenizer(data, args.vocab_size, &path, &config)?;
            adopt(&tokenizer, args.vocab_size.is_some(), &path, &mut config)?;
            tokenizer.files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
        }
    };
    let quantise = args.storage.as_ref().and_then(|name| Quantisation::from_name(name, args.double_quant));
    let made = fresh::write_folder(&path, &config, args.seed, quantise, &files, &args.out)?;
    let has_tokenizer = made.files.iter().any(|name| name == "tokenizer.json");
    report(args, &made, has_tokenizer, as_json)
}

/// Writes a recipe as a run file that names itself.
fn write_recipe(recipe: &Recipe, path: &Path, as_json: bool) -> Result<()> {
    if path.exists() {
        bail!("{} is there already; give another --out", path.display());
    }
    let shown = path.display().to_string();
    let text = recipe.text.replace(&format!("recipes/{}.toml", recipe.name), &shown);
    retune_formats::atomic::write_bytes(path, text.as_bytes())?;
    let mut out = stdout().lock();
    match as_json {
        true => writeln!(out, "{}", serde_json::json!({"out": shown, "recipe": recipe.name}))?,
        false => writeln!(
            out,
            "{}  set its model and data, look at the rows with `retune preview`, then: retune train {shown}",
            bold(&shown)
        )?,
    }
    Ok(())
}

/// The tokenizer's files of a model's folder.
fn copied(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in TOKENIZER_FILES {
        let path = folder.join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !meta.is_file() || meta.len() > TOKENIZER_BYTES_MAX {
            bail!("{} is not a file of a tokenizer", path.display());
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((name.to_owned(), bytes));
    }
    Ok(files)
}

fn train_tokenizer(
    data: &[PathBuf],
    vocab_size: Option<usize>,
    path: &Path,
    config: &Value,
) -> Result<NewTokenizer> {
    let own = config.get("vocab_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
    let vocab_size = vocab_size
        .or(own)
        .with_context(|| format!("{} has no \"vocab_size\"; give --vocab-size", path.display()))?;
    let mut texts = Vec::new();
    for path in data {
        for record in Records::open(path)? {
            let record = record?;
            let row = Row::parse(&record.value).map_err(anyhow::Error::msg);
            add_texts(row.with_context(|| format!("{}, line {}", path.display(), record.line))?, &mut texts);
        }
    }
    Ok(train_bpe(&texts, vocab_size)?)
}

fn add_texts(row: Row, texts: &mut Vec<String>) {
    match row {
        Row::Chat { messages, .. } => texts.extend(messages.into_iter().map(|message| message.content)),
        Row::Completion { prompt, completion } => texts.extend([prompt, completion]),
        Row::Text(text) => texts.push(text),
    }
}

/// Makes the configuration the tokenizer's: its special tokens, and its size if that was asked for.
fn adopt(tokenizer: &NewTokenizer, resize: bool, path: &Path, config: &mut Value) -> Result<()> {
    let Some(config) = config.as_object_mut() else { bail!("{} is not an object", path.display()) };
    for (name, id) in tokenizer.ids {
        config.insert(name.to_owned(), id.into());
    }
    if resize {
        config.insert("vocab_size".to_owned(), tokenizer.vocab_size.into());
    }
    Ok(())
}

fn report(args: &Args, made: &fresh::Fresh, has_tokenizer: bool, as_json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let dtype = made.dtype.name();
    if as_json {
        let files: BTreeSet<&String> = made.files.iter().collect();
        let line = serde_json::json!({
            "out": args.out.display().to_string(), "parameters": made.parameters, "dtype": dtype, "files": files,
            "seed": args.seed, "storage": args.storage, "bytes": made.bytes,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    let parameters = count(made.parameters);
    writeln!(
        out,
        "{}  {parameters} parameters, {dtype}{}, {}, drawn from seed {}",
        bold(&args.out.display().to_string()),
        args.storage.as_ref().map(|name| format!(" and {name}")).unwrap_or_default(),
        human(made.bytes),
        args.seed
    )?;
    if !has_tokenizer {
        writeln!(out, "It has no tokenizer: put a tokenizer.json beside it, or use --train-tokenizer.")?;
    }
    Ok(())
}
