//! What a LoRA puts at each module: planned and checked before anything of the model changes, drawn or read.

use std::collections::BTreeMap;

use retune_formats::lora_config::Bias;
use retune_formats::peft::Param;
use retune_tensor::{Layout, ParamId, Tensor, ops};

use super::init::Start;
use crate::error::{Error, Result};
use crate::methods::saved::{Wanted, Whole};
use crate::methods::targets::Chosen;
use crate::methods::values::{Form, Saved, Value, Values};
use crate::models::Model;
use crate::nn::{Embedding, Linear};

/// Largest rank.
const RANK_MAX: usize = 4096;
/// The modules whose own weight PEFT saves beside their factors.
const TABLES: [&str; 2] = ["embed_tokens", "lm_head"];

/// What one adapter puts at one linear or table.
pub(super) struct Part {
    pub a: Value,
    pub b: Value,
    pub b_bias: Option<Value>,
    /// DoRA's vector and `|w|^2` of the weight.
    pub magnitude: Option<(Value, Tensor)>,
    /// The layer's own bias, trained.
    pub bias: Option<Value>,
    /// The factors that a part of the weight was moved into at the start, `[r, in]` and `[out, r]`.
    pub start: Option<(Tensor, Tensor)>,
    /// The weight that PEFT saves beside the factors, and its key.
    pub table: Option<Saved>,
    pub scale: f32,
    pub dropout: f32,
}

/// What one adapter puts on a model.
pub(super) struct Plan {
    pub parts: BTreeMap<String, Part>,
    /// The head that shares a table's branch, and what PEFT names the factors there.
    pub tied: Option<Tied>,
    pub whole: Whole,
}

pub(super) struct Tied {
    pub head: String,
    pub table: String,
    pub a: String,
    pub b: String,
}

impl Plan {
    /// # Errors
    /// If a rank is out of range, something that is asked for cannot be, or the files lack a tensor or have others.
    pub fn new(model: &Model, chosen: &Chosen, values: &Values, start: Start, seed: u64) -> Result<Plan> {
        let one = One { model, chosen, values, start, seed };
        let mut parts = BTreeMap::new();
        for table in model.net.embeddings().into_iter().filter(|t| chosen.modules.contains(&t.path)) {
            parts.insert(table.path.clone(), one.table(table)?);
        }
        let tied = one.tied(&parts)?;
        let is_tied = |path: &str| tied.as_ref().is_some_and(|t| t.head == path);
        let targets = model.net.linears().into_iter().filter(|l| chosen.modules.contains(&l.path));
        for layer in targets.filter(|l| !is_tied(&l.path)) {
            parts.insert(layer.path.clone(), one.linear(layer)?);
        }
        let wanted = Wanted {
            matcher: chosen.matcher.modules(),
            names: chosen.config.modules_to_save.as_deref().unwrap_or_default(),
            targets: &chosen.modules,
            bias: chosen.config.bias,
            tie: chosen.config.ensure_weight_tying,
        };
        let whole = Whole::plan(model, &chosen.known, values, &wanted)?;
        Ok(Plan { parts, tied, whole })
    }

    /// May it be weighted, or added to others? Only products can be.
    pub fn check_sum(&self) -> std::result::Result<(), &'static str> {
        match () {
            _ if !self.whole.is_empty() => Err("it holds modules or biases whole"),
            _ if self.tied.is_some() => Err("its head shares a table's branch"),
            _ if self.parts.values().any(|p| p.magnitude.is_some()) => Err("it is a DoRA"),
            _ if self.parts.values().any(|p| p.bias.is_some()) => Err("it trains biases"),
            _ if self.parts.values().any(|p| p.start.is_some()) => {
                Err("a part of the base was moved into it")
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// As [`Whole::check_slot`].
    pub fn check_slot(&self, model: &Model, slot: usize) -> Result<()> {
        self.whole.check_slot(model, slot)
    }
}

/// Shapes in files: at a convolution all of them have four dimensions, over frames three.
struct Shapes {
    a: Vec<usize>,
    b: Vec<usize>,
    magnitude: Vec<usize>,
}

impl Shapes {
    fn of(layer: &Linear, r: usize) -> Shapes {
        let (a, out) = (layer.file_shape(r), layer.out_features);
        let with_kernel = |shape: &[usize]| [shape, &[1, 1][..layer.kernel_dims()]].concat();
        let magnitude = if layer.sliding.is_some() { with_kernel(&[1, out]) } else { vec![out] };
        Shapes { a, b: with_kernel(&[out, r]), magnitude }
    }
}

/// What the parts of one adapter are made from.
struct One<'a, 'v> {
    model: &'a Model,
    chosen: &'a Chosen,
    values: &'a Values<'v>,
    start: Start,
    seed: u64,
}

impl One<'_, '_> {
    fn take(
        &self,
        path: &str,
        param: Param,
        shape: &[usize],
        drawn: impl FnOnce(&str) -> Tensor,
    ) -> Result<Value> {
        let matrix = match *shape {
            [n] => (1, n),
            [rows, cols] => (rows, cols),
            _ => (1, shape.iter().product()),
        };
        self.take_as(path, param, shape, matrix, Layout::Rows, drawn)
    }

    fn take_as(
        &self,
        path: &str,
        param: Param,
        shape: &[usize],
        size: (usize, usize),
        layout: Layout,
        drawn: impl FnOnce(&str) -> Tensor,
    ) -> Result<Value> {
        let key = self.chosen.known.key(path, &param);
        let form = Form { shape, size, layout };
        self.values.take_as(&self.chosen.known, path, &param, &form, || drawn(&key))
    }

    fn rank(&self, path: &str) -> Result<usize> {
        match self.chosen.rank(path) {
            rank if (1..=RANK_MAX).contains(&rank) => Ok(rank),
            rank => Err(Error::Method(format!("rank {rank} at {path} is out of range: 1 to {RANK_MAX}"))),
        }
    }

    fn linear(&self, layer: &Linear) -> Result<Part> {
        let (config, path) = (&self.chosen.config, layer.path.as_str());
        let (inp, out, r) = (layer.in_features, layer.out_features, self.rank(path)?);
        let (start, seed, scale) = (self.start, self.seed, self.chosen.scale(path));
        if config.lora_bias && layer.bias.is_none() {
            return Err(Error::Method(format!("lora_bias needs layers with a bias, and {path} has none")));
        }
        let moved = match start.moves_base() {
            true => {
                let weight = self.model.params.get(layer.weight).weight.to_tensor();
                Some(start.factors(&weight, r, scale, seed, path)?)
            }
            false => None,
        };
        let first = || moved.clone();
        let draw_a = |key: &str| first().map_or_else(|| start.a(r, inp, seed, key), |(a, _)| a);
        let draw_b = |key: &str| first().map_or_else(|| start.b(out, r, seed, key), |(_, b)| b);
        let shapes = Shapes::of(layer, r);
        let a = self.take_as(path, Param::A, &shapes.a, (r, inp), layer.layout, draw_a)?;
        let b = self.take_as(path, Param::B, &shapes.b, (out, r), Layout::Rows, draw_b)?;
        let b_bias = match config.lora_bias {
            true => Some(self.take(path, Param::BBias, &[out], |key| start.b_bias(out, r, seed, key))?),
            false => None,
        };
        let magnitude = match config.use_dora {
            true => {
                let weight = &self.model.params.get(layer.weight).weight;
                let norms = ops::row_norms_squared(weight.storage());
                let drawn = |_: &str| ops::dora_norms(weight.storage(), &norms, &a.tensor, &b.tensor, scale);
                let magnitude = &shapes.magnitude;
                Some((self.take_as(path, Param::Magnitude, magnitude, (1, out), Layout::Rows, drawn)?, norms))
            }
            false => None,
        };
        // PEFT names the bias of a target by the layer that is wrapped.
        let bias = match layer.bias.filter(|_| config.bias != Bias::None) {
            Some(id) => {
                let now = || self.model.params.get(id).weight.to_tensor();
                Some(
                    self.take(&format!("{path}.base_layer"), Param::Plain("bias".into()), &[out], |_| now())?,
                )
            }
            None => None,
        };
        let (dropout, table) = (config.lora_dropout as f32, self.saved_table(path, layer.weight));
        Ok(Part { a, b, b_bias, magnitude, bias, start: moved, table, scale, dropout })
    }

    fn table(&self, table: &Embedding) -> Result<Part> {
        let (config, path) = (&self.chosen.config, table.path.as_str());
        let (vocab, dim, r) = (table.vocab_size, table.dim, self.rank(path)?);
        let (start, seed, scale) = (self.start, self.seed, self.chosen.scale(path));
        if config.lora_bias || start.moves_base() {
            let what = if config.lora_bias { "lora_bias is" } else { "pissa and olora are" };
            return Err(Error::Method(format!("{what} not for token tables such as {path}")));
        }
        let a = self.take(path, Param::EmbeddingA, &[r, vocab], |key| start.table_a(r, vocab, seed, key))?;
        let b = self.take(path, Param::EmbeddingB, &[dim, r], |key| start.table_b(dim, r, seed, key))?;
        let magnitude = match config.use_dora {
            true => {
                let weight = &self.model.params.get(table.weight).weight;
                let norms = ops::column_norms_squared(weight.storage());
                let drawn = |_: &str| {
                    ops::dora_embedding_norms(weight.storage(), &norms, &a.tensor, &b.tensor, scale)
                };
                Some((self.take(path, Param::Magnitude, &[dim], drawn)?, norms))
            }
            false => None,
        };
        let weight = self.saved_table(path, table.weight);
        Ok(Part {
            a,
            b,
            b_bias: None,
            magnitude,
            bias: None,
            start: None,
            table: weight,
            scale,
            dropout: 0.0,
        })
    }

    /// The head that shares the branch of a targeted table (`ensure_weight_tying`). Files hold it twice.
    fn tied(&self, parts: &BTreeMap<String, Part>) -> Result<Option<Tied>> {
        let config = &self.chosen.config;
        let (linears, tables) = (self.model.net.linears(), self.model.net.embeddings());
        let pair = linears.iter().find_map(|head| {
            let table = tables.iter().find(|t| t.weight == head.weight && parts.contains_key(&t.path))?;
            Some((head, table))
        });
        let Some((head, table)) = pair.filter(|_| config.ensure_weight_tying) else { return Ok(None) };
        if config.use_dora {
            return Err(Error::Method(format!("use_dora cannot be had at {}, which is tied", table.path)));
        }
        let key = |param: Param| self.chosen.known.key(&head.path, &param);
        let (vocab, dim) = (table.vocab_size, table.dim);
        if let Some(part) = parts.get(&table.path) {
            let r = part.a.tensor.rows();
            let transposed = |value: &Value| value.tensor.transposed();
            let a = self.take(&head.path, Param::A, &[r, dim], |_| transposed(&part.b))?;
            let b = self.take(&head.path, Param::B, &[vocab, r], |_| transposed(&part.a))?;
            if a.tensor.data() != transposed(&part.b).data() || b.tensor.data() != transposed(&part.a).data()
            {
                return Err(Error::Method(format!(
                    "the factors of {} and {} differ, but ensure_weight_tying says that they are the same",
                    head.path, table.path
                )));
            }
        }
        let (a, b) = (key(Param::A), key(Param::B));
        Ok(Some(Tied { head: head.path.clone(), table: table.path.clone(), a, b }))
    }

    fn saved_table(&self, path: &str, weight: ParamId) -> Option<Saved> {
        let inner = format!("{path}.base_layer");
        let key = self.chosen.known.key(&inner, &Param::Plain("weight".into()));
        TABLES.contains(&path.rsplit('.').next().unwrap_or(path)).then_some((key, weight))
    }
}
