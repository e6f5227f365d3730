//! The tensors of an exported model: which, of what type, in which file, with or without the adapters' part.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use retune_formats::json::to_python_text;
use retune_formats::source::Data;
use retune_formats::{Dtype, Error as FormatError, TensorOut, TensorSource, atomic, safetensors};
use retune_tensor::params::Param;
use retune_tensor::{ParamId, Params, Tensor};
use serde_json::{Map, Value, json};

use super::folder::{INDEX, SINGLE};
use super::{ExportDtype, ExportOptions, quantised};
use crate::error::{Error, Result};
use crate::models::{Model, ModelFiles};
use crate::nn::{Embedding, EmbeddingDelta, Linear, LinearDelta};

/// One tensor to write.
struct Item<'a> {
    name: String,
    param: &'a Param,
    /// The site whose method is merged into it.
    merged: Option<Merged<'a>>,
    dtype: Dtype,
    bytes: u64,
}

/// Where a parameter gets its change from. A folder is written with what is in slot 0.
#[derive(Clone, Copy)]
enum Merged<'a> {
    Weight(&'a Linear, &'a dyn LinearDelta),
    Bias(&'a Linear, ParamId, &'a dyn LinearDelta),
    Table(&'a Embedding, &'a dyn EmbeddingDelta),
}

impl<'a> Merged<'a> {
    /// Everything that a method in slot 0 changes, by the names of the tensors.
    fn of(model: &'a Model) -> BTreeMap<String, (ParamId, Merged<'a>)> {
        let mut all = BTreeMap::new();
        for layer in model.net.linears() {
            let Some(delta) = layer.deltas.get(Some(0)) else { continue };
            all.insert(format!("{}.weight", layer.path), (layer.weight, Merged::Weight(layer, delta)));
            if let Some(bias) = layer.bias {
                all.insert(format!("{}.bias", layer.path), (bias, Merged::Bias(layer, bias, delta)));
            }
        }
        for table in model.net.embeddings() {
            if let Some(delta) = table.deltas.get(Some(0)) {
                all.insert(format!("{}.weight", table.path), (table.weight, Merged::Table(table, delta)));
            }
        }
        all
    }

    /// The module's path, once for each module.
    fn module(&self) -> Option<&'a str> {
        match self {
            Merged::Weight(layer, _) => Some(&layer.path),
            Merged::Bias(..) => None,
            Merged::Table(table, _) => Some(&table.path),
        }
    }

    /// The parameter's value with the method's part.
    fn value(&self, params: &Params) -> Result<Tensor> {
        let of = |id: ParamId| params.get(id).weight.to_tensor();
        match self {
            Merged::Weight(layer, delta) => {
                let (mut weight, mut bias) = (of(layer.weight), layer.bias.map(of));
                delta.merge(params, layer, &mut weight, bias.as_mut())?;
                Ok(weight)
            }
            Merged::Bias(layer, id, delta) => {
                let mut weight = of(layer.weight);
                let mut bias = of(*id);
                delta.merge(params, layer, &mut weight, Some(&mut bias))?;
                Ok(bias)
            }
            Merged::Table(table, delta) => {
                let mut weight = of(table.weight);
                delta.merge(params, table, &mut weight)?;
                Ok(weight)
            }
        }
    }
}

/// What is written, in the order of the model.
pub struct Plan<'a> {
    items: Vec<Item<'a>>,
    max_shard_bytes: u64,
    unties: bool,
    /// Deltas on the model that are not merged.
    left_out: usize,
    /// Base weights that were trained.
    trained: bool,
    /// Weights that memory holds in bf16 and the files hold finer.
    coarser: bool,
}

/// What writing showed.
pub struct Done {
    pub files: Vec<String>,
    pub max_change: f32,
    /// Every value was written as it is in memory.
    pub exact: bool,
}

impl<'a> Plan<'a> {
    pub fn new(model: &'a Model, options: &ExportOptions) -> Plan<'a> {
        let types = quantised(&model.files);
        let all = Merged::of(model);
        let left_out = if options.merge { 0 } else { all.len() };
        let mut changes = if options.merge { all } else { BTreeMap::new() };
        let base = || model.params.iter().map(|(_, p)| p).filter(|p| !p.adapter);
        let item = |name: &str, param: &'a Param, merged| {
            Item::new(model, options.dtype, &types, name, param, merged)
        };
        let mut items: Vec<Item> = base()
            .map(|param| item(&param.name, param, changes.remove(&param.name).map(|(_, merged)| merged)))
            .collect();
        // What shares its weight with another (a tied head) and is changed alone gets one of its own.
        let head = model.net.language_model().map(|head| &head.linear);
        let tied = head.filter(|head| items.iter().any(|i| i.is_changed_table(model, head)));
        let own = tied.map(|head| format!("{}.weight", head.path));
        if let (Some(name), Some(head)) = (own.filter(|name| !changes.contains_key(name)), tied) {
            items.push(item(&name, model.params.get(head.weight), None));
        }
        let unties = tied.is_some() || !changes.is_empty();
        for (name, (id, merged)) in changes {
            items.push(item(&name, model.params.get(id), Some(merged)));
        }
        Plan {
            items,
            max_shard_bytes: options.max_shard_bytes.max(1),
            unties,
            left_out,
            trained: base().any(|param| param.trainable),
            coarser: is_coarser(model, base()),
        }
    }

    pub fn tensors(&self) -> usize {
        self.items.len()
    }

    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// The one type that holds every tensor's values.
    pub fn dtype(&self) -> Dtype {
        let first = self.items.first().map_or(Dtype::F32, |item| item.dtype);
        if self.items.iter().all(|item| item.dtype == first) { first } else { Dtype::F32 }
    }

    pub fn merged(&self) -> Vec<String> {
        self.items.iter().filter_map(|item| item.merged?.module()).map(String::from).collect()
    }

    /// Must `tie_word_embeddings` become false?
    pub fn unties(&self) -> bool {
        self.unties
    }

    /// Are these the base's values (if they are written exactly)?
    pub fn is_base(&self) -> bool {
        !self.trained && !self.coarser && self.items.iter().all(|item| item.merged.is_none())
    }

    pub fn notes(&self, model: &Model) -> Vec<String> {
        let mut notes = Vec::new();
        let (types, merging) = (quantised(&model.files), !self.merged().is_empty());
        if !types.is_empty() {
            let how = if merging { "merged into" } else { "written as" };
            let types = types.join(", ");
            notes.push(format!("base was quantised ({types}): {how} the values that it stands for"));
        }
        let changed = self.items.iter().filter(|item| item.merged.is_some() || item.param.trainable);
        if let Some(half) = changed.map(|item| item.dtype).find(|dtype| *dtype != Dtype::F32) {
            let what = if merging { "merged" } else { "trained" };
            notes.push(format!("{what} in f32, then rounded to {}", half.name().to_ascii_lowercase()));
        }
        if self.unties {
            notes.push(
                "the head had the embedding's weight and was changed: it now has a weight of its own".into(),
            );
        }
        if let Some(pooling) = model.net.config_json()["classifier_pooling"].as_str() {
            notes.push(format!(
                "the classifier reads texts by \"classifier_pooling\": \"{pooling}\", which transformers' class of this \
                 architecture does not know: its answers there are others"
            ));
        }
        if self.left_out > 0 {
            notes.push(format!(
                "an adapter on {} modules was left out: this is the base alone",
                self.left_out
            ));
        }
        if self.coarser {
            notes.push(
                "the weights were held in bf16 and are written as rounded; load them as they lie".into(),
            );
        }
        notes
    }

    /// Writes the weight files into `folder`.
    pub fn write(&self, model: &Model, folder: &Path) -> Result<Done> {
        let shards = self.shards();
        let tally = RefCell::new(Tally { exact: true, ..Tally::default() });
        let mut files = Vec::new();
        let mut weight_map = Map::new();
        for (i, items) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SINGLE.to_string(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            let tensors = items.iter().map(|item| item.tensor(&model.params, &tally));
            let written = safetensors::write(&folder.join(&name), tensors, &[("format", "pt")]);
            if let Some(failure) = tally.borrow_mut().failure.take() {
                return Err(failure);
            }
            written?;
            weight_map.extend(items.iter().map(|item| (item.name.clone(), Value::from(name.clone()))));
            files.push(name);
        }
        if shards.len() > 1 {
            let index = json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map});
            atomic::write_bytes(&folder.join(INDEX), to_python_text(&index).as_bytes())?;
        }
        let tally = tally.into_inner();
        Ok(Done { files, max_change: tally.max_change, exact: tally.exact })
    }

    /// Tensors in order, as many to a file as fit.
    fn shards(&self) -> Vec<Vec<&Item<'a>>> {
        let mut shards: Vec<Vec<&Item>> = vec![Vec::new()];
        let mut filled = 0;
        for item in &self.items {
            if filled > 0 && filled + item.bytes > self.max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += item.bytes;
            if let Some(last) = shards.last_mut() {
                last.push(item);
            }
        }
        shards
    }
}

/// Does memory hold weights in bf16 that the files hold otherwise?
fn is_coarser<'a>(model: &Model, base: impl Iterator<Item = &'a Param>) -> bool {
    let mut held = base.filter(|param| param.weight.storage().format() == "bf16");
    match &model.files {
        ModelFiles::Folder(_) => {
            held.any(|param| source_dtype(model, &param.name).is_some_and(|dtype| dtype != Dtype::BF16))
        }
        // Its names are others, but as it lies no more can be bf16 than in the file.
        ModelFiles::Gguf(file) => {
            held.count() > file.tensors().iter().filter(|info| info.dtype == Dtype::BF16).count()
        }
    }
}

/// The type of a tensor in a folder's files, by its Hugging Face name; files of a trunk alone leave out the first part.
fn source_dtype(model: &Model, name: &str) -> Option<Dtype> {
    let ModelFiles::Folder(folder) = &model.files else { return None };
    let find = |name: &str| folder.weights().find(name).map(|info| info.dtype);
    find(name).or_else(|| find(name.split_once('.')?.1))
}

/// What the values of a tensor come to while they are written.
#[derive(Default)]
struct Tally {
    max_change: f32,
    exact: bool,
    failure: Option<Error>,
}

impl<'a> Item<'a> {
    fn new(
        model: &Model,
        dtype: ExportDtype,
        quantised: &[String],
        name: &str,
        param: &'a Param,
        merged: Option<Merged<'a>>,
    ) -> Item<'a> {
        // Next to quantised weights, whose values need f32, halves would only cost precision.
        let held = match param.weight.storage().format() {
            "f16" if quantised.is_empty() => Dtype::F16,
            "bf16" if quantised.is_empty() => Dtype::BF16,
            _ => Dtype::F32,
        };
        let dtype = match dtype {
            ExportDtype::F32 => Dtype::F32,
            ExportDtype::F16 => Dtype::F16,
            ExportDtype::BF16 => Dtype::BF16,
            ExportDtype::AsSource => match source_dtype(model, &param.name) {
                Some(half @ (Dtype::F16 | Dtype::BF16)) => half,
                Some(_) => Dtype::F32,
                None => held,
            },
        };
        let bytes = param.elements() as u64 * dtype.block_bytes() as u64;
        Item { name: name.into(), param, merged, dtype, bytes }
    }

    fn tensor<'t>(&'t self, params: &'t Params, tally: &'t RefCell<Tally>) -> TensorOut<'t> {
        let stream = move |out: &mut dyn Write| {
            let mut tally = tally.borrow_mut();
            self.stream(params, &mut tally, out).map_err(|failure| {
                let (path, what) = (self.name.clone().into(), failure.to_string());
                tally.failure = Some(failure);
                FormatError::Write { path, what }
            })
        };
        TensorOut {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: match self.param.transposed {
                true => self.param.shape.iter().rev().copied().collect(),
                false => self.param.shape.clone(),
            },
            data: Data::Stream(Box::new(stream)),
        }
    }

    /// Is this the table that a head shares, changed for the look-up alone?
    fn is_changed_table(&self, model: &Model, head: &Linear) -> bool {
        matches!(self.merged, Some(Merged::Table(table, _)) if table.weight == head.weight)
            && self.name == model.params.get(head.weight).name
    }

    /// Writes the values row by row.
    fn stream(&self, params: &Params, tally: &mut Tally, out: &mut dyn Write) -> Result<()> {
        let merged = self.merged.map(|merged| merged.value(params)).transpose()?;
        if self.param.transposed {
            return self.stream_transposed(merged, tally, out);
        }
        let storage = self.param.weight.storage();
        let mut row = vec![0.0f32; storage.cols()];
        let mut bytes = Vec::with_capacity(row.len() * self.dtype.block_bytes());
        for r in 0..storage.rows() {
            storage.decode(r, 0, &mut row);
            let values = match &merged {
                Some(merged) => {
                    let changes = merged.row(r).iter().zip(&row).map(|(new, old)| (new - old).abs());
                    tally.max_change = changes.fold(tally.max_change, f32::max);
                    merged.row(r)
                }
                None => &row,
            };
            bytes.clear();
            let exact = encode(self.dtype, values, &mut bytes).map_err(|value| self.unfit(value))?;
            tally.exact &= exact;
            out.write_all(&bytes).map_err(FormatError::io(Path::new(&self.name), "write the tensor"))?;
        }
        Ok(())
    }

    /// Writes a weight `[rows, cols]` as `[cols, rows]`.
    fn stream_transposed(
        &self,
        merged: Option<Tensor>,
        tally: &mut Tally,
        out: &mut dyn Write,
    ) -> Result<()> {
        let base = self.param.weight.to_tensor();
        let values = merged.as_ref().unwrap_or(&base);
        let changes = values.data().iter().zip(base.data()).map(|(new, old)| (new - old).abs());
        tally.max_change = changes.fold(tally.max_change, f32::max);
        let (rows, cols) = (values.rows(), values.cols());
        let mut column = vec![0.0f32; rows];
        let mut bytes = Vec::with_capacity(rows * self.dtype.block_bytes());
        for c in 0..cols {
            column.iter_mut().enumerate().for_each(|(r, x)| *x = values.row(r)[c]);
            bytes.clear();
            tally.exact &= encode(self.dtype, &column, &mut bytes).map_err(|value| self.unfit(value))?;
            out.write_all(&bytes).map_err(FormatError::io(Path::new(&self.name), "write the tensor"))?;
        }
        Ok(())
    }

    fn unfit(&self, value: f32) -> Error {
        let what = if value.is_finite() {
            format!("it holds {value}, beyond the range of f16; write bf16 or f32")
        } else {
            format!("it holds {value}: the training run diverged, or the files are damaged")
        };
        Error::Export { path: self.name.clone().into(), what }
    }
}

/// Appends the values; tells whether each is kept as it is. The error is a value that cannot be written.
fn encode(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> std::result::Result<bool, f32> {
    let mut exact = true;
    for &value in values {
        let back = match dtype {
            Dtype::F16 => {
                let half = f16::from_f32(value);
                out.extend(half.to_le_bytes());
                half.to_f32()
            }
            Dtype::BF16 => {
                let half = bf16::from_f32(value);
                out.extend(half.to_le_bytes());
                half.to_f32()
            }
            _ => {
                out.extend(value.to_le_bytes());
                value
            }
        };
        if !back.is_finite() {
            return Err(value);
        }
        exact &= back == value;
    }
    Ok(exact)
}
