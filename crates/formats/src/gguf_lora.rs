//! A LoRA for llama.cpp: one GGUF file with `general.type` = `adapter` and `<tensor>.weight.lora_a` (r, in), `.lora_b`
//! (out, r) for tensors of the base's GGUF.
//!
//! One alpha for all: the scale of a tensor is `adapter.lora.alpha / r`. Modules go by their GGUF names here
//! (`blk.0.attn_q`); [`LLAMA_NAMES`] and [`to_interleaved`] bring Hugging Face's there for Llama-like models.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result, quote};
use crate::gguf::{File, Value};
use crate::lora_tensors::{LoraModule, LoraTensors, most_common_number};
use crate::source::{TensorInfo, TensorOut, TensorSource};
use crate::{gguf_write, peft};

const FORMAT: &str = "GGUF adapter";
const TYPE: &str = "general.type";
const ARCHITECTURE: &str = "general.architecture";
const ADAPTER_TYPE: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";

/// Does this GGUF file hold an adapter, and no model?
pub fn is_adapter(file: &File) -> bool {
    matches!(file.metadata().opt_str(TYPE), Ok(Some("adapter")))
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufLora {
    /// `general.architecture`: must be the base's.
    pub architecture: String,
    /// By the name of the base's tensor without `.weight`.
    pub lora: LoraTensors,
    /// What is odd about the file but no error; worth showing.
    pub notes: Vec<String>,
}

/// Reads the factors of an adapter.
///
/// # Errors
/// If the file is no LoRA, a tensor is missing, not expected or not finite, or it needs what cannot be honoured.
pub fn read(file: &File) -> Result<GgufLora> {
    let (path, metadata) = (file.path(), file.metadata());
    if !is_adapter(file) {
        let what = format!("its `{TYPE}` is not `adapter`");
        return Err(Error::unsupported(path, what, "a LoRA made for llama.cpp was expected"));
    }
    let kind = metadata.str(ADAPTER_TYPE)?;
    if kind != "lora" {
        return Err(Error::unsupported(
            path,
            format!("its `{ADAPTER_TYPE}` is {}", quote(kind)),
            "`lora` is read",
        ));
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        let what = "it is an activated LoRA, which works only after certain tokens";
        return Err(Error::unsupported(path, what, "a plain LoRA can be carried over"));
    }
    let alpha = metadata.opt_f32(ALPHA)?.unwrap_or(0.0);
    let mut pairs: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    let mut norms = 0;
    for info in file.tensors() {
        let halves = [".weight.lora_a", ".weight.lora_b"];
        let half = halves.iter().position(|end| info.name.ends_with(end));
        match half.and_then(|half| Some((half, info.name.strip_suffix(halves[half])?))) {
            Some((_, "token_embd")) => {
                let what = format!("tensor {} is of an embedding", quote(&info.name));
                return Err(Error::unsupported(path, what, "only linear layers can be carried over"));
            }
            Some((half, module)) => pairs.entry(module).or_default()[half] = Some(info),
            None if info.name.ends_with("_norm.weight") => norms += 1,
            None => {
                let what = format!("tensor {} is not of a LoRA", quote(&info.name));
                return Err(Error::invalid(path, FORMAT, what));
            }
        }
    }
    let mut modules = BTreeMap::new();
    for (name, pair) in pairs {
        modules.insert(name.to_string(), module(file, name, pair, alpha.into())?);
    }
    if modules.is_empty() {
        return Err(Error::invalid(path, FORMAT, "it holds no tensors of a LoRA"));
    }
    let notes = (norms > 0).then(|| format!("{norms} tensors of norms are not used, as in llama.cpp"));
    Ok(GgufLora {
        architecture: metadata.str(ARCHITECTURE)?.to_string(),
        lora: LoraTensors { path: path.to_path_buf(), modules },
        notes: notes.into_iter().collect(),
    })
}

fn module(file: &File, name: &str, pair: [Option<&TensorInfo>; 2], alpha: f64) -> Result<LoraModule> {
    let invalid = |what: String| Error::invalid(file.path(), FORMAT, format!("{}: {what}", quote(name)));
    let [Some(a), Some(b)] = pair else {
        return Err(invalid("only one of lora_a and lora_b is there".into()));
    };
    let (r, inputs, outputs) = match (a.shape.as_slice(), b.shape.as_slice()) {
        (&[r, inputs], &[outputs, also]) if also == r => (r, inputs, outputs),
        _ => {
            return Err(invalid(format!(
                "shapes {:?} and {:?} are not (r, in) and (out, r)",
                a.shape, b.shape
            )));
        }
    };
    let read = |info: &TensorInfo| {
        peft::check_finite(file, info)?;
        file.read_f32(&info.name)
    };
    // An alpha of 0 means: as they are.
    let scale = if alpha == 0.0 { 1.0 } else { alpha / r as f64 };
    Ok(LoraModule { r, inputs, outputs, a: read(a)?, b: read(b)?, scale, magnitude: None })
}

/// Writes a file. What the one alpha cannot say goes into B: scales of rsLoRA, alphas by pattern.
///
/// # Errors
/// If there is nothing to write, a module does not go by its GGUF name, has DoRA's magnitude, or the file cannot be
/// written.
pub fn write(path: &Path, architecture: &str, lora: &LoraTensors) -> Result<()> {
    let (metadata, tensors) = plan(path, architecture, lora)?;
    let metadata: Vec<(&str, Value)> = metadata.into_iter().collect();
    gguf_write::write(path, &metadata, tensors)
}

fn plan<'a>(
    path: &Path,
    architecture: &str,
    lora: &'a LoraTensors,
) -> Result<(Vec<(&'static str, Value)>, Vec<TensorOut<'a>>)> {
    lora.check(path)?;
    if let Some(odd) = lora.modules.keys().find(|m| !m.starts_with("blk.") && *m != "output") {
        let what = format!("module {} has not the name of a tensor in a GGUF file", quote(odd));
        return Err(Error::unsupported(&lora.path, what, "names like `blk.0.attn_q` were expected"));
    }
    if let Some((name, _)) = lora.modules.iter().find(|(_, m)| m.magnitude.is_some()) {
        let what = format!("module {} has DoRA's magnitude, which llama.cpp cannot apply", quote(name));
        return Err(Error::unsupported(&lora.path, what, "merge the adapter into the model instead"));
    }
    let alphas = lora.modules.values().map(|m| m.scale * m.r as f64);
    // 0 would mean: as they are.
    let alpha = most_common_number(alphas).filter(|alpha| *alpha as f32 != 0.0).unwrap_or(1.0) as f32;
    let mut tensors = Vec::new();
    for (name, m) in &lora.modules {
        let b = m.b_for(f64::from(alpha) / m.r as f64);
        tensors.push(TensorOut::f32(format!("{name}.weight.lora_a"), &[m.r, m.inputs], &m.a[..]));
        tensors.push(TensorOut::f32(format!("{name}.weight.lora_b"), &[m.outputs, m.r], b));
    }
    let text = |text: &str| Value::Str(text.into());
    let metadata = vec![
        (TYPE, text("adapter")),
        (ARCHITECTURE, text(architecture)),
        (ADAPTER_TYPE, text("lora")),
        (ALPHA, Value::F32(alpha)),
        // All of it is f32.
        ("general.file_type", Value::U32(0)),
        ("general.quantization_version", Value::U32(2)),
    ];
    Ok((metadata, tensors))
}

/// The linear layers of a Llama-like model: path within a Hugging Face layer, and within a GGUF block.
pub const LLAMA_NAMES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// `model.layers.3.mlp.up_proj` to `blk.3.ffn_up`, for a Llama-like model.
pub fn llama_to_gguf(module: &str) -> Option<String> {
    if module == "lm_head" {
        return Some("output".into());
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, name) = LLAMA_NAMES.iter().find(|(path, _)| *path == part)?;
    Some(format!("blk.{layer}.{name}"))
}

/// `blk.3.ffn_up` to `model.layers.3.mlp.up_proj`, for a Llama-like model.
pub fn llama_from_gguf(name: &str) -> Option<String> {
    if name == "output" {
        return Some("lm_head".into());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (path, _) = LLAMA_NAMES.iter().find(|(_, name)| *name == part)?;
    Some(format!("model.layers.{layer}.{path}"))
}

/// The rows of B of a query or key, from Hugging Face's order of rotary positions (first halves, then second halves of each
/// head) to that of llama.cpp's architecture `llama` (the two of a pair side by side). `None` if the rows are not whole
/// heads of an even size.
pub fn to_interleaved(module: &LoraModule, head_dim: usize) -> Option<LoraModule> {
    let half = head_dim / 2;
    reorder(module, head_dim, |row| if row % 2 == 0 { row / 2 } else { half + row / 2 })
}

/// The inverse of [`to_interleaved`].
pub fn from_interleaved(module: &LoraModule, head_dim: usize) -> Option<LoraModule> {
    let half = head_dim / 2;
    reorder(module, head_dim, |row| if row < half { 2 * row } else { 2 * (row - half) + 1 })
}

/// Row i of each head becomes row `from(i)` of what was.
fn reorder(module: &LoraModule, head_dim: usize, from: impl Fn(usize) -> usize) -> Option<LoraModule> {
    if head_dim == 0
        || !head_dim.is_multiple_of(2)
        || !module.outputs.is_multiple_of(head_dim)
        || !module.is_whole()
    {
        return None;
    }
    let row = |i: usize| {
        let source = i / head_dim * head_dim + from(i % head_dim);
        module.b.get(source * module.r..(source + 1) * module.r)
    };
    let rows: Option<Vec<&[f32]>> = (0..module.outputs).map(row).collect();
    Some(LoraModule { b: rows?.concat(), ..module.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf_write::to_bytes;
    use crate::lora_tensors::tests::{example, product};

    fn named() -> LoraTensors {
        let lora = example();
        let modules = lora.modules.into_iter().map(|(path, m)| (llama_to_gguf(&path).unwrap(), m));
        LoraTensors { path: lora.path, modules: modules.collect() }
    }

    #[test]
    fn what_is_written_has_the_same_products() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        write(&path, "llama", &named()).unwrap();
        let file = File::open(&path).unwrap();
        assert!(is_adapter(&file));
        assert_eq!(file.metadata().f32(ALPHA).unwrap(), 8.0);
        assert_eq!(file.get("blk.0.attn_q.weight.lora_a").unwrap().shape, [2, 3]);
        let again = read(&file).unwrap();
        assert_eq!((again.architecture.as_str(), again.notes.len()), ("llama", 0));
        for (name, m) in &named().modules {
            let found = &again.lora.modules[name];
            for (x, y) in product(m).iter().zip(product(found)) {
                assert!((x - y).abs() < 1e-6 * (1.0 + x.abs()), "{name}");
            }
        }
        // The most common scale is not folded.
        assert_eq!(again.lora.modules["blk.0.attn_q"], named().modules["blk.0.attn_q"]);
    }

    #[test]
    fn names_go_there_and_back() {
        for module in ["model.layers.12.mlp.down_proj", "lm_head", "model.layers.0.self_attn.o_proj"] {
            assert_eq!(llama_from_gguf(&llama_to_gguf(module).unwrap()).unwrap(), module);
        }
        assert_eq!(llama_to_gguf("model.layers.x.mlp.up_proj"), None);
        assert_eq!(llama_to_gguf("model.norm"), None);
    }

    #[test]
    fn rows_of_heads_are_interleaved() {
        let b: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let module = LoraModule { r: 1, inputs: 1, outputs: 8, a: vec![1.0], b, scale: 1.0, magnitude: None };
        let there = to_interleaved(&module, 4).unwrap();
        assert_eq!(there.b, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(from_interleaved(&there, 4).unwrap(), module);
        assert_eq!(to_interleaved(&module, 3), None);
        assert_eq!(to_interleaved(&module, 16), None);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let lora = named();
        let spoilt = |change: &dyn Fn(&mut Vec<(&'static str, Value)>, &mut Vec<TensorOut>)| {
            let (mut metadata, mut tensors) = plan(Path::new("x"), "llama", &lora).unwrap();
            change(&mut metadata, &mut tensors);
            let bytes = to_bytes(&metadata, tensors).unwrap();
            File::from_memory("a.gguf", bytes).and_then(|file| read(&file)).unwrap_err().to_string()
        };
        let other = |name: &str| TensorOut::f32(name.to_string(), &[2], vec![1.0; 2]);
        for (message, word) in [
            (spoilt(&|m, _| m[0].1 = Value::Str("model".into())), "not `adapter`"),
            (spoilt(&|m, _| m[2].1 = Value::Str("x".into())), "`adapter.type` is `x`"),
            (spoilt(&|_, t| drop(t.pop())), "only one of lora_a and lora_b"),
            (spoilt(&|_, t| t.clear()), "no tensors of a LoRA"),
            (spoilt(&|_, t| t.push(other("blk.0.attn_q.bias"))), "not of a LoRA"),
            (spoilt(&|_, t| t.push(other("token_embd.weight.lora_a"))), "of an embedding"),
        ] {
            assert!(message.contains(word), "{message}");
        }
        let mut dora = named();
        dora.modules.values_mut().for_each(|m| m.magnitude = Some(vec![1.0; 2]));
        let message = write(Path::new("x"), "llama", &example()).unwrap_err().to_string();
        assert!(message.contains("names like `blk.0.attn_q`"), "{message}");
        let message = write(Path::new("x"), "llama", &dora).unwrap_err().to_string();
        assert!(message.contains("DoRA") && message.contains("merge"), "{message}");
    }
}
