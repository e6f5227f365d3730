//! The heads of text models: which one the files have or the caller wants, built from the files or freshly drawn.
//!
//! Architectures say how transformers names their parts ([`Parts`]); the rest is the same for all.

use retune_tensor::ops::Activation;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::image_head;
use crate::models::loader::Loader;
use crate::models::{HeadRequest, ModelFiles};
use crate::nn::{Classifier, Head, LanguageModelHead, Linear, Pooling, Problem};

/// Most labels of a classifier.
const MAX_LABELS: usize = 1 << 16;

/// How an architecture names the parts of a classifier.
#[derive(Clone, Debug)]
pub struct Parts {
    pub dense: Option<Dense>,
    /// Module path of the last linear.
    pub out: &'static str,
    pub out_bias: bool,
    pub pooling: Pooling,
}

/// The layer between pooling and the last linear.
#[derive(Clone, Debug)]
pub struct Dense {
    pub path: &'static str,
    pub activation: Activation,
    /// It is a part of the pre-trained trunk (BERT's pooler): a replaced head keeps it.
    pub of_trunk: bool,
}

/// The heads that an architecture may have.
pub struct Heads<'a> {
    pub hidden: usize,
    pub sequence: Parts,
    pub tokens: Parts,
    /// Tensors of heads start so; those that are not used are let lie.
    pub prefixes: &'static [&'static str],
    /// Builds the language model's head, if the files have one.
    pub language_model: &'a dyn Fn(&mut Loader) -> Result<Option<LanguageModelHead>>,
}

/// A classifier as files or a caller describe it.
struct Wanted {
    problem: Problem,
    labels: Vec<String>,
    pooling: Option<Pooling>,
    weights: Weights,
    seed: u64,
}

/// Where a classifier's weights come from.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    /// The files, all of them.
    Files,
    /// The files where they have them in the right shape; else the seed.
    FilesOrDrawn,
    /// The seed, but for what belongs to the trunk.
    Drawn,
}

impl Weights {
    fn kept(keep: bool) -> Weights {
        if keep { Weights::FilesOrDrawn } else { Weights::Drawn }
    }
}

impl Heads<'_> {
    /// The head that `request` asks for.
    ///
    /// # Errors
    /// If the files have no such head where one is needed, or tensors of wrong shapes.
    pub fn build(
        &self,
        loader: &mut Loader,
        files: Option<&ModelFiles>,
        request: &HeadRequest,
    ) -> Result<Head> {
        let head = match request {
            HeadRequest::AsFile => self.as_file(loader, files)?,
            HeadRequest::Classifier { problem, labels, pooling, keep, seed, .. } => {
                let wanted = Wanted {
                    problem: *problem,
                    labels: labels.clone(),
                    pooling: pooling.or(if *keep { pooling_of(files) } else { None }),
                    weights: Weights::kept(*keep),
                    seed: *seed,
                };
                Head::Classifier(self.classifier(loader, wanted)?)
            }
            HeadRequest::LanguageModel => match (self.language_model)(loader)? {
                Some(head) => Head::LanguageModel(head),
                None => return Err(no_language_model(files)),
            },
            HeadRequest::Detector { .. } => return Err(image_head::no_detector()),
            HeadRequest::None => Head::None,
        };
        self.prefixes.iter().for_each(|prefix| loader.ignore_under(prefix));
        Ok(head)
    }

    fn as_file(&self, loader: &mut Loader, files: Option<&ModelFiles>) -> Result<Head> {
        let has = |parts: &Parts| loader.has(&format!("{}.weight", parts.out));
        let tokens = architecture(files).ends_with("ForTokenClassification");
        if (tokens && has(&self.tokens)) || (!tokens && has(&self.sequence)) {
            let (problem, labels) = described(files, tokens)?;
            let pooling = if tokens { None } else { pooling_of(files) };
            let wanted = Wanted { problem, labels, pooling, weights: Weights::Files, seed: 0 };
            return Ok(Head::Classifier(self.classifier(loader, wanted)?));
        }
        Ok((self.language_model)(loader)?.map_or(Head::None, Head::LanguageModel))
    }

    fn classifier(&self, loader: &mut Loader, wanted: Wanted) -> Result<Classifier> {
        let parts = if wanted.problem == Problem::Tokens { &self.tokens } else { &self.sequence };
        let pooling = wanted.pooling.unwrap_or(parts.pooling);
        // A mean of rows is not what a pooler of the first row was trained on.
        let dense = parts.dense.as_ref().filter(|dense| !(dense.of_trunk && pooling == Pooling::Mean));
        let dense = match dense {
            Some(dense) => {
                let weights = match wanted.weights {
                    Weights::Drawn => Weights::kept(dense.of_trunk),
                    weights => weights,
                };
                let shape = (self.hidden, self.hidden);
                let layer = linear(loader, dense.path, shape, true, weights, wanted.seed)?;
                Some((layer, dense.activation))
            }
            None => None,
        };
        let shape = (wanted.labels.len(), self.hidden);
        let out = linear(loader, parts.out, shape, parts.out_bias, wanted.weights, wanted.seed)?;
        Ok(Classifier { problem: wanted.problem, pooling, dense, out, labels: wanted.labels })
    }
}

/// A head's linear, in f32.
fn linear(
    loader: &mut Loader,
    path: &str,
    (out, inp): (usize, usize),
    bias: bool,
    weights: Weights,
    seed: u64,
) -> Result<Linear> {
    let name = |part: &str| format!("{path}.{part}");
    let kept = match weights {
        Weights::Files => true,
        Weights::FilesOrDrawn => loader.shape(&name("weight"))?.as_deref() == Some(&[out, inp]),
        Weights::Drawn => false,
    };
    let (weight, bias) = match kept {
        true => {
            let weight = loader.matrix_f32(&name("weight"), out, inp)?;
            (weight, bias.then(|| loader.vector(&name("bias"), out, None)).transpose()?)
        }
        false => {
            let weight = loader.drawn(&name("weight"), out, inp, seed);
            (weight, bias.then(|| loader.zeros(&name("bias"), out)))
        }
    };
    Ok(Linear::new(path, weight, bias, (out, inp)))
}

fn no_language_model(files: Option<&ModelFiles>) -> Error {
    let path = files.map(|f| f.path().to_path_buf()).unwrap_or_default();
    Error::Model { path, what: "it has no language-model head: only its trunk is in the files".into() }
}

/// The first of `architectures` in `config.json`.
fn architecture(files: Option<&ModelFiles>) -> &str {
    let first = config(files).and_then(|c| c.get("architectures")?.get(0)?.as_str());
    first.unwrap_or("")
}

fn config(files: Option<&ModelFiles>) -> Option<&Value> {
    match files? {
        ModelFiles::Folder(folder) => Some(folder.config()),
        ModelFiles::Image(file) => Some(file.config()),
        ModelFiles::Speech(folder) => Some(folder.config()),
        ModelFiles::Gguf(_) => None,
    }
}

/// How a configuration calls the pooling of a classifier that is not its class's usual one; ModernBERT's key and words.
const POOLING: &str = "classifier_pooling";
const POOLINGS: &[(Pooling, &str)] =
    &[(Pooling::First, "cls"), (Pooling::Last, "last"), (Pooling::Mean, "mean")];

fn pooling_of(files: Option<&ModelFiles>) -> Option<Pooling> {
    let name = config(files)?.get(POOLING)?.as_str()?;
    POOLINGS.iter().find(|(_, known)| *known == name).map(|(pooling, _)| *pooling)
}

/// What `config.json` says of its classifier: `id2label`, `num_labels`, `problem_type`.
fn described(files: Option<&ModelFiles>, tokens: bool) -> Result<(Problem, Vec<String>)> {
    let fail = |what: String| Error::Model {
        path: files.map(|f| f.path().join("config.json")).unwrap_or_default(),
        what,
    };
    described_in(config(files).unwrap_or(&Value::Null), tokens).map_err(fail)
}

fn described_in(config: &Value, tokens: bool) -> std::result::Result<(Problem, Vec<String>), String> {
    let labels = labels_of(config)?;
    let problem = match config.get("problem_type").and_then(Value::as_str) {
        _ if tokens => Problem::Tokens,
        Some("multi_label_classification") => Problem::MultiLabel,
        Some("regression") => Problem::Regression,
        Some("single_label_classification") => Problem::SingleLabel,
        Some(other) => return Err(format!("\"problem_type\" is \"{other}\", which is not known")),
        None if labels.len() == 1 => Problem::Regression,
        None => Problem::SingleLabel,
    };
    Ok((problem, labels))
}

/// The head that the `architectures` of a new model's configuration name; a language model's if they name none.
///
/// # Errors
/// If the labels make no sense.
pub fn requested(config: &Config, seed: u64) -> Result<HeadRequest> {
    let named = config.get("architectures").and_then(|all| all.get(0)?.as_str()).unwrap_or_default();
    let tokens = named.ends_with("ForTokenClassification");
    if !tokens && !named.ends_with("ForSequenceClassification") {
        let bare = named.ends_with("Model") && !named.ends_with("LMHeadModel");
        return Ok(if bare { HeadRequest::None } else { HeadRequest::LanguageModel });
    }
    let (problem, labels) = described_in(config.value, tokens).map_err(|what| config.fail(what))?;
    Ok(HeadRequest::Classifier { problem, labels, pooling: None, keep: false, seed, image_size: None })
}

/// The names of the classes, in order; transformers' default is two.
pub fn labels_of(config: &Value) -> std::result::Result<Vec<String>, String> {
    let default = |n: usize| (0..n).map(|i| format!("LABEL_{i}")).collect();
    let count = config.get("num_labels").and_then(Value::as_u64);
    let Some(Value::Object(names)) = config.get("id2label") else {
        return match count.unwrap_or(2) {
            n if n as usize <= MAX_LABELS && n > 0 => Ok(default(n as usize)),
            n => Err(format!("\"num_labels\" is {n}; 1 to {MAX_LABELS} are possible")),
        };
    };
    if names.is_empty() || names.len() > MAX_LABELS {
        return Err(format!("\"id2label\" has {} labels; 1 to {MAX_LABELS} are possible", names.len()));
    }
    (0..names.len())
        .map(|i| {
            let name = names.get(&i.to_string()).and_then(Value::as_str);
            name.map(String::from).ok_or_else(|| format!("\"id2label\" has no text for {i}"))
        })
        .collect()
}

/// Adds what `config.json` says of a classifier: architecture, labels, problem type, pooling where it is not `usual`.
/// `base` is transformers' class name without its ending, `Bert`.
pub fn describe(head: &Head, base: &str, usual: Pooling, config: &mut Value) {
    let Head::Classifier(head) = head else { return };
    if let Some((_, name)) =
        POOLINGS.iter().find(|(pooling, _)| *pooling == head.pooling && *pooling != usual)
    {
        config[POOLING] = json!(name);
    }
    let ending =
        if head.problem == Problem::Tokens { "TokenClassification" } else { "SequenceClassification" };
    config["architectures"] = json!([format!("{base}For{ending}")]);
    let names = || head.labels.iter().enumerate();
    let id2label: Map<String, Value> = names().map(|(i, n)| (i.to_string(), json!(n))).collect();
    let label2id: Map<String, Value> = names().map(|(i, n)| (n.clone(), json!(i))).collect();
    config["id2label"] = Value::Object(id2label);
    config["label2id"] = Value::Object(label2id);
    config["problem_type"] = match head.problem {
        Problem::SingleLabel => json!("single_label_classification"),
        Problem::MultiLabel => json!("multi_label_classification"),
        Problem::Regression => json!("regression"),
        Problem::Tokens => return,
    };
}
