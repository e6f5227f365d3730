//! `retune plan`: the memory that a run would take, before it starts.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::train::plan::human;

use crate::run_flags::RunFlags;
use crate::style::{bold, count};
use crate::training::Prepared;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune plan run.toml
  retune plan --model model.gguf --data rows.jsonl --batch 16 --max-length 2048
  retune plan run.toml --memory-limit 1GiB    does it fit, and if not, what would?")]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let prepared = Prepared::new(args.run.load()?)?;
    let plan = prepared.plan()?;
    let mut out = stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&plan)?)?;
        return Ok(());
    }
    let batch = format!(
        "{} rows: {} tokens, {} of them with loss",
        plan.batch_size,
        count(plan.rows),
        count(plan.targets)
    );
    writeln!(out, "  largest batch        {batch}")?;
    writeln!(
        out,
        "  trained parameters   {} of {}",
        count(prepared.attached.trainable as u64),
        count(prepared.total as u64)
    )?;
    for (name, bytes) in plan.parts() {
        writeln!(out, "  {name:<20} {:>10}", human(bytes))?;
    }
    writeln!(out, "  {:<20} {}", "peak", bold(&format!("{:>10}", human(plan.total_bytes))))?;
    let how = if plan.checkpointing { "on: blocks are computed twice" } else { "off" };
    writeln!(out, "  {:<20} {how}", "checkpointing")?;
    if let (Some(limit), Some(source)) = (plan.limit_bytes, &plan.limit_source) {
        writeln!(out, "  it fits: {source} is {}", human(limit))?;
    }
    Ok(())
}
