//! A model as one GGUF file that llama.cpp loads: its keys, its tokenizer, and the type of each tensor.
//!
//! Types follow llama.cpp's habits: vectors and learned positions stay f32; the output head (or the table that it shares)
//! is kept finer than the rest; a tensor whose rows are no whole blocks gets the nearest type that fits.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use retune_formats::gguf::{self, Value};
use retune_formats::{Dtype, TensorInfo, TensorOut, TensorSource, atomic, gguf_write};
use retune_tensor::storage::{self, Format};

use super::encode::Encoding;
use super::keep::kept;
use super::selection::{Selection, dense_of};
use super::values::{Order, Values};
use super::weights::{Tally, streamed};
use super::{Done, ExportDtype, ExportOptions, Step, quantised};
use crate::error::{Error, Result};
use crate::models::{GgufForm, Model, ModelFiles};
use crate::nn::Head;

const FILE_TYPE: &str = "general.file_type";
const QUANTIZATION_VERSION: &str = "general.quantization_version";
const OUTPUT: &str = "output.weight";
const TABLE: &str = "token_embd.weight";

/// llama.cpp's numbers of the types that most tensors have (`llama_ftype`; of k-quants the plain ones).
const FILE_TYPES: &[(Dtype, u32)] = &[
    (Dtype::F32, 0),
    (Dtype::F16, 1),
    (Dtype::Q4_0, 2),
    (Dtype::Q4_1, 3),
    (Dtype::Q8_0, 7),
    (Dtype::Q5_0, 8),
    (Dtype::Q5_1, 9),
    (Dtype::Q2_K, 10),
    (Dtype::Q3_K, 11),
    (Dtype::Q4_K, 14),
    (Dtype::Q5_K, 16),
    (Dtype::Q6_K, 18),
    (Dtype::BF16, 32),
];

/// How one tensor gets into the file.
enum How<'a> {
    /// As it lies in the GGUF that the model came from.
    Copy(&'a TensorInfo),
    Encode(Encoding, Order),
}

struct Item<'a> {
    name: String,
    values: Values<'a>,
    how: How<'a>,
}

/// What is written.
pub struct Plan<'a> {
    pub selection: Selection<'a>,
    form: GgufForm,
    items: Vec<Item<'a>>,
    /// The file that the model came from.
    source: Option<&'a gguf::File>,
    /// Tensors of that file that are no parameters.
    beside: Vec<&'a TensorInfo>,
    metadata: Vec<(String, Value)>,
    notes: Vec<String>,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// If the model, its tokenizer or the type has no place in a GGUF file.
    pub fn new(model: &'a Model, out: &Path, options: &ExportOptions) -> Result<Plan<'a>> {
        let fail = |what: String| Error::Export { path: out.to_path_buf(), what };
        let form = model.net.gguf_form().map_err(|what| fail(format!("{what}; write a folder")))?;
        if !matches!(model.net.head(), Head::LanguageModel(_)) {
            let what = "a GGUF file of this architecture has no place for a head other than a language model's; \
                        write a folder";
            return Err(fail(what.into()));
        }
        let source = match &model.files {
            ModelFiles::Gguf(file) => Some(file.as_ref()),
            ModelFiles::Folder(_) | ModelFiles::Image(_) | ModelFiles::Speech(_) => None,
        };
        let mut plan = Plan {
            selection: Selection::new(model, options),
            form,
            items: Vec::new(),
            source,
            beside: Vec::new(),
            metadata: Vec::new(),
            notes: Vec::new(),
        };
        if let ExportDtype::Quantised(_) = options.dtype {
            let what = "bitsandbytes' types lie in folders alone; name a folder, or ask for q8_0, q4_k, q4_0 and the like";
            return Err(fail(what.into()));
        }
        let kept = kept(model, &options.keep)?;
        plan.choose(model, options, &kept).map_err(fail)?;
        plan.describe(model)?;
        Ok(plan)
    }

    /// Decides the type of each tensor.
    fn choose(
        &mut self,
        model: &Model,
        options: &ExportOptions,
        kept: &BTreeSet<String>,
    ) -> std::result::Result<(), String> {
        let tied = !self.selection.values.iter().any(|values| (self.form.name)(&values.name) == OUTPUT);
        let mut replaced: Vec<(Format, Dtype, usize)> = Vec::new();
        for values in &self.selection.values {
            let name = (self.form.name)(&values.name);
            let order = match self.form.interleaved {
                Some(head_dim) if is_rotated(&name) => Order::Interleaved(head_dim),
                _ => Order::AsIs,
            };
            let there = self.source.and_then(|file| file.find(&name)).filter(|_| !values.is_changed());
            let wanted = wanted(options, values, &name, tied, kept.contains(&values.name));
            let encoding = match wanted {
                Wanted::AsSource => Encoding::Dense(dense_of(model, values.param)),
                Wanted::Dense(dtype) => Encoding::Dense(dtype),
                Wanted::Blocks(format) => {
                    let found = nearest(format, values.param.weight.cols())?;
                    if found != Encoding::Blocks(format) {
                        replaced.push((format, found.dtype().unwrap_or(Dtype::F16), 1));
                    }
                    found
                }
            };
            let how = match there {
                Some(info) if wanted == Wanted::AsSource || encoding.dtype() == Some(info.dtype) => {
                    How::Copy(info)
                }
                _ => How::Encode(encoding, order),
            };
            self.items.push(Item { name, values: values.clone(), how });
        }
        self.tell(&replaced);
        if let Some(file) = self.source {
            let ours = |info: &&TensorInfo| !self.items.iter().any(|item| item.name == info.name);
            self.beside = file.tensors().iter().filter(ours).collect();
        }
        Ok(())
    }

    /// Says which tensors got another type than was asked for.
    fn tell(&mut self, replaced: &[(Format, Dtype, usize)]) {
        let mut counted: Vec<(Format, Dtype, usize)> = Vec::new();
        for &(from, to, n) in replaced {
            match counted.iter_mut().find(|(f, t, _)| (*f, *t) == (from, to)) {
                Some((_, _, count)) => *count += n,
                None => counted.push((from, to, n)),
            }
        }
        for (from, to, n) in counted {
            let to = to.name().to_ascii_lowercase();
            self.notes.push(format!(
                "{n} tensors whose rows are no multiple of {} are in {to} instead of {}",
                from.block(),
                from.name()
            ));
        }
    }

    /// The metadata: the source's own, or the model's and its tokenizer's in llama.cpp's words.
    fn describe(&mut self, model: &Model) -> Result<()> {
        if let Some(file) = self.source {
            let kept = file.metadata().iter().filter(|(key, _)| {
                ![FILE_TYPE, QUANTIZATION_VERSION].contains(key) && !key.starts_with("split.")
            });
            self.metadata = kept.map(|(key, value)| (key.to_string(), value.clone())).collect();
            // The architecture comes first, as readers and people expect.
            self.metadata.sort_by_key(|(key, _)| key != "general.architecture");
        } else {
            let text = |text: &str| Value::Str(text.into());
            let name = model.files.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.metadata = vec![
                ("general.architecture".into(), text(&self.form.architecture)),
                ("general.type".into(), text("model")),
                ("general.name".into(), text(&name)),
            ];
            self.metadata.append(&mut self.form.metadata);
            self.tokenizer(model)?;
        }
        self.metadata.push((FILE_TYPE.into(), Value::U32(self.file_type())));
        self.metadata.push((QUANTIZATION_VERSION.into(), Value::U32(2)));
        Ok(())
    }

    fn tokenizer(&mut self, model: &Model) -> Result<()> {
        let ModelFiles::Folder(folder) = &model.files else { return Ok(()) };
        if folder.tokenizer()?.is_none() {
            self.notes.push(
                "the model's folder has no tokenizer.json, so the file has no tokenizer: llama.cpp needs one"
                    .into(),
            );
            return Ok(());
        }
        let language = model.files.language()?;
        self.metadata.extend(language.gguf_entries(model.text()?.info().vocab_size)?);
        Ok(())
    }

    /// llama.cpp's number of the type that most values have.
    fn file_type(&self) -> u32 {
        let mut sizes: Vec<(Dtype, usize)> = Vec::new();
        for item in &self.items {
            let dtype = item.dtype();
            match sizes.iter_mut().find(|(d, _)| *d == dtype) {
                Some((_, size)) => *size += item.values.param.elements(),
                None => sizes.push((dtype, item.values.param.elements())),
            }
        }
        // A table in another type may be larger than all layers of a small model.
        let blocks = sizes.iter().filter(|(dtype, _)| dtype.is_quantized());
        let layers = |dtype: Dtype| {
            let of = self.items.iter().filter(|item| item.name.starts_with("blk.") && item.dtype() == dtype);
            of.map(|item| item.values.param.elements()).sum::<usize>()
        };
        let most =
            blocks.clone().max_by_key(|(dtype, _)| layers(*dtype)).or(sizes.iter().max_by_key(|s| s.1));
        let number = most.and_then(|(most, _)| FILE_TYPES.iter().find(|(dtype, _)| dtype == most));
        number.map_or(0, |(_, number)| *number)
    }

    pub fn tensors(&self) -> usize {
        self.items.len() + self.extra()
    }

    fn extra(&self) -> usize {
        if self.source.is_some() { self.beside.len() } else { self.form.extra.len() }
    }

    pub fn bytes(&self) -> u64 {
        let beside: u64 = self.beside.iter().map(|info| info.byte_len()).sum();
        self.items.iter().map(Item::bytes).sum::<u64>() + beside
    }

    /// The type of most values.
    pub fn dtype(&self) -> Dtype {
        let number = self.file_type();
        FILE_TYPES.iter().find(|(_, n)| *n == number).map_or(Dtype::F32, |(dtype, _)| *dtype)
    }

    pub fn notes(&self, model: &Model) -> Vec<String> {
        let mut notes = self.notes.clone();
        let encoded = |item: &&Item| matches!(item.how, How::Encode(encoding, _) if encoding.is_quantised());
        let types = quantised(&model.files);
        let again = self.items.iter().filter(encoded).count();
        let merging = !self.selection.merged().is_empty();
        if !types.is_empty() && again > 0 {
            let what =
                if merging { "the values that it stands for were merged and" } else { "its values are" };
            notes.push(format!(
                "base was quantised ({}): {what} quantised again in {again} tensors, so errors add up",
                types.join(", ")
            ));
        }
        notes.extend(self.selection.notes(model));
        notes
    }

    /// Writes the file.
    pub fn write(&self, model: &Model, out: &Path, progress: &mut dyn FnMut(Step)) -> Result<Done> {
        let metadata: Vec<(&str, Value)> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let tally =
            RefCell::new(Tally { steps: self.items.len(), progress, done: Done::default(), failure: None });
        let mut tensors = Vec::with_capacity(self.tensors());
        for item in &self.items {
            tensors.push(item.tensor(model, self.source, &tally));
        }
        match self.source {
            Some(file) => tensors.extend(self.beside.iter().map(|info| TensorOut::copy(file, info))),
            None => {
                let extra = self.form.extra.iter();
                tensors
                    .extend(extra.map(|(name, values)| TensorOut::f32(name, &[values.len()], &values[..])));
            }
        }
        let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        atomic::check_space(folder, self.bytes())?;
        let written = gguf_write::write(out, &metadata, tensors);
        if let Some(failure) = tally.borrow_mut().failure.take() {
            return Err(failure);
        }
        written?;
        let mut done = tally.into_inner().done;
        done.files = vec![out.file_name().unwrap_or_default().to_string_lossy().into_owned()];
        Ok(done)
    }
}

impl Item<'_> {
    fn dtype(&self) -> Dtype {
        match self.how {
            How::Copy(info) => info.dtype,
            How::Encode(encoding, _) => encoding.dtype().unwrap_or(Dtype::F32),
        }
    }

    fn bytes(&self) -> u64 {
        self.dtype().byte_len(&self.values.param.shape).unwrap_or(u64::MAX)
    }

    fn tensor<'t>(
        &'t self,
        model: &'t Model,
        source: Option<&'t gguf::File>,
        tally: &'t RefCell<Tally>,
    ) -> TensorOut<'t> {
        let data = match (&self.how, source) {
            (How::Copy(info), Some(file)) => copied(&self.values, file, info, tally),
            (How::Encode(encoding, order), _) => {
                streamed(&self.values, *encoding, *order, &model.params, tally)
            }
            (How::Copy(info), None) => {
                streamed(&self.values, Encoding::Dense(info.dtype), Order::AsIs, &model.params, tally)
            }
        };
        TensorOut {
            name: self.name.clone(),
            dtype: self.dtype(),
            shape: self.values.param.shape.clone(),
            data,
        }
    }
}

/// A tensor as it lies in another file: nothing is lost.
fn copied<'t>(
    values: &'t Values,
    file: &'t gguf::File,
    info: &'t TensorInfo,
    tally: &'t RefCell<Tally>,
) -> retune_formats::Data<'t> {
    let copy = TensorOut::copy(file, info).data;
    retune_formats::Data::Stream(Box::new(move |out| {
        if let retune_formats::Data::Stream(copy) = copy {
            copy(out)?;
        }
        let elements = values.param.elements() as u64;
        tally.borrow_mut().add(super::TensorLoss::none(&values.name, info.dtype, elements), 0.0);
        Ok(())
    }))
}

/// Queries and keys, whose rows are turned by positions.
fn is_rotated(name: &str) -> bool {
    [".attn_q.", ".attn_k."].iter().any(|part| name.contains(part))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    AsSource,
    Dense(Dtype),
    Blocks(Format),
}

/// The type that a tensor of this GGUF name should have.
fn wanted(options: &ExportOptions, values: &Values, name: &str, tied: bool, kept: bool) -> Wanted {
    let small = values.param.shape.len() < 2
        || name.starts_with("position_embd.")
        || name.starts_with("token_types.");
    if small {
        return Wanted::Dense(Dtype::F32);
    }
    match options.dtype {
        ExportDtype::F32 => Wanted::Dense(Dtype::F32),
        ExportDtype::F16 => Wanted::Dense(Dtype::F16),
        ExportDtype::BF16 => Wanted::Dense(Dtype::BF16),
        ExportDtype::AsSource | ExportDtype::Quantised(_) => Wanted::AsSource,
        ExportDtype::Blocks(_) if kept => Wanted::AsSource,
        ExportDtype::Blocks(format) if name == OUTPUT || (tied && name == TABLE) => {
            Wanted::Blocks(if format == Format::Q8_0 { format } else { Format::Q6_K })
        }
        ExportDtype::Blocks(format) => Wanted::Blocks(format),
    }
}

/// The type nearest to one whose blocks do not fit into rows of so many elements, as llama.cpp chooses it.
fn nearest(format: Format, cols: usize) -> std::result::Result<Encoding, String> {
    let others: &[Format] = match format {
        Format::Q2_K | Format::Q3_K => &[Format::Q4_0, Format::Q8_0],
        Format::Q4_K => &[Format::Q5_0, Format::Q8_0],
        Format::Q5_K => &[Format::Q5_1, Format::Q8_0],
        _ => &[Format::Q8_0],
    };
    let writes = |format: Format| storage::encode(format, 0, format.block(), &[]);
    let fits = |format: Format| cols.is_multiple_of(format.block()) && writes(format).is_ok();
    if cols.is_multiple_of(format.block()) && format != Format::Q6_K {
        writes(format).map_err(|e| e.to_string())?;
    }
    let found = [format].iter().chain(others).copied().find(|format| fits(*format));
    Ok(found.map_or(Encoding::Dense(Dtype::F16), Encoding::Blocks))
}
