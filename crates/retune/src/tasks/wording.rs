//! How rows' keys and values are named in messages.

use serde_json::Value;

/// The beginning of a text, for a message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// What a value is.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a text".into(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}
