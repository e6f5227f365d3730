//! `retune tile`: cuts large photos with their boxes into tiles, written as YOLO's layout.

use std::collections::BTreeSet;
use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use retune_formats::{atomic, labels};
use retune_media::pictures::annotations::{Annotations, Rules};
use retune_media::pictures::tiles;

use crate::exit::UsageError;
use crate::style::count;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune tile aerial/ --out tiles                                     416 x 416 pixels, 50 shared between neighbours
  retune tile aerial/ --only OSBS_029,SOAP_061 --size 640 --out tiles
  retune tile aerial/ --one-class Tree --out tiles                    every box gets this class

A detector sees a photo at the size of its input: what is small in a large photo is lost. Cut it before training.")]
pub struct Args {
    /// Pictures with boxes: YOLO, COCO, VOC or a table (docs/pictures.md)
    #[arg(value_name = "DATA")]
    data: PathBuf,

    /// The folder to write: images/, labels/ and classes.txt
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    /// Side of a tile in pixels
    #[arg(long, value_name = "N", default_value_t = 416, value_parser = clap::value_parser!(u32).range(32..=8192))]
    size: u32,

    /// Pixels shared between neighbours
    #[arg(long, value_name = "N", default_value_t = 50)]
    overlap: u32,

    /// Only pictures of these names, without their endings
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// All but these
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "only")]
    without: Vec<String>,

    /// Give every box this one class
    #[arg(long, value_name = "NAME")]
    one_class: Option<String>,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    if args.overlap >= args.size {
        let what = format!("--overlap {} must be less than --size {}", args.overlap, args.size);
        return Err(UsageError(what).into());
    }
    if args.out.exists() {
        bail!("{} is there already, and nothing is replaced; name another folder", args.out.display());
    }
    let all = Annotations::open(&args.data, Rules::Strict)?.train;
    let name = |path: &std::path::Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let known: BTreeSet<String> = all.pictures.iter().map(|p| name(&p.path)).collect();
    if let Some(odd) = args.only.iter().chain(&args.without).find(|odd| !known.contains(*odd)) {
        let near = crate::tasks::did_you_mean(odd, known.iter().map(String::as_str));
        return Err(UsageError(format!("no picture is called {odd:?}{near}")).into());
    }
    let wanted = |stem: &String| match args.only.is_empty() {
        true => !args.without.contains(stem),
        false => args.only.contains(stem),
    };
    let (images, labelled) = (args.out.join("images"), args.out.join("labels"));
    for folder in [&images, &labelled] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let (mut written, mut boxes) = (0u64, 0u64);
    for annotated in all.pictures.iter().filter(|p| wanted(&name(&p.path))) {
        let picture = annotated.read()?;
        for tile in tiles::tiles(picture.width, picture.height, args.size as usize, args.overlap as usize) {
            let (part, inside) = tiles::cut(&picture, &annotated.boxes, tile);
            let stem = format!("{}-{}-{}", name(&annotated.path), tile.x, tile.y);
            part.write(&images.join(format!("{stem}.png")))?;
            let line = |b: &retune_media::pictures::LabelledBox| {
                let class = if args.one_class.is_some() { 0 } else { b.class };
                format!("{class} {} {} {} {}\n", b.bounds.x, b.bounds.y, b.bounds.w, b.bounds.h)
            };
            let text: String = inside.iter().map(line).collect();
            atomic::write_bytes(&labelled.join(format!("{stem}.txt")), text.as_bytes())?;
            written += 1;
            boxes += inside.len() as u64;
        }
    }
    let classes = args.one_class.clone().map_or(all.classes.clone(), |name| vec![name]);
    labels::write(&args.out.join("classes.txt"), &classes)?;
    let mut out = stdout().lock();
    if json {
        let line = serde_json::json!({"out": args.out, "tiles": written, "boxes": boxes, "classes": classes});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}  {} tiles, {} boxes", args.out.display(), count(written), count(boxes))?;
    }
    Ok(())
}
