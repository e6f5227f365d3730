//! Against what transformers' normalisers make of the same texts, and the law of the fewest edits.

use super::*;

#[derive(Deserialize)]
struct Case {
    text: String,
    english: String,
    basic: String,
    no_diacritics: String,
    letters: String,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/sound/normalizer.json");
    let cases: Cases = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    cases.cases
}

#[test]
fn texts_are_normalised_as_the_reference_does() {
    let cases = cases();
    assert!(cases.len() >= 300, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        for (normalizer, wanted) in [
            (Normalizer::English, &case.english),
            (Normalizer::Basic, &case.basic),
            (Normalizer::BasicNoDiacritics, &case.no_diacritics),
            (Normalizer::BasicLetters, &case.letters),
        ] {
            let found = normalizer.normalize(&case.text);
            if found != *wanted {
                wrong
                    .push(format!("{normalizer:?} {:?}: {found:?}, the reference has {wanted:?}", case.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn errors_are_counted_over_all_rows() {
    let row = |said: &str, heard: &str| RowErrors::of(Normalizer::Basic, said, heard);
    let one = row("The quick, brown fox!", "the quick red fox jumps");
    let counts = EditCounts { hits: 3, substitutions: 1, deletions: 0, insertions: 1 };
    assert_eq!((one.words, one.words.rate()), (counts, 0.5));
    let two = row("one two", "");
    assert_eq!((two.words.deletions, two.characters.deletions), (2, 7));
    let rates: ErrorRates = [&one, &two].into_iter().collect();
    assert_eq!((rates.rows, rates.wer()), (2, 4.0 / 6.0));
    assert_eq!(rates.characters.reference(), 19 + 7);
    assert_eq!((row("", "").words.rate(), row("...", "a b").words.rate()), (0.0, 1.0));
    assert_eq!(row("", "a b").words.insertions, 2);
}

#[test]
fn the_diff_pairs_what_was_said_with_what_was_heard() {
    use Edit::{Deletion, Hit, Insertion, Substitution};
    let row = RowErrors::of(Normalizer::Basic, "a b c d", "a x c d e");
    let some = Some::<&str>;
    let wanted = [
        (Hit, some("a"), some("a")),
        (Substitution, some("b"), some("x")),
        (Hit, some("c"), some("c")),
        (Hit, some("d"), some("d")),
        (Insertion, None, some("e")),
    ];
    assert_eq!(row.diff(), wanted);
    let row = RowErrors::of(Normalizer::Basic, "a b", "b");
    assert_eq!(row.diff(), [(Deletion, some("a"), None), (Hit, some("b"), some("b"))]);
}

/// By the plain table of distances.
fn distance(a: &[u8], b: &[u8]) -> u64 {
    let mut row: Vec<u64> = (0..=b.len() as u64).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i as u64 + 1];
        for (j, y) in b.iter().enumerate() {
            next.push((row[j] + u64::from(x != y)).min(row[j + 1] + 1).min(next[j] + 1));
        }
        row = next;
    }
    row[b.len()]
}

#[test]
fn alignments_have_the_fewest_edits_also_when_halved() {
    let random = |n: usize, seed: u64| -> Vec<u8> {
        let next = |s: &mut u64| {
            *s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some((*s >> 62) as u8)
        };
        let mut state = seed;
        std::iter::from_fn(|| next(&mut state)).take(n).collect()
    };
    for (n, m) in [(0, 0), (0, 5), (5, 0), (1, 1), (7, 12), (40, 33), (1_500, 1_300)] {
        let (a, b) = (random(n, 1 + n as u64), random(m, 99 + m as u64));
        let edits = align(&a, &b);
        let counts = EditCounts::of(&edits);
        assert_eq!(counts.reference(), n as u64);
        assert_eq!(counts.hits + counts.substitutions + counts.insertions, m as u64);
        assert_eq!(counts.errors(), distance(&a, &b), "{n} {m}");
        let (mut i, mut j) = (0, 0);
        for edit in edits {
            if matches!(edit, Edit::Hit | Edit::Substitution) {
                assert_eq!(a[i] == b[j], edit == Edit::Hit);
            }
            i += usize::from(edit != Edit::Insertion);
            j += usize::from(edit != Edit::Deletion);
        }
    }
}

#[test]
fn strange_texts_do_no_harm() {
    let long = "nine ".repeat(3_000);
    for text in
        ["", " ", "(((", "[a", "'", "1", "٣ ٤", "and a half", "point", "$", "£.", "\u{200d}one\u{301}", &long]
    {
        for normalizer in [Normalizer::English, Normalizer::Basic, Normalizer::BasicLetters, Normalizer::None]
        {
            normalizer.normalize(text);
        }
    }
    assert_eq!(Normalizer::for_language(Some("en")), Normalizer::English);
    assert_eq!(Normalizer::for_language(Some("fr")), Normalizer::Basic);
}
