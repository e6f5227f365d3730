//! Retune's own format for what is no PEFT adapter: the new values of some of a model's parameters.
//!
//! `delta.safetensors` holds, for each changed parameter, either all its new values under its own (Hugging Face) name, or
//! for a few entries `NAME.indices` (flat row-major positions, rising, i32 or i64) and `NAME.values` (what is added there,
//! so that it is exact over any storage of the base, a quantised one too). `delta.json` says which method made it, for which base, and
//! names every parameter with its kind and shape.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quote};
use crate::fields::Fields;
use crate::source::{TensorInfo, TensorOut, TensorSource, nearest};
use crate::{Dtype, atomic, json as json_file, limits, peft, safetensors};

const FORMAT: &str = "delta";
/// What `format` in the configuration is.
const NAME: &str = "retune-delta";
/// The version that is written and read.
const VERSION: u64 = 1;
/// The name of the configuration in a folder.
pub const CONFIG: &str = "delta.json";
/// The name of the weights in a folder.
pub const WEIGHTS: &str = "delta.safetensors";
const INDICES: &str = ".indices";
const VALUES: &str = ".values";

/// Is there a delta in this folder?
pub fn is_delta_folder(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// How a parameter is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All its values.
    Dense,
    /// What is added at some positions.
    Sparse,
}

const KINDS: &[(&str, Kind)] = &[("dense", Kind::Dense), ("sparse", Kind::Sparse)];

/// A changed parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub kind: Kind,
    /// The parameter's own shape, row-major (a new head's may be another than the base's).
    pub shape: Vec<usize>,
}

/// Which model the values are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// BLAKE3 of the bytes of its weight files: 64 hexadecimal digits.
    pub blake3: String,
    /// BLAKE3 of the names and shapes of its tensors.
    pub shapes: String,
}

/// All that a `delta.json` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeltaConfig {
    /// `bitfit`, `partial`, `sparse`, `head`, `full`, …
    pub method: String,
    /// The method's own settings; free.
    pub settings: Map<String, Value>,
    pub base: Base,
    /// The changed parameters by name.
    pub tensors: BTreeMap<String, Changed>,
}

impl DeltaConfig {
    /// Reads the text of a `delta.json`; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<DeltaConfig> {
        let value = json_file::parse(path, text)?;
        let mut f = Fields::new(path, value.as_object().unwrap_or(&Map::new()));
        if f.string("format")?.as_deref() != Some(NAME) {
            let what = format!("its `format` is not {}", quote(NAME));
            return Err(Error::unsupported(path, what, "give a folder that Retune wrote"));
        }
        match f.integer("version", 0..=u64::MAX)? {
            Some(VERSION) => {}
            other => {
                let what = format!("its version is {}", other.map_or("missing".into(), |v| v.to_string()));
                return Err(Error::unsupported(
                    path,
                    what,
                    format!("version {VERSION} is read; a newer Retune may read it"),
                ));
            }
        }
        let config = DeltaConfig {
            method: method(&mut f)?,
            settings: object(&mut f, "settings")?,
            base: base(&mut f)?,
            tensors: tensors(&mut f)?,
        };
        strict(&f, &["method", "settings", "base", "tensors", "format", "version"])?;
        Ok(config)
    }

    /// The text that is written.
    pub fn to_text(&self) -> String {
        let kind = |kind| KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| name);
        let tensors: Map<String, Value> = self
            .tensors
            .iter()
            .map(|(name, t)| (name.clone(), json!({"kind": kind(t.kind), "shape": t.shape})))
            .collect();
        json_file::to_python_text(&json!({
            "format": NAME,
            "version": VERSION,
            "method": self.method,
            "settings": self.settings,
            "base": {"blake3": self.base.blake3, "shapes": self.base.shapes},
            "tensors": tensors,
        }))
    }

    /// Is exactly what the configuration names in the file?
    fn check(&self, path: &Path, infos: &[TensorInfo]) -> Result<()> {
        let invalid = |what: String| Error::invalid(path, FORMAT, what);
        let mut left: BTreeMap<&str, &TensorInfo> = infos.iter().map(|t| (t.name.as_str(), t)).collect();
        for (name, changed) in &self.tensors {
            let mut take = |suffix: &str| {
                let key = format!("{name}{suffix}");
                left.remove(key.as_str()).ok_or_else(|| invalid(format!("tensor {} is missing", quote(&key))))
            };
            let (values, due) = match changed.kind {
                Kind::Dense => (take("")?, changed.shape.clone()),
                Kind::Sparse => {
                    let (indices, values) = (take(INDICES)?, take(VALUES)?);
                    if indices.shape.len() != 1 || !matches!(indices.dtype, Dtype::I32 | Dtype::I64) {
                        let (shape, dtype) = (&indices.shape, indices.dtype);
                        return Err(invalid(format!(
                            "tensor {} is {dtype} {shape:?}, wanted I32 or I64 in one dimension",
                            quote(&indices.name)
                        )));
                    }
                    (values, indices.shape.clone())
                }
            };
            if values.shape != due || !values.dtype.is_float() {
                return Err(invalid(format!(
                    "tensor {} is {} {:?}, wanted a floating-point type and {due:?}",
                    quote(&values.name),
                    values.dtype,
                    values.shape
                )));
            }
        }
        match left.keys().next() {
            Some(odd) => Err(invalid(format!("tensor {} is not named in {CONFIG}", quote(odd)))),
            None => Ok(()),
        }
    }
}

/// No keys but these may be in an object, which have been taken.
fn strict(f: &Fields, known: &[&str]) -> Result<()> {
    let Some(odd) = f.map.keys().next() else { return Ok(()) };
    let near = nearest(odd, known.iter().copied());
    let near = near.map(|near| format!("; the nearest is {}", quote(&near))).unwrap_or_default();
    Err(Error::key(f.path, odd, "not known", format!("{}{near}", known.join(", "))))
}

fn object(f: &mut Fields, key: &str) -> Result<Map<String, Value>> {
    match f.take(key) {
        Some(Value::Object(map)) => Ok(map),
        Some(other) => f.bad(key, &other, "an object"),
        None => Err(Error::MissingKey {
            path: f.path.to_path_buf(),
            key: key.into(),
            nearest: nearest(key, f.map.keys().map(String::as_str)),
        }),
    }
}

fn method(f: &mut Fields) -> Result<String> {
    let name = f.string("method")?.unwrap_or_default();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return f.bad("method", &Value::String(name), "a name of small letters");
    }
    Ok(name)
}

fn base(f: &mut Fields) -> Result<Base> {
    let map = object(f, "base")?;
    let mut inner = Fields::new(f.path, &map);
    let hash = |inner: &mut Fields, key: &str| {
        let found = inner.string(key)?.unwrap_or_default();
        let is_hash = found.len() == 64 && found.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hash { Ok(found) } else { inner.bad(key, &Value::String(found), "64 hexadecimal digits") }
    };
    let base = Base { blake3: hash(&mut inner, "blake3")?, shapes: hash(&mut inner, "shapes")? };
    strict(&inner, &["blake3", "shapes"])?;
    Ok(base)
}

fn tensors(f: &mut Fields) -> Result<BTreeMap<String, Changed>> {
    let map = object(f, "tensors")?;
    if map.is_empty() || map.len() as u64 > limits::TENSORS {
        let found = format!("an object of {} entries", map.len());
        return Err(Error::key(f.path, "tensors", found, format!("1 to {} parameters", limits::TENSORS)));
    }
    let mut out = BTreeMap::new();
    for (name, value) in map {
        let shown = format!("tensors.{}", quote(&name).trim_matches('`'));
        let Value::Object(entry) = &value else {
            return f.bad(&shown, &value, "an object of kind and shape");
        };
        let mut inner = Fields::new(f.path, entry);
        let kind = inner.choice("kind", KINDS)?;
        let kind = kind.ok_or_else(|| Error::key(f.path, &shown, "without `kind`", "`dense` or `sparse`"))?;
        let shape = match inner.take("shape") {
            Some(Value::Array(dims)) if dims.len() <= limits::DIMS => {
                let dims = dims.iter().map(|d| d.as_u64().filter(|d| *d <= 1 << 40).map(|d| d as usize));
                dims.collect::<Option<Vec<usize>>>()
            }
            _ => None,
        };
        // The positions of a sparse parameter must be countable.
        let shape = shape.filter(|shape| Dtype::I64.byte_len(shape).is_some());
        let wanted = format!("a list of at most {} sizes", limits::DIMS);
        let shape =
            shape.ok_or_else(|| Error::key(f.path, format!("{shown}.shape"), "something else", wanted))?;
        strict(&inner, &["kind", "shape"])?;
        out.insert(name, Changed { kind, shape });
    }
    Ok(out)
}

/// An open folder, all checked: names, shapes, positions, finite values.
pub struct Delta {
    folder: PathBuf,
    config: DeltaConfig,
    file: safetensors::File,
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Delta").field("folder", &self.folder).field("config", &self.config).finish()
    }
}

impl Delta {
    /// Opens a folder and checks all that can be checked without the base model.
    pub fn open(folder: impl AsRef<Path>) -> Result<Delta> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        if !path.is_file() {
            return Err(Error::missing(
                folder,
                format!("there is no {CONFIG} in it"),
                "give an adapter's folder",
            ));
        }
        let text = crate::bytes::Bytes::open(&path)?.read_text("configuration", limits::CONFIG_BYTES)?;
        let config = DeltaConfig::parse(&path, &text)?;
        let weights = folder.join(WEIGHTS);
        if !weights.is_file() {
            let remedy = "copy the weights beside the configuration";
            return Err(Error::missing(folder, format!("there is no {WEIGHTS} in it"), remedy));
        }
        Delta::new(folder, config, safetensors::File::open(weights)?)
    }

    /// Checks a configuration and weights that are already open; `folder` is for messages.
    pub fn new(folder: &Path, config: DeltaConfig, file: safetensors::File) -> Result<Delta> {
        config.check(file.path(), file.tensors())?;
        let delta = Delta { folder: folder.to_path_buf(), config, file };
        for info in delta.file.tensors().iter().filter(|t| t.dtype.is_float()) {
            peft::check_finite(&delta.file, info)?;
        }
        for (name, changed) in &delta.config.tensors {
            if changed.kind == Kind::Sparse {
                delta.read_indices(name)?;
            }
        }
        Ok(delta)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The configuration; its `tensors` are exactly what is in the file.
    pub fn config(&self) -> &DeltaConfig {
        &self.config
    }

    /// The weights as a file of named tensors.
    pub fn source(&self) -> &safetensors::File {
        &self.file
    }

    /// All new values of a dense parameter, row-major.
    pub fn read_dense(&self, name: &str) -> Result<Vec<f32>> {
        self.file.read_f32(name)
    }

    /// The positions (flat, row-major, rising, within the shape) of a sparse parameter and what is added there.
    pub fn read_sparse(&self, name: &str) -> Result<(Vec<u64>, Vec<f32>)> {
        Ok((self.read_indices(name)?, self.file.read_f32(&format!("{name}{VALUES}"))?))
    }

    fn read_indices(&self, name: &str) -> Result<Vec<u64>> {
        let key = format!("{name}{INDICES}");
        let wide = self.file.get(&key)?.dtype == Dtype::I64;
        let bytes = self.file.read(&key)?;
        let all: Vec<i64> = match wide {
            true => bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
            false => bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
        };
        let shape = self.config.tensors.get(name).map_or(&[][..], |changed| &changed.shape);
        let numel = shape.iter().fold(1i64, |n, &d| n.saturating_mul(d as i64));
        let mut last = -1;
        for &index in &all {
            if index <= last || index >= numel {
                let what = format!(
                    "tensor {} holds {index} after {last}; positions rise and lie below {numel}",
                    quote(&key)
                );
                return Err(Error::invalid(self.file.path(), FORMAT, what));
            }
            last = index;
        }
        // None is negative.
        Ok(all.into_iter().map(|index| index as u64).collect())
    }
}

/// A changed parameter to be written.
pub enum DeltaOut<'a> {
    /// All its values, under its own name.
    Dense(TensorOut<'a>),
    /// What is added to some of its values: flat row-major positions, rising, and as many values.
    Sparse { name: String, shape: Vec<usize>, indices: Vec<u64>, values: Vec<f32> },
}

/// Writes a folder: weights, model card, then the configuration (its presence says that the rest is there), whose
/// `tensors` are filled in here. Each file is replaced atomically.
///
/// # Errors
/// If the parameters do not make a folder that would be read again, or it cannot be written.
pub fn write<'a>(
    folder: &Path,
    config: &DeltaConfig,
    tensors: impl IntoIterator<Item = DeltaOut<'a>>,
    readme: Option<&str>,
) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    let mut config = DeltaConfig { tensors: BTreeMap::new(), ..config.clone() };
    let mut out = Vec::new();
    for tensor in tensors {
        let (name, changed) = match tensor {
            DeltaOut::Dense(tensor) => {
                let changed = Changed { kind: Kind::Dense, shape: tensor.shape.clone() };
                let name = tensor.name.clone();
                out.push(tensor);
                (name, changed)
            }
            DeltaOut::Sparse { name, shape, indices, values } => {
                check_rising(&weights, &name, &shape, &indices)?;
                out.push(index_tensor(format!("{name}{INDICES}"), &indices));
                let len = values.len();
                out.push(TensorOut::f32(format!("{name}{VALUES}"), &[len], values));
                (name, Changed { kind: Kind::Sparse, shape })
            }
        };
        if config.tensors.insert(name.clone(), changed).is_some() {
            let what = format!("parameter {} is given twice", quote(&name));
            return Err(Error::Write { path: weights, what });
        }
    }
    let text = config.to_text();
    DeltaConfig::parse(&folder.join(CONFIG), &text)?;
    config.check(&weights, &out.iter().map(TensorOut::info).collect::<Vec<_>>())?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, out, &[("format", "pt")])?;
    if let Some(text) = readme {
        atomic::write_bytes(&folder.join("README.md"), text.as_bytes())?;
    }
    atomic::write_bytes(&folder.join(CONFIG), text.as_bytes())
}

fn check_rising(path: &Path, name: &str, shape: &[usize], indices: &[u64]) -> Result<()> {
    let numel = shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
    let rise = indices.windows(2).all(|pair| pair[0] < pair[1]);
    if rise && indices.last().is_none_or(|last| *last < numel) {
        return Ok(());
    }
    let what = format!("positions of {} do not rise below {numel}", quote(name));
    Err(Error::Write { path: path.to_path_buf(), what })
}

/// As i32 where that is wide enough.
fn index_tensor(name: String, indices: &[u64]) -> TensorOut<'static> {
    let narrow = indices.last().is_none_or(|last| i32::try_from(*last).is_ok());
    let (dtype, bytes): (Dtype, Vec<u8>) = match narrow {
        true => (Dtype::I32, indices.iter().flat_map(|i| (*i as i32).to_le_bytes()).collect()),
        false => (Dtype::I64, indices.iter().flat_map(|i| (*i as i64).to_le_bytes()).collect()),
    };
    TensorOut::bytes(name, dtype, &[indices.len()], bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DeltaConfig {
        let hash = "0123456789abcdef".repeat(4);
        DeltaConfig {
            method: "sparse".into(),
            settings: Map::from_iter([("share".to_string(), json!(0.01))]),
            base: Base { blake3: hash.clone(), shapes: hash },
            tensors: BTreeMap::new(),
        }
    }

    fn sparse(indices: &[u64]) -> DeltaOut<'static> {
        let values = vec![0.5; indices.len()];
        DeltaOut::Sparse { name: "w".into(), shape: vec![3, 4], indices: indices.to_vec(), values }
    }

    fn bias() -> DeltaOut<'static> {
        DeltaOut::Dense(TensorOut::f32("b.bias", &[3], vec![1.0, 2.0, 3.0]))
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config(), [bias(), sparse(&[0, 5, 11])], Some("# Card\n")).unwrap();
        assert!(is_delta_folder(dir.path()));
        let delta = Delta::open(dir.path()).unwrap();
        assert_eq!(DeltaConfig { tensors: BTreeMap::new(), ..delta.config().clone() }, config());
        assert_eq!(delta.config().tensors["w"], Changed { kind: Kind::Sparse, shape: vec![3, 4] });
        assert_eq!(delta.read_dense("b.bias").unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(delta.read_sparse("w").unwrap(), (vec![0, 5, 11], vec![0.5; 3]));
        assert_eq!(delta.source().get("w.indices").unwrap().dtype, Dtype::I32);
        assert!(delta.read_dense("w").is_err());
        let wide = index_tensor("i".into(), &[1, 1 << 33]);
        assert_eq!(wide.dtype, Dtype::I64);
    }

    #[test]
    fn what_would_not_be_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let both = DeltaOut::Dense(TensorOut::f32("w.values", &[1], vec![0.0]));
        let bad = DeltaConfig { method: "Big Fit".into(), ..config() };
        for (config, tensors, word) in [
            (config(), vec![], "1 to"),
            (config(), vec![sparse(&[5, 5])], "do not rise"),
            (config(), vec![sparse(&[12])], "do not rise"),
            (config(), vec![bias(), bias()], "given twice"),
            (config(), vec![sparse(&[1]), both], "w.values"),
            (bad, vec![bias()], "small letters"),
        ] {
            let message = write(dir.path(), &config, tensors, None).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_configuration_that_is_not_ours_is_named() {
        let mut good = config();
        good.tensors.insert("b".into(), Changed { kind: Kind::Dense, shape: vec![3] });
        let good: Value = serde_json::from_str(&good.to_text()).unwrap();
        for (key, value, word) in [
            ("format", json!("x"), "not `retune-delta`"),
            ("version", json!(2), "its version is 2"),
            ("version", json!(null), "its version is missing"),
            ("methid", json!("x"), "the nearest is `method`"),
            ("base", json!({"blake3": "x", "shapes": "y"}), "64 hexadecimal digits"),
            ("tensors", json!({"b": {"kind": "spars", "shape": [3]}}), "`dense` or `sparse`"),
            ("tensors", json!({"b": {"kind": "dense", "shape": [-3]}}), "tensors.b.shape"),
            (
                "tensors",
                json!({"b": {"kind": "dense", "shape": [1u64 << 40, 1u64 << 40]}}),
                "tensors.b.shape",
            ),
            ("tensors", json!({"b": {"kind": "dense", "shape": [3], "x": 1}}), "`x` is not known"),
            ("settings", json!(3), "an object"),
        ] {
            let mut value_of = good.clone();
            value_of[key] = value;
            let message = DeltaConfig::parse(Path::new("d"), &value_of.to_string()).unwrap_err().to_string();
            assert!(message.starts_with("d: ") && message.contains(word), "{message}");
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let open = |tensors: Vec<TensorOut>| {
            let mut config = config();
            config.tensors.insert("w".into(), Changed { kind: Kind::Sparse, shape: vec![3, 4] });
            let bytes = safetensors::to_bytes(tensors, &[]).unwrap();
            Delta::new(Path::new("here"), config, safetensors::File::from_memory("here/w", bytes).unwrap())
        };
        let values = |n: usize| TensorOut::f32("w.values", &[n], vec![0.0; n]);
        let signed = |v: &[i32]| {
            let bytes: Vec<u8> = v.iter().flat_map(|v| v.to_le_bytes()).collect();
            TensorOut::bytes("w.indices", Dtype::I32, &[v.len()], bytes)
        };
        open(vec![signed(&[0, 11]), values(2)]).unwrap();
        for (tensors, word) in [
            (vec![signed(&[0])], "`w.values` is missing"),
            (vec![values(1)], "`w.indices` is missing"),
            (vec![signed(&[0, 1]), values(3)], "[2]"),
            (vec![signed(&[0, 12]), values(2)], "12 after 0"),
            (vec![signed(&[-1, 2]), values(2)], "-1 after -1"),
            (vec![signed(&[3, 3]), values(2)], "3 after 3"),
            (vec![signed(&[0]), values(1), TensorOut::f32("x", &[1], vec![0.0])], "`x` is not named"),
            (vec![signed(&[0]), TensorOut::f32("w.values", &[1], vec![f32::NAN])], "NaN"),
        ] {
            let message = open(tensors).unwrap_err().to_string();
            assert!(message.starts_with("here/w: ") && message.contains(word), "{message}");
        }
    }
}
