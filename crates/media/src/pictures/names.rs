//! Names of classes: the nearest of some ("did you mean …"), and from one list to another.

use std::collections::HashMap;

/// More names than this are not searched.
const SEARCHED: usize = 2_000;

/// `; did you mean "b"?`, or nothing if no name is near.
pub fn nearest(typed: &str, known: &[String]) -> String {
    let typed = typed.to_lowercase();
    let scored = known.iter().take(SEARCHED).map(|name| (distance(&typed, &name.to_lowercase()), name));
    match scored.min_by_key(|(distance, _)| *distance) {
        Some((distance, name)) if distance <= 1 + typed.chars().count() / 4 => {
            format!("; did you mean {name:?}?")
        }
        _ => String::new(),
    }
}

/// The index of each name in another list.
pub fn translation(names: &[String], to: &[String]) -> Vec<Option<u32>> {
    let index: HashMap<&str, u32> =
        to.iter().enumerate().rev().map(|(i, name)| (name.as_str(), i as u32)).collect();
    names.iter().map(|name| index.get(name.as_str()).copied()).collect()
}

/// Levenshtein's: insertions, deletions and changes of letters. Only the first 64 letters count.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_not() {
        let known = ["Tree", "Dead", "Alive"].map(String::from);
        assert_eq!(nearest("tre", &known), "; did you mean \"Tree\"?");
        assert_eq!(nearest("ALIVE", &known), "; did you mean \"Alive\"?");
        assert_eq!(nearest("zebra", &known), "");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
