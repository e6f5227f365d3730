//! The alignment of two sequences with the fewest edits (Levenshtein, 1965; in linear memory after Hirschberg, 1975).

use serde::{Deserialize, Serialize};

/// One step over the reference, the hypothesis, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// The same in both.
    Hit,
    /// One of each, not the same.
    Substitution,
    /// In the reference alone.
    Deletion,
    /// In the hypothesis alone.
    Insertion,
}

/// Cells of a table that is kept whole: larger ones are halved first.
const CELLS_MAX: usize = 1 << 20;

/// The edits that turn `reference` into `hypothesis`, the fewest there can be, in order. n x m steps of work, n + m of memory.
pub fn align<T: PartialEq>(reference: &[T], hypothesis: &[T]) -> Vec<Edit> {
    let mut edits = Vec::with_capacity(reference.len().max(hypothesis.len()));
    // What both begin and end with needs no table.
    let first = reference.iter().zip(hypothesis).take_while(|(a, b)| a == b).count();
    let (a, b) = (&reference[first..], &hypothesis[first..]);
    let last = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    edits.extend(std::iter::repeat_n(Edit::Hit, first));
    halve(&a[..a.len() - last], &b[..b.len() - last], &mut edits);
    edits.extend(std::iter::repeat_n(Edit::Hit, last));
    edits
}

/// Aligns the two halves of `a` with the parts of `b` that fit them best.
fn halve<T: PartialEq>(a: &[T], b: &[T], edits: &mut Vec<Edit>) {
    if a.len() < 2 || b.is_empty() || (a.len() + 1).saturating_mul(b.len() + 1) <= CELLS_MAX {
        return table(a, b, edits);
    }
    let (left, right) = a.split_at(a.len() / 2);
    let before = distances(left.iter(), b.iter());
    let after = distances(right.iter().rev(), b.iter().rev());
    let cost = |cut: &usize| before[*cut] + after[b.len() - *cut];
    let cut = (0..=b.len()).min_by_key(cost).unwrap_or(0);
    halve(left, &b[..cut], edits);
    halve(right, &b[cut..], edits);
}

/// Of all of `a` to each beginning of `b`.
fn distances<'a, T: PartialEq + 'a>(
    a: impl Iterator<Item = &'a T>,
    b: impl Iterator<Item = &'a T> + Clone,
) -> Vec<u32> {
    let mut row: Vec<u32> = (0..=b.clone().count() as u32).collect();
    for x in a {
        let mut diagonal = row[0];
        row[0] += 1;
        for (j, y) in b.clone().enumerate() {
            let change = diagonal + u32::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j + 1] + 1).min(row[j] + 1);
        }
    }
    row
}

/// As [`align`], by a table of all distances.
fn table<T: PartialEq>(a: &[T], b: &[T], edits: &mut Vec<Edit>) {
    let width = b.len() + 1;
    let mut cells = vec![0u32; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            let up = |i: usize, j: usize| cells[i * width + j];
            cells[i * width + j] = match (i, j) {
                (0, j) => j as u32,
                (i, 0) => i as u32,
                (i, j) => {
                    let change = up(i - 1, j - 1) + u32::from(a[i - 1] != b[j - 1]);
                    change.min(up(i - 1, j) + 1).min(up(i, j - 1) + 1)
                }
            };
        }
    }
    let from = edits.len();
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 || j > 0 {
        let here = cells[i * width + j];
        let diagonal = (i > 0 && j > 0).then(|| (cells[(i - 1) * width + j - 1], a[i - 1] == b[j - 1]));
        let edit = match diagonal {
            Some((before, true)) if before == here => Edit::Hit,
            Some((before, false)) if before + 1 == here => Edit::Substitution,
            _ if i > 0 && cells[(i - 1) * width + j] + 1 == here => Edit::Deletion,
            _ => Edit::Insertion,
        };
        i -= usize::from(edit != Edit::Insertion);
        j -= usize::from(edit != Edit::Deletion);
        edits.push(edit);
    }
    edits[from..].reverse();
}
