//! The flags that name a model and adapters, and what they load; data files as examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use retune::base;
use retune::methods;
use retune::models::{Model, ModelFiles, StorageChoice};
use retune::run_file::{Storage, TrainOn};
use retune::tasks::causal_lm::{Dataset, Options};
use retune::text::Language;

use crate::exit::UsageError;

/// Which model, with which adapters on it.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,

    /// An adapter folder. Of several, the last counts alone unless --weights are given
    #[arg(long, value_name = "DIR")]
    pub adapter: Vec<PathBuf>,

    /// One weight for each --adapter, such as 0.7,0.3: the adapters are added up
    #[arg(long, value_name = "W,...", value_delimiter = ',', requires = "adapter")]
    pub weights: Vec<f32>,

    /// Use an adapter on another base than the one it was made for
    #[arg(long, requires = "adapter")]
    pub any_base: bool,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// How the machine is used.
#[derive(Clone, clap::Args)]
pub struct MachineArgs {
    /// How the weights lie in memory: as-is keeps what the file stores
    #[arg(long, value_name = "f32|bf16|as-is", default_value = "as-is", value_parser = storage)]
    pub storage: StorageChoice,

    /// Worker threads; without it, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

fn storage(text: &str) -> Result<StorageChoice, String> {
    match text {
        "f32" => Ok(StorageChoice::F32),
        "bf16" => Ok(StorageChoice::Bf16),
        "as-is" => Ok(StorageChoice::AsIs),
        _ => Err("one of f32, bf16, as-is".into()),
    }
}

/// The run file's word for it.
pub fn storage_of(storage: Storage) -> StorageChoice {
    match storage {
        Storage::F32 => StorageChoice::F32,
        Storage::Bf16 => StorageChoice::Bf16,
        Storage::AsIs => StorageChoice::AsIs,
    }
}

impl ModelArgs {
    /// Loads the model with its adapters.
    pub fn load(&self) -> Result<Model> {
        let sources = self.sources()?;
        set_threads(self.machine.threads)?;
        let mut model = Model::load(&crate::embedded::resolve(&self.model)?, self.machine.storage)?;
        for source in &sources {
            if let Some(note) = base::check(&model, &source.path, self.any_base)? {
                eprintln!("note: {note}");
            }
        }
        if !sources.is_empty() {
            methods::load(&mut model, &sources, 0)?;
        }
        Ok(model)
    }

    /// The adapters that count, each with its weight.
    pub fn sources(&self) -> Result<Vec<methods::Source>> {
        if self.weights.is_empty() {
            let last = self.adapter.last();
            return Ok(last
                .map(|path| methods::Source { path: path.clone(), weight: 1.0 })
                .into_iter()
                .collect());
        }
        if self.weights.len() != self.adapter.len() {
            let (weights, adapters) = (self.weights.len(), self.adapter.len());
            return Err(UsageError(format!(
                "{weights} --weights for {adapters} adapters: give one for each"
            ))
            .into());
        }
        if let Some(odd) = self.weights.iter().find(|w| !w.is_finite()) {
            return Err(UsageError(format!("--weights: {odd} is not a finite number")).into());
        }
        let pairs = self.adapter.iter().zip(&self.weights);
        Ok(pairs.map(|(path, weight)| methods::Source { path: path.clone(), weight: *weight }).collect())
    }
}

/// Sets the size of the thread pool, once, before anything runs on it.
pub fn set_threads(threads: Option<u32>) -> Result<()> {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = threads.map_or_else(cores, |n| n as usize);
    // The main thread is one of them: it works instead of waiting for the others.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()
        .with_context(|| format!("cannot start {threads} threads"))
}

/// The tokenizer and chat template of a model.
pub fn language(files: &ModelFiles) -> Result<Language> {
    Ok(match files {
        ModelFiles::Folder(folder) => Language::from_folder(folder)?,
        ModelFiles::Gguf(file) => Language::from_gguf(file)?,
    })
}

/// The rows of a data file as examples.
pub fn dataset(language: &Language, path: &Path, max_length: usize, train_on: TrainOn) -> Result<Dataset> {
    let options = Options { max_length, train_on, ..Options::default() };
    Ok(Dataset::load(language, path, &options)?)
}
