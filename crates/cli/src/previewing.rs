//! The first rows of a data set as a run would train on them.

use std::path::Path;

use anyhow::Result;
use retune::text::{Piece, Tokenizer, pieces};
use retune_media::pictures::Picture;
use retune_media::pictures::draw::{self, Cell};
use serde_json::{Map, Value, json};

use crate::style;

/// Epochs that are shown of pictures that are others in each; pictures side by side of those that are not.
const EPOCHS: u64 = 4;
/// Pixels of a drawn picture's sides.
const SIDE: usize = 240;
const GREY: [u8; 3] = [160; 3];

/// Rows, and what is told of all of them.
#[derive(Default)]
pub struct Preview {
    pub rows: Vec<Row>,
    /// For people.
    pub lines: Vec<String>,
    /// For machines.
    pub json: Value,
    /// Pictures as the network is given them, if that is what it reads.
    pub cells: Vec<Cell>,
}

/// How much is shown.
#[derive(Clone, Copy)]
pub struct Asked {
    pub rows: usize,
    /// Pictures are to be drawn, then in several epochs.
    pub draw: bool,
}

impl Preview {
    /// All pictures as one; nothing where there are none.
    pub fn sheet(&self) -> Option<Picture> {
        (!self.cells.is_empty()).then(|| draw::sheet(&self.cells, EPOCHS as usize, SIDE))
    }
}

/// One row of the data.
pub struct Row {
    /// File and line, or picture.
    pub source: String,
    /// How much it is, in words.
    pub counts: String,
    /// Lines below.
    pub lines: Vec<String>,
    pub json: Value,
}

/// A row of some tokens, those that carry loss marked; `more` comes behind what is told of every text.
///
/// # Errors
/// If the tokenizer cannot decode its own tokens.
pub fn of_text(
    tokenizer: &Tokenizer,
    source: String,
    (ids, targets): (&[u32], &[bool]),
    truncated: usize,
    more: Value,
) -> Result<Row> {
    let pieces = pieces(tokenizer, ids, targets)?;
    let carry = targets.iter().filter(|target| **target).count();
    let mut counts = format!("{} tokens", ids.len());
    if carry > 0 {
        counts += &format!(", {carry} carry loss");
    }
    if truncated > 0 {
        counts += &format!(", {truncated} more were cut");
    }
    let told: Vec<Value> = pieces.iter().map(|p| json!({"text": p.text, "target": p.target})).collect();
    let json = json!({"tokens": ids.len(), "targets": carry, "truncated": truncated, "pieces": told});
    Ok(Row { source, counts, lines: vec![marked(&pieces)], json: joined(json, more) })
}

/// The text, with what carries loss marked.
fn marked(pieces: &[Piece]) -> String {
    let one = |piece: &Piece| {
        let text = style::printable(&piece.text);
        if piece.target { style::target(&text) } else { text }
    };
    pieces.iter().map(one).collect()
}

/// The keys of two objects.
pub fn joined(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

/// A picture of an epoch with what is true of it.
pub struct Seen {
    /// With its boxes drawn.
    pub picture: Picture,
    /// In a few words.
    pub truth: String,
    pub json: Value,
}

/// Some pictures in the first epoch, or in the first ones: `seen` gives picture i of an epoch, `changes` says whether they are others in each; `facts` are told of all.
///
/// # Errors
/// If one cannot be read.
pub fn of_pictures(
    names: Vec<String>,
    (changes, asked): (bool, Asked),
    facts: Vec<(&'static str, String)>,
    seen: &dyn Fn((usize, u64)) -> Result<Seen>,
) -> Result<Preview> {
    let epochs = if changes && asked.draw { EPOCHS } else { 1 };
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    for (i, name) in names.into_iter().enumerate() {
        let file =
            Path::new(&name).file_name().map_or(name.clone(), |file| file.to_string_lossy().into_owned());
        for epoch in 0..epochs {
            let Seen { picture, truth, json } = seen((i, epoch))?;
            if epoch == 0 {
                let counts = format!("{} x {} pixels for the network", picture.width, picture.height);
                rows.push(Row { source: name.clone(), counts, lines: vec![truth.clone()], json });
            }
            let first = if changes { format!("epoch {}: {file}", epoch + 1) } else { file.clone() };
            cells.push(Cell { picture, caption: vec![first, truth], frame: GREY });
        }
    }
    let lines = facts.iter().map(|(name, value)| format!("{name:<10} {value}")).collect();
    let json: Map<String, Value> =
        facts.into_iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    Ok(Preview { rows, lines, json: Value::Object(json), cells })
}
