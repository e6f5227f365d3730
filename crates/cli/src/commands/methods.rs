//! `retune methods`: the fine-tuning methods, from the registry, and what each goes with.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::methods::METHODS;
use retune::methods::matrix::{self, Fit, Held};
use retune::models::MODELS;

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
                "default_lr": method.default_lr, "adapter": method.adapter, "goes_with": goes_with(method.name),
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
    if !json {
        write_matrix(&mut out)?;
    }
    Ok(())
}

/// Every architecture and storage, with the condition or the reason for a refusal.
fn goes_with(method: &str) -> Vec<serde_json::Value> {
    let storage = |held| Held::ALL.iter().find(|(h, _)| *h == held).map_or("", |(_, name)| name);
    let line = |(model, held, fit): (&str, Held, Fit)| {
        let (ok, why) = match fit {
            Fit::Yes => (true, None),
            Fit::If(why) => (true, Some(why)),
            Fit::No(why) => (false, Some(why)),
        };
        serde_json::json!({"model": model, "storage": storage(held), "possible": ok, "why": why})
    };
    let of = matrix::all().filter(|(spec, ..)| spec.name == method);
    of.map(|(_, model, held, fit)| line((model.name, held, fit))).collect()
}

/// A row for each method, a column for each architecture and storage; numbers point to the reasons below.
fn write_matrix(out: &mut impl Write) -> Result<()> {
    let mut reasons: Vec<&str> = Vec::new();
    let mut number = |why: &'static str| {
        let known = reasons.iter().position(|r| *r == why);
        1 + known.unwrap_or_else(|| {
            reasons.push(why);
            reasons.len() - 1
        })
    };
    let width = |name: &str| name.len() + 2;
    let mut rows = Vec::new();
    for method in METHODS {
        let mut row = format!("{:<10}", method.name);
        for (model, (held, name)) in MODELS.iter().flat_map(|m| Held::ALL.map(|held| (m, held))) {
            let cell = match matrix::fit(method, model, held) {
                Fit::Yes => "yes".to_owned(),
                Fit::If(why) => format!("if {}", number(why)),
                Fit::No(why) => format!("no {}", number(why)),
            };
            row += &format!("{cell:<0$}", width(name).max(6));
        }
        rows.push(row);
    }
    let span: usize = Held::ALL.iter().map(|(_, name)| width(name).max(6)).sum();
    let models: String = MODELS.iter().map(|m| format!("{:<span$}", m.name)).collect();
    let storages: String =
        Held::ALL.iter().map(|(_, name)| format!("{name:<0$}", width(name).max(6))).collect();
    writeln!(out, "\n{}", bold("What goes with what"))?;
    writeln!(out, "{:<10}{}", "", dim(models.trim_end()))?;
    writeln!(out, "{:<10}{}", "", dim(storages.repeat(MODELS.len()).trim_end()))?;
    for row in rows {
        writeln!(out, "{}", row.trim_end())?;
    }
    for (i, why) in reasons.iter().enumerate() {
        writeln!(out, "{}", dim(&format!("{}: {why}", i + 1)))?;
    }
    Ok(())
}
