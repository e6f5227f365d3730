//! Which task a run is about: what it says, what its model reads, what its rows are.

use std::path::Path;

use anyhow::{Result, bail};
use retune::models::{ModelFiles, Reads};
use retune::nn::Problem;
use retune::run_file::TaskChoice;
use retune::tasks::{Task, classification};
use retune_formats::records::Records;

/// Rows that are looked at to tell what they are.
const LOOKED_AT: usize = 20;

/// The task of a run: as it says, else as its rows do.
///
/// # Errors
/// If the data cannot be read.
pub fn task_of(choice: TaskChoice, data: &Path, files: &ModelFiles) -> Result<(Task, Option<Problem>)> {
    let spec = retune::models::spec_of(files)?;
    let speech = TaskChoice::AutomaticSpeechRecognition;
    match (spec.reads == Reads::Sound, choice) {
        (true, TaskChoice::Auto | TaskChoice::AutomaticSpeechRecognition) => {
            return Ok((Task::AutomaticSpeechRecognition, None));
        }
        (is_of_sound, choice) if is_of_sound || choice == speech => {
            let what = if is_of_sound { "reads sound" } else { "does not read sound" };
            bail!(
                "{}: a {} model {what}, which is not what the task is about",
                files.path().display(),
                spec.name
            );
        }
        _ => {}
    }
    let reads_pictures = spec.reads == Reads::Pictures;
    if choice != TaskChoice::Auto && choice.is_of_pictures() != reads_pictures {
        let reads = if reads_pictures { "pictures" } else { "text" };
        bail!(
            "{}: a {} model reads {reads}, which is not what the task is about",
            files.path().display(),
            spec.name
        );
    }
    Ok(match choice {
        TaskChoice::ImageClassification => (Task::ImageClassification, Some(Problem::SingleLabel)),
        TaskChoice::ObjectDetection => (Task::ObjectDetection, None),
        TaskChoice::Auto if spec.detects => (Task::ObjectDetection, None),
        TaskChoice::Auto if reads_pictures => (Task::ImageClassification, Some(Problem::SingleLabel)),
        TaskChoice::AutomaticSpeechRecognition => (Task::AutomaticSpeechRecognition, None),
        TaskChoice::TextGeneration => (Task::TextGeneration, None),
        TaskChoice::MaskedLm => (Task::MaskedLm, None),
        TaskChoice::TextClassification => (Task::TextClassification, None),
        TaskChoice::Regression => (Task::TextClassification, Some(Problem::Regression)),
        TaskChoice::TokenClassification => (Task::TokenClassification, Some(Problem::Tokens)),
        TaskChoice::Auto if is_labelled(data)? => (Task::TextClassification, None),
        TaskChoice::Auto => {
            let encoder = spec.name == "bert";
            (if encoder { Task::MaskedLm } else { Task::TextGeneration }, None)
        }
    })
}

/// Whether any of the first rows has a label (or tags).
pub fn is_labelled(path: &Path) -> Result<bool> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if ["conll", "bio", "iob2"].contains(&extension.as_str()) {
        return Ok(true);
    }
    for record in Records::open(path)?.take(LOOKED_AT) {
        if classification::is_labelled(&record?.value) {
            return Ok(true);
        }
    }
    Ok(false)
}
