//! What a row says, whichever of the usual shapes it has.
//!
//! Recognised by its keys (case does not matter): `messages` (OpenAI), `conversations` (ShareGPT), `prompt` and
//! `completion`, `instruction`/`input`/`output` (Alpaca; Dolly's `context` and `response` too), `question` and `answer`,
//! `text`.

use crate::tasks::wording::{describe, shorten};
use crate::text::Message;
use serde_json::{Map, Value};

/// The keys that make a row, for messages.
const SHAPES: &str = "messages | conversations | prompt + completion | instruction (+ input) + output | question + answer | text";
const KEYS: &[&str] = &[
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "text",
];
const ROLE_BYTES_MAX: usize = 64;
const SIMILAR: f64 = 0.8;

/// A row, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// Turns, written by the chat template; answers before message `train_from` are given, not learned.
    Chat { messages: Vec<Message>, train_from: usize, kind: Kind },
    /// Plain text to go on with, and how it goes on. No template.
    Completion { prompt: String, completion: String },
    /// Plain text.
    Text(String),
}

/// The shape that a row came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Messages,
    ShareGpt,
    PromptCompletion,
    Instruction,
    QuestionAnswer,
    Text,
}

impl Kind {
    /// As shown to the user.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "conversations (ShareGPT)",
            Self::PromptCompletion => "prompt and completion (plain text, no chat template)",
            Self::Instruction => "instruction (Alpaca)",
            Self::QuestionAnswer => "question and answer",
            Self::Text => "text",
        }
    }
}

impl Row {
    /// The shape.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Chat { kind, .. } => *kind,
            Self::Completion { .. } => Kind::PromptCompletion,
            Self::Text(_) => Kind::Text,
        }
    }

    /// What the row asks: its first user turn, its prompt, or all of a plain text.
    pub fn question(&self) -> &str {
        match self {
            Self::Chat { messages, .. } => {
                let user = messages.iter().find(|m| m.role == "user").or(messages.first());
                user.map_or("", |m| m.content.as_str())
            }
            Self::Completion { prompt, .. } => prompt,
            Self::Text(text) => text,
        }
    }

    /// Reads a row.
    ///
    /// # Errors
    /// What is missing or of the wrong type, with the keys found and the nearest right ones.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err(format!("the row is {}, not an object with keys ({SHAPES})", describe(value)));
        };
        let row = Fields(fields);
        if let Some((key, turns)) = row.find(&["messages"]) {
            return chat(turns_of(key, turns)?, 0, Kind::Messages);
        }
        if let Some((key, turns)) = row.find(&["conversations", "conversation"]) {
            return chat(turns_of(key, turns)?, 0, Kind::ShareGpt);
        }
        if let (Some(prompt), Some(completion)) =
            (row.find(&["prompt"]), row.find(&["completion", "response"]))
        {
            return prompt_completion(prompt, completion);
        }
        let exchange = [
            (row.find(&["instruction"]), row.find(&["output", "response"]), Kind::Instruction),
            (row.find(&["question"]), row.find(&["answer"]), Kind::QuestionAnswer),
        ];
        for (asked, answered, kind) in exchange {
            if let (Some(asked), Some(answered)) = (asked, answered) {
                return exchange_of(&row, asked, answered, kind);
            }
        }
        match row.find(&["text"]) {
            Some((key, text)) => Ok(Self::Text(string(key, text)?)),
            None => Err(row.unknown()),
        }
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The first of these keys that is there, whatever its case.
    fn find(&self, names: &[&str]) -> Option<(&'a str, &'a Value)> {
        names.iter().find_map(|name| {
            let exact = self.0.get_key_value(*name);
            let found =
                exact.or_else(|| self.0.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)));
            found.map(|(key, value)| (key.as_str(), value))
        })
    }

    fn unknown(&self) -> String {
        if self.0.is_empty() {
            return format!("the row has no keys; it needs {SHAPES}");
        }
        let quoted: Vec<String> = self.0.keys().take(12).map(|key| format!("{:?}", shorten(key))).collect();
        let hints: Vec<String> = self.0.keys().take(12).filter_map(|key| nearest(key)).collect();
        let hint =
            if hints.is_empty() { String::new() } else { format!(" Did you mean {}?", hints.join(", ")) };
        format!("the keys {} do not make a row; it needs {SHAPES}.{hint}", quoted.join(", "))
    }
}

/// `"instructon" -> "instruction"`, if a key is only nearly right.
fn nearest(key: &str) -> Option<String> {
    let lower = shorten(key).to_ascii_lowercase();
    let (similarity, name) = KEYS
        .iter()
        .map(|name| (strsim::jaro_winkler(&lower, name), *name))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity >= SIMILAR && lower != name).then(|| format!("{name:?} for {:?}", shorten(key)))
}

fn string(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key:?} is {}, not a text", describe(other))),
    }
}

fn chat(messages: Vec<Message>, train_from: usize, kind: Kind) -> Result<Row, String> {
    if !messages.iter().skip(train_from).any(|m| m.role == "assistant") {
        return Err("the conversation has no assistant turn to learn from".into());
    }
    Ok(Row::Chat { messages, train_from, kind })
}

fn prompt_completion((pk, prompt): (&str, &Value), (ck, completion): (&str, &Value)) -> Result<Row, String> {
    if let (Value::String(prompt), Value::String(completion)) = (prompt, completion) {
        return Ok(Row::Completion { prompt: prompt.clone(), completion: completion.clone() });
    }
    let turns = |key: &str, value: &Value, role: &str| match value {
        Value::String(text) => Ok(vec![Message::new(role, text.as_str())]),
        other => turns_of(key, other),
    };
    let mut messages = turns(pk, prompt, "user")?;
    let train_from = messages.len();
    messages.extend(turns(ck, completion, "assistant")?);
    chat(messages, train_from, Kind::PromptCompletion)
}

/// A question and an answer as two turns, with the system prompt if the row has one.
fn exchange_of(
    row: &Fields<'_>,
    (ak, asked): (&str, &Value),
    (bk, answered): (&str, &Value),
    kind: Kind,
) -> Result<Row, String> {
    let mut messages = Vec::with_capacity(3);
    let optional = |names: &[&str]| match row.find(names) {
        Some((_, Value::Null)) | None => Ok(String::new()),
        Some((key, value)) => string(key, value),
    };
    let system = optional(&["system"])?;
    if !system.trim().is_empty() {
        messages.push(Message::new("system", system));
    }
    let mut question = string(ak, asked)?;
    let input = if kind == Kind::Instruction { optional(&["input", "context"])? } else { String::new() };
    if !input.trim().is_empty() {
        question = format!("{question}\n\n{input}");
    }
    messages.push(Message::new("user", question));
    messages.push(Message::new("assistant", string(bk, answered)?));
    chat(messages, 0, kind)
}

fn turns_of(key: &str, value: &Value) -> Result<Vec<Message>, String> {
    let Value::Array(turns) = value else {
        return Err(format!("{key:?} is {}, not a list of turns", describe(value)));
    };
    if turns.is_empty() {
        return Err(format!("{key:?} is an empty list"));
    }
    turns.iter().enumerate().map(|(i, turn)| turn_of(turn).map_err(|e| format!("{key}[{i}]: {e}"))).collect()
}

/// A turn: `role` and `content`, or ShareGPT's `from` and `value`.
fn turn_of(value: &Value) -> Result<Message, String> {
    let Value::Object(fields) = value else {
        return Err(format!("{} is not a turn; it needs \"role\" and \"content\"", describe(value)));
    };
    let role = match fields.get("role").or_else(|| fields.get("from")) {
        Some(Value::String(role)) if !role.is_empty() && role.len() <= ROLE_BYTES_MAX => role_of(role),
        Some(other) => return Err(format!("the role is {}, not one short word", describe(other))),
        None => return Err("\"role\" is missing (ShareGPT: \"from\")".into()),
    };
    let content = match fields.get("content").or_else(|| fields.get("value")) {
        Some(value) => content_of(value, fields.contains_key("tool_calls"))?,
        None if fields.contains_key("tool_calls") => String::new(),
        None => return Err("\"content\" is missing (ShareGPT: \"value\")".into()),
    };
    let known = ["role", "from", "content", "value"];
    let extra = fields.iter().filter(|(key, _)| !known.contains(&key.as_str()));
    Ok(Message { role, content, extra: extra.map(|(k, v)| (k.clone(), v.clone())).collect() })
}

/// ShareGPT's names of roles, as everybody else calls them.
fn role_of(role: &str) -> String {
    let lower = role.trim().to_ascii_lowercase();
    match lower.as_str() {
        "human" => "user".into(),
        "gpt" | "chatgpt" | "model" | "bot" => "assistant".into(),
        "function" | "observation" | "function_response" => "tool".into(),
        _ => lower,
    }
}

fn content_of(value: &Value, tool_call: bool) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null if tool_call => Ok(String::new()),
        Value::Array(parts) => parts.iter().enumerate().map(|(i, part)| part_of(i, part)).collect(),
        other => Err(format!("\"content\" is {}, not a text", describe(other))),
    }
}

/// OpenAI's `{"type": "text", "text": …}`.
fn part_of(i: usize, part: &Value) -> Result<String, String> {
    match (part.get("type").and_then(Value::as_str), part.get("text"), part) {
        (Some("text") | None, Some(Value::String(text)), _) => Ok(text.clone()),
        (_, _, Value::String(text)) => Ok(text.clone()),
        (Some(kind), _, _) if kind != "text" => {
            Err(format!("content[{i}] is of type {:?}; only text is learned here", shorten(kind)))
        }
        _ => Err(format!("content[{i}] is {}, not {{\"type\": \"text\", \"text\": …}}", describe(part))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat_of(value: Value) -> Vec<(String, String)> {
        match Row::parse(&value).unwrap() {
            Row::Chat { messages, .. } => messages.into_iter().map(|m| (m.role, m.content)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn error(value: Value) -> String {
        Row::parse(&value).expect_err("an error")
    }

    fn pairs(turns: &[(&str, &str)]) -> Vec<(String, String)> {
        turns.iter().map(|(role, content)| ((*role).to_string(), (*content).to_string())).collect()
    }

    #[test]
    fn every_usual_shape_is_understood() {
        let qa = pairs(&[("user", "q"), ("assistant", "a")]);
        let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(chat_of(json!({"messages": turns, "id": 3})), qa);
        let share = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
        assert_eq!(chat_of(json!({"conversations": share})), qa);
        assert_eq!(chat_of(json!({"instruction": "q", "input": "", "output": "a"})), qa);
        assert_eq!(chat_of(json!({"instruction": "q", "context": null, "response": "a"})), qa);
        assert_eq!(chat_of(json!({"Question": "q", "ANSWER": "a"})), qa);
        assert_eq!(
            chat_of(json!({"instruction": "q", "input": "i", "output": "a", "system": "s"})),
            pairs(&[("system", "s"), ("user", "q\n\ni"), ("assistant", "a")])
        );
        assert_eq!(Row::parse(&json!({"text": "t"})).unwrap(), Row::Text("t".into()));
        let plain = Row::Completion { prompt: "p".into(), completion: "c".into() };
        assert_eq!(Row::parse(&json!({"prompt": "p", "completion": "c"})).unwrap(), plain);
    }

    #[test]
    fn of_a_prompt_in_turns_only_the_completion_is_learned() {
        let prompt = json!([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
                            {"role": "user", "content": "3"}]);
        let row = json!({"prompt": prompt, "completion": [{"role": "assistant", "content": "4"}]});
        let Row::Chat { messages, train_from, .. } = Row::parse(&row).unwrap() else { panic!() };
        assert_eq!((messages.len(), train_from), (4, 3));
        let row = json!({"prompt": prompt, "completion": "4"});
        let Row::Chat { messages, .. } = Row::parse(&row).unwrap() else { panic!() };
        assert_eq!(messages[3], Message::new("assistant", "4"));
    }

    #[test]
    fn content_in_parts_and_tool_calls() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let row = json!({"messages": [{"role": "user", "content": parts},
            {"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}]});
        let Row::Chat { messages, .. } = Row::parse(&row).unwrap() else { panic!() };
        assert_eq!(messages[0].content, "ab");
        assert_eq!(messages[1].extra["tool_calls"][0]["name"], "f");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let e = error(json!({"instructon": "q", "outputs": "a"}));
        assert!(
            e.contains("\"instructon\"") && e.contains("\"instruction\" for") && e.contains("\"output\" for"),
            "{e}"
        );
        assert!(error(json!({"foo": 1})).contains("messages | conversations"));
        assert!(error(json!({})).contains("no keys"));
        assert!(error(json!([1, 2])).contains("a list of 2"));
        assert!(error(json!({"text": 7})).contains("the number 7"));
        assert!(error(json!({"messages": "hi"})).contains("not a list of turns"));
        assert!(error(json!({"messages": []})).contains("empty list"));
        assert!(error(json!({"messages": [{"role": "user", "content": "q"}]})).contains("no assistant turn"));
        for bad in [json!(null), json!(3), json!({"a": 1}), json!(true)] {
            let row = json!({"messages": [{"role": "user", "content": bad}]});
            assert!(error(row).starts_with("messages[0]: \"content\" is "));
        }
        let image =
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]});
        assert!(error(image).contains("image_url"));
        assert!(error(json!({"messages": [{"content": "x"}]})).contains("\"role\" is missing"));
        assert!(error(json!({"messages": [{"role": 1, "content": "x"}]})).contains("role is the number 1"));
        assert!(error(json!({"prompt": "p"})).contains("prompt + completion"));
    }
}
