//! Spelled-out English numbers as digits: "one hundred and twenty three" is 123, "nineteen ninety nine" 1999, "one oh one" 101,
//! "two million dollars" $2000000, "third" 3rd, "five point two percent" 5.2%.
//!
//! It goes from word to word as Whisper's `EnglishNumberNormalizer` does, step by step, its oddities included: error rates
//! are only comparable if they are the same. Whole numbers have no limit there; here they are texts of decimal digits.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::text::{is_space, pattern};

const ONES: [&str; 19] = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
/// And the powers of ten that they are.
const MULTIPLIERS: [(&str, usize); 12] = [
    ("hundred", 2),
    ("thousand", 3),
    ("million", 6),
    ("billion", 9),
    ("trillion", 12),
    ("quadrillion", 15),
    ("quintillion", 18),
    ("sextillion", 21),
    ("septillion", 24),
    ("octillion", 27),
    ("nonillion", 30),
    ("decillion", 33),
];
const PREFIXES: [char; 6] = ['-', '+', '£', '€', '$', '¢'];

/// What a word does in a number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    /// o, oh, zero
    Zero,
    /// 1 to 19
    One(u32),
    /// A digit or teen with an ending: "sixes", "third".
    OneEnding(u32, &'static str),
    Ten(u32),
    TenEnding(u32, &'static str),
    Multiplier(usize),
    MultiplierEnding(usize, &'static str),
    /// minus, plus ...
    Sign(&'static str),
    /// dollars ...
    Currency(&'static str),
    Per,
    Percent,
    And,
    /// double, triple
    Repeat(usize),
    Point,
}

static WORDS: LazyLock<HashMap<String, Word>> = LazyLock::new(words);

fn words() -> HashMap<String, Word> {
    let mut words: HashMap<String, Word> = HashMap::new();
    let mut put = |name: String, word: Word| words.insert(name, word);
    for zero in ["o", "oh", "zero"] {
        put(zero.into(), Word::Zero);
    }
    for (name, value) in ONES.into_iter().zip(1..) {
        put(name.into(), Word::One(value));
        let plural = if name == "six" { "sixes".into() } else { format!("{name}s") };
        put(plural, Word::OneEnding(value, "s"));
        if value > 3 && value != 5 && value != 12 {
            let ending = if name.ends_with('t') { "h" } else { "th" };
            put(format!("{name}{ending}"), Word::OneEnding(value, "th"));
        }
    }
    let irregular = [("zeroth", 0, "th"), ("first", 1, "st"), ("second", 2, "nd"), ("third", 3, "rd")];
    for (name, value, ending) in irregular.into_iter().chain([("fifth", 5, "th"), ("twelfth", 12, "th")]) {
        put(name.into(), Word::OneEnding(value, ending));
    }
    for (name, value) in TENS.into_iter().zip((20..).step_by(10)) {
        put(name.into(), Word::Ten(value));
        put(name.replace('y', "ies"), Word::TenEnding(value, "s"));
        put(name.replace('y', "ieth"), Word::TenEnding(value, "th"));
    }
    for (name, power) in MULTIPLIERS {
        put(name.into(), Word::Multiplier(power));
        put(format!("{name}s"), Word::MultiplierEnding(power, "s"));
        put(format!("{name}th"), Word::MultiplierEnding(power, "th"));
    }
    for (name, sign) in [("minus", "-"), ("negative", "-"), ("plus", "+"), ("positive", "+")] {
        put(name.into(), Word::Sign(sign));
    }
    for (name, sign) in [("pound", "£"), ("euro", "€"), ("dollar", "$"), ("cent", "¢")] {
        put(name.into(), Word::Currency(sign));
        put(format!("{name}s"), Word::Currency(sign));
    }
    let others = [
        ("per", Word::Per),
        ("percent", Word::Percent),
        ("and", Word::And),
        ("double", Word::Repeat(2)),
        ("triple", Word::Repeat(3)),
        ("point", Word::Point),
    ];
    for (name, word) in others {
        put(name.into(), word);
    }
    words
}

fn word(text: &str) -> Option<Word> {
    WORDS.get(text).copied()
}

/// Writes the numbers of a text in digits.
pub(super) fn standardize_numbers(text: &str) -> String {
    let text = preprocess(text);
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    postprocess(&Numbers::default().read(&words).join(" "))
}

static AND_A_HALF: LazyLock<Regex> = LazyLock::new(|| pattern(r"\band\s+a\s+half\b"));
static LETTER_DIGIT: LazyLock<Regex> = LazyLock::new(|| pattern(r"([a-z])([0-9])"));
static DIGIT_LETTER: LazyLock<Regex> = LazyLock::new(|| pattern(r"([0-9])([a-z])"));
static ENDING: LazyLock<Regex> = LazyLock::new(|| pattern(r"([0-9])\s+(st|nd|rd|th|s)\b"));
static CENTS: LazyLock<Regex> = LazyLock::new(|| pattern(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b"));
static ONLY_CENTS: LazyLock<Regex> = LazyLock::new(|| pattern(r"[€£$]0.([0-9]{1,2})\b"));
static LONE_ONE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b1(s?)\b"));

/// "and a half" after a number is "point five"; letters and digits part, but for endings (1st, 1960s).
fn preprocess(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut segments = AND_A_HALF.split(text).peekable();
    while let Some(segment) = segments.next() {
        let Some(last) = segment.split(is_space).rfind(|word| !word.is_empty()) else { continue };
        parts.push(segment);
        if segments.peek().is_some() {
            let number =
                matches!(word(last), Some(Word::Zero | Word::One(_) | Word::Ten(_) | Word::Multiplier(_)));
            parts.push(if number { "point five" } else { "and a half" });
        }
    }
    let text = parts.join(" ");
    let text = LETTER_DIGIT.replace_all(&text, "$1 $2");
    let text = DIGIT_LETTER.replace_all(&text, "$1 $2");
    ENDING.replace_all(&text, "$1$2").into_owned()
}

/// "$2 and ¢7" is "$2.07"; "1" alone is "one".
fn postprocess(text: &str) -> String {
    // At most two digits.
    let small = |digits: &str| digits.parse::<u32>().unwrap_or_default();
    let cents = |found: &regex::Captures<'_>| format!("{}{}.{:02}", &found[1], &found[2], small(&found[3]));
    let text = CENTS.replace_all(text, cents);
    let text = ONLY_CENTS.replace_all(&text, |found: &regex::Captures<'_>| format!("¢{}", small(&found[1])));
    LONE_ONE.replace_all(&text, "one$1").into_owned()
}

/// A number that is being read.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// A whole number that may still grow: decimal digits, no zeros in front.
    Whole(String),
    /// Digits, also with points, that are only put one after the other.
    Digits(String),
}

impl Value {
    fn small(value: u32) -> Value {
        Value::Whole(value.to_string())
    }

    fn power(power: usize) -> Value {
        Value::Whole(format!("1{}", "0".repeat(power)))
    }

    fn text(&self) -> &str {
        match self {
            Value::Whole(text) | Value::Digits(text) => text,
        }
    }
}

/// What has been read, and what it makes.
#[derive(Default)]
struct Numbers {
    out: Vec<String>,
    prefix: Option<String>,
    value: Option<Value>,
}

impl Numbers {
    fn read(mut self, words: &[&str]) -> Vec<String> {
        let mut skip = false;
        for (i, current) in words.iter().enumerate() {
            if std::mem::take(&mut skip) {
                continue;
            }
            let previous = i.checked_sub(1).and_then(|i| word(words[i]));
            skip = self.step(current, previous, words.get(i + 1).copied());
        }
        self.flush();
        self.out
    }

    /// Takes one word; true if the next one is used up with it.
    fn step(&mut self, current: &str, previous: Option<Word>, next: Option<&str>) -> bool {
        let next_word = next.and_then(word);
        let next_numeric = next.is_some_and(is_numeric);
        if self.digits(current) {
            return false;
        }
        let Some(kind) = word(current) else {
            self.flush();
            self.put(current.to_string());
            return false;
        };
        match kind {
            Word::Zero => self.append("0"),
            Word::One(n) => self.value = Some(self.with_ones(n, previous)),
            Word::OneEnding(n, ending) => {
                let value = self.with_ones(n, previous);
                self.put(format!("{}{ending}", value.text()));
            }
            Word::Ten(n) => self.value = Some(self.with_tens(n)),
            Word::TenEnding(n, ending) => {
                let value = self.with_tens(n);
                self.put(format!("{}{ending}", value.text()));
            }
            Word::Multiplier(power) => self.value = Some(self.multiplied(power)),
            Word::MultiplierEnding(power, ending) => {
                let value = self.multiplied(power);
                self.put(format!("{}{ending}", value.text()));
            }
            Word::Sign(sign) => {
                self.flush();
                match next_word.is_some() || next_numeric {
                    true => self.prefix = Some(sign.into()),
                    false => self.put(current.into()),
                }
            }
            Word::Currency(_) | Word::Percent if self.value.is_none() => self.put(current.into()),
            Word::Currency(sign) => {
                self.prefix = Some(sign.into());
                self.flush();
            }
            Word::Percent => self.put_value("%"),
            Word::Per => return self.per(current, next),
            Word::And | Word::Repeat(_) | Word::Point if next_word.is_none() && !next_numeric => {
                self.flush();
                self.put(current.into());
            }
            // Between a hundred and what follows it says nothing.
            Word::And if matches!(previous, Some(Word::Multiplier(_))) => {}
            Word::And => {
                self.flush();
                self.put(current.into());
            }
            Word::Repeat(times) => return self.repeat(times, current, next_word),
            Word::Point => {
                let decimal = matches!(next_word, Some(Word::Zero | Word::One(_) | Word::Ten(_)));
                if decimal || next_numeric {
                    self.append(".");
                }
            }
        }
        false
    }

    /// A word of digits, maybe with a sign in front; false if it is none.
    fn digits(&mut self, current: &str) -> bool {
        let sign = current.chars().next().filter(|c| PREFIXES.contains(c));
        let number = sign.map_or(current, |sign| &current[sign.len_utf8()..]);
        if !is_numeric(number) {
            return false;
        }
        match &mut self.value {
            Some(Value::Digits(value)) if value.ends_with('.') => {
                value.push_str(current);
                return true;
            }
            _ => self.flush(),
        }
        if let Some(sign) = sign {
            self.prefix = Some(sign.to_string());
        }
        let (whole, fraction) = decimal(number).unwrap_or_default();
        self.value = Some(match fraction.is_empty() {
            true => Value::Whole(whole),
            false => Value::Digits(number.to_string()),
        });
        true
    }

    /// Gives out a word, with the sign that waits.
    fn put(&mut self, text: String) {
        self.out.push(self.prefix.take().unwrap_or_default() + &text);
        self.value = None;
    }

    /// Gives out the number that was being read with an ending.
    fn put_value(&mut self, ending: &str) {
        if let Some(value) = self.value.take() {
            self.put(format!("{}{ending}", value.text()));
        }
    }

    fn flush(&mut self) {
        self.put_value("");
    }

    /// Puts digits or a point after those that are there; a zero that stands alone counts as nothing.
    fn append(&mut self, text: &str) {
        let before = match self.value.take() {
            Some(Value::Whole(whole)) if whole == "0" => String::new(),
            value => value.map(|value| value.text().to_string()).unwrap_or_default(),
        };
        self.value = Some(Value::Digits(before + text));
    }

    /// With 1 to 19 after it.
    fn with_ones(&self, ones: u32, previous: Option<Word>) -> Value {
        let Some(value) = &self.value else { return Value::small(ones) };
        let after_ten = matches!(previous, Some(Word::Ten(_))) && ones < 10;
        match value {
            Value::Digits(text) if after_ten => {
                let mut text = text.clone();
                text.pop();
                Value::Digits(format!("{text}{ones}"))
            }
            Value::Digits(text) => Value::Digits(format!("{text}{ones}")),
            Value::Whole(text) if matches!(previous, Some(Word::One(_))) => {
                Value::Digits(format!("{text}{ones}"))
            }
            Value::Whole(text) => grown(text, ones, if ones < 10 { 1 } else { 2 }),
        }
    }

    /// With 20, 30 ... 90 after it.
    fn with_tens(&self, tens: u32) -> Value {
        match &self.value {
            None => Value::small(tens),
            Some(Value::Digits(text)) => Value::Digits(format!("{text}{tens}")),
            Some(Value::Whole(text)) => grown(text, tens, 2),
        }
    }

    /// Times a power of ten. A number that does not become whole is given out, and the power begins a new one.
    fn multiplied(&mut self, power: usize) -> Value {
        match self.value.take() {
            None => Value::power(power),
            Some(Value::Whole(text)) if text == "0" => Value::small(0),
            Some(Value::Whole(text)) => Value::Whole(residual_times(&text, power)),
            Some(Value::Digits(text)) => match decimal(&text).and_then(|number| shifted(number, power)) {
                Some(whole) => Value::Whole(whole),
                None => {
                    self.put(text);
                    Value::power(power)
                }
            },
        }
    }

    /// "per", which with "cent" is a sign.
    fn per(&mut self, current: &str, next: Option<&str>) -> bool {
        if self.value.is_some() && next == Some("cent") {
            self.put_value("%");
            return true;
        }
        self.flush();
        self.put(current.into());
        false
    }

    /// "double" and "triple" before a digit.
    fn repeat(&mut self, times: usize, current: &str, next: Option<Word>) -> bool {
        let digit = match next {
            Some(Word::One(n)) => n,
            Some(Word::Zero) => 0,
            _ => {
                self.flush();
                self.put(current.into());
                return false;
            }
        };
        self.append(&digit.to_string().repeat(times));
        true
    }
}

/// A whole number with a small one in the place of its last `zeros` zeros; if it has none, one after the other.
fn grown(text: &str, small: u32, zeros: usize) -> Value {
    if text == "0" {
        return Value::small(small);
    }
    let small = small.to_string();
    match text.ends_with(&"00"[..zeros]) {
        true => Value::Whole(format!("{}{small}", &text[..text.len() - small.len()])),
        false => Value::Digits(format!("{text}{small}")),
    }
}

/// The last three digits times a power of ten, and the rest added.
fn residual_times(text: &str, power: usize) -> String {
    let (before, residual) = text.split_at(text.len().saturating_sub(3));
    let before = if before.is_empty() { String::new() } else { format!("{before}000") };
    sum(&before, &format!("{residual}{}", "0".repeat(power)))
}

/// Of two whole numbers in decimal digits; no zeros in front.
fn sum(a: &str, b: &str) -> String {
    let digits = |text: &str| text.bytes().rev().map(|b| b - b'0').collect::<Vec<u8>>();
    let (a, b) = (digits(a), digits(b));
    let (mut out, mut carry) = (Vec::new(), 0);
    for i in 0..a.len().max(b.len()) {
        let digit = a.get(i).unwrap_or(&0) + b.get(i).unwrap_or(&0) + carry;
        out.push(char::from(b'0' + digit % 10));
        carry = digit / 10;
    }
    if carry > 0 {
        out.push('1');
    }
    without_zeros(&out.iter().rev().collect::<String>())
}

fn without_zeros(digits: &str) -> String {
    let rest = digits.trim_start_matches('0');
    if rest.is_empty() { "0".into() } else { rest.into() }
}

/// Digits, with at most one point between some.
fn is_numeric(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.chars().all(is_digit);
    match text.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(text),
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.general_category() == GeneralCategory::DecimalNumber)
}

/// The digit of any script: each has its ten in a row, zero first, so what stands in front of it in the row counts.
fn digit_value(c: char) -> char {
    if c.is_ascii() {
        return c;
    }
    let before = (1..=9).take_while(|n| char::from_u32(c as u32 - n).is_some_and(is_digit)).count();
    char::from(b'0' + before as u8)
}

/// A number as its whole part (no zeros in front) and its fraction (none at the end), ASCII; `None` for what is none, as an
/// address of four numbers.
fn decimal(text: &str) -> Option<(String, String)> {
    let text: String = text.chars().map(digit_value).collect();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    (digits(whole) && digits(fraction) && text != "." && !text.is_empty())
        .then(|| (without_zeros(whole), fraction.trim_end_matches('0').to_string()))
}

/// A number times a power of ten, if that is whole.
fn shifted((whole, fraction): (String, String), power: usize) -> Option<String> {
    let zeros = power.checked_sub(fraction.len())?;
    Some(without_zeros(&format!("{whole}{fraction}{}", "0".repeat(zeros))))
}
