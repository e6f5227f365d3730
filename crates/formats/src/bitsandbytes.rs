//! Linear layers quantised by bitsandbytes, as transformers saves them: the tensors beside a weight, read into checked
//! parts and written again byte for byte.
//!
//! 4 bit: `w[i] = map[code[i]] * absmax[i / blocksize]` over the flattened weight `[out, in]`, first value of a byte in its
//! high nibble. Tensors of a weight `P.weight` (Dettmers et al., 2023):
//!
//! | name | type | what |
//! |---|---|---|
//! | `P.weight` | U8 `[ceil(n/2), 1]`; with another `quant_storage` the same bytes as that type | codes |
//! | `P.weight.absmax` | F32 `[ceil(n/blocksize)]`, or U8 where it is quantised itself | constants |
//! | `P.weight.quant_map` | F32 `[16]` | values of the codes |
//! | `P.weight.nested_absmax`, `P.weight.nested_quant_map` | F32 `[ceil(blocks/nested_blocksize)]`, F32 `[256]` | constants of the constants |
//! | `P.weight.quant_state.bitsandbytes__nf4` (or `fp4`) | U8 | JSON: quant_type, blocksize, dtype, shape, nested_* |
//!
//! 8 bit (LLM.int8): `w = P.weight * P.SCB / 127` by rows; `P.weight` I8 `[out, in]`, `P.SCB` F32 `[out]`,
//! `P.weight_format` U8 scalar, 0.
//!
//! The weight of transformers' `Conv1D` is turned to `[out, in]` before it is quantised, and saved so.

pub mod config;
mod state;

use std::borrow::Cow;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::source::{TensorInfo, TensorOut, TensorSource};
use state::State;

pub use config::QuantizationConfig;

pub(crate) const FORMAT: &str = "bitsandbytes";

/// Sizes that bitsandbytes gives a block.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];
/// Values to a block of absmax constants that are quantised themselves.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The code of 4-bit values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    Nf4,
    Fp4,
    /// Evenly spaced values, for comparison: Retune's own, which bitsandbytes does not read.
    Int4,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 3] = [Code::Nf4, Code::Fp4, Code::Int4];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Code::Nf4 => "nf4",
            Code::Fp4 => "fp4",
            Code::Int4 => "int4",
        }
    }

    /// The code of this name.
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The end of the name of a weight's quant state.
    fn state_key(self) -> &'static str {
        match self {
            Code::Nf4 => "quant_state.bitsandbytes__nf4",
            Code::Fp4 => "quant_state.bitsandbytes__fp4",
            Code::Int4 => "quant_state.retune__int4",
        }
    }
}

/// What the weight was before: only a name in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Original {
    #[default]
    F32,
    F16,
    Bf16,
}

impl Original {
    const NAMES: [(Original, &'static str); 3] =
        [(Original::F32, "float32"), (Original::F16, "float16"), (Original::Bf16, "bfloat16")];

    /// torch's name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(one, _)| *one == self).map_or("float32", |(_, name)| name)
    }

    /// The type of this name of torch's.
    pub fn from_name(name: &str) -> Option<Original> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(one, _)| *one)
    }
}

/// The absmax constants of a weight's blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    Single(Vec<f32>),
    /// `absmax[i] = map[codes[i]] * nested[i / blocksize] + offset`.
    Double {
        codes: Vec<u8>,
        map: Box<[f32; 256]>,
        nested: Vec<f32>,
        blocksize: usize,
        offset: f32,
    },
}

/// A 4-bit weight `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    pub code: Code,
    pub blocksize: usize,
    pub original: Original,
    pub shape: [usize; 2],
    /// Two codes a byte, the first in the high nibble.
    pub packed: Vec<u8>,
    pub map: [f32; 16],
    pub absmax: Absmax,
}

/// An 8-bit weight `[out, in]`: `values * scales[row] / 127`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    pub shape: [usize; 2],
    pub values: Vec<i8>,
    pub scales: Vec<f32>,
}

/// A quantised weight with all its parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    FourBit(FourBit),
    Int8(Int8),
}

/// How a weight is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    FourBit { code: Code, blocksize: usize, double: bool },
    Int8,
}

impl Kind {
    /// In short: `nf4`, `nf4+dq`, `int8`.
    pub fn name(self) -> String {
        match self {
            Kind::FourBit { code, double, .. } => {
                format!("{}{}", code.name(), if double { "+dq" } else { "" })
            }
            Kind::Int8 => "int8".into(),
        }
    }

    /// For people: `nf4`, `fp4 with double quantisation`, `int8`.
    pub fn describe(self) -> String {
        match self {
            Kind::FourBit { code, double: false, .. } => code.name().into(),
            Kind::FourBit { code, double: true, .. } => format!("{} with double quantisation", code.name()),
            Kind::Int8 => "int8".into(),
        }
    }
}

/// A quantised weight of a file whose parts were checked against each other; nothing large was read yet.
#[derive(Clone, Debug)]
pub struct Entry {
    weight: String,
    kind: Kind,
    shape: [usize; 2],
    /// Of 4-bit weights.
    state: Option<State>,
    /// Names of all tensors, the weight's first.
    tensors: Vec<String>,
}

/// Ends of the names of what lies beside a weight `P.weight`; all but these two follow the weight's own name.
const SCB: &str = "SCB";
const WEIGHT_FORMAT: &str = "weight_format";
const ABSMAX: &str = "absmax";
const QUANT_MAP: &str = "quant_map";
const NESTED_ABSMAX: &str = "nested_absmax";
const NESTED_QUANT_MAP: &str = "nested_quant_map";

/// The weight to which a tensor of this name belongs, if it is one of those that lie beside a quantised weight.
pub fn owner(name: &str) -> Option<String> {
    if let SCB | WEIGHT_FORMAT = name {
        return Some("weight".into());
    }
    let beside = |end: &str| name.strip_suffix(end)?.strip_suffix('.');
    if let Some(module) = beside(SCB).or_else(|| beside(WEIGHT_FORMAT)) {
        return Some(format!("{module}.weight"));
    }
    let ends = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP].into_iter();
    let mut ends = ends.chain(Code::ALL.map(Code::state_key));
    ends.find_map(beside).filter(|weight| weight.ends_with("weight")).map(str::to_string)
}

/// Looks at what lies beside the weight of this name (`P.weight`): `None` if it is not quantised, or not there.
///
/// # Errors
/// If parts are missing, of wrong types or sizes, or contradict each other. Nothing large is read.
pub fn find(source: &dyn TensorSource, weight: &str) -> Result<Option<Entry>> {
    let Some(info) = source.find(weight) else { return Ok(None) };
    let beside = Beside { source, weight };
    let module = weight.strip_suffix(".weight").or((weight == "weight").then_some(""));
    let of_module = |end: &str| match module {
        Some("") => end.to_string(),
        Some(module) => format!("{module}.{end}"),
        None => format!("{weight}.{end}"),
    };
    let scb = of_module(SCB);
    let states: Vec<Code> = Code::ALL.into_iter().filter(|code| beside.has(code.state_key())).collect();
    match (states.as_slice(), source.find(&scb)) {
        ([], None) => beside.none(info).map(|()| None),
        ([], Some(scales)) => beside.int8(info, scales, &of_module(WEIGHT_FORMAT)).map(Some),
        (&[code], None) => beside.four_bit(info, code).map(Some),
        _ => Err(beside.bad("it has quant states of more than one kind beside it; get the file again")),
    }
}

/// The parts of one weight.
struct Beside<'a> {
    source: &'a dyn TensorSource,
    weight: &'a str,
}

impl<'a> Beside<'a> {
    fn bad(&self, what: impl std::fmt::Display) -> Error {
        let what = format!("tensor `{}`: {what}", self.weight);
        Error::invalid(self.source.path(), FORMAT, what)
    }

    fn name(&self, end: &str) -> String {
        format!("{}.{end}", self.weight)
    }

    fn has(&self, end: &str) -> bool {
        self.source.find(&self.name(end)).is_some()
    }

    fn need(&self, end: &str) -> Result<&'a TensorInfo> {
        self.source.find(&self.name(end)).ok_or_else(|| {
            self.bad(format!(
                "`{}` is missing beside it; the file is not whole, get it again",
                self.name(end)
            ))
        })
    }

    /// A part of a type and a number of elements.
    fn part(&self, end: &str, dtype: Dtype, elements: usize) -> Result<()> {
        let info = self.need(end)?;
        if info.dtype != dtype || info.numel() != elements as u64 {
            return Err(self.bad(format!(
                "`{}` is {} {:?}, where {dtype} with {elements} elements belongs",
                info.name, info.dtype, info.shape
            )));
        }
        Ok(())
    }

    /// A weight that is not quantised: nothing may say otherwise.
    fn none(&self, info: &TensorInfo) -> Result<()> {
        if [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_QUANT_MAP].iter().any(|end| self.has(end)) {
            let key = self.name(Code::Nf4.state_key());
            return Err(self.bad(format!(
                "it has parts of a quant state beside it, but not the state itself (`{key}`); get the file again"
            )));
        }
        match info.dtype {
            Dtype::U8 => Err(self.bad("it holds packed codes, but no quant state lies beside it")),
            Dtype::I8 => Err(self.bad("it holds 8-bit codes, but their scales (SCB) are missing beside it")),
            _ => Ok(()),
        }
    }

    fn four_bit(&self, info: &TensorInfo, code: Code) -> Result<Entry> {
        let key = self.need(code.state_key())?;
        let state = State::read(self.source, key, code)?;
        let [rows, cols] = state.shape;
        let values = rows.checked_mul(cols).ok_or_else(|| self.bad("its shape overflows"))?;
        let bytes = values.div_ceil(2) as u64;
        if info.byte_len() != bytes {
            return Err(self.bad(format!(
                "it has {} bytes, but {rows} x {cols} values of 4 bits take {bytes}",
                info.byte_len()
            )));
        }
        let blocks = values.div_ceil(state.blocksize);
        self.part(QUANT_MAP, Dtype::F32, 16)?;
        let mut tensors: Vec<String> = vec![self.weight.into(), key.name.clone()];
        tensors.extend([ABSMAX, QUANT_MAP].map(|end| self.name(end)));
        match state.nested {
            None => {
                self.part(ABSMAX, Dtype::F32, blocks)?;
                if let Some(end) = [NESTED_ABSMAX, NESTED_QUANT_MAP].iter().find(|end| self.has(end)) {
                    let end = self.name(end);
                    return Err(self.bad(format!("`{end}` lies beside it, but its state knows of none")));
                }
            }
            Some(nested) => {
                self.part(ABSMAX, Dtype::U8, blocks)?;
                self.part(NESTED_ABSMAX, Dtype::F32, blocks.div_ceil(nested.blocksize))?;
                self.part(NESTED_QUANT_MAP, Dtype::F32, 256)?;
                tensors.extend([NESTED_ABSMAX, NESTED_QUANT_MAP].map(|end| self.name(end)));
            }
        }
        let kind = Kind::FourBit { code, blocksize: state.blocksize, double: state.nested.is_some() };
        Ok(Entry { weight: self.weight.into(), kind, shape: state.shape, state: Some(state), tensors })
    }

    fn int8(&self, info: &TensorInfo, scales: &TensorInfo, format: &str) -> Result<Entry> {
        let &[rows, cols] = info.shape.as_slice() else {
            return Err(self.bad(format!("its shape is {:?}, a matrix is needed", info.shape)));
        };
        if info.dtype != Dtype::I8 {
            return Err(self.bad(format!("it is {}, but `{}` says that it is I8", info.dtype, scales.name)));
        }
        if scales.dtype != Dtype::F32 || scales.numel() != rows as u64 {
            return Err(self.bad(format!(
                "its scales `{}` are {} {:?}, where F32 with {rows} elements belongs",
                scales.name, scales.dtype, scales.shape
            )));
        }
        let mut tensors = vec![self.weight.to_string(), scales.name.clone()];
        if let Some(format) = self.source.find(format) {
            self.check_format(format)?;
            tensors.push(format.name.clone());
        }
        Ok(Entry { weight: self.weight.into(), kind: Kind::Int8, shape: [rows, cols], state: None, tensors })
    }

    /// The order of an 8-bit weight's values: rows, or one of those that were made for old GPUs.
    fn check_format(&self, info: &TensorInfo) -> Result<()> {
        if info.byte_len() > 8 || info.numel() != 1 {
            return Err(self.bad(format!("`{}` is {} {:?}, not one byte", info.name, info.dtype, info.shape)));
        }
        let value = self.source.read(&info.name)?;
        let other = match value.iter().rev().fold(0u64, |all, byte| (all << 8) | u64::from(*byte)) {
            0 => return Ok(()),
            1 => "col32".to_string(),
            2 => "col_turing".to_string(),
            3 => "col_ampere".to_string(),
            n => format!("number {n}"),
        };
        Err(Error::unsupported(
            self.source.path(),
            format!("tensor `{}` lies in the order {other} of old GPUs", self.weight),
            "load it with bitsandbytes and save it again: it is then saved by rows",
        ))
    }
}

impl Entry {
    /// The name of the weight.
    pub fn weight(&self) -> &str {
        &self.weight
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `[out, in]` of the weight's values.
    pub fn shape(&self) -> &[usize; 2] {
        &self.shape
    }

    /// Number of its values.
    pub fn numel(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d as u64))
    }

    /// The names of its tensors in the file, its own among them.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(String::as_str)
    }

    /// Reads it.
    ///
    /// # Errors
    /// If a constant is not finite or below zero, a map not finite, or the file cannot be read.
    pub fn read(&self, source: &dyn TensorSource) -> Result<Layer> {
        let beside = Beside { source, weight: &self.weight };
        match &self.state {
            Some(state) => self.read_four_bit(&beside, state).map(Layer::FourBit),
            None => self.read_int8(&beside).map(Layer::Int8),
        }
    }

    fn read_four_bit(&self, beside: &Beside, state: &State) -> Result<FourBit> {
        let source = beside.source;
        let finite = |end: &str, least: f32| checked(source, &beside.name(end), least);
        let map = <[f32; 16]>::try_from(finite(QUANT_MAP, f32::MIN)?)
            .map_err(|_| beside.bad("its quant map does not have 16 values"))?;
        let absmax = match state.nested {
            None => Absmax::Single(finite(ABSMAX, 0.0)?),
            Some(nested) => {
                let map: Box<[f32]> = finite(NESTED_QUANT_MAP, f32::MIN)?.into();
                let map = Box::<[f32; 256]>::try_from(map)
                    .map_err(|_| beside.bad("its nested quant map does not have 256 values"))?;
                let constants = finite(NESTED_ABSMAX, 0.0)?;
                let most = |values: &[f32]| values.iter().fold(0f32, |most, v| most.max(v.abs()));
                if !(most(&constants) * most(&map[..]) + nested.offset.abs()).is_finite() {
                    return Err(beside.bad("its absmax constants overflow when they are restored"));
                }
                let codes = source.read(&beside.name(ABSMAX))?;
                let (blocksize, offset) = (nested.blocksize, nested.offset);
                Absmax::Double { codes, map, nested: constants, blocksize, offset }
            }
        };
        let packed = source.read(&self.weight)?;
        let State { code, blocksize, original, shape, .. } = *state;
        Ok(FourBit { code, blocksize, original, shape, packed, map, absmax })
    }

    fn read_int8(&self, beside: &Beside) -> Result<Int8> {
        let scales = self.tensors.get(1).map_or("", String::as_str);
        let scales = checked(beside.source, scales, 0.0)?;
        let values = beside.source.read(&self.weight)?;
        let values = values.into_iter().map(|byte| byte as i8).collect();
        Ok(Int8 { shape: self.shape, values, scales })
    }
}

/// f32 values that are finite and not below `least`.
fn checked(source: &dyn TensorSource, name: &str, least: f32) -> Result<Vec<f32>> {
    let values = source.read_f32(name)?;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let (path, name, value) = (source.path().to_path_buf(), name.to_string(), f64::from(values[at]));
        return Err(Error::NotFinite { path, name, index: at as u64, value });
    }
    if let Some(at) = values.iter().position(|v| *v < least) {
        let what =
            format!("tensor `{name}` holds {} at element {at}; it cannot be below {least}", values[at]);
        return Err(Error::invalid(source.path(), FORMAT, what));
    }
    Ok(values)
}

impl Layer {
    /// `[out, in]`.
    pub fn shape(&self) -> &[usize; 2] {
        match self {
            Layer::FourBit(layer) => &layer.shape,
            Layer::Int8(layer) => &layer.shape,
        }
    }

    /// The tensors of a weight of this name (`P.weight`), as bitsandbytes writes them.
    pub fn tensors(&self, weight: &str) -> Vec<TensorOut<'_>> {
        match self {
            Layer::FourBit(layer) => layer.tensors(weight),
            Layer::Int8(layer) => layer.tensors(weight),
        }
    }
}

impl FourBit {
    /// The tensors of a weight of this name (`P.weight`), as bitsandbytes writes them.
    pub fn tensors(&self, weight: &str) -> Vec<TensorOut<'_>> {
        let name = |end: &str| format!("{weight}.{end}");
        let state = State::of(self).to_text();
        let packed = &self.packed[..];
        let mut out = vec![
            TensorOut::bytes(weight, Dtype::U8, &[packed.len(), 1], packed),
            TensorOut::f32(name(QUANT_MAP), &[16], &self.map[..]),
            TensorOut::bytes(name(self.code.state_key()), Dtype::U8, &[state.len()], state.into_bytes()),
        ];
        match &self.absmax {
            Absmax::Single(absmax) => {
                out.push(TensorOut::f32(name(ABSMAX), &[absmax.len()], &absmax[..]));
            }
            Absmax::Double { codes, map, nested, .. } => {
                out.push(TensorOut::bytes(name(ABSMAX), Dtype::U8, &[codes.len()], &codes[..]));
                out.push(TensorOut::f32(name(NESTED_ABSMAX), &[nested.len()], &nested[..]));
                out.push(TensorOut::f32(name(NESTED_QUANT_MAP), &[256], &map[..]));
            }
        }
        out
    }
}

impl Int8 {
    /// The tensors of a weight of this name (`P.weight`), as bitsandbytes writes them.
    pub fn tensors(&self, weight: &str) -> Vec<TensorOut<'_>> {
        let module = weight.strip_suffix("weight").unwrap_or(weight);
        let values: Vec<u8> = self.values.iter().map(|v| *v as u8).collect();
        vec![
            TensorOut::bytes(weight, Dtype::I8, &self.shape, values),
            TensorOut::f32(format!("{module}{SCB}"), &[self.scales.len()], &self.scales[..]),
            TensorOut::bytes(format!("{module}{WEIGHT_FORMAT}"), Dtype::U8, &[], Cow::Borrowed(&[0u8][..])),
        ]
    }
}
