//! Prefixes of AdapterHub: keys and values in front of every layer's, which take no position.
//!
//! `out(act(in(e)))` over a table `e` `[n, h]`, or the values themselves (`flat`); in the order of PEFT's. They are trained
//! through the network that they were saved with, and saved with it again.

use retune_formats::TensorOut;
use retune_formats::adapter_hub::{HubAdapter, HubConfig, HubMethod, HubParam, HubPrefix};
use retune_tensor::ops::Activation;
use retune_tensor::{ParamId, Tensor};

use super::{Adder, Dense, Encoder, Rows, Shape, place};
use crate::error::{Error, Result};
use crate::methods::{Attached, adapter, trainable_count};
use crate::models::Model;

/// Puts a saved prefix into a slot, and the head beside it; both are trainable, so that training may go on.
///
/// # Errors
/// If the folder is for another model, or leaves layers out.
pub(in crate::methods) fn load(model: &mut Model, files: &HubAdapter, slot: usize) -> Result<Attached> {
    let fail = |e: Error| match e {
        Error::Method(what) => Error::Adapter { path: files.path().to_path_buf(), what },
        other => other,
    };
    let shape = Shape::of(model)?;
    let read = Read::new(model, files, &shape).map_err(fail)?;
    let head = adapter::read_head(model, files).map_err(fail)?;
    model.params.freeze_all();
    let mut add = Adder { params: &mut model.params, slot, seed: 0 };
    let (rows, saved) = read.add(&mut add, &shape)?;
    let held = head.map(|head| head.put(model, slot)).transpose()?;
    let config = files.config().clone();
    Ok(Attached {
        modules: place(model, slot, read.n, &rows, false),
        trainable: trainable_count(model),
        save: Some(Box::new(move |model, folder, readme| {
            let mut tensors = Vec::new();
            for part in &saved {
                tensors.push(part.tensor(model, folder)?);
            }
            adapter::write(model, &config, tensors, held.as_ref(), folder, readme)
        })),
        ..Attached::default()
    })
}

/// A tensor of the files: parameters of the model, one above the other.
struct Part {
    key: String,
    shape: Vec<usize>,
    ids: Vec<ParamId>,
}

impl Part {
    fn tensor(&self, model: &Model, folder: &std::path::Path) -> Result<TensorOut<'static>> {
        let mut values = Vec::new();
        for id in &self.ids {
            // Checks that all is finite.
            adapter::out(&self.key, model.params.get(*id), folder)?;
            values.extend_from_slice(model.params.get(*id).weight.to_tensor().data());
        }
        Ok(TensorOut::f32(self.key.clone(), &self.shape, values))
    }
}

/// The tensors of a prefix.
struct Read<'a> {
    files: &'a HubAdapter,
    prefix: &'a HubPrefix,
    site: String,
    n: usize,
    activation: Activation,
}

impl<'a> Read<'a> {
    fn new(model: &Model, files: &'a HubAdapter, shape: &Shape) -> Result<Read<'a>> {
        let fail = |what: String| Err(Error::Method(what));
        let HubMethod::Prefix(prefix) = &files.config().method else { return fail("it is no prefix".into()) };
        if !prefix.leave_out.is_empty() {
            return fail(format!(
                "it leaves layers out ({:?}); prefixes of all layers are supported",
                prefix.leave_out
            ));
        }
        let site = files.tensors().first().map(|tensor| tensor.site.clone()).unwrap_or_default();
        if let Some(odd) = files.tensors().iter().find(|tensor| tensor.site != site) {
            return fail(format!(
                "tensor \"{}\" is for a place that this model does not have",
                odd.info.name
            ));
        }
        if !site.ends_with(".self_prefix") && !site.ends_with(".self") {
            return fail(format!("its prefix is for {site}; this model has self-attention alone"));
        }
        let activation = match prefix.flat {
            true => Activation::Identity,
            false => adapter::activation(&prefix.non_linearity)?,
        };
        let read = Read { files, prefix, site, n: prefix.prefix_length, activation };
        for (param, due) in read.due(shape, model.net.hidden_size()) {
            let found = files.find(&read.site, param).map(|tensor| &tensor.info.shape);
            if found != Some(&due) {
                let key = files.config().key(&read.site, param);
                let what = match found {
                    Some(found) => {
                        format!(
                            "tensor \"{key}\" is {found:?}; this model needs {due:?}. Is it for another base?"
                        )
                    }
                    None => format!("tensor \"{key}\" is missing"),
                };
                return fail(what);
            }
        }
        Ok(read)
    }

    /// The shapes that this model needs.
    fn due(&self, shape: &Shape, hidden: usize) -> Vec<(HubParam, Vec<usize>)> {
        let (n, inner, out) = (self.n, self.prefix.bottleneck_size, shape.cols());
        match self.prefix.flat {
            true => vec![(HubParam::PrefixFlat, vec![n * out])],
            false => vec![
                (HubParam::PrefixEmbedding, vec![n, hidden]),
                (HubParam::PrefixInWeight, vec![inner, hidden]),
                (HubParam::PrefixInBias, vec![inner]),
                (HubParam::PrefixOutWeight, vec![out, inner]),
                (HubParam::PrefixOutBias, vec![out]),
            ],
        }
    }

    fn config(&self) -> &HubConfig {
        self.files.config()
    }

    fn values(&self, param: HubParam) -> Result<Vec<f32>> {
        match self.files.find(&self.site, param) {
            Some(tensor) => Ok(self.files.read_f32(tensor)?),
            None => {
                Err(Error::Method(format!("tensor \"{}\" is missing", self.config().key(&self.site, param))))
            }
        }
    }

    /// Adds the parameters. The last linear is cut into those of the layers.
    fn add(&self, add: &mut Adder, shape: &Shape) -> Result<(Rows, Vec<Part>)> {
        let mut saved = Vec::new();
        let mut whole = |param: HubParam, sizes: &[usize]| -> Result<ParamId> {
            let key = self.config().key(&self.site, param);
            let (rows, cols) =
                if let [rows, cols] = sizes { (*rows, *cols) } else { (1, sizes.iter().product()) };
            let id = add.add(&key, sizes, Tensor::from_vec(rows, cols, self.values(param)?))?;
            saved.push(Part { key, shape: sizes.to_vec(), ids: vec![id] });
            Ok(id)
        };
        if self.prefix.flat {
            // Rows of their own in memory, one long vector in the file.
            let table = whole(HubParam::PrefixFlat, &[self.n, shape.cols()])?;
            saved.iter_mut().for_each(|part| part.shape = vec![self.n * shape.cols()]);
            return Ok((Rows::Table { table, layers: shape.layers }, saved));
        }
        let (inner, hidden) = (self.prefix.bottleneck_size, self.hidden());
        let table = whole(HubParam::PrefixEmbedding, &[self.n, hidden])?;
        let inner_dense = Dense {
            weight: whole(HubParam::PrefixInWeight, &[inner, hidden])?,
            bias: whole(HubParam::PrefixInBias, &[inner])?,
            activation: self.activation,
        };
        let (weight, bias) = (self.values(HubParam::PrefixOutWeight)?, self.values(HubParam::PrefixOutBias)?);
        let rows = 2 * shape.dim;
        let mut outs = Vec::new();
        for (layer, (weight, bias)) in weight.chunks(rows * inner).zip(bias.chunks(rows)).enumerate() {
            let key = |param| format!("{}.layers.{layer}", self.config().key(&self.site, param));
            let weight = Tensor::from_vec(rows, inner, weight.to_vec());
            let bias = Tensor::from_vec(1, rows, bias.to_vec());
            outs.push(Dense {
                weight: add.add(&key(HubParam::PrefixOutWeight), &[rows, inner], weight)?,
                bias: add.add(&key(HubParam::PrefixOutBias), &[rows], bias)?,
                activation: Activation::Identity,
            });
        }
        let out = |param, shape: Vec<usize>, id: fn(&Dense) -> ParamId| Part {
            key: self.config().key(&self.site, param),
            shape,
            ids: outs.iter().map(id).collect(),
        };
        saved.push(out(HubParam::PrefixOutWeight, vec![shape.cols(), inner], |dense| dense.weight));
        saved.push(out(HubParam::PrefixOutBias, vec![shape.cols()], |dense| dense.bias));
        let encoder = Encoder { layers: vec![inner_dense], ..Encoder::of_table(table) };
        Ok((Rows::Projected { encoder, outs }, saved))
    }

    /// Columns of the table: the width of the base, as was checked.
    fn hidden(&self) -> usize {
        let table = self.files.find(&self.site, HubParam::PrefixEmbedding);
        table.and_then(|tensor| tensor.info.shape.get(1)).copied().unwrap_or(0)
    }
}
