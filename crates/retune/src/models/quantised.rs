//! Linears in 4 or 8 bits: quantised while a model is loaded, or by bitsandbytes before.

use std::cell::Cell;

use regex::{Regex, RegexBuilder};
use retune_formats::bitsandbytes::{self, Absmax, Kind, Layer, Original};
use retune_formats::limits;
use retune_tensor::storage::{self, Code4, Constants, FourBit, Quantized, RowInt8, StorageError};

use crate::error::{Error, Result};
use crate::methods::targets::nearest;

/// Values that share an absmax constant: bitsandbytes' default.
pub const BLOCK_SIZE: usize = 64;

/// A code of 4 or 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantCode {
    FourBit(Code4),
    /// LLM.int8: one scale a row.
    Int8,
}

/// How linears are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation {
    pub code: QuantCode,
    /// Quantise the absmax constants of 4-bit blocks, too.
    pub double: bool,
}

impl Quantisation {
    /// The names of all codes.
    pub const NAMES: [&'static str; 4] = ["nf4", "fp4", "int4", "int8"];

    /// The code of this name.
    pub fn from_name(name: &str, double: bool) -> Option<Quantisation> {
        let code = match name {
            "int8" => QuantCode::Int8,
            name => QuantCode::FourBit(Code4::from_name(name)?),
        };
        Some(Quantisation { code, double })
    }

    /// As it is written: `nf4`, `int8`.
    pub fn name(self) -> &'static str {
        match self.code {
            QuantCode::FourBit(code) => code.name(),
            QuantCode::Int8 => "int8",
        }
    }

    /// How the layers are written.
    pub fn kind(self) -> Kind {
        match self.code {
            QuantCode::FourBit(code) => {
                Kind::FourBit { code: file_code(code), blocksize: BLOCK_SIZE, double: self.double }
            }
            QuantCode::Int8 => Kind::Int8,
        }
    }

    /// A matrix `[rows, cols]` quantised as bitsandbytes does it.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn quantise(
        self,
        rows: usize,
        cols: usize,
        data: &[f32],
    ) -> std::result::Result<Box<dyn storage::Storage>, StorageError> {
        Ok(match self.code {
            QuantCode::FourBit(code) => {
                Box::new(FourBit::quantize(code, BLOCK_SIZE, self.double, rows, cols, data)?)
            }
            QuantCode::Int8 => Box::new(RowInt8::quantize(rows, cols, data)?),
        })
    }

    /// Bytes that a quantised matrix takes.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        match self.code {
            QuantCode::FourBit(_) => FourBit::size(BLOCK_SIZE, self.double, rows, cols).unwrap_or(usize::MAX),
            QuantCode::Int8 => rows.saturating_mul(cols).saturating_add(4 * rows),
        }
    }

    /// Whether layers of this kind need not be quantised again: of one code, however their constants lie.
    pub fn is(self, kind: Kind) -> bool {
        match (self.code, kind) {
            (QuantCode::FourBit(code), Kind::FourBit { code: other, .. }) => file_code(code) == other,
            (code, kind) => code == QuantCode::Int8 && kind == Kind::Int8,
        }
    }
}

fn file_code(code: Code4) -> bitsandbytes::Code {
    match code {
        Code4::Nf4 => bitsandbytes::Code::Nf4,
        Code4::Fp4 => bitsandbytes::Code::Fp4,
        Code4::Int4 => bitsandbytes::Code::Int4,
    }
}

pub(super) fn memory_code(code: bitsandbytes::Code) -> Code4 {
    match code {
        bitsandbytes::Code::Nf4 => Code4::Nf4,
        bitsandbytes::Code::Fp4 => Code4::Fp4,
        bitsandbytes::Code::Int4 => Code4::Int4,
    }
}

/// A layer of a file as it lies in memory.
///
/// # Errors
/// If its parts do not fit each other.
pub fn storage_of(layer: Layer) -> std::result::Result<Box<dyn storage::Storage>, StorageError> {
    let [rows, cols] = *layer.shape();
    Ok(match layer {
        Layer::FourBit(bitsandbytes::FourBit { code, blocksize, packed, map, absmax, .. }) => {
            let constants = match absmax {
                Absmax::Single(absmax) => Constants::Single(absmax),
                Absmax::Double { codes, map, nested, blocksize, offset } => {
                    Constants::Double { codes, map, absmax: nested, blocksize, offset }
                }
            };
            let code = memory_code(code);
            Box::new(FourBit::from_parts(code, blocksize, rows, cols, packed, map, constants)?)
        }
        Layer::Int8(bitsandbytes::Int8 { values, scales, .. }) => {
            Box::new(RowInt8::from_parts(rows, cols, values, scales)?)
        }
    })
}

/// A storage as a file's layer; `original` is what its values were before. The parts are copied.
pub fn layer_of(storage: Quantized, original: Original) -> Layer {
    use retune_tensor::storage::Storage;
    match storage {
        Quantized::FourBit(w) => Layer::FourBit(bitsandbytes::FourBit {
            code: file_code(w.code()),
            blocksize: w.blocksize(),
            original,
            shape: [w.rows(), w.cols()],
            packed: w.packed().to_vec(),
            map: *w.map(),
            absmax: match w.constants() {
                Constants::Single(absmax) => Absmax::Single(absmax.clone()),
                Constants::Double { codes, map, absmax, blocksize, offset } => Absmax::Double {
                    codes: codes.clone(),
                    map: map.clone(),
                    nested: absmax.clone(),
                    blocksize: *blocksize,
                    offset: *offset,
                },
            },
        }),
        Quantized::RowInt8(w) => Layer::Int8(bitsandbytes::Int8 {
            shape: [w.rows(), w.cols()],
            values: w.values().to_vec(),
            scales: w.scales().to_vec(),
        }),
    }
}

/// Which weights are quantised: the linears of the blocks, but those that patterns keep.
///
/// The rule is the same for every architecture: a matrix is a linear of a block if its Hugging Face name has a number among
/// its parts (`model.layers.0.mlp.up_proj.weight`, `transformer.h.0.attn.c_attn.weight`,
/// `bert.encoder.layer.0.output.dense.weight`). What has none stays as the file has it: token and position tables, and heads
/// with all that belongs to them.
///
/// This is what transformers does for bitsandbytes (`get_keys_to_not_convert`: the output embedding, what is tied, and the last
/// module), but for encoders: there it quantises poolers, the inner layer of masked-language-model heads and, since it looks at
/// the last parameter's name and not at the last module, classifiers that have a bias. Here these are heads, which are trained
/// in f32; folders that we write name them in `llm_int8_skip_modules`.
///
/// Patterns are read as transformers reads that list: the path of a module or of one around it, the end of a path, or a
/// regular expression that matches the path's beginning up to a dot.
pub struct Quantised {
    keep: Vec<Pattern>,
}

struct Pattern {
    text: String,
    regex: Regex,
    used: Cell<bool>,
}

impl Quantised {
    /// # Errors
    /// If a pattern is no regular expression, or too long.
    pub fn new(keep: &[String]) -> Result<Quantised> {
        let pattern = |text: &String| {
            let regex = RegexBuilder::new(&format!("^(?:{text})$"))
                .size_limit(limits::PATTERN_COMPILED_BYTES)
                .dfa_size_limit(limits::PATTERN_COMPILED_BYTES)
                .build();
            let regex = regex.ok().filter(|_| text.len() <= limits::PATTERN_BYTES);
            regex.map(|regex| Pattern { text: text.clone(), regex, used: Cell::new(false) }).ok_or_else(
                || bad_pattern(text, "it is no regular expression that can be used; name modules instead"),
            )
        };
        Ok(Quantised { keep: keep.iter().map(pattern).collect::<Result<_>>()? })
    }

    /// Whether the matrix of this Hugging Face name (`P.weight`) is quantised.
    pub fn includes(&self, name: &str) -> bool {
        in_block(name) && !self.keeps(module_of(name))
    }

    fn keeps(&self, module: &str) -> bool {
        let mut kept = false;
        for pattern in self.keep.iter().filter(|pattern| pattern.matches(module)) {
            pattern.used.set(true);
            kept = true;
        }
        kept
    }

    /// Once all names were asked for: was every pattern of some use? `names` are those of the weights.
    ///
    /// # Errors
    /// If one fits nothing, with the nearest name.
    pub fn check_all_used<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let Some(pattern) = self.keep.iter().find(|pattern| !pattern.used.get()) else { return Ok(()) };
        let modules: Vec<&str> = names.filter(|name| in_block(name)).map(module_of).collect();
        let short = modules.iter().filter_map(|module| module.rsplit('.').next());
        let near = nearest(&pattern.text, short.chain(modules.iter().copied()));
        let near = near.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
        Err(bad_pattern(&pattern.text, &format!("it fits no linear of this model's blocks{near}")))
    }
}

impl Pattern {
    /// transformers' `should_convert_module`.
    fn matches(&self, module: &str) -> bool {
        let bytes = module.as_bytes();
        let boundary = |end: &usize| {
            *end == bytes.len()
                || bytes.get(*end) == Some(&b'.')
                || (*end > 0 && bytes.get(end - 1) == Some(&b'.'))
        };
        let mut starts = (0..=bytes.len()).filter(boundary).filter_map(|end| module.get(..end));
        module.ends_with(&self.text) || starts.any(|start| self.regex.is_match(start))
    }
}

fn bad_pattern(pattern: &str, what: &str) -> Error {
    Error::Method(format!("keep_modules: \"{pattern}\": {what}"))
}

pub(super) fn in_block(name: &str) -> bool {
    name.ends_with(".weight") && layer_of_name(name).is_some()
}

/// The number of the block that a tensor of this Hugging Face name belongs to.
pub fn layer_of_name(name: &str) -> Option<usize> {
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split('.').find(number)?.parse().ok()
}

fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(patterns: &[&str], name: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
        !Quantised::new(&patterns).unwrap().includes(name)
    }

    #[test]
    fn the_linears_of_blocks_are_quantised() {
        for name in [
            "model.layers.0.mlp.up_proj.weight",
            "transformer.h.11.attn.c_attn.weight",
            "h.0.mlp.c_fc.weight",
            "roberta.encoder.layer.3.attention.self.query.weight",
            "distilbert.transformer.layer.0.ffn.lin1.weight",
        ] {
            assert!(!kept(&[], name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "score.weight",
            "transformer.wpe.weight",
            "bert.pooler.dense.weight",
            "cls.predictions.transform.dense.weight",
            "classifier.weight",
            "model.layers.0.mlp.up_proj.bias",
        ] {
            assert!(kept(&[], name), "{name}");
        }
    }

    #[test]
    fn patterns_mean_what_they_mean_to_transformers() {
        let name = "model.layers.11.mlp.gate_proj.weight";
        for (pattern, hit) in [
            ("model.layers.11", true),
            ("model.layers.1", false),
            ("model.layers.11.", true),
            ("gate_proj", true),
            ("proj", true),
            ("mlp.gate", false),
            (r"model\.layers\.(1|11)", true),
            (r".*\.mlp", true),
            (r".*\.self_attn", false),
            ("layers.11", false),
        ] {
            assert_eq!(kept(&[pattern], name), hit, "{pattern}");
        }
        let error = Quantised::new(&["(".into()]).err().unwrap().to_string();
        assert!(error.contains("keep_modules: \"(\""), "{error}");
        let rule = Quantised::new(&["gate_poj".into()]).unwrap();
        let error = rule.check_all_used([name].into_iter()).unwrap_err().to_string();
        assert!(error.contains("did you mean \"gate_proj\"?"), "{error}");
        let rule = Quantised::new(&["gate_proj".into()]).unwrap();
        assert!(!rule.includes(name));
        rule.check_all_used([name].into_iter()).unwrap();
    }

    #[test]
    fn layers_go_to_memory_and_back() {
        let data: Vec<f32> = (0..7 * 30).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        for name in Quantisation::NAMES {
            for double in [false, true] {
                let how = Quantisation::from_name(name, double).unwrap();
                let made = how.quantise(7, 30, &data).unwrap();
                assert_eq!(made.bytes(), how.bytes(7, 30), "{name}");
                let layer = layer_of(made.quantized().unwrap(), Original::Bf16);
                let back = storage_of(layer.clone()).unwrap();
                assert_eq!(layer_of(back.quantized().unwrap(), Original::Bf16), layer);
                let kind = match &layer {
                    Layer::FourBit(w) => {
                        let double = matches!(w.absmax, Absmax::Double { .. });
                        Kind::FourBit { code: w.code, blocksize: w.blocksize, double }
                    }
                    Layer::Int8(_) => Kind::Int8,
                };
                assert_eq!((how.name(), how.kind(), how.is(kind)), (name, kind, true));
            }
        }
    }
}
