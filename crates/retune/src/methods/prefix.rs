//! Prefix tuning (Li and Liang, 2021): trained keys and values in front of each example's, in every layer.
//!
//! `prompt_embeddings` `[n, 2 L d]` holds, for layer `l`, its keys at `2 l d` and its values at `(2 l + 1) d`, with
//! `d = kv_heads x head_dim`. The keys are not rotated; real rows stand at positions from `n` on. With `prefix_projection` the
//! rows come out of `W2 tanh(W1 e + b1) + b2` while they are trained, over a table `e` `[n, d]`; what is saved is what comes
//! out. Names and shapes are PEFT's.

mod hub;

use retune_formats::peft::{PeftAdapter, PeftConfig};
use retune_formats::prompt_config::{PrefixTuningConfig, Prompt};
use retune_tensor::ops::{self, Activation};
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use super::prompt::encoder::{Adder, Dense, Encoder};
use super::prompt::{files, held};
use super::{Attached, Spec, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Attention, AttentionPrefix, Site};
use crate::run_file::{self, PrefixInit, RunFile};

pub(super) use hub::load as load_hub;

pub const SPEC: Spec = Spec {
    name: "prefix",
    summary: "trained keys and values in front of every layer's attention",
    source: "arXiv:2101.00190",
    default_lr: 1e-2,
    adapter: true,
    attach: |model, run| attach(model, &run.prefix, run),
};

const UNMERGEABLE: &str = "its keys and values are rows of their own, not a change of a weight";

/// Where the keys and values of a layer come from.
#[derive(Clone, Debug)]
enum Rows {
    /// A part of the table `[n, 2 L d]`.
    Table { table: ParamId, layers: usize },
    /// A network and, for each layer, its last linear `[2 d, h]`.
    Projected { encoder: Encoder, outs: Vec<Dense> },
}

impl Rows {
    /// Keys and values `[n, d]` of a layer.
    fn of(&self, tape: &Tape, layer: usize) -> (Var, Var) {
        match self {
            Rows::Table { table, layers } => {
                let table = tape.param(*table);
                let (n, parts) = (table.rows(), 2 * layers);
                let cut = ops::reshape(tape, &table, n * parts, table.cols() / parts);
                let part = |p: usize| {
                    ops::select_rows(tape, &cut, &(0..n).map(|row| row * parts + p).collect::<Vec<_>>())
                };
                (part(2 * layer), part(2 * layer + 1))
            }
            Rows::Projected { encoder, outs } => {
                let both = outs[layer].forward(tape, &encoder.forward(tape));
                let (n, d) = (both.rows(), both.cols() / 2);
                let cut = ops::reshape(tape, &both, 2 * n, d);
                let part = |p: usize| {
                    ops::select_rows(tape, &cut, &(0..n).map(|row| 2 * row + p).collect::<Vec<_>>())
                };
                (part(0), part(1))
            }
        }
    }

    /// All of them, `[n, 2 L d]`.
    fn values(&self, params: &Params) -> Tensor {
        match self {
            Rows::Table { table, .. } => params.get(*table).weight.to_tensor(),
            Rows::Projected { encoder, outs } => {
                let tape = Tape::inference(params);
                let inner = encoder.forward(&tape);
                let parts: Vec<Var> = outs.iter().map(|out| out.forward(&tape, &inner)).collect();
                let rows = (0..inner.rows()).flat_map(|r| parts.iter().map(move |part| part.value().row(r)));
                let cols = parts.iter().map(Var::cols).sum();
                Tensor::from_vec(inner.rows(), cols, rows.flatten().copied().collect())
            }
        }
    }
}

/// One layer's keys and values.
struct Prefix {
    n: usize,
    rows: Rows,
    takes_positions: bool,
}

impl AttentionPrefix for Prefix {
    fn rows(&self) -> usize {
        self.n
    }

    fn keys_values(&self, tape: &Tape, at: &Attention) -> (Var, Var) {
        self.rows.of(tape, at.layer)
    }

    fn takes_positions(&self) -> bool {
        self.takes_positions
    }
}

/// Heads and width of each layer's keys.
struct Shape {
    layers: usize,
    kv_heads: usize,
    dim: usize,
}

impl Shape {
    /// # Errors
    /// If the model has no attention, or layers of different widths.
    fn of(model: &mut Model) -> Result<Shape> {
        let (mut found, mut in_order) = (Vec::new(), true);
        model.net.visit_sites(&mut |site| {
            if let Site::Attention(attention) = site {
                in_order &= attention.layer == found.len();
                found.push((attention.shape.kv_heads, attention.shape.kv_heads * attention.shape.head_dim));
            }
        });
        let kind = || model.net.model_type();
        let Some(&(kv_heads, dim)) = found.first() else {
            return Err(Error::Method(format!(
                "prefix tuning needs attention; a {} model has none: use --method lora",
                kind()
            )));
        };
        if !in_order || found.iter().any(|other| *other != (kv_heads, dim)) {
            let what =
                format!("prefix tuning needs attention of one shape in all layers; {} differs", kind());
            return Err(Error::Method(what));
        }
        Ok(Shape { layers: found.len(), kv_heads, dim })
    }

    fn cols(&self) -> usize {
        2 * self.layers * self.dim
    }
}

/// Freezes the base and puts trainable keys and values into slot 0 of every layer.
///
/// # Errors
/// If the model has no attention or too short a context.
pub fn attach(model: &mut Model, settings: &run_file::Prefix, run: &RunFile) -> Result<Attached> {
    let n = settings.num_virtual_tokens as usize;
    let shape = Shape::of(model)?;
    files::check_length(model, n)?;
    let hidden = settings.encoder_hidden_size.map_or(shape.dim, |n| n as usize);
    let config = PrefixTuningConfig {
        prompt: Prompt {
            num_layers: Some(shape.layers),
            ..files::described(model, run, n, shape.dim, shape.kv_heads)
        },
        encoder_hidden_size: Some(hidden),
        prefix_projection: settings.prefix_projection,
        init_zero: settings.init_weights == PrefixInit::Zero,
    };
    let head = held::of_model(model);
    model.params.freeze_all();
    let mut add = Adder { params: &mut model.params, slot: 0, seed: run.seed };
    let zero = settings.init_weights == PrefixInit::Zero;
    let rows = match settings.prefix_projection {
        true => projected(&mut add, n, &shape, hidden, zero)?,
        false if zero => table(&mut add, Tensor::zeros(n, shape.cols()), &shape)?,
        false => Rows::Table { table: add.table(TABLE, n, shape.cols())?, layers: shape.layers },
    };
    put(model, 0, n, rows, PeftConfig::PrefixTuning(config), head)
}

/// Puts a saved prefix into a slot; its rows are trainable, so that training may go on.
///
/// # Errors
/// If the folder is damaged or for another model.
pub(super) fn load(model: &mut Model, adapter: &PeftAdapter, slot: usize) -> Result<Attached> {
    let fail = |what: String| Error::Adapter { path: adapter.path().to_path_buf(), what };
    let PeftConfig::PrefixTuning(config) = adapter.config() else {
        return Err(fail(format!("its peft_type is {}, not PREFIX_TUNING", adapter.config().peft_type())));
    };
    let shape = Shape::of(model)?;
    files::check_length(model, config.prompt.num_virtual_tokens).map_err(|e| fail(e.to_string()))?;
    let heads = config.prompt.num_attention_heads;
    if heads.is_some_and(|heads| heads != shape.kv_heads) {
        let what = format!(
            "num_attention_heads is {}, but this model has {} heads of keys and values",
            heads.unwrap_or_default(),
            shape.kv_heads
        );
        return Err(fail(what));
    }
    let values = files::read(adapter, &config.prompt, shape.cols())?;
    let (n, head) = (values.rows(), held::of_files(model, adapter)?);
    model.params.freeze_all();
    let mut add = Adder { params: &mut model.params, slot, seed: 0 };
    let rows = table(&mut add, values, &shape)?;
    put(model, slot, n, rows, adapter.config().clone(), head)
}

/// The name of the rows in files.
const TABLE: &str = "prompt_embeddings";

fn table(add: &mut Adder, values: Tensor, shape: &Shape) -> Result<Rows> {
    let sizes = [values.rows(), values.cols()];
    Ok(Rows::Table { table: add.add(TABLE, &sizes, values)?, layers: shape.layers })
}

/// PEFT's `transform`; its last linear is cut into those of the layers.
fn projected(add: &mut Adder, n: usize, shape: &Shape, hidden: usize, zero: bool) -> Result<Rows> {
    let table = add.table("prompt_encoder.embedding.weight", n, shape.dim)?;
    let inner = add.dense("prompt_encoder.transform.0", (hidden, shape.dim), Activation::Tanh)?;
    let mut outs = Vec::new();
    for layer in 0..shape.layers {
        let name = format!("prompt_encoder.transform.2.layers.{layer}");
        let out = add.dense(&name, (2 * shape.dim, hidden), Activation::Identity)?;
        for id in [out.weight, out.bias].into_iter().filter(|_| zero) {
            if let Some(values) = add.params.tensor_mut(id) {
                values.data_mut().fill(0.0);
            }
        }
        outs.push(out);
    }
    Ok(Rows::Projected { encoder: Encoder { layers: vec![inner], ..Encoder::of_table(table) }, outs })
}

fn put(
    model: &mut Model,
    slot: usize,
    n: usize,
    rows: Rows,
    config: PeftConfig,
    head: Vec<held::Part>,
) -> Result<Attached> {
    let saved = files::Saved { config, held: held::put(model, slot, head)? };
    let modules = place(model, slot, n, &rows, true);
    Ok(Attached {
        modules,
        trainable: trainable_count(model),
        save: Some(Box::new(move |model, folder, readme| {
            saved.write(model, &rows.values(&model.params), folder, readme)
        })),
        ..Attached::default()
    })
}

/// Puts it in front of every layer's keys and values; the paths of these.
fn place(model: &mut Model, slot: usize, n: usize, rows: &Rows, takes_positions: bool) -> Vec<String> {
    let mut modules = Vec::new();
    model.net.visit_sites(&mut |site| {
        if let Site::Attention(attention) = site {
            attention.prefix.put(slot, Box::new(Prefix { n, rows: rows.clone(), takes_positions }));
            modules.push(attention.path.clone());
        }
    });
    remember(model, slot, SPEC.name, Some(UNMERGEABLE));
    modules
}
