//! A model's own chat template: messages in, the text that the model was taught out.
//!
//! Templates are Jinja programs that come with model files, run here by `minijinja` as `transformers` runs them: blocks
//! eat their line break and indentation, Python's string and dict methods, `raise_exception`, `strftime_now`, `tojson`
//! without HTML escapes, loop controls. They reach nothing else: no files, no includes; a budget of steps, depth, source
//! and output. What the engine does not bound is the memory of a text that a template doubles again and again in a
//! variable without writing it out.

use super::error::{Error, Result};
use super::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

const SOURCE_BYTES_MAX: usize = 64 << 10;
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Steps of the template engine. The longest real templates take some hundred for each message.
const FUEL: u64 = 500_000;
const DEPTH_MAX: usize = 100;
const NAME: &str = "chat_template";

/// ChatML, for a model that has its tokens but no template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// Alpaca's plain headings, for a model that knows no turns.
const ALPACA: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    pub content: String,
    /// Further fields that a template may read (`tool_calls`, `name`, `reasoning_content`).
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn without further fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// Where a template comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// The model's files.
    Model,
    /// None there; ours, because the vocabulary has `<|im_start|>` and `<|im_end|>`.
    ChatMl,
    /// None there; ours: "### Instruction:" and "### Response:".
    Alpaca,
}

impl TemplateOrigin {
    /// What to tell the user.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Model => "the model's own",
            Self::ChatMl => "ChatML (the model has no template, but ChatML's tokens)",
            Self::Alpaca => "Alpaca's \"### Instruction: / ### Response:\" (the model has no template)",
        }
    }
}

/// A compiled template with the variables that stay the same.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    origin: TemplateOrigin,
    variables: BTreeMap<String, Jinja>,
}

impl ChatTemplate {
    /// Compiles the model's template, or a stated fallback where it has none: see [`ChatTemplate::origin`].
    ///
    /// # Errors
    /// [`Error::Template`] with the line if the source does not parse or is longer than 64 KiB.
    pub fn new(source: Option<&str>, tokenizer: &Tokenizer) -> Result<Self> {
        let chatml = ["<|im_start|>", "<|im_end|>"].iter().all(|name| tokenizer.token_to_id(name).is_some());
        let (source, origin) = match source {
            Some(source) if !source.trim().is_empty() => (source, TemplateOrigin::Model),
            _ if chatml => (CHATML, TemplateOrigin::ChatMl),
            _ => (ALPACA, TemplateOrigin::Alpaca),
        };
        Self::compile(
            source,
            origin,
            &tokenizer.name_of(tokenizer.bos()),
            &tokenizer.name_of(tokenizer.eos()),
        )
    }

    /// Compiles a source with the names of the tokens that it may write.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn compile(source: &str, origin: TemplateOrigin, bos_token: &str, eos_token: &str) -> Result<Self> {
        if source.len() > SOURCE_BYTES_MAX {
            let problem = format!("{} bytes long, more than {SOURCE_BYTES_MAX}", source.len());
            return Err(Error::Template { origin: origin.describe().into(), problem });
        }
        let mut environment = sandbox();
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|e| explain(&e, origin))?;
        // `transformers` passes the last two always, as None: templates ask whether they are defined.
        let variables = [
            ("bos_token", Jinja::from(bos_token)),
            ("eos_token", Jinja::from(eos_token)),
            ("tools", Jinja::from(())),
            ("documents", Jinja::from(())),
        ];
        let variables = variables.map(|(name, value)| (name.to_string(), value)).into();
        Ok(Self { source: source.to_string(), environment, origin, variables }.with_date(SystemTime::now()))
    }

    /// Sets a variable that the template reads (`enable_thinking`, `tools`, …).
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &Value) -> Self {
        self.variables.insert(name.to_string(), jinja(value));
        self
    }

    /// Sets the day (UTC) that `strftime_now` tells; today, unless set.
    #[must_use]
    pub fn with_date(mut self, now: SystemTime) -> Self {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.environment.add_function("strftime_now", move |format: &str| strftime(format, seconds));
        self
    }

    /// Where the template comes from, for the user to know.
    pub fn origin(&self) -> TemplateOrigin {
        self.origin
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; with `add_generation_prompt` it ends where the model is to answer.
    ///
    /// # Errors
    /// [`Error::Template`]: the template refuses the messages (in its words), or exceeds its budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|e| explain(&e, self.origin))?;
        let mut context = self.variables.clone();
        context.insert("messages".into(), messages.iter().map(message).collect());
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let mut output = Bounded(Vec::new());
        template
            .render_captured_to(Jinja::from(context), &mut output)
            .map_err(|e| explain(&e, self.origin))?;
        String::from_utf8(output.0)
            .map_err(|e| Error::Template { origin: self.origin.describe().into(), problem: e.to_string() })
    }
}

/// The environment of `transformers`, minus everything that reaches out.
fn sandbox() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH_MAX);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    // As Python prints them.
    environment.set_formatter(|out, state, value| {
        let text = if value.is_none() {
            "None"
        } else {
            match bool::try_from(value.clone()) {
                Ok(true) if value.kind() == minijinja::value::ValueKind::Bool => "True",
                Ok(false) if value.kind() == minijinja::value::ValueKind::Bool => "False",
                _ => return minijinja::escape_formatter(out, state, value),
            }
        };
        out.write_str(text).map_err(minijinja::Error::from)
    });
    environment
}

/// `{% generation %}` marks what the assistant says, for a mask that we derive otherwise; an unconditional block does as
/// well.
fn without_generation_marks(source: &str) -> String {
    static OPEN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").ok());
    static CLOSE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").ok());
    let (Some(open), Some(close)) = (OPEN.as_ref(), CLOSE.as_ref()) else { return source.to_string() };
    close.replace_all(&open.replace_all(source, "{%$1 if true $2%}"), "{%$1 endif $2%}").into_owned()
}

fn explain(error: &minijinja::Error, origin: TemplateOrigin) -> Error {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("it does not finish within {FUEL} steps"),
        ErrorKind::WriteFailure => format!("it writes more than {OUTPUT_BYTES_MAX} bytes"),
        _ => match error.detail() {
            Some(detail) => detail.to_string(),
            None => error.kind().to_string(),
        },
    };
    let problem = error.line().map_or(what.clone(), |line| format!("line {line}: {what}"));
    Error::Template { origin: origin.describe().into(), problem }
}

/// A text that refuses to grow beyond the limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(std::io::Error::other("the output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn message(message: &Message) -> Jinja {
    let mut fields: BTreeMap<String, Jinja> =
        message.extra.iter().map(|(k, v)| (k.clone(), jinja(v))).collect();
    fields.insert("role".into(), Jinja::from(message.role.as_str()));
    fields.insert("content".into(), Jinja::from(message.content.as_str()));
    Jinja::from(fields)
}

fn jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(b) => Jinja::from(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Jinja::from(i),
            (None, Some(u)) => Jinja::from(u),
            _ => Jinja::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => Jinja::from(s.as_str()),
        Value::Array(items) => items.iter().map(jinja).collect(),
        Value::Object(fields) => {
            Jinja::from(fields.iter().map(|(k, v)| (k.clone(), jinja(v))).collect::<BTreeMap<_, _>>())
        }
    }
}

/// Python's `json.dumps(x, ensure_ascii=False)`: the library's, without its HTML escapes.
fn tojson(
    value: &Jinja,
    indent: Option<Jinja>,
    options: Kwargs,
) -> std::result::Result<Jinja, minijinja::Error> {
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Jinja> = options.get(ignored)?;
    }
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    options.assert_all_used()?;
    let indent = indent.filter(|indent| !indent.is_none());
    let json = minijinja::filters::tojson(value, indent, std::iter::empty::<(String, Jinja)>().collect())?;
    Ok(Jinja::from(without_html_escapes(json.as_str().unwrap_or_default())))
}

fn without_html_escapes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        let html = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")];
        let (text, used) = match html.iter().find(|(escape, _)| tail.starts_with(escape)) {
            Some((escape, plain)) => (*plain, escape.len()),
            // A backslash and what it escapes go together: in `\\u003c` the `u` is a letter.
            None => {
                let used = 1 + tail[1..].chars().next().map_or(0, char::len_utf8);
                (&tail[..used], used)
            }
        };
        out.push_str(text);
        rest = &tail[used..];
    }
    out.push_str(rest);
    out
}

/// The directives of `strftime` that chat templates use, for a time in seconds since 1970 (UTC).
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let month_name = MONTHS[(month - 1) as usize];
    let day_name = DAYS[(days % 7) as usize];
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        let plain = directive == Some('-'); // "%-d": without the leading zero
        let directive = if plain { chars.next() } else { directive };
        let two = |n: u64| if plain { n.to_string() } else { format!("{n:02}") };
        match directive {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year % 100)),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&two(hour)),
            Some('I') => out.push_str(&two((hour + 11) % 12 + 1)),
            Some('M') => out.push_str(&two(minute)),
            Some('S') => out.push_str(&two(second)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some(other) => out.push(other),
            None => out.push('%'),
        }
    }
    out
}

/// (year, month, day) of a day counted from 1970-01-01, by Hinnant's era arithmetic.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months from March
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tokenizer/templates.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn messages(value: &Value) -> Vec<Message> {
        let text = |m: &Value, key: &str| m[key].as_str().unwrap().to_string();
        value.as_array().unwrap().iter().map(|m| Message::new(text(m, "role"), text(m, "content"))).collect()
    }

    fn compile(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::compile(source, TemplateOrigin::Model, "<s>", "</s>")
    }

    fn rendered(source: &str) -> std::result::Result<String, String> {
        compile(source).and_then(|t| t.render(&[Message::new("user", "hi")], true)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_renderings_of_transformers() {
        let golden = golden();
        let cases = golden["cases"].as_array().unwrap();
        for case in cases {
            let name = case["template"].as_str().unwrap();
            let template = compile(golden["templates"][name].as_str().unwrap()).unwrap();
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let text = template.render(&messages(&case["messages"]), prompt);
            match case["text"].as_str() {
                Some(expected) => assert_eq!(text.unwrap(), expected, "{name} {}", case["conversation"]),
                None => {
                    let error = text.unwrap_err().to_string();
                    assert!(error.contains("roles must alternate"), "{error}");
                }
            }
        }
        assert!(cases.len() >= 16);
    }

    #[test]
    fn python_and_transformers_manners() {
        assert_eq!(rendered("  {% if true %}\n  x\n  {% endif %}\ny\n").unwrap(), "  x\ny");
        assert_eq!(rendered("{{ none }} {{ true }} {{ 1 }} {{ nothing }}").unwrap(), "None True 1 ");
        assert_eq!(rendered("{{ messages[0].content.strip().split('h')[-1] }}").unwrap(), "i");
        assert_eq!(
            rendered("{{ {'a': '<b> & \\'c\\'', 'd': [1, none]} | tojson }}").unwrap(),
            r#"{"a": "<b> & 'c'", "d": [1, null]}"#
        );
        assert_eq!(rendered("{{ [1] | tojson(indent=2) }}").unwrap(), "[\n  1\n]");
        assert_eq!(
            rendered("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}")
                .unwrap(),
            "13"
        );
        assert_eq!(rendered("{%- generation -%} a {%- endgeneration -%}").unwrap(), "a");
        assert_eq!(rendered("{{ bos_token + eos_token }}").unwrap(), "<s></s>");
        assert_eq!(without_html_escapes(r"\\u003c \u003c \"), r"\\u003c < \");
    }

    #[test]
    fn the_date_is_the_given_one() {
        let day = UNIX_EPOCH + std::time::Duration::from_secs(1_709_210_096); // 2024-02-29 12:34:56
        let template = compile("{{ strftime_now('%d %b %Y, %A %B %-d %H:%M:%S %y-%m %I %p %%') }}").unwrap();
        let text = template.with_date(day).render(&[], false).unwrap();
        assert_eq!(text, "29 Feb 2024, Thursday February 29 12:34:56 24-02 12 PM %");
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_722), (2023, 12, 31));
    }

    #[test]
    fn variables_and_further_fields_reach_the_template() {
        let template = compile("{{ enable_thinking }} {{ messages[0].tool_calls[0].name }}").unwrap();
        let mut message = Message::new("assistant", "");
        message.extra = json!({"tool_calls": [{"name": "f"}]}).as_object().unwrap().clone();
        let text = template.with_variable("enable_thinking", &json!(false)).render(&[message], false);
        assert_eq!(text.unwrap(), "False f");
    }

    #[test]
    fn hostile_templates_end_in_errors() {
        let bad = |source: &str| rendered(source).expect_err(source);
        assert!(
            bad("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}")
                .contains("steps")
        );
        assert!(bad("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("line 1"));
        assert!(bad("{% for a in range(10000) %}{{ 'x' * 1000 }}{% endfor %}").contains("bytes"));
        assert!(bad("{{ 'x' * 10000000000 }}").contains("too large"));
        assert!(bad(&"x".repeat(SOURCE_BYTES_MAX + 1)).contains("65537 bytes"));
        assert!(bad(&"{% if true %}".repeat(4000)).contains("line"));
        assert!(bad(&format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000))).contains("line"));
        assert!(bad("a\n{% nonsense %}").contains("line 2"));
        assert!(bad("{% include '/etc/passwd' %}").contains("/etc/passwd"));
        assert!(bad("{% import 'x' as y %}").contains("line 1"));
        assert!(bad("{{ raise_exception('only users here') }}").contains("only users here"));
        assert!(bad("{{ messages.nothing.at_all }}").contains("undefined"));
        assert!(rendered("{{ messages.__class__.__mro__ }}").is_err());
    }
}
