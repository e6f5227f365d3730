//! `task.json` beside an adapter or in a model's folder: what was learned, so that using it needs no further flags.
//!
//! Where it is missing, the classifier's tensor in a PEFT folder, or AdapterHub's head, says how many labels there are.

use std::path::Path;

use retune_formats::adapter_hub::{HEAD_CONFIG, HeadConfig, has_head};
use retune_formats::{TensorSource, atomic, json, limits, safetensors};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::{HeadRequest, Model, ModelFiles, heads, image_head};
use crate::nn::{Head, Pooling, Problem};
use crate::tasks::speech::AudioWindow;

/// The file's name.
pub const TASK_FILE: &str = "task.json";
/// Most labels, and most characters of one.
const LABELS_MAX: usize = 1 << 16;
const NAME_MAX: usize = 1 << 10;
const LENGTHS: std::ops::RangeInclusive<usize> = 2..=1 << 20;

/// What a model does; the names are those of Hugging Face's pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    TextGeneration,
    /// Of texts and pairs: classes, sets of labels, numbers.
    TextClassification,
    TokenClassification,
    MaskedLm,
    ImageClassification,
    ObjectDetection,
    AutomaticSpeechRecognition,
}

/// What was learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    pub task: Task,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// In the order of the classifier's outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Tokens that a text was cut at.
    pub max_length: usize,
    /// Height and width of the pictures, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<(usize, usize)>,
    /// What the encoder sees of a sound, where that is not a window of 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio_window: Option<AudioWindow>,
    /// Where the base model lay, for people; `base.json` tells which one it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
}

impl TaskRecord {
    /// Of a model with the head that it was trained with.
    pub fn of(model: &Model, task: Task, max_length: usize) -> TaskRecord {
        let base_model = Some(model.files.path().display().to_string());
        let image_size = model.net.as_image().map(|net| (net.input().height, net.input().width));
        let plain = TaskRecord {
            task,
            problem: None,
            labels: vec![],
            pooling: None,
            max_length,
            image_size,
            audio_window: None,
            base_model,
        };
        match model.net.head() {
            Head::Classifier(head) => TaskRecord {
                problem: Some(head.problem),
                labels: head.labels.clone(),
                pooling: Some(head.pooling),
                ..plain
            },
            Head::Detector(head) => TaskRecord { labels: head.detector.labels.clone(), ..plain },
            _ => plain,
        }
    }

    /// What a model's own files say it does: their `task.json`, else a classifier that `config.json` names. `None` of others.
    ///
    /// # Errors
    /// If a file is damaged.
    pub fn of_files(files: &ModelFiles) -> Result<Option<TaskRecord>> {
        let ModelFiles::Folder(folder) = files else { return Ok(None) };
        if let Some(record) = TaskRecord::read(folder.path())? {
            return Ok(Some(record));
        }
        let config = Config { path: folder.path().join("config.json"), value: folder.config() };
        if config
            .get("architectures")
            .and_then(|all| all.get(0)?.as_str())
            .is_some_and(|name| name.ends_with("ForImageClassification"))
        {
            return Ok(Some(TaskRecord {
                task: Task::ImageClassification,
                problem: Some(Problem::SingleLabel),
                labels: image_head::labels(&config)?,
                pooling: None,
                max_length: 512,
                image_size: None,
                audio_window: None,
                base_model: None,
            }));
        }
        let HeadRequest::Classifier { problem, labels, pooling, .. } = heads::requested(&config, 0)? else {
            return Ok(None);
        };
        let is_tokens = problem == Problem::Tokens;
        Ok(Some(TaskRecord {
            task: if is_tokens { Task::TokenClassification } else { Task::TextClassification },
            problem: Some(problem),
            labels,
            pooling,
            max_length: 512,
            image_size: None,
            audio_window: None,
            base_model: None,
        }))
    }

    /// Whether it tells labels.
    pub fn classifies(&self) -> bool {
        matches!(self.task, Task::TextClassification | Task::TokenClassification | Task::ImageClassification)
    }

    /// Writes `task.json` into a folder, atomically.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let value = serde_json::to_value(self).unwrap_or_default();
        Ok(atomic::write_bytes(&folder.join(TASK_FILE), json::to_python_text(&value).as_bytes())?)
    }

    /// `task.json` of a folder, if it is there.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(folder: &Path) -> Result<Option<TaskRecord>> {
        let path = folder.join(TASK_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let value = json::read(&path, limits::CONFIG_BYTES)?;
        let fail = |what: String| Error::Adapter { path: path.clone(), what };
        let record: TaskRecord =
            serde_json::from_value(value).map_err(|e| fail(format!("it does not describe a task ({e})")))?;
        record.check().map_err(fail)?;
        Ok(Some(record))
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !LENGTHS.contains(&self.max_length) {
            return Err(format!("\"max_length\" is {}; 2 to {} are possible", self.max_length, 1 << 20));
        }
        if !self.classifies() {
            return Ok(());
        }
        if self.labels.is_empty() || self.labels.len() > LABELS_MAX {
            return Err(format!("it has {} labels; 1 to {LABELS_MAX} are possible", self.labels.len()));
        }
        if let Some(long) = self.labels.iter().find(|label| label.chars().count() > NAME_MAX) {
            return Err(format!("a label has {} characters", long.chars().count()));
        }
        match (self.problem, self.task) {
            (None, _) => Err("it classifies, but has no \"problem\"".into()),
            (Some(problem), Task::ImageClassification) if problem != Problem::SingleLabel => {
                Err(format!("the problem of pictures is \"{problem}\""))
            }
            (Some(Problem::Tokens), Task::TextClassification) => {
                Err("the problem of texts is \"tokens\"".into())
            }
            (Some(problem), Task::TokenClassification) if problem != Problem::Tokens => {
                Err(format!("the problem of tokens is \"{problem}\""))
            }
            _ => Ok(()),
        }
    }

    /// What an adapter folder was trained for: its `task.json`, else what a PEFT folder's classifier tells.
    ///
    /// # Errors
    /// If a file of it is damaged.
    pub fn of_adapter(folder: &Path) -> Result<Option<TaskRecord>> {
        if let Some(record) = TaskRecord::read(folder)? {
            return Ok(Some(record));
        }
        let path = folder.join("adapter_model.safetensors");
        if !path.is_file() {
            return if has_head(folder) { TaskRecord::of_hub_head(folder) } else { Ok(None) };
        }
        let file = safetensors::File::open(&path)?;
        let outputs = file.tensors().iter().find_map(|tensor| {
            let is_classifier = CLASSIFIERS.iter().any(|end| tensor.name.ends_with(end));
            (is_classifier && tensor.shape.len() == 2).then(|| tensor.shape[0])
        });
        let Some(outputs) = outputs else { return Ok(None) };
        if !(1..=LABELS_MAX).contains(&outputs) {
            let what = format!("its classifier has {outputs} outputs; 1 to {LABELS_MAX} are possible");
            return Err(Error::Adapter { path, what });
        }
        let config = json::read(&folder.join("adapter_config.json"), limits::CONFIG_BYTES)?;
        let tokens = config.get("task_type").and_then(|v| v.as_str()) == Some("TOKEN_CLS");
        let (task, problem) = match (tokens, outputs) {
            (true, _) => (Task::TokenClassification, Problem::Tokens),
            (false, 1) => (Task::TextClassification, Problem::Regression),
            (false, _) => (Task::TextClassification, Problem::SingleLabel),
        };
        Ok(Some(TaskRecord {
            task,
            problem: Some(problem),
            labels: (0..outputs).map(|i| format!("LABEL_{i}")).collect(),
            pooling: None,
            max_length: 512,
            image_size: None,
            audio_window: None,
            base_model: None,
        }))
    }

    /// What AdapterHub's head beside an adapter is for; nothing of a head that is the model class's own.
    fn of_hub_head(folder: &Path) -> Result<Option<TaskRecord>> {
        let path = folder.join(HEAD_CONFIG);
        let value = json::read(&path, limits::CONFIG_BYTES)?;
        let Some(object) =
            value.as_object().filter(|object| object.get("config").is_some_and(|c| !c.is_null()))
        else {
            return Ok(None);
        };
        let config = HeadConfig::from_json(&path, object)?;
        let outputs = config.num_labels;
        let (task, problem) = match (config.head_type.as_str(), outputs) {
            ("tagging", _) => (Task::TokenClassification, Problem::Tokens),
            ("multilabel_classification", _) => (Task::TextClassification, Problem::MultiLabel),
            ("classification", 1) => (Task::TextClassification, Problem::Regression),
            ("classification", _) => (Task::TextClassification, Problem::SingleLabel),
            _ => return Ok(None),
        };
        if !(1..=LABELS_MAX).contains(&outputs) {
            let what = format!("its head has {outputs} labels; 1 to {LABELS_MAX} are possible");
            return Err(Error::Adapter { path, what });
        }
        let mut labels: Vec<String> = (0..outputs).map(|i| format!("LABEL_{i}")).collect();
        for (label, id) in config.label2id.iter().flatten() {
            if let Some(place) = labels.get_mut(*id) {
                place.clone_from(label);
            }
        }
        Ok(Some(TaskRecord {
            task,
            problem: Some(problem),
            labels,
            pooling: None,
            max_length: 512,
            image_size: None,
            audio_window: None,
            base_model: None,
        }))
    }

    /// The head that a model is to be opened with.
    pub fn head(&self) -> HeadRequest {
        match (self.task, self.problem) {
            (
                Task::TextClassification | Task::TokenClassification | Task::ImageClassification,
                Some(problem),
            ) => HeadRequest::Classifier {
                problem,
                labels: self.labels.clone(),
                pooling: self.pooling,
                keep: true,
                seed: 0,
                image_size: self.image_size,
            },
            (Task::ObjectDetection, _) => HeadRequest::Detector {
                labels: self.labels.clone(),
                keep: true,
                seed: 0,
                image_size: self.image_size,
            },
            _ => HeadRequest::AsFile,
        }
    }
}

/// Ends of the names of the last linear of transformers' classifiers.
const CLASSIFIERS: [&str; 6] = [
    "classifier.out_proj.weight",
    "classifier.weight",
    "score.weight",
    "classifier.modules_to_save.default.weight",
    "classifier.modules_to_save.weight",
    "score.modules_to_save.weight",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> TaskRecord {
        TaskRecord {
            task: Task::TextClassification,
            problem: Some(Problem::SingleLabel),
            labels: vec!["no".into(), "yes".into()],
            pooling: Some(Pooling::Mean),
            max_length: 128,
            image_size: None,
            audio_window: None,
            base_model: None,
        }
    }

    #[test]
    fn written_records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(TaskRecord::read(dir.path()).unwrap(), None);
        record().write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(TASK_FILE)).unwrap();
        assert!(text.contains("\"task\": \"text-classification\""), "{text}");
        assert_eq!(TaskRecord::of_adapter(dir.path()).unwrap(), Some(record()));
        let HeadRequest::Classifier { labels, pooling, keep: true, .. } = record().head() else { panic!() };
        assert_eq!((labels.len(), pooling), (2, Some(Pooling::Mean)));
    }

    #[test]
    fn damaged_records_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = TaskRecord { max_length: 1 << 30, ..record() };
        let empty = TaskRecord { labels: vec![], ..record() };
        let odd = TaskRecord { problem: Some(Problem::Tokens), ..record() };
        for (bad, word) in [(long, "max_length"), (empty, "labels"), (odd, "tokens")] {
            bad.write(dir.path()).unwrap();
            let message = TaskRecord::read(dir.path()).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains(TASK_FILE), "{message}");
        }
        std::fs::write(dir.path().join(TASK_FILE), "{").unwrap();
        assert!(TaskRecord::read(dir.path()).is_err());
    }

    #[test]
    fn a_foreign_folder_tells_its_labels_by_its_classifier() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/formats/lora_bert_seqcls");
        let found = TaskRecord::of_adapter(&data).unwrap().unwrap();
        assert_eq!(found.labels.first().map(String::as_str), Some("LABEL_0"));
        assert_eq!((found.task, found.problem), (Task::TextClassification, Some(Problem::SingleLabel)));
    }

    #[test]
    fn a_head_of_adapter_hub_tells_its_labels() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity/bert_ah_lora");
        let found = TaskRecord::of_adapter(&data).unwrap().unwrap();
        assert_eq!((found.labels.len(), found.problem), (3, Some(Problem::SingleLabel)));
        // A language model's own head says nothing of labels.
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity/llama_ah_seq_bn");
        assert_eq!(TaskRecord::of_adapter(&own).unwrap(), None);
    }
}
