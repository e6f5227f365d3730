//! `retune eval`: loss and perplexity of a model, with or without adapters, on rows of data.

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use indicatif::ProgressBar;
use retune::run_file::TrainOn;
use retune::tasks::causal_lm::CausalLm;
use retune::train::{Control, evaluate};

use crate::exit::Ended;
use crate::loading::{ModelArgs, dataset, language};
use crate::signals::Signals;
use crate::style::count;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune eval --model model.gguf --data heldout.jsonl
  retune eval --model model.gguf --adapter out --data heldout.jsonl --json")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Rows: .jsonl, .json, .csv, .tsv or .txt
    #[arg(long, value_name = "PATH")]
    data: PathBuf,

    /// Rows in one pass
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Tokens of one row; longer rows are cut
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: u32,

    /// Which tokens count
    #[arg(long, value_name = "answers|all", default_value = "answers", value_parser = ["answers", "all"])]
    train_on: String,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let signals = Signals::catch()?;
    let model = args.model.load()?;
    let language = language(&model.files)?;
    let train_on = if args.train_on == "all" { TrainOn::All } else { TrainOn::Answers };
    let data = dataset(&language, &args.data, args.max_length as usize, train_on)?;
    let objective = CausalLm { net: model.net.as_ref(), data: &data, dropout_seed: None, checkpoint: false };
    objective.check()?;
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(data.examples.len() as u64)
    } else {
        ProgressBar::hidden()
    };
    let loss = evaluate(&model.params, &objective, args.batch as usize, &mut |done| {
        bar.set_position(done as u64);
        if signals.exit_code().is_some() { Control::Stop } else { Control::Continue }
    })?;
    bar.finish_and_clear();
    let Some(loss) = loss else {
        return Err(Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into());
    };
    let report = &data.report;
    let mut out = stdout().lock();
    if json {
        let line = serde_json::json!({
            "loss": loss, "perplexity": loss.exp(), "rows": report.examples, "tokens": report.tokens,
            "target_tokens": report.target_tokens,
        });
        writeln!(out, "{line}")?;
    } else {
        for warning in report.warnings() {
            eprintln!("warning: {warning}");
        }
        let (rows, targets) = (count(report.examples as u64), count(report.target_tokens as u64));
        writeln!(
            out,
            "loss {loss:.4}   perplexity {:.3}   {rows} rows, {targets} target tokens",
            loss.exp()
        )?;
    }
    Ok(())
}
