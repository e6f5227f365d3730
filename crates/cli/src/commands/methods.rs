//! `retune methods`: the fine-tuning methods, from the registry.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::methods::METHODS;

use crate::style::{bold, dim};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  retune methods\n  retune methods --json")]
pub struct Args {}

pub fn run(_args: &Args, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    for method in METHODS {
        if json {
            let line = serde_json::json!({
                "name": method.name, "summary": method.summary, "source": method.source,
                "default_lr": method.default_lr, "adapter": method.adapter,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{}  {}", bold(&format!("{:<10}", method.name)), method.summary)?;
            let writes = if method.adapter { "an adapter" } else { "a whole model" };
            let about = format!(
                "writes {writes}; learning rate {:e} by default; {}",
                method.default_lr, method.source
            );
            writeln!(out, "            {}", dim(&about))?;
        }
    }
    Ok(())
}
