//! `retune models`: the architectures, from the registry.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::models::MODELS;

use crate::style::{bold, dim};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  retune models\n  retune models --json")]
pub struct Args {}

pub fn run(_args: &Args, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    for model in MODELS {
        if json {
            let line = serde_json::json!({
                "name": model.name, "summary": model.summary, "model_types": model.model_types,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{}  {}", bold(&format!("{:<10}", model.name)), model.summary)?;
            writeln!(out, "            {}", dim(&format!("model_type: {}", model.model_types.join(", "))))?;
        }
    }
    Ok(())
}
