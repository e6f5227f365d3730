//! `retune merge`: adds adapters to their base and writes the result as a plain Hugging Face folder or a GGUF file, and
//! tells what that changes; or combines several adapters into one.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use retune::combine::{Combination, Combined, Majority, Options, combine};
use retune::export::{Difference, is_no_folder};
use retune::methods::Source;
use retune::models::{HeadRequest, Model, StorageChoice};
use retune::tasks::TaskRecord;

use super::eval::{Measured, PassArgs, Rows};
use crate::exit::{Ended, UsageError};
use crate::exporting::OutputArgs;
use crate::loading::{MachineArgs, ModelArgs};
use crate::signals::Signals;
use crate::style::{bold, count};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune merge --model model --adapter out --out merged
  retune merge --model model.gguf --adapter out --out merged --dtype bf16
  retune merge --model yolov3-tiny.cfg --adapter out --out trees.cfg
  retune merge --model model --adapter out --out merged.gguf --dtype q8_0 --verify heldout.jsonl
  retune merge --model model --adapter a --adapter b --adapter-weights 0.7,0.3 --out mixed
  retune merge --adapter a --adapter b --combine ties --density 0.5 --out both

With --model a whole model is written, a folder that transformers loads, a GGUF file that llama.cpp loads, or the files that
darknet loads; without it, --combine writes an adapter folder that PEFT loads. The base and the adapters stay as they are. A quantised base is merged
into the values that it stands for; it is quantised again only if --dtype says so.")]
pub struct Args {
    /// A Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg)
    #[arg(long, value_name = "PATH", required_unless_present = "combine")]
    model: Option<PathBuf>,

    /// An adapter folder. Of several, the last counts alone unless --adapter-weights or --combine are given
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,

    /// One weight for each --adapter, such as 0.7,0.3; with --combine each counts 1 without it
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_negative_numbers = true)]
    adapter_weights: Vec<f32>,

    /// Use an adapter on another base than the one it was made for
    #[arg(long)]
    any_base: bool,

    /// Make one LoRA of several, as PEFT's add_weighted_adapter does: linear, cat, svd, ties, dare_ties, dare_linear,
    /// magnitude_prune, or one of the last four with _svd
    #[arg(long, value_name = "HOW", value_parser = combination)]
    combine: Option<Combination>,

    /// The share of values that pruning keeps (ties, dare, magnitude_prune)
    #[arg(long, value_name = "SHARE", requires = "combine")]
    density: Option<f64>,

    /// What decides a sign in ties: the sum of values, or how many adapters have it
    #[arg(long, value_name = "total|frequency", default_value = "total", value_parser = majority)]
    majority_sign_method: Majority,

    /// The rank of the result (svd); without it, the largest of the adapters'
    #[arg(long, value_name = "R", requires = "combine")]
    svd_rank: Option<u32>,

    /// Decides what dare drops
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,

    /// Compare the base with the adapter and the merged model as it was written, on these rows: their logits, loss,
    /// perplexity or metrics
    #[arg(long, value_name = "PATH", requires = "model")]
    verify: Option<PathBuf>,

    #[command(flatten)]
    passes: PassArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    output: OutputArgs,
}

fn combination(text: &str) -> Result<Combination, String> {
    Combination::parse(text).map_err(|e| e.to_string())
}

fn majority(text: &str) -> Result<Majority, String> {
    match text {
        "total" => Ok(Majority::Total),
        "frequency" => Ok(Majority::Frequency),
        _ => Err("one of total, frequency".into()),
    }
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let Some(how) = args.combine else { return merge(args, &args.adapter, &args.adapter_weights, json) };
    let options = Options {
        how,
        density: args.density,
        majority: args.majority_sign_method,
        svd_rank: args.svd_rank.map(|rank| rank as usize),
        seed: args.seed,
        any_base: args.any_base,
    };
    let sources = sources(args)?;
    if args.model.is_none() {
        let out = args.output.new_folder()?;
        let combined = combine(&sources, &options, out)?;
        return tell(args, how, &combined, json);
    }
    let folder = tempfile::tempdir().context("cannot make a folder for the combined adapter")?;
    let combined = combine(&sources, &options, folder.path())?;
    combined.notes.iter().for_each(|note| eprintln!("note: {note}"));
    merge(args, &[folder.path().to_path_buf()], &[], json)
}

/// Writes the model with the adapters added.
fn merge(args: &Args, adapter: &[PathBuf], weights: &[f32], json: bool) -> Result<()> {
    let model = ModelArgs {
        model: args.model.clone().unwrap_or_default(),
        adapter: adapter.to_vec(),
        adapter_weights: weights.to_vec(),
        any_base: args.any_base,
        machine: args.machine.clone(),
    };
    args.output.dtype()?;
    let (model, record) = model.load_with_task()?;
    let report = args.output.write(&model, true)?;
    if let (Some(record), false) = (&record, is_no_folder(args.output.path())) {
        record.write(args.output.path())?;
    }
    let verified =
        args.verify.as_ref().map(|data| verify(args, data, &model, record.as_ref())).transpose()?;
    if json {
        let mut line = args.output.to_json(&report);
        if let Some(verified) = &verified {
            line["verified"] = verified.to_json();
        }
        return Ok(writeln!(stdout(), "{line}")?);
    }
    args.output.show(&report)?;
    verified.map_or(Ok(()), |verified| verified.show())
}

/// The base with its adapter, and what was written of them, on the same rows.
struct Verified {
    rows: Rows,
    difference: Difference,
    before: Measured,
    after: Measured,
}

fn verify(args: &Args, data: &Path, model: &Model, record: Option<&TaskRecord>) -> Result<Verified> {
    let signals = Signals::catch()?;
    let rows = args.passes.rows(data, model, record)?;
    let head = record.map_or(HeadRequest::AsFile, TaskRecord::head);
    let written = Model::load_with(args.output.path(), StorageChoice::AsIs, &head)?;
    let mut difference = Difference::default();
    for (ids, token_types) in rows.texts() {
        difference.add(model, &written, ids, token_types)?;
        if let Some(code) = signals.exit_code() {
            return Err(Ended::new(code, "interrupted").into());
        }
    }
    let before = args.passes.measure(&rows, model, &signals)?;
    let after = args.passes.measure(&rows, &written, &signals)?;
    Ok(Verified { rows, difference, before, after })
}

impl Verified {
    fn to_json(&self) -> serde_json::Value {
        let d = &self.difference;
        serde_json::json!({
            "logits": {
                "compared": d.logits, "max_difference": d.max, "mean_difference": d.mean(), "relative": d.relative(),
                "same_first_choice": d.agreement(),
            },
            "before": self.rows.line(&self.before),
            "after": self.rows.line(&self.after),
        })
    }

    fn show(&self) -> Result<()> {
        let d = &self.difference;
        let mut to = stdout().lock();
        writeln!(
            to,
            "  logits differ by {:.3e} on average and {:.3e} at most ({:.3} % of their size); the first choice is the same in {:.2} % \
             of {} rows",
            d.mean(),
            d.max,
            100.0 * d.relative(),
            100.0 * d.agreement(),
            count(d.rows)
        )?;
        writeln!(to, "  base and adapter: {}", self.rows.text(&self.before))?;
        writeln!(to, "  as written:       {}", bold(&self.rows.text(&self.after)))?;
        Ok(())
    }
}

/// The adapters with their weights in the combination.
fn sources(args: &Args) -> Result<Vec<Source>> {
    let (weights, adapters) = (args.adapter_weights.len(), args.adapter.len());
    if weights != 0 && weights != adapters {
        let what = format!("{weights} --adapter-weights for {adapters} adapters: give one for each");
        return Err(UsageError(what).into());
    }
    let weight = |i| args.adapter_weights.get(i).copied().unwrap_or(1.0);
    let named = args.adapter.iter().enumerate();
    Ok(named.map(|(i, path)| Source { path: path.clone(), weight: weight(i) }).collect())
}

fn tell(args: &Args, how: Combination, combined: &Combined, json: bool) -> Result<()> {
    let out = args.output.path().display().to_string();
    if json {
        let Combined { rank, modules, notes } = combined;
        let how = how.name();
        println!(
            "{}",
            serde_json::json!({"out": out, "combination": how, "rank": rank, "modules": modules, "notes": notes})
        );
        return Ok(());
    }
    combined.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let (adapters, modules) = (args.adapter.len(), combined.modules);
    println!(
        "{}  {adapters} adapters by {}: rank {}, {modules} modules",
        bold(&out),
        how.name(),
        combined.rank
    );
    Ok(())
}
