//! `quantization_config` of a `config.json`: what transformers' `BitsAndBytesConfig` writes, and the names of what others do.

use std::path::Path;

use serde_json::{Value, json};

use super::{Code, Kind};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::folder::kind;

/// The key in `config.json`.
pub const KEY: &str = "quantization_config";
const METHOD: &str = "bitsandbytes";
/// What folders in a code of Retune's own name as their method, so that other programs refuse them by name.
const OWN_METHOD: &str = "retune";

/// Types that packed 4-bit values may lie in.
const STORAGES: &[&str] = &["uint8", "int8", "float16", "bfloat16", "float32", "float64"];

/// How a folder is quantised; the names are transformers'.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationConfig {
    pub load: Load,
    pub bnb_4bit_compute_dtype: String,
    pub bnb_4bit_quant_storage: String,
    /// Modules that are not quantised. `None`: transformers' choice, the output head.
    pub llm_int8_skip_modules: Option<Vec<String>>,
    pub llm_int8_threshold: f64,
    pub llm_int8_enable_fp32_cpu_offload: bool,
    pub llm_int8_has_fp16_weight: bool,
}

/// Four or eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    In4Bit { code: Code, double: bool },
    In8Bit,
}

impl QuantizationConfig {
    /// What transformers writes for this kind where nothing else is said.
    pub fn new(kind: Kind) -> QuantizationConfig {
        let load = match kind {
            Kind::FourBit { code, double, .. } => Load::In4Bit { code, double },
            Kind::Int8 => Load::In8Bit,
        };
        QuantizationConfig {
            load,
            bnb_4bit_compute_dtype: "float32".into(),
            bnb_4bit_quant_storage: "uint8".into(),
            llm_int8_skip_modules: None,
            llm_int8_threshold: 6.0,
            llm_int8_enable_fp32_cpu_offload: false,
            llm_int8_has_fp16_weight: false,
        }
    }

    /// Reads `quantization_config` of a `config.json` at `path`, if it has one.
    ///
    /// # Errors
    /// If the model was quantised by another method, which is named, or the settings make no sense.
    pub fn of(path: &Path, config: &Value) -> Result<Option<QuantizationConfig>> {
        match config.get(KEY) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => parse(&mut Fields::new(path, map)).map(Some),
            Some(other) => Err(Error::key(path, KEY, kind(other), "an object")),
        }
    }

    /// For people: `nf4 with double quantisation`, `int8`.
    pub fn describe(&self) -> String {
        match self.load {
            Load::In4Bit { code, double } => Kind::FourBit { code, blocksize: 64, double }.describe(),
            Load::In8Bit => Kind::Int8.describe(),
        }
    }

    /// As transformers writes it.
    pub fn to_json(&self) -> Value {
        // What the 4-bit settings of an 8-bit model say is transformers' default.
        let (four, code, double) = match self.load {
            Load::In4Bit { code, double } => (true, code, double),
            Load::In8Bit => (false, Code::Fp4, false),
        };
        let method = if code == Code::Int4 { OWN_METHOD } else { METHOD };
        json!({
            "_load_in_4bit": four,
            "_load_in_8bit": !four,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
            "bnb_4bit_quant_storage": self.bnb_4bit_quant_storage,
            "bnb_4bit_quant_type": code.name(),
            "bnb_4bit_use_double_quant": double,
            "llm_int8_enable_fp32_cpu_offload": self.llm_int8_enable_fp32_cpu_offload,
            "llm_int8_has_fp16_weight": self.llm_int8_has_fp16_weight,
            "llm_int8_skip_modules": self.llm_int8_skip_modules,
            "llm_int8_threshold": self.llm_int8_threshold,
            "load_in_4bit": four,
            "load_in_8bit": !four,
            "quant_method": method,
        })
    }
}

fn parse(fields: &mut Fields) -> Result<QuantizationConfig> {
    let four = fields.flag("load_in_4bit")?;
    let eight = fields.flag("load_in_8bit")?;
    // The first folders of bitsandbytes did not name it.
    let method = fields.string("quant_method")?;
    match method.as_deref() {
        Some(METHOD | OWN_METHOD) => {}
        Some("bitsandbytes_4bit" | "bitsandbytes_8bit") => {}
        None if four || eight => {}
        Some(other) => return Err(other_method(fields.path, other)),
        None => return Err(missing_method(fields.path)),
    }
    let codes = Code::ALL.map(|code| (code.name(), code));
    let code = fields.choice("bnb_4bit_quant_type", &codes)?.unwrap_or(Code::Fp4);
    let double = fields.flag("bnb_4bit_use_double_quant")?;
    let load = match (four, eight) {
        (true, false) => Load::In4Bit { code, double },
        (false, true) => Load::In8Bit,
        (four, _) => {
            let found = format!("{four} and load_in_8bit {eight}");
            return Err(Error::key(fields.path, "load_in_4bit", found, "one of them to be true"));
        }
    };
    let storages: Vec<(&str, &str)> = STORAGES.iter().map(|name| (*name, *name)).collect();
    let storage = fields.choice("bnb_4bit_quant_storage", &storages)?.unwrap_or("uint8");
    Ok(QuantizationConfig {
        load,
        bnb_4bit_compute_dtype: fields.string("bnb_4bit_compute_dtype")?.unwrap_or_else(|| "float32".into()),
        bnb_4bit_quant_storage: storage.into(),
        llm_int8_skip_modules: fields.strings("llm_int8_skip_modules")?,
        llm_int8_threshold: fields.number("llm_int8_threshold")?.unwrap_or(6.0),
        llm_int8_enable_fp32_cpu_offload: fields.flag("llm_int8_enable_fp32_cpu_offload")?,
        llm_int8_has_fp16_weight: fields.flag("llm_int8_has_fp16_weight")?,
    })
}

fn other_method(path: &Path, method: &str) -> Error {
    let method: String = method.chars().filter(|c| !c.is_control()).take(40).collect();
    Error::unsupported(
        path,
        format!("the model was quantised by {method}, whose files Retune does not read"),
        "take the unquantised model (and --storage nf4), one quantised by bitsandbytes, or a GGUF",
    )
}

fn missing_method(path: &Path) -> Error {
    let key = format!("{KEY}.quant_method");
    Error::key(path, key, "missing", "the name of a method, such as `bitsandbytes`")
}
