//! A Hugging Face model folder: `config.json`, the weights in one or many safetensors files, and the texts of the
//! tokenizer.
//!
//! Names of shards come from a file, so they are hostile: only plain file names that lead to a file in the
//! folder itself (or, for links, to the `blobs` of the hub cache that the folder is a snapshot of).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorSource};
use crate::{json, limits, safetensors};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open model folder. The tokenizer's texts are read when asked for.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    weights: Weights,
}

impl ModelFolder {
    /// Opens a folder: parses the configuration and checks the headers of all weight files.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFolder> {
        let path = path.as_ref();
        let config = path.join("config.json");
        if !config.is_file() {
            let what = "there is no config.json in it";
            return Err(Error::missing(path, what, "a model is a Hugging Face folder or one .gguf file"));
        }
        let config = read_object(&config)?;
        let generation_config = path.join("generation_config.json");
        let generation_config =
            if generation_config.is_file() { Some(read_object(&generation_config)?) } else { None };
        let weights = Weights::open(path)?;
        Ok(ModelFolder { path: path.to_path_buf(), config, generation_config, weights })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, an object, if there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// All tensors, whichever file holds them.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights alone, when the rest is no longer needed.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// The text of `tokenizer.json`, if there is one.
    pub fn tokenizer(&self) -> Result<Option<String>> {
        self.text("tokenizer.json", "tokenizer", limits::TOKENIZER_BYTES)
    }

    /// `tokenizer_config.json`, an object, if there is one; without its `added_tokens_decoder`, which is long and says
    /// what `tokenizer.json` says.
    pub fn tokenizer_config(&self) -> Result<Option<Value>> {
        self.object("tokenizer_config.json")
    }

    /// `special_tokens_map.json`, an object, if there is one.
    pub fn special_tokens_map(&self) -> Result<Option<Value>> {
        self.object("special_tokens_map.json")
    }

    /// The chat templates by name (`default` is the usual one): `chat_template.jinja`, else `chat_template.json`, else
    /// what `tokenizer_config.json` holds (a text, or a list of named texts). Empty if the model has none.
    pub fn chat_templates(&self) -> Result<BTreeMap<String, String>> {
        let default = |text| BTreeMap::from([("default".to_string(), text)]);
        if let Some(text) = self.text("chat_template.jinja", "chat template", limits::TEMPLATE_BYTES)? {
            return Ok(default(text));
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            if let Some(value) = self.object(file)?.as_ref().and_then(|config| config.get("chat_template")) {
                return templates(&self.path.join(file), value);
            }
        }
        Ok(BTreeMap::new())
    }

    fn object(&self, file: &str) -> Result<Option<Value>> {
        let path = self.path.join(file);
        if path.is_file() { read_object(&path).map(Some) } else { Ok(None) }
    }

    fn text(&self, file: &str, what: &'static str, limit: u64) -> Result<Option<String>> {
        let path = self.path.join(file);
        if path.is_file() { Bytes::open(&path)?.read_text(what, limit).map(Some) } else { Ok(None) }
    }
}

/// Is this a folder that [`ModelFolder::open`] is for? (It may still be damaged.)
pub fn is_model_folder(path: &Path) -> bool {
    path.join("config.json").is_file()
}

fn read_object(path: &Path) -> Result<Value> {
    let text = Bytes::open(path)?.read_text("configuration", limits::CONFIG_BYTES)?;
    match json::parse_without(path, &text, &["added_tokens_decoder"])? {
        value @ Value::Object(_) => Ok(value),
        other => {
            Err(Error::invalid(path, "configuration", format!("it holds {}, not an object", kind(&other))))
        }
    }
}

/// The kind of a JSON value, for messages.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(v) => v.to_string(),
        Value::Number(v) => v.to_string(),
        Value::String(v) => quote(v),
        Value::Array(v) => format!("a list of {}", v.len()),
        Value::Object(_) => "an object".into(),
    }
}

fn templates(path: &Path, value: &Value) -> Result<BTreeMap<String, String>> {
    let wanted = "a text or a list of {\"name\", \"template\"}";
    let bad = || Error::key(path, "chat_template", kind(value), wanted);
    let mut out = BTreeMap::new();
    match value {
        Value::Null => {}
        Value::String(text) => drop(out.insert("default".to_string(), text.clone())),
        Value::Array(list) if list.len() <= limits::TEMPLATES => {
            for item in list {
                let text = |key| item.get(key).and_then(Value::as_str).ok_or_else(bad);
                out.insert(text("name")?.to_string(), text("template")?.to_string());
            }
        }
        _ => return Err(bad()),
    }
    match out.values().map(|text| text.len() as u64).max() {
        Some(len) if len > limits::TEMPLATE_BYTES => {
            Err(Error::limit(path, "the size of a chat template", len, limits::TEMPLATE_BYTES))
        }
        _ => Ok(out),
    }
}

/// The weights of a folder: one file or many shards, one [`TensorSource`].
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<safetensors::File>,
    table: Table,
    unlisted: Vec<String>,
}

impl Weights {
    /// Opens the weight files of a folder and checks them against the index.
    pub fn open(folder: &Path) -> Result<Weights> {
        if folder.join(SINGLE).is_file() {
            let file = safetensors::File::open(inside(folder, SINGLE)?)?;
            return Weights::join(folder, vec![file], None);
        }
        if !folder.join(INDEX).is_file() {
            return Err(no_weights(folder));
        }
        let path = inside(folder, INDEX)?;
        let map = read_index(&path)?;
        let mut names: Vec<&str> = map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > limits::SHARDS {
            return Err(Error::limit(
                &path,
                "the number of shards",
                names.len() as u64,
                limits::SHARDS as u64,
            ));
        }
        let mut shards = Vec::with_capacity(names.len());
        for name in &names {
            shards.push(safetensors::File::open(inside(folder, name)?)?);
        }
        let shard_of = |tensor: &str| names.binary_search(&map.get(tensor)?.as_str()).ok();
        let weights = Weights::join(folder, shards, Some(&shard_of))?;
        for (tensor, shard) in &map {
            if weights.find(tensor).is_none() {
                let what =
                    format!("tensor {} is said to be in {shard}, which does not hold it", quote(tensor));
                return Err(Error::invalid(&path, "index", what));
            }
        }
        Ok(weights)
    }

    /// Puts the tensors of all shards into one table; `shard_of` says which shard the index names for a tensor.
    fn join(
        folder: &Path,
        shards: Vec<safetensors::File>,
        shard_of: Option<&dyn Fn(&str) -> Option<usize>>,
    ) -> Result<Weights> {
        let mut tensors = Vec::new();
        let mut unlisted = Vec::new();
        for (i, shard) in shards.iter().enumerate() {
            for info in shard.tensors() {
                if shard_of.is_none_or(|f| f(&info.name) == Some(i)) {
                    tensors.push(TensorInfo { shard: i as u32, ..info.clone() });
                } else {
                    unlisted.push(info.name.clone());
                }
            }
        }
        let twice =
            |name: String| Error::invalid(folder, "model", format!("two tensors are named {}", quote(&name)));
        let table = Table::new(tensors).map_err(twice)?;
        Ok(Weights { path: folder.to_path_buf(), shards, table, unlisted })
    }

    /// Tensors that lie in a shard where the index does not look for them; they are not offered.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    fn shard(&self, info: &TensorInfo) -> Result<&safetensors::File> {
        self.shards.get(info.shard as usize).ok_or_else(|| {
            let what = format!("tensor {} is of another model", quote(&info.name));
            Error::invalid(&self.path, "model", what)
        })
    }

    /// The weight files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path())
    }
}

impl TensorSource for Weights {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        self.shard(info)?.read_at(info, byte_offset, out)
    }

    fn check_unchanged(&self, info: &TensorInfo) -> Result<()> {
        self.shard(info)?.check_unchanged(info)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// `{"metadata": …, "weight_map": {tensor: shard}}`.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let Value::Object(mut index) = json::read(path, limits::INDEX_BYTES)? else {
        return Err(Error::invalid(path, "index", "it is not an object"));
    };
    let map = match index.remove("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        Some(other) => {
            return Err(Error::key(path, "weight_map", kind(&other), "an object of tensor names and files"));
        }
        None => {
            return Err(Error::MissingKey {
                path: path.to_path_buf(),
                key: "weight_map".into(),
                nearest: None,
            });
        }
    };
    let mut out = BTreeMap::new();
    for (tensor, shard) in map {
        let Value::String(shard) = shard else {
            return Err(Error::key(path, format!("weight_map.{tensor}"), kind(&shard), "the name of a file"));
        };
        out.insert(tensor, shard);
    }
    Ok(out)
}

/// The path of a file of this plain name that lies in the folder.
fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':', '\0']);
    if !plain {
        let what = format!("the index names the file {}, which is not a plain file name", quote(name));
        return Err(Error::unsupported(folder, what, "shards must lie in the model's own folder"));
    }
    let path = folder.join(name);
    let real = fs::canonicalize(&path).map_err(Error::io(&path, "open"))?;
    let home = fs::canonicalize(folder).map_err(Error::io(folder, "open"))?;
    let parent = real.parent();
    // A snapshot of the hub cache (models--x/snapshots/<commit>) is made of links into models--x/blobs.
    let blobs =
        home.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|p| p.join("blobs"));
    if parent == Some(&home) || (parent.is_some() && parent == blobs.as_deref()) {
        return Ok(path);
    }
    let what = format!("it is a link out of the model's folder, to {}", real.display());
    Err(Error::unsupported(&path, what, "put the file itself into the folder"))
}

fn no_weights(folder: &Path) -> Error {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    let of = |ends: &[&str]| names.iter().find(|n| ends.iter().any(|end| n.ends_with(end))).cloned();
    if let Some(other) = of(&[".safetensors"]) {
        let what = format!("there is no {SINGLE} or {INDEX} in it, but {other}");
        return Error::missing(folder, what, format!("rename it to {SINGLE} if it holds the whole model"));
    }
    if let Some(pickle) = of(&[".bin", ".pt", ".pth"]) {
        let what =
            format!("its weights are in {pickle}, a Python pickle, which can run code when it is read");
        return Error::unsupported(
            folder,
            what,
            "convert it to model.safetensors once, on a machine you trust with it",
        );
    }
    if let Some(gguf) = of(&[".gguf"]) {
        return Error::missing(
            folder,
            format!("there is no {SINGLE} in it, but {gguf}"),
            "give that file's path instead",
        );
    }
    Error::missing(folder, format!("there is neither {SINGLE} nor {INDEX} in it"), "download the weights too")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorOut;

    fn shard(dir: &Path, name: &str, tensors: &[&str]) {
        let tensors = tensors.iter().map(|t| TensorOut::f32(*t, &[2], vec![1.0, 2.0]));
        safetensors::write(&dir.join(name), tensors, &[("format", "pt")]).unwrap();
    }

    fn index(dir: &Path, map: &[(&str, &str)]) {
        let map: serde_json::Map<_, _> = map.iter().map(|(t, f)| (t.to_string(), Value::from(*f))).collect();
        let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        fs::write(dir.join(INDEX), text).unwrap();
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        dir
    }

    fn error(dir: &Path) -> String {
        ModelFolder::open(dir).unwrap_err().to_string()
    }

    #[test]
    fn shards_are_one_source() {
        let dir = folder();
        shard(dir.path(), "m-1.safetensors", &["a", "b"]);
        shard(dir.path(), "m-2.safetensors", &["c", "stray"]);
        index(dir.path(), &[("a", "m-1.safetensors"), ("b", "m-1.safetensors"), ("c", "m-2.safetensors")]);
        let model = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(model.config()["model_type"], "llama");
        let names: Vec<_> = model.weights().tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(model.weights().read_f32("c").unwrap(), [1.0, 2.0]);
        assert_eq!(model.weights().unlisted(), ["stray"]);
        assert_eq!(model.tokenizer().unwrap(), None);
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let dir = folder();
        shard(dir.path(), "m-1.safetensors", &["a"]);
        shard(dir.path(), "m-2.safetensors", &["b"]);
        index(dir.path(), &[("a", "m-2.safetensors"), ("b", "m-1.safetensors")]);
        assert!(error(dir.path()).contains("does not hold it"), "{}", error(dir.path()));
        for bad in ["../m-1.safetensors", "/etc/passwd", "a\\b", "..", ""] {
            index(dir.path(), &[("a", bad)]);
            assert!(error(dir.path()).contains("plain file name"), "{}", error(dir.path()));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_in_the_folder_or_its_hub_cache() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--x/snapshots/abc");
        let (blobs, elsewhere) = (dir.path().join("models--x/blobs"), dir.path().join("elsewhere"));
        for folder in [&snapshot, &blobs, &elsewhere] {
            fs::create_dir_all(folder).unwrap();
            shard(folder, "blob", &["a"]);
        }
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        symlink("../../blobs/blob", snapshot.join(SINGLE)).unwrap();
        assert!(ModelFolder::open(&snapshot).is_ok());
        fs::remove_file(snapshot.join(SINGLE)).unwrap();
        symlink(elsewhere.join("blob"), snapshot.join(SINGLE)).unwrap();
        assert!(error(&snapshot).contains("link out of the model's folder"), "{}", error(&snapshot));
    }

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(error(dir.path()).contains("no config.json"));
        let dir = folder();
        assert!(error(dir.path()).contains("neither model.safetensors"));
        fs::write(dir.path().join("pytorch_model.bin"), b"PK").unwrap();
        assert!(error(dir.path()).contains("convert it to model.safetensors"));
    }

    #[test]
    fn chat_templates_from_all_three_places() {
        let dir = folder();
        shard(dir.path(), SINGLE, &["a"]);
        let path = dir.path().join("tokenizer_config.json");
        let templates = || ModelFolder::open(dir.path()).unwrap().chat_templates();
        assert!(templates().unwrap().is_empty());
        fs::write(&path, r#"{"chat_template": "A"}"#).unwrap();
        assert_eq!(templates().unwrap()["default"], "A");
        fs::write(
            &path,
            r#"{"chat_template": [{"name": "default", "template": "B"}, {"name": "rag", "template": "C"}]}"#,
        )
        .unwrap();
        assert_eq!(templates().unwrap()["rag"], "C");
        fs::write(&path, r#"{"chat_template": 3}"#).unwrap();
        assert!(templates().unwrap_err().to_string().contains("`chat_template` is 3"));
        fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
        assert_eq!(templates().unwrap()["default"], "J");
    }
}
