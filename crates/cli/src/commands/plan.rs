//! `retune plan`: the memory and the disk that a run would take, before it starts.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::train::Plan;
use retune::train::plan::human;

use crate::run_flags::RunFlags;
use crate::style::{bold, count, dim};
use crate::training::Prepared;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune plan run.toml
  retune plan --model model.gguf --data rows.jsonl --batch 16 --max-length 2048
  retune plan run.toml --memory-limit 1GiB           does it fit, and if not, what would?
  retune plan run.toml --memory-limit 1GiB --auto    the plan of the nearest settings that fit")]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,
}

/// Characters of the longest bar.
const BAR: usize = 24;

pub fn run(args: &Args, json: bool) -> Result<()> {
    let prepared = Prepared::new(args.run.load()?)?;
    let plan = prepared.plan()?;
    let mut out = stdout().lock();
    if json {
        let mut value = serde_json::to_value(&plan)?;
        value["changed"] = serde_json::json!(prepared.changed);
        writeln!(out, "{value}")?;
        return Ok(());
    }
    for changed in &prepared.changed {
        writeln!(out, "  {changed}\n")?;
    }
    write_run(&mut out, &prepared, &plan)?;
    writeln!(out)?;
    write_parts(&mut out, &plan.parts(), plan.total_bytes, "peak")?;
    if let (Some(limit), Some(source)) = (plan.limit_bytes, &plan.limit_source) {
        writeln!(out, "  {:<26} {:>10}  {source}", "it fits", human(limit))?;
    }
    writeln!(out)?;
    write_parts(&mut out, &plan.disk_parts(), plan.disk_bytes, "disk")?;
    if let Some(free) = plan.disk_free_bytes {
        writeln!(out, "  {:<26} {:>10}  what is free there", "it fits", human(free))?;
    }
    Ok(())
}

/// What is planned, in a few words.
fn write_run(out: &mut impl Write, prepared: &Prepared, plan: &Plan) -> Result<()> {
    let batch = format!(
        "{} rows: {} tokens, {} of them with loss",
        plan.batch_size,
        count(plan.rows),
        count(plan.targets)
    );
    let trained =
        format!("{} of {}", count(prepared.attached.trainable as u64), count(prepared.total as u64));
    let how = if plan.checkpointing { "on: blocks are computed twice" } else { "off" };
    for (name, value) in [
        ("largest batch", batch.as_str()),
        ("trained parameters", &trained),
        ("checkpointing", how),
        ("the most is held", plan.worst.words()),
    ] {
        writeln!(out, "  {name:<26} {value}")?;
    }
    Ok(())
}

/// Parts with their shares of the sum.
fn write_parts(out: &mut impl Write, parts: &[(&str, u64)], sum: u64, name: &str) -> Result<()> {
    for (name, bytes) in parts.iter().filter(|(_, bytes)| *bytes > 0) {
        let share = (*bytes as f64 / sum.max(1) as f64 * BAR as f64).round() as usize;
        writeln!(out, "  {name:<26} {:>10}  {}", human(*bytes), dim(&"▇".repeat(share)))?;
    }
    writeln!(out, "  {name:<26} {}", bold(&format!("{:>10}", human(sum))))?;
    Ok(())
}
