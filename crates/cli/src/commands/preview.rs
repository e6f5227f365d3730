//! `retune preview`: the first rows as the model will see them, with what carries loss marked.

mod pictures;
mod texts;

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune::models::ModelFiles;
use serde_json::json;

use crate::exit::UsageError;
use crate::run_flags::RunFlags;
use crate::style::{bold, dim};
use crate::tasks::Read;

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

/// One row of the data.
struct Shown {
    /// File and line, or picture.
    source: String,
    /// How much it is, in words.
    counts: String,
    /// Lines below.
    lines: Vec<String>,
    json: serde_json::Value,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let run = args.run.load()?;
    let files = ModelFiles::open(&crate::embedded::resolve(&run.model)?)?;
    let read = Read::new(&run, &files)?;
    let of_pictures = matches!(read, Read::Pictures(_) | Read::Boxes(_));
    if let (Some(folder), false) = (&args.draw, of_pictures) {
        let what = format!("--draw {} is for pictures; {} reads none", folder.display(), run.model.display());
        return Err(UsageError(what).into());
    }
    let (rows, summary) = match of_pictures {
        true => pictures::rows(run, args.rows, args.draw.as_deref())?,
        false => texts::rows(&run, read, &files, args.rows)?,
    };
    let mut out = stdout().lock();
    for row in rows {
        if json {
            let mut line = json!({"event": "row", "source": row.source});
            merge(&mut line, row.json);
            writeln!(out, "{line}")?;
            continue;
        }
        writeln!(out, "{}  {}", bold(&row.source), dim(&row.counts))?;
        row.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        writeln!(out)?;
    }
    if json {
        let mut line = json!({"event": "data"});
        merge(&mut line, summary.json);
        writeln!(out, "{line}")?;
    } else {
        summary.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}

/// What is told of all rows together.
struct Summary {
    lines: Vec<String>,
    json: serde_json::Value,
}

fn merge(line: &mut serde_json::Value, more: serde_json::Value) {
    if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
}
