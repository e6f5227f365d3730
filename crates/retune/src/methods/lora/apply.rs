//! Puts planned adapters on a model: their parameters, and what acts at each site.

use std::collections::BTreeMap;

use retune_tensor::{ParamId, Params, Tensor, Weight};

use super::branch::{Branch, LoraDelta, Magnitude};
use super::plan::{Part, Plan, Tied};
use super::table::{TableBranch, TableDelta, TiedDelta};
use crate::methods::values::{Saved, Value};
use crate::methods::{clear, param_name};
use crate::models::Model;
use crate::nn::{Embedding, Linear, Site};

/// A plan, how much its adapter counts, and what tells it apart from others of the slot.
pub(super) struct Counted {
    pub plan: Plan,
    pub weight: f32,
    pub front: String,
}

/// What was put on a model.
#[derive(Default)]
pub(super) struct Applied {
    pub modules: Vec<String>,
    pub saved: Vec<Saved>,
    /// Starting values of factors that a part of the base was moved into, by the keys of the factors.
    pub starts: Vec<Saved>,
    /// Weights of the base that PEFT saves too.
    pub tables: Vec<Saved>,
    /// What is written once more, transposed: a head's share of its table's branch.
    pub transposed: Vec<Saved>,
    /// Parameters of the base itself are trained.
    pub changes_base: bool,
}

/// What is put at one site.
#[derive(Default)]
struct AtSite {
    branches: Vec<Branch>,
    magnitude: Option<Magnitude>,
    bias: Option<ParamId>,
}

/// Freezes the base and puts adapters, added up with their weights, into a slot; what was there goes.
pub(super) fn apply(model: &mut Model, plans: Vec<Counted>, slot: usize) -> Applied {
    clear(model, slot);
    model.params.freeze_all();
    let mut by_module: BTreeMap<String, Vec<(String, Part)>> = BTreeMap::new();
    let (mut whole, mut tied) = (Vec::new(), None);
    for Counted { plan, weight, front } in plans {
        // A tied one is alone in its slot.
        tied = plan.tied;
        for (module, mut part) in plan.parts {
            part.scale *= weight;
            by_module.entry(module).or_default().push((front.clone(), part));
        }
        whole.push(plan.whole);
    }
    let Model { params, net, .. } = model;
    let mut work = Work { params, slot, tied, shared: None, applied: Applied::default() };
    net.visit_sites(&mut |site| match site {
        Site::Embedding(table) => {
            if let Some(parts) = by_module.remove(&table.path) {
                work.table(table, parts);
            }
        }
        Site::Linear(layer) => match by_module.remove(&layer.path) {
            Some(parts) => work.linear(layer, parts),
            None => work.tied_head(layer),
        },
        _ => {}
    });
    let mut applied = work.applied;
    for whole in whole {
        applied.changes_base |= whole.changes_base();
        applied.modules.extend(whole.apply(model, slot, &mut applied.saved));
    }
    applied
}

/// The model's parameters, and what was done so far.
struct Work<'a> {
    params: &'a mut Params,
    slot: usize,
    tied: Option<Tied>,
    /// A, B and scale of the table whose branch the head shares.
    shared: Option<(ParamId, ParamId, f32)>,
    applied: Applied,
}

impl Work<'_> {
    fn linear(&mut self, layer: &mut Linear, parts: Vec<(String, Part)>) {
        let AtSite { branches, magnitude, bias } = self.add_all(&layer.path, parts);
        layer.deltas.put(self.slot, Box::new(LoraDelta { branches, magnitude, bias }));
    }

    fn table(&mut self, table: &mut Embedding, parts: Vec<(String, Part)>) {
        let AtSite { branches, magnitude, .. } = self.add_all(&table.path, parts);
        if self.tied.as_ref().is_some_and(|tied| tied.table == table.path) {
            self.shared = branches.first().map(|b| (b.a, b.b, b.scale));
        }
        let branches = branches.into_iter().map(|b| TableBranch { a: b.a, b: b.b, scale: b.scale });
        table.deltas.put(self.slot, Box::new(TableDelta { branches: branches.collect(), magnitude }));
    }

    /// The branch of its table, if this is the head that shares it; the tables come before.
    fn tied_head(&mut self, layer: &mut Linear) {
        let (Some(tied), Some((a, b, scale))) = (&self.tied, self.shared) else { return };
        if tied.head == layer.path {
            self.applied.modules.push(layer.path.clone());
            self.applied.transposed.extend([(tied.a.clone(), b), (tied.b.clone(), a)]);
            layer.deltas.put(self.slot, Box::new(TiedDelta { a, b, scale }));
        }
    }

    fn add_all(&mut self, path: &str, parts: Vec<(String, Part)>) -> AtSite {
        self.applied.modules.push(path.to_string());
        let mut at = AtSite::default();
        for (front, part) in parts {
            self.add_part(&mut at, part, &front);
        }
        at
    }

    fn add_part(&mut self, at: &mut AtSite, part: Part, front: &str) {
        let keys = [&part.a, &part.b].map(|value| value.key().to_string());
        let (a, b) = (self.add(part.a, front), self.add(part.b, front));
        let b_bias = part.b_bias.map(|value| self.add(value, front));
        at.branches.push(Branch { a, b, b_bias, scale: part.scale, dropout: part.dropout });
        if let Some((m, base_norms)) = part.magnitude {
            at.magnitude = Some(Magnitude { param: self.add(m, front), base_norms });
        }
        if let Some(bias) = part.bias {
            at.bias = Some(self.add(bias, front));
        }
        if let Some((a, b)) = part.start {
            let [a, b] = [(&keys[0], a), (&keys[1], b)].map(|(key, value)| self.add_start(key, value, front));
            at.branches.push(Branch { a, b, b_bias: None, scale: -part.scale, dropout: 0.0 });
        }
        self.applied.tables.extend(part.table);
    }

    fn add(&mut self, value: Value, front: &str) -> ParamId {
        let saved = value.add(self.params, self.slot, front);
        let id = saved.1;
        self.applied.saved.push(saved);
        id
    }

    /// A factor that a part of the base was moved into, as it was at the start: frozen.
    fn add_start(&mut self, key: &str, value: Tensor, front: &str) -> ParamId {
        let name = param_name(self.slot, &format!("{front}{key}.start"));
        let shape = [value.rows(), value.cols()];
        let id = match self.params.find(&name) {
            Some(id) => {
                let param = self.params.get_mut(id);
                (param.shape, param.weight) = (shape.to_vec(), Weight::F32(value));
                id
            }
            None => self.params.add_adapter(name, &shape, value),
        };
        self.params.get_mut(id).trainable = false;
        self.applied.starts.push((key.to_string(), id));
        id
    }
}
