//! `retune preview`: the first rows as the model will see them, with what carries loss marked.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune::models::ModelFiles;
use retune::run_file::TrainOn;
use retune::tasks::causal_lm::{Example, Piece, preview};

use crate::loading::{dataset, language};
use crate::style::{self, bold, dim};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune preview --model model.gguf --data rows.jsonl
  retune preview --model model.gguf --data rows.jsonl --rows 20 --max-length 256
  retune preview --model model.gguf --data text.txt --train-on all

What carries loss is green on a terminal, and stands between «» elsewhere.")]
pub struct Args {
    /// A Hugging Face folder or a GGUF file; its weights are not read
    #[arg(long, value_name = "PATH")]
    model: PathBuf,

    /// Rows: .jsonl, .json, .csv, .tsv or .txt
    #[arg(long, value_name = "PATH")]
    data: PathBuf,

    /// How many rows to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,

    /// Tokens of one row; longer rows are cut
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: u32,

    /// Which tokens carry loss
    #[arg(long, value_name = "answers|all", default_value = "answers", value_parser = ["answers", "all"])]
    train_on: String,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let language = language(&ModelFiles::open(&crate::embedded::resolve(&args.model)?)?)?;
    let train_on = if args.train_on == "all" { TrainOn::All } else { TrainOn::Answers };
    let data = dataset(&language, &args.data, args.max_length as usize, train_on)?;
    let mut out = stdout().lock();
    for example in data.examples.iter().take(args.rows) {
        let pieces = preview(&language.tokenizer, example)?;
        if json {
            writeln!(out, "{}", as_json(example, &pieces))?;
        } else {
            print(&mut out, example, &pieces)?;
        }
    }
    let report = &data.report;
    if json {
        let line = serde_json::json!({
            "event": "data", "rows": report.rows, "examples": report.examples, "tokens": report.tokens,
            "target_tokens": report.target_tokens, "truncated_rows": report.truncated_rows,
            "duplicates": report.duplicates, "dropped": report.dropped.len(), "warnings": report.warnings(),
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{report}")?;
    }
    Ok(())
}

fn as_json(example: &Example, pieces: &[Piece]) -> serde_json::Value {
    let pieces: Vec<_> =
        pieces.iter().map(|p| serde_json::json!({"text": p.text, "target": p.target})).collect();
    serde_json::json!({
        "event": "row", "source": example.source.to_string(), "tokens": example.ids.len(),
        "targets": example.targets(), "truncated": example.truncated, "pieces": pieces,
    })
}

fn print(out: &mut impl Write, example: &Example, pieces: &[Piece]) -> Result<()> {
    let cut = match example.truncated {
        0 => String::new(),
        n => format!(", {n} more were cut"),
    };
    let counts = format!("{} tokens, {} carry loss{cut}", example.ids.len(), example.targets());
    writeln!(out, "{}  {}", bold(&example.source.to_string()), dim(&counts))?;
    for piece in pieces {
        let text = style::printable(&piece.text);
        write!(out, "{}", if piece.target { style::target(&text) } else { text })?;
    }
    writeln!(out, "\n")?;
    Ok(())
}
