//! The weight files of a Hugging Face folder: of what type each tensor is, in which file it lies.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;

use retune_formats::bitsandbytes::QuantizationConfig;
use retune_formats::json::to_python_text;
use retune_formats::source::Data;
use retune_formats::{Dtype, Error as FormatError, TensorOut, atomic, safetensors};
use retune_tensor::storage::Code4;
use retune_tensor::{Layout, Params};
use serde_json::{Map, Value, json};

use super::config::torch_name;
use super::encode::{Encoding, Loss, encode};
use super::folder::{INDEX, SINGLE};
use super::keep::quantisable;
use super::layer;
use super::selection::{Selection, dense_of};
use super::spool::{Spool, Waiting};
use super::values::{Order, Values};
use super::{Done, ExportDtype, ExportOptions, Step, TensorLoss, quantised};
use crate::error::{Error, Result};
use crate::models::quantised::QuantCode;
use crate::models::{Model, Quantisation};

/// One tensor to write.
struct Item<'a> {
    values: Values<'a>,
    encoding: Encoding,
    order: Order,
    bytes: u64,
    /// The plain type that its values have, or would have.
    plain: Dtype,
}

/// What is written, in the order of the model.
pub struct Plan<'a> {
    pub selection: Selection<'a>,
    items: Vec<Item<'a>>,
    max_shard_bytes: u64,
    dtype: ExportDtype,
    /// Linear layers that are not quantised while others are.
    skipped: Vec<String>,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// If a folder cannot hold weights of the type asked for.
    pub fn new(model: &'a Model, dir: &Path, options: &ExportOptions) -> Result<Plan<'a>> {
        let selection = Selection::new(model, options);
        let quantisable = match options.dtype {
            ExportDtype::Quantised(_) => quantisable(model, &options.keep)?,
            _ => BTreeSet::new(),
        };
        let items: Result<Vec<Item>> = selection
            .values
            .iter()
            .map(|values| {
                let plain = match options.dtype {
                    ExportDtype::F32 => Dtype::F32,
                    ExportDtype::F16 => Dtype::F16,
                    ExportDtype::BF16 => Dtype::BF16,
                    _ => dense_of(model, values.param),
                };
                let is_quantised = quantisable.contains(values.name.as_str());
                let encoding = match options.dtype {
                    ExportDtype::Quantised(how) if is_quantised => Encoding::Quantised(how),
                    ExportDtype::Blocks(format) => {
                        let what = format!(
                            "weights in {} lie in GGUF files alone; name the output something.gguf",
                            format.name()
                        );
                        return Err(Error::Export { path: dir.to_path_buf(), what });
                    }
                    _ => Encoding::Dense(plain),
                };
                // What bitsandbytes quantises lies as [out, in] whatever it was.
                let order = match values.param.layout {
                    Layout::Turned if !encoding.is_quantised() => Order::Turned,
                    Layout::Kernel(h, w) => Order::Kernel(h, w),
                    _ => Order::AsIs,
                };
                let (rows, cols) = values.size(order);
                let bytes = encoding.bytes(rows, cols);
                Ok(Item { values: values.clone(), encoding, order, bytes, plain })
            })
            .collect();
        let mut skipped: Vec<String> = Vec::new();
        if let ExportDtype::Quantised(_) = options.dtype {
            let linears = model.net.linears().into_iter().map(|layer| layer.path.clone());
            skipped =
                linears.filter(|path| !quantisable.contains(format!("{path}.weight").as_str())).collect();
            skipped.dedup();
        }
        let max_shard_bytes = options.max_shard_bytes.max(1);
        Ok(Plan { items: items?, selection, max_shard_bytes, dtype: options.dtype, skipped })
    }

    /// `quantization_config` of `config.json`, if weights are quantised.
    pub fn quantization(&self) -> Option<QuantizationConfig> {
        let ExportDtype::Quantised(how) = self.dtype else { return None };
        let mut config = QuantizationConfig::new(how.kind());
        config.bnb_4bit_compute_dtype = torch_name(self.dtype()).into();
        config.llm_int8_skip_modules = Some(self.skipped.clone());
        Some(config)
    }

    pub fn tensors(&self) -> usize {
        self.items.len()
    }

    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// Free bytes on the disk that writing needs: quantised weights of a file lie there twice for a while.
    pub fn space(&self) -> u64 {
        let quantised = |shard: &Vec<&Item>| -> u64 {
            shard.iter().filter(|item| item.encoding.is_quantised()).map(|item| item.bytes).sum()
        };
        self.bytes() + self.shards().iter().map(quantised).max().unwrap_or(0)
    }

    /// The one type that holds every plain tensor's values.
    pub fn dtype(&self) -> Dtype {
        let first = self.items.first().map_or(Dtype::F32, |item| item.plain);
        if self.items.iter().all(|item| item.plain == first) { first } else { Dtype::F32 }
    }

    pub fn notes(&self, model: &Model) -> Vec<String> {
        let mut notes = Vec::new();
        let (types, merging) = (quantised(&model.files), !self.selection.merged().is_empty());
        if !types.is_empty() {
            let how = match (merging, self.quantization().is_some()) {
                (true, false) => "merged into the values that it stands for",
                (false, false) => "written as the values that it stands for",
                (true, true) => {
                    "merged into the values that it stands for, then quantised again: errors add up"
                }
                (false, true) => "its values are quantised again, so errors add up",
            };
            notes.push(format!("base was quantised ({}): {how}", types.join(", ")));
        }
        if let ExportDtype::Quantised(Quantisation { code: QuantCode::FourBit(Code4::Int4), .. }) = self.dtype
        {
            notes.push(
                "int4 is Retune's own code: transformers and bitsandbytes cannot load this folder".into(),
            );
        }
        let changed = self.items.iter().filter(|item| item.values.is_changed());
        let half = |item: &Item| item.encoding.dtype().filter(|dtype| *dtype != Dtype::F32);
        if let Some(half) = changed.filter_map(half).next() {
            let what = if merging { "merged" } else { "trained" };
            notes.push(format!("{what} in f32, then rounded to {}", half.name().to_ascii_lowercase()));
        }
        notes.extend(self.selection.notes(model));
        notes
    }

    /// Writes the weight files into `folder`.
    pub fn write(&self, model: &Model, folder: &Path, progress: &mut dyn FnMut(Step)) -> Result<Done> {
        let shards = self.shards();
        let tally =
            RefCell::new(Tally { steps: self.items.len(), progress, done: Done::default(), failure: None });
        let mut weight_map = Map::new();
        for (i, items) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SINGLE.to_string(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            let mut spool = Spool::create(&folder.join(SPOOL))?;
            let waiting = quantise(items, model, &mut spool, &mut tally.borrow_mut())?;
            let plain = items.iter().filter(|item| !item.encoding.is_quantised());
            let plain = plain.map(|item| item.tensor(&model.params, &tally));
            let tensors: Vec<TensorOut> =
                plain.chain(waiting.iter().map(|waiting| spool.take(waiting))).collect();
            let names: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
            let written = safetensors::write(&folder.join(&name), tensors, &[("format", "pt")]);
            if let Some(failure) = tally.borrow_mut().failure.take() {
                return Err(failure);
            }
            written?;
            weight_map.extend(names.into_iter().map(|tensor| (tensor, Value::from(name.clone()))));
            tally.borrow_mut().done.files.push(name);
        }
        if shards.len() > 1 {
            let index = json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map});
            atomic::write_bytes(&folder.join(INDEX), to_python_text(&index).as_bytes())?;
        }
        let mut done = tally.into_inner().done;
        let place: HashMap<&str, usize> =
            self.items.iter().enumerate().map(|(i, item)| (item.values.name.as_str(), i)).collect();
        done.losses.sort_by_key(|told| place.get(told.name.as_str()).copied());
        Ok(done)
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

/// Where parts of quantised weights wait.
const SPOOL: &str = ".quantised.tmp";

/// Quantises the weights of one file that are to be.
fn quantise(items: &[&Item], model: &Model, spool: &mut Spool, tally: &mut Tally) -> Result<Vec<Waiting>> {
    let mut waiting = Vec::new();
    for item in items {
        let Encoding::Quantised(how) = item.encoding else { continue };
        let (layer, loss, change) = layer::layer(&item.values, &model.params, how, item.plain)?;
        for tensor in layer.tensors(&item.values.name) {
            waiting.push(spool.put(tensor)?);
        }
        let (name, encoding) = (item.values.name.clone(), item.encoding.name());
        tally.add(TensorLoss { name, encoding, loss }, change);
    }
    spool.flush()?;
    Ok(waiting)
}

/// What the tensors come to while they are written.
pub struct Tally<'p> {
    /// Tensors that will be written.
    pub steps: usize,
    pub progress: &'p mut dyn FnMut(Step),
    pub done: Done,
    pub failure: Option<Error>,
}

impl Item<'_> {
    fn tensor<'t>(&'t self, params: &'t Params, tally: &'t RefCell<Tally>) -> TensorOut<'t> {
        let (rows, cols) = self.values.size(self.order);
        TensorOut {
            name: self.values.name.clone(),
            dtype: self.encoding.dtype().unwrap_or(Dtype::F32),
            shape: match (self.order, self.values.param.shape.len()) {
                (_, 1) => vec![cols],
                (Order::AsIs | Order::Kernel(..), 3..) | (Order::Kernel(..), _) => {
                    self.values.param.shape.clone()
                }
                _ => vec![rows, cols],
            },
            data: streamed(&self.values, self.encoding, self.order, params, tally),
        }
    }
}

/// The bytes of a tensor, made when its turn comes.
pub fn streamed<'t>(
    values: &'t Values,
    encoding: Encoding,
    order: Order,
    params: &'t Params,
    tally: &'t RefCell<Tally>,
) -> Data<'t> {
    Data::Stream(Box::new(move |out: &mut dyn Write| {
        let mut tally = tally.borrow_mut();
        let written = stream(values, encoding, order, params, out);
        match written {
            Ok((loss, change)) => {
                let loss = TensorLoss { name: values.name.clone(), encoding: encoding.name(), loss };
                tally.add(loss, change);
                Ok(())
            }
            Err(failure) => {
                let (path, what) = (values.name.clone().into(), failure.to_string());
                tally.failure = Some(failure);
                Err(FormatError::Write { path, what })
            }
        }
    }))
}

impl Tally<'_> {
    /// One more tensor is written.
    pub fn add(&mut self, loss: TensorLoss, change: f32) {
        self.done.max_change = self.done.max_change.max(change);
        self.done.losses.push(loss);
        let done = self.done.losses.len();
        if let Some(loss) = self.done.losses.last() {
            (self.progress)(Step { done, tensors: self.steps, written: loss });
        }
    }
}

fn stream(
    values: &Values,
    encoding: Encoding,
    order: Order,
    params: &Params,
    out: &mut dyn Write,
) -> Result<(Loss, f32)> {
    let (_, cols) = values.size(order);
    let mut loss = Loss::default();
    let mut bytes = Vec::new();
    let change = values.strips(params, order, &mut |strip| {
        bytes.clear();
        let lost = encode(encoding, cols, strip, &mut bytes).map_err(|value| values.unfit(value))?;
        loss = loss.plus(lost);
        Ok(out.write_all(&bytes).map_err(FormatError::io(Path::new(&values.name), "write the tensor"))?)
    })?;
    Ok((loss, change))
}
