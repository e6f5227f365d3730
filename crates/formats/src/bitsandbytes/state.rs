//! The JSON of a 4-bit weight's quant state, which lies in the file as a tensor of bytes.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Absmax, BLOCK_SIZES, Code, FORMAT, FourBit, Original};
use crate::error::{Error, Result, quote};
use crate::source::{TensorInfo, TensorSource};
use crate::{json, limits};

/// What the JSON says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct State {
    pub code: Code,
    pub blocksize: usize,
    pub original: Original,
    pub shape: [usize; 2],
    pub nested: Option<Nested>,
}

/// The absmax constants are quantised themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Nested {
    pub blocksize: usize,
    pub offset: f32,
}

impl State {
    pub fn of(layer: &FourBit) -> State {
        let nested = match &layer.absmax {
            Absmax::Single(_) => None,
            Absmax::Double { blocksize, offset, .. } => {
                Some(Nested { blocksize: *blocksize, offset: *offset })
            }
        };
        let FourBit { code, blocksize, original, shape, .. } = *layer;
        State { code, blocksize, original, shape, nested }
    }

    /// Reads the tensor `info`, whose name says that it is the state of a weight in `code`.
    pub fn read(source: &dyn TensorSource, info: &TensorInfo, code: Code) -> Result<State> {
        let fail =
            |what: String| Error::invalid(source.path(), FORMAT, format!("tensor `{}`: {what}", info.name));
        if info.byte_len() > limits::QUANT_STATE_BYTES {
            let what = format!("the size of tensor `{}`", info.name);
            return Err(Error::limit(source.path(), what, info.byte_len(), limits::QUANT_STATE_BYTES));
        }
        let bytes = source.read(&info.name)?;
        let text = str::from_utf8(&bytes).map_err(|_| fail("it is not text".into()))?;
        let parsed = json::parse_bounded(text, limits::JSON_MEMORY_BYTES, &[]);
        match parsed.map_err(|e| fail(format!("it is not JSON: {}", json::plain(&e))))? {
            Value::Object(map) => State::parse(&map, code).map_err(fail),
            _ => Err(fail("it is not a JSON object".into())),
        }
    }

    fn parse(map: &Map<String, Value>, code: Code) -> std::result::Result<State, String> {
        let text = |key: &str| {
            let value = map.get(key).ok_or_else(|| format!("`{key}` is missing in it"))?;
            value.as_str().ok_or_else(|| format!("`{key}` is {value}, a text is needed"))
        };
        let size = |key: &str| {
            let value = map.get(key).ok_or_else(|| format!("`{key}` is missing in it"))?;
            let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
            let known = size.filter(|n| BLOCK_SIZES.contains(n));
            known.ok_or_else(|| format!("`{key}` is {value}; there are {BLOCK_SIZES:?}"))
        };
        if text("quant_type")? != code.name() {
            let found = quote(text("quant_type")?);
            return Err(format!("`quant_type` is {found}, but its name says {}", code.name()));
        }
        let dtype = text("dtype")?;
        let original = Original::from_name(dtype);
        let nested = ["nested_blocksize", "nested_dtype", "nested_offset"];
        Ok(State {
            code,
            blocksize: size("blocksize")?,
            original: original.ok_or_else(|| {
                format!("`dtype` is {}; there are float32, float16 and bfloat16", quote(dtype))
            })?,
            shape: shape(map.get("shape").unwrap_or(&Value::Null))?,
            nested: match nested.iter().any(|key| map.contains_key(*key)) {
                false => None,
                true if text("nested_dtype")? != "float32" => {
                    let found = quote(text("nested_dtype")?);
                    return Err(format!("`nested_dtype` is {found}, float32 is needed"));
                }
                true => {
                    let blocksize = size("nested_blocksize")?;
                    Some(Nested { blocksize, offset: offset(map.get("nested_offset"))? })
                }
            },
        })
    }

    /// The text that Python's `json.dumps` gives for bitsandbytes' dictionary.
    pub fn to_text(self) -> String {
        let [rows, cols] = self.shape;
        let mut text = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{rows}, {cols}]"#,
            self.code.name(),
            self.blocksize,
            self.original.name(),
        );
        if let Some(Nested { blocksize, offset }) = self.nested {
            let offset = json::python_number(f64::from(offset));
            let _ = write!(
                text,
                r#", "nested_blocksize": {blocksize}, "nested_dtype": "float32", "nested_offset": {offset}"#
            );
        }
        text + "}"
    }
}

fn shape(value: &Value) -> std::result::Result<[usize; 2], String> {
    let sizes: Option<Vec<usize>> = value.as_array().and_then(|sizes| {
        let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        sizes.iter().take(3).map(size).collect()
    });
    sizes
        .and_then(|sizes| <[usize; 2]>::try_from(sizes).ok())
        .ok_or_else(|| format!("`shape` is {value}; the shape of a matrix is needed"))
}

fn offset(value: Option<&Value>) -> std::result::Result<f32, String> {
    let number = value.and_then(Value::as_f64).map(|x| x as f32).filter(|x| x.is_finite());
    number.ok_or_else(|| {
        format!("`nested_offset` is {}; a finite number is needed", value.unwrap_or(&Value::Null))
    })
}
