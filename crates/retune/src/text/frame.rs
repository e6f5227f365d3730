//! Texts as encoders read them: special tokens around one text or two, token types, truncation.
//!
//! The tokenizer's own post-processor says how (`[CLS] A [SEP] B [SEP]`). Too long pairs lose from the longer text first, as
//! transformers' `longest_first` does.

use std::ops::Range;

use serde_json::Value;

use super::error::{Error, Result};
use super::tokenizer::{Special, Tokenizer};

/// Pieces of a template, and ids of a special token: more are a mistake.
const PIECES_MAX: usize = 64;

/// How a tokenizer puts special tokens around one text, and around two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    single: Vec<Piece>,
    pair: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Special { ids: Vec<u32>, token_type: u32 },
    Text { second: bool, token_type: u32 },
}

impl Default for Frame {
    /// The texts alone.
    fn default() -> Frame {
        let text = |second| Piece::Text { second, token_type: u32::from(second) };
        Frame { single: vec![text(false)], pair: vec![text(false), text(true)] }
    }
}

/// A text, or a pair, ready for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framed {
    pub ids: Vec<u32>,
    /// 0 for a text, 1 for the second of a pair, as the tokenizer says; one for each id.
    pub token_types: Vec<u32>,
    /// The bytes of the first text that an id stands for; `None` for special tokens and the second text.
    pub offsets: Vec<Option<Range<usize>>>,
    /// Ids of the texts that were cut away.
    pub truncated: usize,
}

impl Frame {
    /// Reads a `post_processor` of `tokenizer.json`.
    pub(super) fn read(processor: &Value) -> std::result::Result<Frame, String> {
        let mut found: Option<Frame> = None;
        let mut todo = vec![processor];
        while let Some(processor) = todo.pop() {
            let kind = processor["type"].as_str().unwrap_or_default();
            let frame = match kind {
                "Sequence" => {
                    let steps = processor["processors"].as_array().ok_or("a Sequence without processors")?;
                    todo.extend(steps.iter().take(PIECES_MAX));
                    continue;
                }
                "ByteLevel" => continue,
                "TemplateProcessing" => template(processor)?,
                "BertProcessing" => around(processor, 1, 1)?,
                "RobertaProcessing" => around(processor, 2, 0)?,
                other => return Err(format!("post_processor: {other:?} is not known")),
            };
            if found.replace(frame).is_some() {
                return Err("post_processor: two of its steps add special tokens".into());
            }
        }
        Ok(found.unwrap_or_default())
    }

    /// With a token in front, unless one stands there.
    pub(super) fn with_first(mut self, bos: u32) -> Frame {
        for pieces in [&mut self.single, &mut self.pair] {
            if !matches!(pieces.first(), Some(Piece::Special { .. })) {
                pieces.insert(0, Piece::Special { ids: vec![bos], token_type: 0 });
            }
        }
        self
    }

    /// The highest special id.
    pub(super) fn highest(&self) -> Option<u32> {
        let ids = |piece: &Piece| match piece {
            Piece::Special { ids, .. } => ids.iter().copied().max(),
            Piece::Text { .. } => None,
        };
        self.single.iter().chain(&self.pair).filter_map(ids).max()
    }

    fn pieces(&self, is_pair: bool) -> &[Piece] {
        if is_pair { &self.pair } else { &self.single }
    }

    /// Special tokens that the frame adds.
    fn added(&self, is_pair: bool) -> usize {
        let count = |piece: &Piece| match piece {
            Piece::Special { ids, .. } => ids.len(),
            Piece::Text { .. } => 0,
        };
        self.pieces(is_pair).iter().map(count).sum()
    }
}

/// `[{"SpecialToken": {"id", "type_id"}}, {"Sequence": {"id": "A", "type_id"}}, …]`.
fn template(processor: &Value) -> std::result::Result<Frame, String> {
    let ids_of = |name: &str| {
        let ids = processor["special_tokens"][name]["ids"].as_array();
        let ids = ids.filter(|ids| ids.len() <= PIECES_MAX);
        let ids = ids.and_then(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>());
        ids.ok_or_else(|| format!("post_processor: its special token {name:?} has no ids"))
    };
    let piece = |value: &Value| {
        let token_type = |part: &Value| part["type_id"].as_u64().filter(|t| *t <= 1).unwrap_or(0) as u32;
        if let Some(part) = value.get("SpecialToken") {
            let ids = ids_of(part["id"].as_str().unwrap_or_default())?;
            return Ok(Piece::Special { ids, token_type: token_type(part) });
        }
        match (value.get("Sequence"), value["Sequence"]["id"].as_str()) {
            (Some(part), Some("A")) => Ok(Piece::Text { second: false, token_type: token_type(part) }),
            (Some(part), Some("B")) => Ok(Piece::Text { second: true, token_type: token_type(part) }),
            _ => Err("post_processor: a piece is neither a special token nor a text".to_string()),
        }
    };
    let pieces = |key: &str| {
        let pieces = processor[key].as_array().filter(|pieces| pieces.len() <= PIECES_MAX);
        let pieces = pieces.ok_or_else(|| format!("post_processor: \"{key}\" is no list of pieces"))?;
        pieces.iter().map(piece).collect::<std::result::Result<Vec<Piece>, String>>()
    };
    let frame = Frame { single: pieces("single")?, pair: pieces("pair")? };
    let texts = |pieces: &[Piece], second: bool| {
        pieces.iter().filter(|p| matches!(p, Piece::Text { second: s, .. } if *s == second)).count()
    };
    let counts =
        [(&frame.single, false), (&frame.pair, false), (&frame.pair, true)].map(|(p, s)| texts(p, s));
    if counts != [1, 1, 1] {
        return Err("post_processor: a template names each text once".into());
    }
    Ok(frame)
}

/// `cls A sep` and `cls A sep{separators} B sep`.
fn around(processor: &Value, separators: usize, second: u32) -> std::result::Result<Frame, String> {
    let special = |key: &str, times: usize, token_type: u32| {
        let id = id(&processor[key][1]).ok_or_else(|| format!("post_processor: \"{key}\" has no id"))?;
        Ok::<Piece, String>(Piece::Special { ids: vec![id; times], token_type })
    };
    let text = |second, token_type| Piece::Text { second, token_type };
    Ok(Frame {
        single: vec![special("cls", 1, 0)?, text(false, 0), special("sep", 1, 0)?],
        pair: vec![
            special("cls", 1, 0)?,
            text(false, 0),
            special("sep", separators, 0)?,
            text(true, second),
            special("sep", 1, second)?,
        ],
    })
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().filter(|id| *id < super::hugging_face::VOCAB_MAX).map(|id| id as u32)
}

/// The lengths that two texts keep of `room`: the longer one loses first, then both are halves.
fn longest_first(a: usize, b: usize, room: usize) -> (usize, usize) {
    if a + b <= room {
        return (a, b);
    }
    let short = a.min(b);
    let long = if short > room { short } else { short.max(room - short) };
    let (short, long) = if short + long > room { (room / 2, room / 2 + room % 2) } else { (short, long) };
    if a > b { (long, short) } else { (short, long) }
}

impl Tokenizer {
    /// One text or two with the special tokens that the tokenizer puts around them, of at most `max_length` ids. The names
    /// of special tokens in the texts are letters.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; if the tokenizer's post-processor is not understood.
    pub fn encode_framed(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Framed> {
        let frame = self.frame()?;
        let room = max_length.saturating_sub(frame.added(pair.is_some()));
        let mut first = self.encode_with_offsets(text, Special::AsText)?;
        let mut second = pair.map(|text| self.encode(text, Special::AsText)).transpose()?.unwrap_or_default();
        let (a, b) = longest_first(first.len(), second.len(), room);
        let truncated = first.len() + second.len() - a - b;
        first.truncate(a);
        second.truncate(b);
        let mut framed = Framed { truncated, ..Framed::default() };
        let mut first = Some(first);
        let mut push = |id, token_type, offsets| {
            framed.ids.push(id);
            framed.token_types.push(token_type);
            framed.offsets.push(offsets);
        };
        for piece in frame.pieces(pair.is_some()) {
            match piece {
                Piece::Special { ids, token_type } => ids.iter().for_each(|&id| push(id, *token_type, None)),
                Piece::Text { second: false, token_type } => {
                    let rows = first.take().unwrap_or_default().into_iter();
                    rows.for_each(|(id, range)| push(id, *token_type, Some(range)));
                }
                Piece::Text { token_type, .. } => second.iter().for_each(|&id| push(id, *token_type, None)),
            }
        }
        Ok(framed)
    }
}

/// What a tokenizer whose post-processor is not understood is told.
pub(super) fn not_understood(problem: &str) -> Error {
    Error::Encode { problem: format!("the tokenizer's special tokens cannot be placed: {problem}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_longer_text_loses_first() {
        let cases =
            [(0, 9, 7, (0, 7)), (2, 4, 7, (2, 4)), (2, 9, 7, (2, 5)), (9, 2, 7, (5, 2)), (9, 9, 7, (3, 4))];
        for (a, b, room, want) in cases {
            assert_eq!(longest_first(a, b, room), want, "{a} {b} {room}");
        }
        assert_eq!(longest_first(4, 4, 7), (3, 4));
        assert_eq!(longest_first(9, 4, 7), (4, 3));
        assert_eq!(longest_first(3, 3, 0), (0, 0));
    }

    #[test]
    fn frames_of_the_usual_post_processors() {
        let special = |id: u32, token_type| Piece::Special { ids: vec![id], token_type };
        let text = |second, token_type| Piece::Text { second, token_type };
        let bert = json!({"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]});
        let want = Frame {
            single: vec![special(1, 0), text(false, 0), special(2, 0)],
            pair: vec![special(1, 0), text(false, 0), special(2, 0), text(true, 1), special(2, 1)],
        };
        assert_eq!(Frame::read(&bert), Ok(want.clone()));
        let token = |name, t| json!({"SpecialToken": {"id": name, "type_id": t}});
        let sequence = |name, t| json!({"Sequence": {"id": name, "type_id": t}});
        let template = json!({"type": "TemplateProcessing",
            "single": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0)],
            "pair": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0), sequence("B", 1), token("[SEP]", 1)],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1]}, "[SEP]": {"id": "[SEP]", "ids": [2]}}});
        let steps = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        assert_eq!(Frame::read(&steps), Ok(want));
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
        let frame = Frame::read(&roberta).unwrap();
        assert_eq!((frame.added(false), frame.added(true), frame.highest()), (2, 4, Some(2)));
        assert_eq!(frame.with_first(9).added(false), 2, "<s> stands there");
        assert_eq!(Frame::default().with_first(9).added(true), 1);
    }

    #[test]
    fn odd_post_processors_are_named() {
        for (processor, word) in [
            (json!({"type": "Other"}), "Other"),
            (json!({"type": "BertProcessing", "cls": ["[CLS]", 1]}), "sep"),
            (json!({"type": "TemplateProcessing", "single": [], "pair": []}), "each text once"),
            (json!({"type": "TemplateProcessing", "single": 3}), "single"),
            (json!({"type": "Sequence"}), "processors"),
        ] {
            assert!(Frame::read(&processor).unwrap_err().contains(word), "{processor}");
        }
    }
}
