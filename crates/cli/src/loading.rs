//! The flags that name a model and adapters, and what they load; data files as examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use retune::base;
use retune::methods;
use retune::models::{HeadRequest, LoadOptions, Model, ModelFiles, Snapshot};
use retune::run_file::{Quantization, RunFile, Storage, TrainOn, Weights};
use retune::tasks::TaskRecord;
use retune::tasks::causal_lm::{Dataset, Options};
use retune::text::Language;

use crate::exit::UsageError;
use crate::tasks::did_you_mean;

/// Which model, with which adapters on it.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg)
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,

    /// An adapter: a folder of PEFT, AdapterHub, mlx-lm or our own, or a LoRA for llama.cpp; as often as you like: --adapter-weights
    /// add several up; without them `eval` tells of each, `predict` and
    /// `generate --data` take the one that a row names, and other commands the last
    #[arg(long, value_name = "PATH")]
    pub adapter: Vec<PathBuf>,

    /// One weight for each --adapter, such as 0.7,0.3: the adapters are added up
    #[arg(long, value_name = "W,...", value_delimiter = ',', requires = "adapter")]
    pub adapter_weights: Vec<f32>,

    /// Use an adapter on another base than the one it was made for
    #[arg(long, requires = "adapter")]
    pub any_base: bool,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// How the machine is used.
#[derive(Clone, clap::Args)]
pub struct MachineArgs {
    /// How the weights lie in memory: as-is keeps what the file stores, nf4 to int8 quantise the blocks' linears
    #[arg(long, value_name = "NAME", default_value = "as-is", value_parser = PossibleValuesParser::new(Storage::NAMES))]
    pub storage: String,

    /// Of storage nf4, fp4 and int4: quantise the blocks' constants as well [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub double_quant: Option<bool>,

    /// Modules that are not quantised, beside tables and heads: paths, their ends, or patterns
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub keep_modules: Vec<String>,

    /// Where the weights of the blocks lie: streamed reads them from their file when they are needed, for models that are
    /// larger than the memory
    #[arg(long, value_name = "memory|streamed", default_value = "memory", value_parser = weights)]
    pub weights: Weights,

    /// Worker threads; without it, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

impl MachineArgs {
    /// How the weights are taken into memory.
    ///
    /// # Errors
    /// If the settings of quantised storages are given with another.
    pub fn load_options(&self) -> Result<LoadOptions> {
        let storage = Storage::from_name(&self.storage).unwrap_or(Storage::AsIs);
        let default = Quantization::default();
        let quantization = Quantization {
            double_quant: self.double_quant.unwrap_or(default.double_quant),
            keep_modules: self.keep_modules.clone(),
        };
        if quantization != default && !storage.is_quantised() {
            let what = "--double-quant and --keep-modules are for --storage nf4, fp4, int4 and int8";
            return Err(UsageError(format!("{what}, not {}", self.storage)).into());
        }
        Ok(RunFile { storage, quantization, weights: self.weights, ..RunFile::default() }.load_options())
    }
}

fn weights(text: &str) -> Result<Weights, String> {
    match text {
        "memory" => Ok(Weights::Memory),
        "streamed" => Ok(Weights::Streamed),
        _ => Err("one of memory, streamed; what adapters are added up with is --adapter-weights".into()),
    }
}

/// Says what was read of weights that stayed in their file, once all is done.
pub fn tell_streamed(model: &Model, json: bool) {
    if let Some(pager) = model.pager.as_ref().filter(|_| !json) {
        eprintln!("streamed weights: {}", pager.stats());
    }
}

/// The adapter field's word for none.
pub const BASE: &str = "base";

/// What a model with some adapters does, and the head that it is opened with: from `task.json` of the adapters, else from
/// a PEFT folder's classifier, else from the model's own files.
///
/// # Errors
/// If a file is damaged, or the adapters were trained for different labels.
pub fn head_for(files: &ModelFiles, adapters: &[PathBuf]) -> Result<(HeadRequest, Option<TaskRecord>)> {
    let mut found: Option<(TaskRecord, &PathBuf)> = None;
    for path in adapters {
        let Some(record) = TaskRecord::of_adapter(path)? else { continue };
        match &found {
            Some((first, other)) if !shares_head(first, &record) => bail!(
                "the adapters {} and {} were trained for different labels: they cannot share a head",
                other.display(),
                path.display()
            ),
            _ => found = Some((record, path)),
        }
    }
    let record = match found {
        Some((record, _)) => Some(record),
        None => TaskRecord::of_files(files)?,
    };
    Ok((record.as_ref().map_or(HeadRequest::AsFile, TaskRecord::head), record))
}

/// Whether two adapters can stand on one head.
pub fn shares_head(a: &TaskRecord, b: &TaskRecord) -> bool {
    match (a.classifies(), b.classifies()) {
        (true, true) => (a.problem, &a.labels, a.pooling) == (b.problem, &b.labels, b.pooling),
        (a, b) => a == b,
    }
}

impl ModelArgs {
    /// The model's files.
    pub fn files(&self) -> Result<ModelFiles> {
        Ok(ModelFiles::open(&crate::embedded::resolve(&self.model)?)?)
    }

    /// Loads the model with its adapters.
    pub fn load(&self) -> Result<Model> {
        Ok(self.load_with_task()?.0)
    }

    /// Loads the model with its adapters, and says what they were trained for, if that is known.
    pub fn load_with_task(&self) -> Result<(Model, Option<TaskRecord>)> {
        let sources = self.sources()?;
        set_threads(self.machine.threads)?;
        let paths: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
        let (head, record) = head_for(&self.files()?, &paths)?;
        let mut model = self.open(&head)?;
        self.check_bases(&model, &paths)?;
        if !sources.is_empty() {
            put(&mut model, &sources, 0)?;
        }
        Ok((model, record))
    }

    /// Calls `each` with the model and what it is for: once for each `--adapter`, which are switched over one base that is
    /// loaded once as long as they share a head; once alone without them, or with all of them where --adapter-weights add them up.
    pub fn one_by_one(
        &self,
        mut each: impl FnMut(Option<&Path>, &Model, Option<&TaskRecord>) -> Result<()>,
    ) -> Result<()> {
        if self.adapter.len() < 2 || !self.adapter_weights.is_empty() {
            let (model, record) = self.load_with_task()?;
            return each(self.adapter.first().map(PathBuf::as_path), &model, record.as_ref());
        }
        set_threads(self.machine.threads)?;
        let files = self.files()?;
        let mut held: Option<(HeadRequest, Model, Snapshot)> = None;
        for path in &self.adapter {
            let (head, record) = head_for(&files, std::slice::from_ref(path))?;
            let (head, mut model, base) = match held.take() {
                Some((of, mut model, base)) if of == head => {
                    model.reset(&base);
                    (head, model, base)
                }
                _ => {
                    let model = self.open(&head)?;
                    let base = model.snapshot();
                    (head, model, base)
                }
            };
            self.check_bases(&model, std::slice::from_ref(path))?;
            put(&mut model, &[methods::Source { path: path.clone(), weight: 1.0 }], 0)?;
            each(Some(path), &model, record.as_ref())?;
            held = Some((head, model, base));
        }
        Ok(())
    }

    /// Loads the model with each of these adapters in a slot of its own, in their order; and the first of the slots.
    /// `base`: the base itself is used as well. What is used beside others must leave the base as it is, so it does not lie
    /// in slot 0, where some methods overwrite the copy of the base in memory.
    pub fn load_slots(&self, head: &HeadRequest, adapters: &[PathBuf], base: bool) -> Result<(Model, usize)> {
        let first = usize::from(base || adapters.len() > 1);
        let mut model = self.open(head)?;
        self.check_bases(&model, adapters)?;
        for (place, path) in adapters.iter().enumerate() {
            let slot = first + place;
            put(&mut model, &[methods::Source { path: path.clone(), weight: 1.0 }], slot)?;
            if first > 0 && model.adapters.iter().any(|on| on.slot == slot && on.changes_base) {
                let why = "it changes the base itself, so nothing can share that with it; use it alone";
                bail!("adapter {}: {why}", path.display());
            }
        }
        Ok((model, first))
    }

    fn open(&self, head: &HeadRequest) -> Result<Model> {
        let path = crate::embedded::resolve(&self.model)?;
        Ok(Model::load_with(&path, self.machine.load_options()?, head)?)
    }

    fn check_bases(&self, model: &Model, adapters: &[PathBuf]) -> Result<()> {
        for path in adapters {
            if let Some(note) = base::check(model, path, self.any_base)? {
                eprintln!("note: {note}");
            }
        }
        Ok(())
    }

    /// Which `--adapter` (by its place) a row's `adapter` field names: a path as given, or the name of a folder; `None` is
    /// the base. Rows without that field go through the last.
    pub fn named(&self, name: Option<&str>) -> Result<Option<usize>> {
        let Some(name) = name else { return Ok(self.adapter.len().checked_sub(1)) };
        if name == BASE {
            return Ok(None);
        }
        let short = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let exact = self.adapter.iter().position(|path| path.as_os_str() == name);
        let places: Vec<usize> =
            (0..self.adapter.len()).filter(|&i| short(&self.adapter[i]) == name).collect();
        match (exact, places.as_slice()) {
            (Some(place), _) | (None, &[place]) => Ok(Some(place)),
            (None, []) => {
                let known: Vec<String> = self.adapter.iter().map(|path| short(path)).collect();
                let near = did_you_mean(name, known.iter().map(String::as_str));
                bail!("no --adapter is called {name:?}{near} (\"base\" is for none)")
            }
            (None, _) => bail!("more than one --adapter is called {name:?}: write its path as it was given"),
        }
    }

    /// The adapters that count, each with its weight.
    pub fn sources(&self) -> Result<Vec<methods::Source>> {
        if self.adapter_weights.is_empty() {
            let last = self.adapter.last();
            return Ok(last
                .map(|path| methods::Source { path: path.clone(), weight: 1.0 })
                .into_iter()
                .collect());
        }
        if self.adapter_weights.len() != self.adapter.len() {
            let (weights, adapters) = (self.adapter_weights.len(), self.adapter.len());
            return Err(UsageError(format!(
                "{weights} --adapter-weights for {adapters} adapters: give one for each"
            ))
            .into());
        }
        if let Some(odd) = self.adapter_weights.iter().find(|w| !w.is_finite()) {
            return Err(UsageError(format!("--adapter-weights: {odd} is not a finite number")).into());
        }
        let pairs = self.adapter.iter().zip(&self.adapter_weights);
        Ok(pairs.map(|(path, weight)| methods::Source { path: path.clone(), weight: *weight }).collect())
    }
}

/// Puts adapters into a slot, and says what people should know of their files.
fn put(model: &mut Model, sources: &[methods::Source], slot: usize) -> Result<()> {
    methods::load(model, sources, slot)?.notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(())
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
    Ok(files.language()?)
}

/// The rows of a data file as examples.
pub fn dataset(language: &Language, path: &Path, max_length: usize, train_on: TrainOn) -> Result<Dataset> {
    let options = Options { max_length, train_on, ..Options::default() };
    Ok(Dataset::load(language, path, &options)?)
}
