//! `retune preview`: the first rows as the model will see them, with what carries loss marked.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune::models::ModelFiles;
use serde_json::json;

use crate::exit::UsageError;
use crate::previewing::{Asked, Preview, joined};
use crate::run_flags::RunFlags;
use crate::sheets::write_beside;
use crate::style::{bold, dim};
use crate::tasks;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune preview --model model.gguf --data rows.jsonl
  retune preview run.toml --rows 20
  retune preview --model model.gguf --data text.txt --train-on all
  retune preview --model yolov3-tiny.cfg --data photos --draw seen     the photos as the network is given them, with their boxes

The flags are those of `retune train`: what is shown is what that command would train on.
What carries loss is green on a terminal, and stands between «» elsewhere.")]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,

    /// How many rows to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,

    /// Draw pictures as the network is given them in the first epochs, with their labels or boxes: one PNG in this folder
    #[arg(long, value_name = "FOLDER")]
    draw: Option<PathBuf>,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let run = args.run.load()?;
    let files = ModelFiles::open(&crate::embedded::resolve(&run.model)?)?;
    let model = run.model.display().to_string();
    let mut preview = tasks::read(&run, &files)?.preview(
        run,
        &files,
        Asked { rows: args.rows, draw: args.draw.is_some() },
    )?;
    match &args.draw {
        None if preview.cells.is_empty() => {}
        None => preview.lines.push(dim("--draw FOLDER draws them as the network is given them")),
        Some(folder) => {
            let Some(sheet) = preview.sheet() else {
                let what = format!("--draw {} is for pictures; {model} reads none", folder.display());
                return Err(UsageError(what).into());
            };
            let path = write_beside(&sheet, folder, "preview")?.display().to_string();
            preview.lines.push(format!("{:<10} {path}", "drawn"));
            preview.json = joined(preview.json, json!({"drawn": path}));
        }
    }
    let mut out = stdout().lock();
    match json {
        true => write_json(&mut out, preview),
        false => write_text(&mut out, preview),
    }
}

fn write_json(out: &mut impl Write, preview: Preview) -> Result<()> {
    for row in preview.rows {
        writeln!(out, "{}", joined(json!({"event": "row", "source": row.source}), row.json))?;
    }
    writeln!(out, "{}", joined(json!({"event": "data"}), preview.json))?;
    Ok(())
}

fn write_text(out: &mut impl Write, preview: Preview) -> Result<()> {
    for row in preview.rows {
        writeln!(out, "{}  {}", bold(&row.source), dim(&row.counts))?;
        row.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        writeln!(out)?;
    }
    preview.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(())
}
