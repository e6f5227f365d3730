//! SentencePiece's BPE: merge the neighbouring pair whose union is the best-scored piece, again and again.
//!
//! Unlike a merge list, the order comes from the pieces' scores; what stays outside the vocabulary is spelled in bytes
//! (`<0x0A>`). The whole text is one word: spaces are the character `▁`. Cost O(n log n) in the text's characters.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// Pieces with scores. Built by [`super::GgufVocab`], which has checked them.
#[derive(Debug, Clone)]
pub(super) struct SentencePiece {
    /// Pieces that text may become; control, unknown and byte tokens are not among them.
    pub pieces: HashMap<String, (u32, f32)>,
    /// Token of each byte, where the vocabulary has one.
    pub bytes: Box<[Option<u32>; 256]>,
    pub unknown: Option<u32>,
}

/// A stretch of the text in the chain of symbols; `len` 0 means that it was merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// A possible merge; `len` tells later whether both sides are still what they were.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    /// The best score first, the leftmost of equals.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

impl SentencePiece {
    /// The ids of `text` with the byte range that each covers.
    ///
    /// # Errors
    /// Names the character that has neither a piece, nor bytes, nor an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<(u32, (usize, usize))>, String> {
        let mut symbols = characters(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            queue.extend(self.pair(text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue; // one side has been merged elsewhere since
            }
            symbols[left].len = len;
            symbols[left].right = b.right;
            symbols[right].len = 0;
            if let Some(next) = b.right {
                symbols[next].left = Some(left);
                queue.extend(self.pair(text, &symbols, left, next));
            }
            if let Some(previous) = a.left {
                queue.extend(self.pair(text, &symbols, previous, left));
            }
        }
        let mut ids = Vec::with_capacity(symbols.len());
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.push(text, symbol.start, symbol.start + symbol.len, &mut ids)?;
        }
        Ok(ids)
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        let (_, score) = self.pieces.get(&text[start..start + len])?;
        Some(Pair { score: *score, left, right, len })
    }

    fn push(
        &self,
        text: &str,
        start: usize,
        end: usize,
        ids: &mut Vec<(u32, (usize, usize))>,
    ) -> Result<(), String> {
        let piece = &text[start..end];
        if let Some((id, _)) = self.pieces.get(piece) {
            ids.push((*id, (start, end)));
            return Ok(());
        }
        for byte in piece.bytes() {
            match self.bytes[usize::from(byte)].or(self.unknown) {
                Some(id) => ids.push((id, (start, end))), // the whole character's range
                None => {
                    return Err(format!(
                        "{piece:?} is not in the vocabulary, which has no byte tokens either"
                    ));
                }
            }
        }
        Ok(())
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(i, (start, c))| Symbol {
            start,
            len: c.len_utf8(),
            left: i.checked_sub(1),
            right: Some(i + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.right = None;
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> SentencePiece {
        let pieces =
            [("▁", -1.0), ("a", -2.0), ("b", -3.0), ("c", -4.0), ("bc", -5.0), ("ab", -6.0), ("▁a", -7.0)];
        let pieces =
            pieces.iter().enumerate().map(|(i, (s, score))| ((*s).to_string(), (i as u32, *score))).collect();
        let mut bytes = Box::new([None; 256]);
        bytes[0xC3] = Some(100);
        bytes[0xA9] = Some(101);
        SentencePiece { pieces, bytes, unknown: None }
    }

    fn ids(text: &str) -> Vec<u32> {
        model().encode(text).unwrap().into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn the_best_score_wins_over_the_leftmost() {
        assert_eq!(ids("abc"), [1, 4]); // a + bc: -5 beats ab's -6
        assert_eq!(ids("▁ab"), [0, 5]); // ▁ + ab: -6 beats ▁a's -7
    }

    #[test]
    fn of_equal_scores_the_leftmost_wins() {
        let mut model = model();
        model.pieces.insert("aa".into(), (9, -1.0));
        let ids: Vec<u32> = model.encode("aaa").unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [9, 1]);
    }

    #[test]
    fn what_is_outside_the_vocabulary_is_spelled_in_bytes() {
        assert_eq!(ids("aé"), [1, 100, 101]);
        assert!(model().encode("ж").unwrap_err().contains("ж"));
        assert_eq!(ids(""), [0; 0]);
    }
}
