//! The classifier that labelled rows ask for: a new one, or the model's own where it is for the same labels.

use anyhow::Result;
use retune::models::{HeadRequest, ModelFiles};
use retune::nn::{Pooling, Problem};
use retune::run_file::{PoolingChoice, RunFile};
use retune::tasks::TaskRecord;
use retune::tasks::classification::Labels;

/// The classifier for some labels, and whether it is a new one that knows nothing yet.
///
/// # Errors
/// If the model's configuration is damaged.
pub fn classifier(
    run: &RunFile,
    files: &ModelFiles,
    (problem, names): (Problem, &[String]),
) -> Result<(HeadRequest, bool)> {
    if run.pooling == PoolingChoice::Auto && problem != Problem::Tokens && was_mean_pooled(files) {
        eprintln!(
            "note: {} was trained with the mean of a text's rows (1_Pooling/config.json), and its classifier here reads \
                 the first row through the pooler, as transformers' does: --pooling mean may learn faster",
            run.model.display()
        );
    }
    let labels = match problem {
        Problem::Regression => vec!["LABEL_0".to_owned()],
        _ => names.to_vec(),
    };
    let own = TaskRecord::of_files(files)?.filter(TaskRecord::classifies);
    let same = own.as_ref().is_some_and(|own| {
        own.problem == Some(problem) && own.labels.len() == labels.len() && {
            own.labels == labels || problem == Problem::Regression
        }
    });
    let keep = run.keep_head && same;
    let pooling = match run.pooling {
        PoolingChoice::Auto if keep => own.and_then(|own| own.pooling),
        PoolingChoice::Auto => None,
        PoolingChoice::First => Some(Pooling::First),
        PoolingChoice::Last => Some(Pooling::Last),
        PoolingChoice::Mean => Some(Pooling::Mean),
    };
    let request = HeadRequest::Classifier {
        problem,
        labels,
        pooling,
        keep,
        seed: run.seed,
        image_size: run.image_size(),
    };
    Ok((request, !keep))
}

/// Is it a sentence encoder whose texts are the mean of their rows? A file that cannot be read says nothing.
fn was_mean_pooled(files: &ModelFiles) -> bool {
    const BYTES_MAX: u64 = 1 << 16;
    let path = files.path().join("1_Pooling/config.json");
    let config = path.is_file().then(|| retune_formats::json::read(&path, BYTES_MAX).ok()).flatten();
    config.is_some_and(|config| config["pooling_mode_mean_tokens"] == true)
}

/// The labels of the model's own classifier.
pub fn own_labels(files: &ModelFiles) -> Result<Option<Labels>> {
    let own = TaskRecord::of_files(files)?.filter(TaskRecord::classifies);
    Ok(own.filter(|own| own.problem != Some(Problem::Regression)).map(|own| Labels { names: own.labels }))
}
