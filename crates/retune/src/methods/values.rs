//! An adapter's tensors: drawn at the start of training or read from PEFT's files, put into the model, and written again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::peft::{self, Param, PeftAdapter, PeftConfig};
use retune_tensor::{Layout, ParamId, Params, Tensor, Weight};

use super::param_name;
use super::targets::Known;
use crate::error::{Error, Result};
use crate::models::Model;

/// Where the tensors of an adapter come from.
pub(crate) enum Values<'a> {
    /// From the starting values of the method.
    Drawn,
    Read(Reader<'a>),
}

/// Reads a PEFT folder and knows what of it was used.
pub(crate) struct Reader<'a> {
    adapter: &'a PeftAdapter,
    used: RefCell<BTreeSet<&'a str>>,
}

/// One tensor of an adapter before it is in the model.
#[derive(Clone)]
pub(crate) struct Value {
    /// Its name in the adapter's files.
    key: String,
    /// Its shape in the files.
    shape: Vec<usize>,
    pub tensor: Tensor,
    /// The order of its values in the files.
    layout: Layout,
}

/// How a parameter lies in files and in memory.
pub(crate) struct Form<'a> {
    /// Its shape in files.
    pub shape: &'a [usize],
    /// Rows and columns in memory.
    pub size: (usize, usize),
    pub layout: Layout,
}

/// A parameter and its name in the adapter's files.
pub(crate) type Saved = (String, ParamId);

impl<'a> Values<'a> {
    pub fn read(adapter: &'a PeftAdapter) -> Values<'a> {
        Values::Read(Reader { adapter, used: RefCell::default() })
    }

    /// A parameter of a module that lies in files as it does in memory: `shape` is its shape in files, `[rows, cols]` the
    /// matrix it is in memory.
    ///
    /// # Errors
    /// If the files lack it or have it in another shape.
    pub fn take(
        &self,
        known: &Known,
        module: &str,
        param: &Param,
        shape: &[usize],
        size: (usize, usize),
        drawn: impl FnOnce() -> Tensor,
    ) -> Result<Value> {
        self.take_as(known, module, param, &Form { shape, size, layout: Layout::Rows }, drawn)
    }

    /// A parameter of a module.
    ///
    /// # Errors
    /// As [`Values::take`].
    pub fn take_as(
        &self,
        known: &Known,
        module: &str,
        param: &Param,
        form: &Form,
        drawn: impl FnOnce() -> Tensor,
    ) -> Result<Value> {
        let key = known.key(module, param);
        let (rows, cols) = form.size;
        let tensor = match self {
            Values::Drawn => drawn(),
            Values::Read(reader) => {
                let values = reader.values(known.name(module), param, &key, form.shape)?;
                form.layout.values_from_file(rows, cols, values)
            }
        };
        Ok(Value { key, shape: form.shape.to_vec(), tensor, layout: form.layout })
    }

    /// A base parameter that the adapter holds whole, `now` being its values in the base.
    ///
    /// # Errors
    /// As [`Values::take`].
    pub fn whole(
        &self,
        known: &Known,
        module: &str,
        part: &str,
        base: &retune_tensor::Param,
    ) -> Result<Value> {
        let shape = base.file_shape();
        let form =
            Form { shape: &shape, size: (base.weight.rows(), base.weight.cols()), layout: base.layout };
        self.take_as(known, module, &Param::Plain(part.into()), &form, || base.weight.to_tensor())
    }

    /// Are there files, and do they have this parameter?
    pub fn has(&self, known: &Known, module: &str, param: &Param) -> bool {
        match self {
            Values::Drawn => false,
            Values::Read(reader) => reader.adapter.find(known.name(module), param).is_some(),
        }
    }

    /// Every tensor of the files must have been asked for.
    ///
    /// # Errors
    /// One names the first that was not.
    pub fn finish(&self) -> Result<()> {
        let Values::Read(reader) = self else { return Ok(()) };
        let used = reader.used.borrow();
        // PEFT saves the base's own bias too where a module is held whole and all biases are trained.
        let is_copy = |name: &str| name.ends_with(".original_module.bias");
        let mut left = reader
            .adapter
            .tensors()
            .iter()
            .filter(|t| !used.contains(t.info.name.as_str()) && !is_copy(&t.info.name));
        match left.next() {
            None => Ok(()),
            Some(odd) => Err(reader.fail(format!(
                "tensor \"{}\" is for a module that the configuration does not target in this model",
                odd.info.name
            ))),
        }
    }
}

impl<'a> Reader<'a> {
    fn fail(&self, what: String) -> Error {
        Error::Adapter { path: self.adapter.path().to_path_buf(), what }
    }

    fn values(&self, module: &str, param: &Param, key: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.adapter.find(module, param).ok_or_else(|| {
            self.fail(format!("tensor \"{key}\" is missing: the configuration asks for it in this model"))
        })?;
        if tensor.info.shape != shape {
            return Err(self.fail(format!(
                "tensor \"{}\" is {:?}; this model and {} need {shape:?}. Is it for another base?",
                tensor.info.name,
                tensor.info.shape,
                peft::CONFIG
            )));
        }
        self.used.borrow_mut().insert(&tensor.info.name);
        Ok(self.adapter.read_f32(tensor)?)
    }
}

impl Value {
    /// Its name in the adapter's files.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Puts it into the model as a trainable parameter of a slot, in place of one of that name; `front` tells several
    /// adapters of one slot apart.
    pub fn add(self, params: &mut Params, slot: usize, front: &str) -> Saved {
        let name = param_name(slot, &format!("{front}{}", self.key));
        let turned = self.layout == Layout::Turned;
        let shape = if turned { self.shape.iter().rev().copied().collect() } else { self.shape };
        let id = match params.find(&name) {
            Some(id) => {
                let param = params.get_mut(id);
                (param.shape, param.weight, param.trainable) = (shape, Weight::F32(self.tensor), true);
                id
            }
            None => params.add_adapter(name, &shape, self.tensor),
        };
        params.get_mut(id).layout = self.layout;
        (self.key, id)
    }

    /// Puts it in place of a parameter of the base.
    pub fn put(self, params: &mut Params, id: ParamId) -> Saved {
        let param = params.get_mut(id);
        (param.weight, param.trainable) = (Weight::F32(self.tensor), true);
        (self.key, id)
    }
}

/// Writes parameters as a PEFT adapter folder; `readme` is the model card.
///
/// # Errors
/// If the folder cannot be written, or a value is not finite.
pub(crate) fn write(
    model: &Model,
    config: &PeftConfig,
    saved: &[Saved],
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    let tensors =
        saved.iter().map(|(key, id)| tensor_out(model, key, *id, folder)).collect::<Result<Vec<_>>>()?;
    Ok(peft::write(folder, config, tensors, readme)?)
}

/// A parameter as it is written.
///
/// # Errors
/// If a value is not finite.
pub(crate) fn tensor_out(model: &Model, key: &str, id: ParamId, folder: &Path) -> Result<TensorOut<'static>> {
    let param = model.params.get(id);
    let values = param.weight.to_tensor();
    if !values.all_finite() {
        let what = format!("{} is not finite and is not written", param.name);
        return Err(Error::Adapter { path: folder.to_path_buf(), what });
    }
    Ok(TensorOut::f32(key.to_string(), &param.file_shape(), param.layout.values_to_file(&values)))
}
