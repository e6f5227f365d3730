//! For tests: the cases that `scripts/reference/make_pictures_cases.py` wrote, and its made-up picture.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::picture::Picture;

/// One case of `tests/data/pictures/cases.json`.
pub struct Case(Value);

pub fn cases(kind: &str) -> Vec<Case> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/pictures/cases.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = all[kind].as_array().expect("cases of this kind");
    assert!(!cases.is_empty());
    cases.iter().cloned().map(Case).collect()
}

impl Case {
    pub fn read<T: DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_value(self.0[key].clone()).unwrap_or_else(|e| panic!("{key}: {e}"))
    }

    pub fn pair(&self, key: &str) -> (usize, usize) {
        self.read(key)
    }

    pub fn number(&self, key: &str) -> usize {
        self.read(key)
    }

    pub fn numbers(&self, key: &str) -> Vec<f32> {
        self.read(key)
    }

    /// Bytes in hexadecimal.
    pub fn bytes(&self, key: &str) -> Vec<u8> {
        let text: String = self.read(key);
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }
}

/// Byte c of pixel (x, y): (37 x² + 11 y² + 23 x y + 91 c + 5 x c) mod 256, with a bright square in it.
pub fn made(width: usize, height: usize) -> Picture {
    let value = |x: usize, y: usize, c: usize| {
        let square = x * 3 > width && x * 3 < 2 * width && y * 3 > height && y * 3 < 2 * height;
        let v = 37 * x * x + 11 * y * y + 23 * x * y + 91 * c + 5 * x * c;
        if square { 255 - (v % 32) as u8 } else { (v % 256) as u8 }
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let data = pixels.flat_map(|(x, y)| [value(x, y, 0), value(x, y, 1), value(x, y, 2)]).collect();
    Picture { width, height, data }
}
