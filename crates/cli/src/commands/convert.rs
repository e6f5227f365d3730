//! `retune convert`: an adapter from one tool's files to another's.

use std::path::PathBuf;

use anyhow::{Result, bail};
use retune::convert::{Base, TARGETS, Target, convert};
use retune::methods::targets::nearest;

use crate::style::bold;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune convert out --to mlx --out out-mlx
  retune convert out --to gguf --model model --out out.gguf
  retune convert adapter.gguf --to peft --model model.gguf --out adapter
  retune convert hub-adapter --to peft --out adapter

Reads LoRAs of Hugging Face PEFT, AdapterHub, mlx-lm and llama.cpp (GGUF), told apart by their files, IA3s of the first two
with the classifier beside them, and any adapter of PEFT to be written again. What differs from module to module (rsLoRA, alphas
by pattern) is folded exactly where the target has one number for all; what a target cannot carry is refused by name.")]
pub struct Args {
    /// The adapter: a folder, or a .gguf file
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// Whose files to write
    #[arg(long, value_name = "peft|adapterhub|mlx|gguf", value_parser = target)]
    to: Target,

    /// The model that it is for: needed to and from GGUF, and to AdapterHub
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The folder to write; for GGUF the file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// Replace what is there
    #[arg(long)]
    overwrite: bool,
}

fn target(text: &str) -> Result<Target, String> {
    let found = TARGETS.iter().find(|(name, _)| *name == text).map(|(_, target)| *target);
    found.ok_or_else(|| {
        let near = nearest(text, TARGETS.iter().map(|(name, _)| *name)).unwrap_or_default();
        let all: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        format!("one of {}; did you mean {near}?", all.join(", "))
    })
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let taken = args.out.is_file() || std::fs::read_dir(&args.out).is_ok_and(|mut e| e.next().is_some());
    if taken && !args.overwrite {
        bail!("{} is there already: name another place, or --overwrite", args.out.display());
    }
    let base = args
        .model
        .as_deref()
        .map(|path| Base::open(&crate::embedded::resolve(path)?).map_err(anyhow::Error::from));
    let base = base.transpose()?;
    let done = convert(&args.adapter, args.to, base.as_ref(), &args.out)?;
    let name = TARGETS.iter().find(|(_, target)| *target == args.to).map_or("", |(name, _)| name);
    let out = args.out.display().to_string();
    if json {
        let line = serde_json::json!({"out": out, "to": name, "modules": done.modules, "notes": done.notes});
        println!("{line}");
        return Ok(());
    }
    done.notes.iter().for_each(|note| eprintln!("note: {note}"));
    println!("{}  {} modules, for {name}", bold(&out), done.modules);
    Ok(())
}
