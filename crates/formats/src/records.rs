//! The rows of a data file, one after the other, each with the line it begins on.
//!
//! - `.jsonl`, `.json` that holds objects one after the other: one object a row (blank lines are skipped).
//! - `.json`: an array of objects.
//! - `.csv`, `.tsv`: the first row names the columns; every value is a text.
//! - `.txt`, `.conll`, `.bio`, `.iob2`: one row for each paragraph, `{"text": …}`; blank lines separate paragraphs.
//!
//! A byte-order mark and CRLF are accepted everywhere. A row has at most [`limits::RECORD_BYTES`] bytes, so memory is
//! bounded however long the file is.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};
use crate::folder::kind;
use crate::{json, limits};

/// One row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line that it begins on; the first is 1.
    pub line: usize,
    /// An object.
    pub value: Value,
}

/// The formats, in the order of their names.
pub const EXTENSIONS: &[&str] = &["bio", "conll", "csv", "iob2", "json", "jsonl", "ndjson", "tsv", "txt"];

/// Reads the rows of a file one by one. After an error there are no more.
pub struct Records {
    path: PathBuf,
    kind: Kind,
    failed: bool,
}

enum Kind {
    Lines(Lines),
    Elements(Elements),
    Table(Table),
    Paragraphs(Lines),
}

impl Records {
    /// Opens a file; the extension says what it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Records> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let lines = || Ok::<_, Error>(Lines { inner: open(path)?, line: 0 });
        let kind = match extension.as_str() {
            "jsonl" | "ndjson" => Kind::Lines(lines()?),
            "json" => Kind::Elements(Elements::open(path)?),
            "csv" => Kind::Table(Table::open(path, b',')?),
            "tsv" => Kind::Table(Table::open(path, b'\t')?),
            "txt" | "conll" | "bio" | "iob2" => Kind::Paragraphs(lines()?),
            other => {
                let what =
                    format!("data files end in .{}, this one in {}", EXTENSIONS.join(", ."), quote(other));
                return Err(Error::unsupported(path, what, "rename or convert it"));
            }
        };
        Ok(Records { path: path.to_path_buf(), kind, failed: false })
    }

    /// All rows of a file.
    pub fn read_all(path: impl AsRef<Path>) -> Result<Vec<Record>> {
        Records::open(path)?.collect()
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.failed {
            return None;
        }
        let path = &self.path;
        let next = match &mut self.kind {
            Kind::Lines(lines) => json_line(lines, path),
            Kind::Elements(elements) => elements.next(path),
            Kind::Table(table) => table.next(path),
            Kind::Paragraphs(lines) => paragraph(lines, path),
        };
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Opens a regular file and skips a byte-order mark.
fn open(path: &Path) -> Result<BufReader<fs::File>> {
    let meta = fs::metadata(path).map_err(Error::io(path, "open"))?;
    if !meta.is_file() {
        return Err(Error::unsupported(path, "this is not a regular file", "a data file was expected"));
    }
    let mut file = BufReader::with_capacity(64 << 10, fs::File::open(path).map_err(Error::io(path, "open"))?);
    if file.fill_buf().map_err(Error::io(path, "read"))?.starts_with(b"\xef\xbb\xbf") {
        file.consume(3);
    }
    Ok(file)
}

fn bad(path: &Path, line: usize, what: impl Into<String>) -> Error {
    Error::Record { path: path.to_path_buf(), line, what: what.into() }
}

fn too_long(path: &Path, line: usize) -> Error {
    bad(path, line, format!("this row has more than {} MiB", limits::RECORD_BYTES >> 20))
}

/// The lines of a file, without their ends.
struct Lines {
    inner: BufReader<fs::File>,
    line: usize,
}

impl Lines {
    /// The next line and its number.
    fn next(&mut self, path: &Path) -> Result<Option<(usize, String)>> {
        let mut text = Vec::new();
        let limit = limits::RECORD_BYTES as u64 + 1;
        let n =
            (&mut self.inner).take(limit).read_until(b'\n', &mut text).map_err(Error::io(path, "read"))?;
        if n == 0 {
            return Ok(None);
        }
        self.line += 1;
        if n > limits::RECORD_BYTES {
            return Err(too_long(path, self.line));
        }
        while text.last().is_some_and(|b| b"\r\n".contains(b)) {
            text.pop();
        }
        Ok(Some((self.line, utf8(path, self.line, text)?)))
    }
}

fn utf8(path: &Path, line: usize, text: Vec<u8>) -> Result<String> {
    String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to() + 1;
        bad(path, line, format!("not UTF-8 from byte {at} of the row on; save the file as UTF-8"))
    })
}

fn json_line(lines: &mut Lines, path: &Path) -> Result<Option<Record>> {
    while let Some((line, text)) = lines.next(path)? {
        if !text.trim().is_empty() {
            return object(path, line, &text).map(|value| Some(Record { line, value }));
        }
    }
    Ok(None)
}

/// Parses a row that begins on `line`.
fn object(path: &Path, line: usize, text: &str) -> Result<Value> {
    match json::parse_bounded(text, limits::RECORD_MEMORY_BYTES, &[]) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => Err(bad(path, line, format!("a row must be an object, this one is {}", kind(&other)))),
        Err(e) => Err(Error::Json {
            path: path.to_path_buf(),
            line: line + e.line().saturating_sub(1),
            column: e.column(),
            what: json::plain(&e),
        }),
    }
}

/// Cuts a JSON file into the objects of its array (or a sequence of objects) without holding more than one.
struct Elements {
    inner: BufReader<fs::File>,
    line: usize,
    /// Inside `[ … ]`; otherwise objects follow one another.
    array: bool,
    /// What may come next.
    state: State,
}

#[derive(PartialEq)]
enum State {
    First,
    Element,
    Comma,
    End,
}

impl Elements {
    fn open(path: &Path) -> Result<Elements> {
        let mut elements = Elements { inner: open(path)?, line: 1, array: false, state: State::First };
        match elements.peek(path)? {
            Some(b'[') => {
                elements.take();
                elements.array = true;
            }
            Some(b'{') | None => {}
            Some(_) => {
                return Err(bad(path, elements.line, "this is neither an array of objects nor an object"));
            }
        }
        Ok(elements)
    }

    /// The next byte that is no space.
    fn peek(&mut self, path: &Path) -> Result<Option<u8>> {
        loop {
            match self.inner.fill_buf().map_err(Error::io(path, "read"))?.first() {
                None => return Ok(None),
                Some(b) if b.is_ascii_whitespace() => {
                    self.line += usize::from(*b == b'\n');
                    self.take();
                }
                Some(&b) => return Ok(Some(b)),
            }
        }
    }

    fn take(&mut self) {
        self.inner.consume(1);
    }

    fn next(&mut self, path: &Path) -> Result<Option<Record>> {
        loop {
            let next = self.peek(path)?;
            match (next, &self.state) {
                (None, _) if self.array && self.state != State::End => {
                    return Err(bad(path, self.line, "the file ends inside the array"));
                }
                (None, _) => return Ok(None),
                (Some(b']'), State::First | State::Comma) if self.array => {
                    self.take();
                    self.state = State::End;
                }
                (Some(b','), State::Comma) if self.array => {
                    self.take();
                    self.state = State::Element;
                }
                (Some(b'{'), State::First | State::Element) => return self.element(path).map(Some),
                (Some(b'{'), State::Comma) if !self.array => return self.element(path).map(Some),
                (Some(b), _) => {
                    let found = quote(&char::from(b).to_string());
                    return Err(bad(
                        path,
                        self.line,
                        format!("{found} where an object, a comma or the end was due"),
                    ));
                }
            }
        }
    }

    fn element(&mut self, path: &Path) -> Result<Record> {
        let line = self.line;
        let text = self.cut(path)?;
        let value = object(path, line, &utf8(path, line, text)?)?;
        self.state = State::Comma;
        Ok(Record { line, value })
    }

    /// The bytes from `{` to the `}` that closes it.
    fn cut(&mut self, path: &Path) -> Result<Vec<u8>> {
        let begin = self.line;
        let mut text = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        loop {
            let buf = self.inner.fill_buf().map_err(Error::io(path, "read"))?;
            if buf.is_empty() {
                return Err(bad(path, begin, "the file ends inside the object that begins here"));
            }
            let mut used = 0;
            for &b in buf {
                used += 1;
                self.line += usize::from(b == b'\n');
                match b {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            text.extend_from_slice(&buf[..used]);
            self.inner.consume(used);
            if text.len() > limits::RECORD_BYTES {
                return Err(too_long(path, begin));
            }
            if depth == 0 {
                return Ok(text);
            }
        }
    }
}

/// A table with a header.
struct Table {
    inner: csv::Reader<Plain>,
    since: Arc<AtomicUsize>,
    columns: Vec<String>,
}

impl Table {
    fn open(path: &Path, delimiter: u8) -> Result<Table> {
        let since = Arc::new(AtomicUsize::new(0));
        let plain = Plain { inner: open(path)?, since: since.clone(), last: b'\n' };
        let mut builder = csv::ReaderBuilder::new();
        // Lengths are compared here, where the line is known.
        builder.delimiter(delimiter).flexible(true).has_headers(false);
        let mut table = Table { inner: builder.from_reader(plain), since, columns: Vec::new() };
        let (line, columns) = table.row(path)?.unwrap_or((1, Vec::new()));
        if columns.is_empty() {
            return Err(bad(path, 1, "the first row must name the columns"));
        }
        table.columns = columns.iter().map(|name| name.trim().to_string()).collect();
        let mut sorted: Vec<&str> = table.columns.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad(path, line, format!("two columns are named {}", quote(pair[0]))));
        }
        Ok(table)
    }

    /// The next row and the line that it begins on.
    fn row(&mut self, path: &Path) -> Result<Option<(usize, Vec<String>)>> {
        self.since.store(0, Ordering::Relaxed);
        let before = self.inner.position().line() as usize;
        let mut row = csv::ByteRecord::new();
        match self.inner.read_byte_record(&mut row).map_err(csv::Error::into_kind) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(csv::ErrorKind::Io(e)) if e.kind() == io::ErrorKind::FileTooLarge => {
                return Err(too_long(path, before));
            }
            Err(csv::ErrorKind::Io(e)) => return Err(Error::io(path, "read")(e)),
            Err(_) => return Err(bad(path, before, "this row cannot be read")),
        }
        // Blank lines may have been skipped before the row; its own end is known.
        let inside = row.as_slice().iter().filter(|b| **b == b'\n').count();
        let line = (self.inner.position().line() as usize).saturating_sub(1 + inside);
        let fields = row.iter().map(|field| utf8(path, line, field.to_vec()));
        Ok(Some((line, fields.collect::<Result<_>>()?)))
    }

    fn next(&mut self, path: &Path) -> Result<Option<Record>> {
        let Some((line, fields)) = self.row(path)? else { return Ok(None) };
        let (have, want) = (fields.len(), self.columns.len());
        if have != want {
            let remedy = "quote fields that hold the separator";
            return Err(bad(path, line, format!("{have} fields, the header has {want}; {remedy}")));
        }
        let values = self.columns.iter().cloned().zip(fields.into_iter().map(Value::String));
        Ok(Some(Record { line, value: Value::Object(values.collect::<Map<_, _>>()) }))
    }
}

/// A file with LF line ends (CRLF and CR become LF), also after the last line, so that lines can be counted. It counts
/// the bytes read since the last row, so that a quote that is never closed does not swallow the file.
struct Plain {
    inner: BufReader<fs::File>,
    since: Arc<AtomicUsize>,
    last: u8,
}

impl Read for Plain {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        while n == 0 && !out.is_empty() {
            let buf = self.inner.fill_buf()?;
            if buf.is_empty() {
                if b"\r\n".contains(&self.last) {
                    break;
                }
                self.last = b'\n';
                out[0] = b'\n';
                return Ok(1);
            }
            let mut used = 0;
            for &b in buf.iter().take(out.len()) {
                used += 1;
                if !(b == b'\n' && self.last == b'\r') {
                    out[n] = if b == b'\r' { b'\n' } else { b };
                    n += 1;
                }
                self.last = b;
            }
            self.inner.consume(used);
        }
        if self.since.fetch_add(n, Ordering::Relaxed) > limits::RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(n)
    }
}

/// Lines up to a blank one, joined.
fn paragraph(lines: &mut Lines, path: &Path) -> Result<Option<Record>> {
    let mut out = String::new();
    let mut begin = 0;
    while let Some((line, text)) = lines.next(path)? {
        if text.trim().is_empty() {
            if begin > 0 {
                break;
            }
            continue;
        }
        if begin == 0 {
            begin = line;
        } else {
            out.push('\n');
        }
        out.push_str(&text);
        if out.len() > limits::RECORD_BYTES {
            return Err(too_long(path, begin));
        }
    }
    let value = || Value::Object(Map::from_iter([("text".to_string(), Value::String(out))]));
    Ok((begin > 0).then(|| Record { line: begin, value: value() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<(usize, Value)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        Ok(Records::read_all(path)?.into_iter().map(|r| (r.line, r.value)).collect())
    }

    /// The message after the folder's name.
    fn message(name: &str, bytes: impl AsRef<[u8]>) -> String {
        let text = read(name, bytes).unwrap_err().to_string();
        text[text.find(name).unwrap()..].to_string()
    }

    #[test]
    fn json_lines() {
        let text = "\u{feff}{\"a\": 1}\r\n\r\n  {\"a\": \"é\"}\n\n{\"a\": null}";
        let rows = read("d.jsonl", text).unwrap();
        assert_eq!(rows, [(1, json!({"a": 1})), (3, json!({"a": "é"})), (5, json!({"a": null}))]);
        assert_eq!(message("d.jsonl", "{}\n\n{\"a\": }\n"), "d.jsonl:3:7: expected value");
        assert_eq!(
            message("d.jsonl", "[1]\n"),
            "d.jsonl:1: a row must be an object, this one is a list of 1"
        );
        assert!(message("d.jsonl", b"{}\n{\"a\": \"\xff\"}").starts_with("d.jsonl:2: not UTF-8 from byte 8"));
        assert!(
            message("d.jsonl", format!("{{}}\n{}", " ".repeat(17 << 20)))
                .starts_with("d.jsonl:2: this row has")
        );
        assert!(read("d.jsonl", "").unwrap().is_empty());
    }

    #[test]
    fn json_arrays_and_sequences() {
        let two = [(2, json!({"a": "}\"]"})), (4, json!({"b": [1, {"c": {}}]}))];
        assert_eq!(
            read("d.json", "[\n {\"a\": \"}\\\"]\"},\n\n {\"b\": [1, {\"c\": {}}]}\n]\n").unwrap(),
            two
        );
        assert_eq!(read("d.json", "\n{\"a\": \"}\\\"]\"}\n\n{\"b\": [1, {\"c\": {}}]}").unwrap(), two);
        assert!(read("d.json", "[]").unwrap().is_empty());
        assert!(message("d.json", "[{},\n]").starts_with("d.json:2: `]` where"));
        assert!(message("d.json", "[{} {}]").starts_with("d.json:1: `{` where"));
        assert!(message("d.json", "[{}").starts_with("d.json:1: the file ends inside the array"));
        assert!(message("d.json", "[\n{\"a\"").starts_with("d.json:2: the file ends inside the object"));
        assert!(message("d.json", "[\n{\n\"a\": x}]").starts_with("d.json:3:6: expected value"));
        assert!(message("d.json", "[{}] {}").starts_with("d.json:1: `{` where"));
        assert!(message("d.json", "3").contains("neither"));
    }

    #[test]
    fn tables() {
        let rows = read("d.csv", "\u{feff}q,a\r\n1,\"x\ny\"\r\n2,\"a \"\"b\"\"\"\r\n").unwrap();
        assert_eq!(rows, [(2, json!({"q": "1", "a": "x\ny"})), (4, json!({"q": "2", "a": "a \"b\""}))]);
        assert_eq!(read("d.tsv", "q\ta\n1,5\t2\n").unwrap(), [(2, json!({"q": "1,5", "a": "2"}))]);
        assert!(message("d.csv", "q,a\n1,2\n1,2,3\n").starts_with("d.csv:3: 3 fields, the header has 2"));
        assert_eq!(read("d.csv", "q\r1\r2").unwrap(), [(2, json!({"q": "1"})), (3, json!({"q": "2"}))]);
        assert_eq!(read("d.csv", "q\r\n\r\n\r\n1\r\n").unwrap(), [(4, json!({"q": "1"}))]);
        assert!(message("d.csv", "q,q\n").starts_with("d.csv:1: two columns are named `q`"));
        assert!(message("d.csv", b"q,a\n1,\xff\n").starts_with("d.csv:2: not UTF-8"));
        assert!(message("d.csv", "").contains("must name the columns"));
        let endless = format!("q,a\n1,\"{}", "x".repeat(17 << 20));
        assert!(message("d.csv", endless).starts_with("d.csv:2: this row has more"));
    }

    #[test]
    fn paragraphs() {
        let rows = read("d.txt", "\n\none\r\ntwo\n \nthree\n").unwrap();
        assert_eq!(rows, [(3, json!({"text": "one\ntwo"})), (6, json!({"text": "three"}))]);
    }

    #[test]
    fn other_files_are_named() {
        assert!(message("d.parquet", "").contains("this one in `parquet`"));
    }
}
