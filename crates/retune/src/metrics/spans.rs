//! Tagged tokens: the spans that tags such as `B-PER`, `I-PER`, `O` mark, and their scores, as seqeval counts them.
//!
//! Lenient as seqeval's default (and conlleval) is: an `I-` of another type, or after `O`, begins a span too. IOB, IOBES and
//! BILOU (L as E, U as S) are understood.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClassScores, Scores};

/// A marked run of tokens, `first..=last`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span<'a> {
    pub kind: &'a str,
    pub first: usize,
    pub last: usize,
}

/// The part of a tag before the type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Begin,
    Inside,
    End,
    Single,
    Outside,
}

/// Place and type; a bare `B` or `I` has the type `_`.
fn parse(tag: &str) -> Option<(Place, &str)> {
    let (place, kind) = tag.split_once('-').unwrap_or((tag, "_"));
    let place = match place {
        "B" => Place::Begin,
        "I" | "M" => Place::Inside,
        "E" | "L" => Place::End,
        "S" | "U" => Place::Single,
        "O" if kind == "_" => return Some((Place::Outside, "")),
        _ => return None,
    };
    Some((place, kind))
}

/// Whether all tags are `O` or mark spans, and at least one does.
pub fn is_span_scheme(names: &[String]) -> bool {
    let parsed: Option<Vec<_>> = names.iter().map(|name| parse(name)).collect();
    parsed.is_some_and(|tags| tags.iter().any(|(place, _)| *place != Place::Outside))
}

/// The spans that a row's tags mark; a tag that is no part of the scheme stands outside.
pub fn spans<'a>(tags: impl Iterator<Item = &'a str>) -> Vec<Span<'a>> {
    use Place::*;
    let mut spans = Vec::new();
    let (mut before, mut kind_before, mut first) = (Outside, "", 0);
    let tags = tags.map(|tag| parse(tag).unwrap_or((Outside, "")));
    for (i, (place, kind)) in tags.chain(std::iter::once((Outside, ""))).enumerate() {
        let other = kind != kind_before;
        let ends = match before {
            Outside => false,
            End | Single => true,
            Begin | Inside => other || matches!(place, Begin | Single | Outside),
        };
        if ends && i > 0 {
            spans.push(Span { kind: kind_before, first, last: i - 1 });
        }
        let begins = match place {
            Outside => false,
            Begin | Single => true,
            Inside | End => other || matches!(before, End | Single | Outside),
        };
        if begins {
            first = i;
        }
        (before, kind_before) = (place, kind);
    }
    spans
}

/// The scores of each type of span, in alphabetical order, and how many spans are right in all.
pub(super) fn scores(
    names: &[String],
    truth: &[Vec<u32>],
    predicted: &[Vec<u32>],
) -> (Vec<ClassScores>, u64) {
    #[derive(Default)]
    struct Count {
        hits: u64,
        predicted: u64,
        support: u64,
    }
    let name = |tag: &u32| names.get(*tag as usize).map_or("O", String::as_str);
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for (truth, predicted) in truth.iter().zip(predicted) {
        let truth: BTreeSet<Span> = spans(truth.iter().map(name)).into_iter().collect();
        for span in spans(predicted.iter().map(name)) {
            let count = counts.entry(span.kind).or_default();
            count.predicted += 1;
            count.hits += u64::from(truth.contains(&span));
        }
        truth.iter().for_each(|span| counts.entry(span.kind).or_default().support += 1);
    }
    let hits = counts.values().map(|count| count.hits).sum();
    let class = |(name, Count { hits, predicted, support }): (&str, Count)| ClassScores {
        name: name.to_string(),
        scores: Scores::of(hits, predicted, support),
        support,
        predicted,
    };
    (counts.into_iter().map(class).collect(), hits)
}
