//! Small JSON files as values: bounded in size, depth and memory, duplicate keys refused.
//!
//! `serde_json` alone keeps the last of two equal keys and needs up to 50 bytes of memory for each byte of hostile
//! text (`[[],[],…`); here the memory is counted while the values are built ([`limits::JSON_MEMORY_PER_BYTE`]).

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::path::Path;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::limits;

/// Reads a JSON file of at most `limit` bytes. A byte-order mark is skipped.
pub fn read(path: &Path, limit: u64) -> Result<Value> {
    let text = Bytes::open(path)?.read_text("JSON", limit)?;
    parse(path, &text)
}

/// Parses the text of a JSON file; `path` is for messages.
pub fn parse(path: &Path, text: &str) -> Result<Value> {
    parse_without(path, text, &[])
}

/// [`parse`] that leaves out these keys of the outermost object.
pub(crate) fn parse_without(path: &Path, text: &str, skip: &[&str]) -> Result<Value> {
    parse_bounded(text, limits::JSON_MEMORY_BYTES, skip).map_err(|e| Error::Json {
        path: path.to_path_buf(),
        line: e.line(),
        column: e.column(),
        what: plain(&e),
    })
}

/// Parses a text whose values may take `memory` bytes and three times its length.
pub(crate) fn parse_bounded(text: &str, memory: usize, skip: &[&str]) -> serde_json::Result<Value> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let left = Cell::new(memory.saturating_add(text.len().saturating_mul(limits::JSON_MEMORY_PER_BYTE)));
    let mut de = serde_json::Deserializer::from_str(text);
    let value = Bounded { left: &left, skip }.deserialize(&mut de)?;
    de.end()?;
    Ok(value)
}

/// The message of a JSON error without its " at line 1 column 2".
pub(crate) fn plain(e: &serde_json::Error) -> String {
    let message = e.to_string();
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_string()
}

/// Memory of an element of a list while the list grows: the old and the doubled buffer are both there for a moment.
const ELEMENT_BYTES: usize = 3 * size_of::<Value>();
/// Entries of an object are kept in nodes of 11; the first one takes a node ...
const NODE_BYTES: usize = 12 * (size_of::<String>() + size_of::<Value>());
/// ... and in a long object nodes are half full.
const ENTRY_BYTES: usize = NODE_BYTES / 5;

/// Builds a [`Value`], counting down the memory that may still be taken.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<usize>,
    /// Keys of this object that are left out.
    skip: &'a [&'a str],
}

impl Bounded<'_> {
    fn take<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or_else(|| E::custom("more values than a file of this size may hold"))?);
        Ok(())
    }

    fn inner(self) -> Self {
        Bounded { skip: &[], ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        self.take(v.len())?;
        Ok(Value::String(v.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            self.take(ELEMENT_BYTES)?;
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.skip.contains(&key.as_str()) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = match out.len() {
                0 => NODE_BYTES,
                1..11 => 0,
                _ => ENTRY_BYTES,
            };
            self.take(entry + key.len())?;
            let value = map.next_value_seed(self.inner())?;
            if out.contains_key(&key) {
                let key = crate::error::quote(&key);
                return Err(de::Error::custom(format!("the key {key} occurs twice")));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// The text that Python's `json.dumps(value, indent=2, sort_keys=True)` gives: what PEFT writes.
pub fn to_python_text(value: &Value) -> String {
    let mut out = Vec::new();
    let mut ser =
        serde_json::Serializer::with_formatter(&mut out, Python(serde_json::ser::PrettyFormatter::new()));
    // Writing values into memory cannot fail: keys are strings and numbers are finite.
    let _ = Sorted(value).serialize(&mut ser);
    String::from_utf8_lossy(&out).into_owned()
}

/// A finite number as Python's `repr` writes a float.
pub(crate) fn python_number(value: f64) -> String {
    let mut out = Vec::new();
    // Writing into memory cannot fail.
    let _ = write_python_number(&mut out, value);
    String::from_utf8_lossy(&out).into_owned()
}

fn write_python_number<W: ?Sized + Write>(w: &mut W, value: f64) -> std::io::Result<()> {
    let exponential = format!("{value:e}");
    let (mantissa, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        e if (-4..16).contains(&e) => write!(w, "{value:?}"),
        e => write!(w, "{mantissa}e{}{:02}", if e < 0 { '-' } else { '+' }, e.unsigned_abs()),
    }
}

/// Serialises objects in the order of their keys, whatever order the map keeps.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: serde::Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Array(items) => ser.collect_seq(items.iter().map(Sorted)),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(k, v)| (k, Sorted(v))).collect();
                entries.sort_by_key(|(k, _)| *k);
                ser.collect_map(entries)
            }
            other => other.serialize(ser),
        }
    }
}

/// Python's way to write what Rust writes otherwise: everything ASCII, exponents as `1e-05`.
struct Python<'a>(serde_json::ser::PrettyFormatter<'a>);

impl serde_json::ser::Formatter for Python<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> std::io::Result<()> {
        write_python_number(w, value)
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, text: &str) -> std::io::Result<()> {
        for c in text.chars() {
            if c.is_ascii() {
                w.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(w, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_array(w)
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_array(w)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.0.begin_array_value(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_array_value(w)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_object(w)
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_object(w)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.0.begin_object_key(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_object_value(w)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_object_value(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(text: &str) -> String {
        parse(Path::new("config.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn values_are_those_of_serde_json() {
        let text = "\u{feff}{\"a\": [1, -2, 0.5, 1e300, null, true, \"x\\u00e9\"], \"b\": {}}";
        let ours = parse(Path::new("x"), text).unwrap();
        assert_eq!(ours, json!({"a": [1, -2, 0.5, 1e300, null, true, "xé"], "b": {}}));
    }

    #[test]
    fn errors_name_file_line_and_column() {
        assert_eq!(message("{\n \"a\": 1,\n \"a\": 2}"), "config.json:3:8: the key `a` occurs twice");
        assert!(
            message("{\"a\": }").starts_with("config.json:1:7: expected value"),
            "{}",
            message("{\"a\": }")
        );
        assert!(message("{} x").contains("trailing"));
        assert!(message(&"[".repeat(200)).contains("recursion"));
        assert!(message(&format!("[{}0]", "0,".repeat(100_000))).contains("more values"));
    }

    #[test]
    fn long_real_files_are_within_the_bounds() {
        let labels: Vec<_> = (0..5_000).map(|i| format!("    \"{i}\": \"n{i:08}, label\"")).collect();
        parse(Path::new("x"), &format!("{{\"id2label\": {{\n{}\n}}}}", labels.join(",\n"))).unwrap();
        let name =
            |i| format!("\"model.layers.{i}.self_attn.q_proj.weight\":\"model-00001-of-00002.safetensors\"");
        let map: Vec<_> = (0..50_000).map(name).collect();
        parse(Path::new("x"), &format!("{{\"weight_map\":{{{}}}}}", map.join(","))).unwrap();
        let token =
            |i| format!("\"{i}\": {{\"content\": \"<unused{i}>\", \"lstrip\": false, \"special\": true}}");
        let tokens: Vec<_> = (0..20_000).map(token).collect();
        let text = format!("{{\"bos_token\": \"<s>\", \"added_tokens_decoder\": {{{}}}}}", tokens.join(","));
        assert_eq!(
            parse_without(Path::new("x"), &text, &["added_tokens_decoder"]).unwrap(),
            json!({"bos_token": "<s>"})
        );
    }

    #[test]
    fn python_would_write_the_same() {
        let value = json!({"b": [], "a": {"x": 1e-5, "é": 0.0}, "c": ["😀", 1e16, 8, 0.0001, 123456.5, 2.5e-7], "d": {}});
        let text = to_python_text(&value);
        let python = "{\n  \"a\": {\n    \"x\": 1e-05,\n    \"\\u00e9\": 0.0\n  },\n  \"b\": [],\n  \"c\": [\n    \"\\ud83d\\ude00\",\n    1e+16,\n    8,\n    0.0001,\n    123456.5,\n    2.5e-07\n  ],\n  \"d\": {}\n}";
        assert_eq!(text, python);
    }
}
