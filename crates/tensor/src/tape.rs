//! The tape: what a backward pass needs, and nothing else.
//!
//! An op computes its value at once and, only if one of its inputs leads to a trainable parameter, leaves a node
//! behind: a closure that turns the gradient of its output into gradients of its inputs. Below the lowest
//! trainable parameter nothing is recorded; a frozen weight never gets a gradient; nodes are freed as the
//! backward pass walks over them. Checkpointing ([`Tape::checkpoint`]) records a block's inputs alone and runs the
//! block again when its gradient is due.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::params::{ParamId, Params, Weight};
use crate::tensor::Tensor;

/// Index of a node on one tape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeId(usize);

type Backward<'p> = Box<dyn FnOnce(Tensor, &mut Sink) + 'p>;

enum Node<'p> {
    Op(Backward<'p>),
    /// Input of a checkpointed block: its gradient is handed to the outer tape.
    Input,
    Param(ParamId),
}

/// A value on (or beside) the tape.
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    node: Option<NodeId>,
    recipe: Option<Rc<Recipe>>,
}

impl Var {
    /// A value that needs no gradient.
    pub fn constant(value: Tensor) -> Var {
        Var { value, node: None, recipe: None }
    }

    pub fn value(&self) -> &Tensor {
        &self.value
    }

    pub fn rows(&self) -> usize {
        self.value.rows()
    }

    pub fn cols(&self) -> usize {
        self.value.cols()
    }

    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// The same value, cut off from the graph.
    pub fn detached(&self) -> Var {
        Var { node: None, ..self.clone() }
    }

    /// What a backward pass should keep of this value: the way to make it again if that is cheap, else the value.
    pub(crate) fn saved(&self) -> Saved {
        match &self.recipe {
            Some(recipe) => Saved::Recipe(recipe.clone()),
            None => Saved::Kept(self.value.clone()),
        }
    }

    /// Marks a value as cheap to make again (a norm, an activation), so that it need not be kept.
    pub(crate) fn with_recipe(mut self, make: impl Fn() -> Tensor + 'static) -> Var {
        self.recipe = Some(Rc::new(Recipe { make: Box::new(make), cache: RefCell::new(None) }));
        self
    }
}

/// A cheap value that is made again in the backward pass, once, however many ops need it.
pub struct Recipe {
    make: Box<dyn Fn() -> Tensor>,
    cache: RefCell<Option<Tensor>>,
}

/// An activation kept for the backward pass.
#[derive(Clone)]
pub enum Saved {
    Kept(Tensor),
    Recipe(Rc<Recipe>),
}

impl Saved {
    pub fn get(&self) -> Tensor {
        match self {
            Saved::Kept(tensor) => tensor.clone(),
            Saved::Recipe(recipe) => recipe.cache.borrow_mut().get_or_insert_with(&recipe.make).clone(),
        }
    }
}

/// A weight as an op sees it: any storage, and a node if it is trainable.
#[derive(Clone)]
pub struct WeightVar {
    pub weight: Weight,
    pub node: Option<NodeId>,
}

/// The gradients of the trainable parameters, summed over as many backward passes as wished.
#[derive(Default)]
pub struct Gradients {
    by_param: BTreeMap<ParamId, Tensor>,
}

impl Gradients {
    pub fn new() -> Gradients {
        Gradients::default()
    }

    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.by_param.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.by_param.iter().map(|(id, t)| (*id, t))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Tensor)> {
        self.by_param.iter_mut().map(|(id, t)| (*id, t))
    }

    pub fn add(&mut self, id: ParamId, gradient: Tensor) {
        match self.by_param.entry(id) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(gradient);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => slot.get_mut().add_assign(&gradient),
        }
    }

    /// Forgets all gradients; their buffers return to the pool.
    pub fn clear(&mut self) {
        self.by_param.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.by_param.is_empty()
    }

    /// sqrt of the sum of squares over all parameters, in f64 and in a fixed order.
    pub fn global_norm(&self) -> f64 {
        self.by_param.values().map(|t| crate::ops::elementwise::sum_squares(t.data())).sum::<f64>().sqrt()
    }

    pub fn scale(&mut self, factor: f32) {
        for tensor in self.by_param.values_mut() {
            tensor.scale_assign(factor);
        }
    }
}

/// Where a node's backward closure puts the gradients of its inputs.
pub struct Sink<'a> {
    slots: Vec<Option<Tensor>>,
    gradients: &'a mut Gradients,
}

impl Sink<'_> {
    /// Takes the gradient that an input has so far, for an op that adds to it in its own product.
    pub fn take(&mut self, node: Option<NodeId>) -> Option<Tensor> {
        self.slots[node?.0].take()
    }

    /// Adds to the gradient of an input; does nothing for an input that needs none.
    pub fn add(&mut self, node: Option<NodeId>, gradient: Tensor) {
        let Some(NodeId(index)) = node else { return };
        match &mut self.slots[index] {
            Some(sum) => sum.add_assign(&gradient),
            slot => *slot = Some(gradient),
        }
    }
}

/// Records a forward pass over `params`; [`Tape::backward`] consumes it.
pub struct Tape<'p> {
    params: &'p Params,
    recording: bool,
    nodes: RefCell<Vec<Node<'p>>>,
    param_nodes: RefCell<BTreeMap<ParamId, NodeId>>,
    /// Whether a trainable parameter was asked for, recorded or not.
    met_trainable: Cell<bool>,
}

impl<'p> Tape<'p> {
    /// A tape that records what leads to a trainable parameter.
    pub fn new(params: &'p Params) -> Tape<'p> {
        Tape {
            params,
            recording: true,
            nodes: RefCell::default(),
            param_nodes: RefCell::default(),
            met_trainable: Cell::new(false),
        }
    }

    /// A tape that records nothing: evaluation and generation.
    pub fn inference(params: &'p Params) -> Tape<'p> {
        Tape { recording: false, ..Tape::new(params) }
    }

    pub fn params(&self) -> &'p Params {
        self.params
    }

    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether a trainable parameter was asked for, recorded or not.
    pub fn met_trainable(&self) -> bool {
        self.met_trainable.get()
    }

    /// Number of nodes recorded so far.
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push_node(&self, node: Node<'p>) -> NodeId {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        NodeId(nodes.len() - 1)
    }

    /// An op's output. `needed` says whether any input has a node; the closure is dropped if not.
    pub fn record(&self, value: Tensor, needed: bool, backward: impl FnOnce(Tensor, &mut Sink) + 'p) -> Var {
        let node = needed.then(|| self.push_node(Node::Op(Box::new(backward))));
        Var { node, ..Var::constant(value) }
    }

    fn param_node(&self, id: ParamId) -> Option<NodeId> {
        if !self.params.get(id).trainable {
            return None;
        }
        self.met_trainable.set(true);
        if !self.recording {
            return None;
        }
        if let Some(&node) = self.param_nodes.borrow().get(&id) {
            return Some(node);
        }
        let node = self.push_node(Node::Param(id));
        self.param_nodes.borrow_mut().insert(id, node);
        Some(node)
    }

    /// A parameter as an f32 value (norm weights, biases, LoRA factors); decoded if it is stored otherwise.
    pub fn param(&self, id: ParamId) -> Var {
        let node = self.param_node(id);
        Var { node, ..Var::constant(self.params.get(id).weight.to_tensor()) }
    }

    /// A parameter as the weight of a product or a look-up, in whatever storage it has.
    pub fn weight(&self, id: ParamId) -> WeightVar {
        WeightVar { weight: self.params.get(id).weight.clone(), node: self.param_node(id) }
    }

    /// An input whose gradient is asked for (tests, checkpointed blocks).
    pub fn input(&self, value: Tensor) -> Var {
        let node = self.recording.then(|| self.push_node(Node::Input));
        Var { node, ..Var::constant(value) }
    }

    /// Runs `block` without recording it; its backward pass runs it again. Only the input is kept.
    ///
    /// `block` must be a pure function of its input and the parameters (its random numbers are keyed, not drawn).
    pub fn checkpoint(&self, x: &Var, block: impl Fn(&Tape<'p>, &Var) -> Var + 'p) -> Var {
        let silent = Tape::inference(self.params);
        let value = block(&silent, &x.detached()).value;
        let trainable = silent.met_trainable.get();
        self.met_trainable.set(self.met_trainable.get() || trainable);
        // A frozen block over a frozen input leads to nothing: it is not recorded either.
        let needed = self.recording && (x.node.is_some() || trainable);
        let (params, input, node) = (self.params, x.value.clone(), x.node);
        self.record(value, needed, move |gradient, sink| {
            let tape = Tape::new(params);
            let x = if node.is_some() { tape.input(input) } else { Var::constant(input) };
            let y = block(&tape, &x);
            let dx = tape.run_backward(&y, gradient, sink.gradients, x.node);
            if let Some(dx) = dx {
                sink.add(node, dx);
            }
        })
    }

    /// Walks back from `output` with the gradient `seed`, adding into `gradients`.
    pub fn backward(self, output: &Var, seed: Tensor, gradients: &mut Gradients) {
        self.run_backward(output, seed, gradients, None);
    }

    /// As [`Tape::backward`], and returns the gradients of some inputs made by [`Tape::input`].
    pub fn backward_to(
        self,
        output: &Var,
        seed: Tensor,
        gradients: &mut Gradients,
        inputs: &[&Var],
    ) -> Vec<Tensor> {
        let keep: Vec<Option<usize>> = inputs.iter().map(|v| v.node.map(|n| n.0)).collect();
        let mut slots = self.walk(output, seed, gradients);
        let zero = |v: &Var| Tensor::zeros(v.rows(), v.cols());
        keep.iter()
            .zip(inputs)
            .map(|(k, v)| k.and_then(|k| slots[k].take()).unwrap_or_else(|| zero(v)))
            .collect()
    }

    fn run_backward(
        self,
        output: &Var,
        seed: Tensor,
        gradients: &mut Gradients,
        input: Option<NodeId>,
    ) -> Option<Tensor> {
        let mut slots = self.walk(output, seed, gradients);
        input.and_then(|NodeId(index)| slots[index].take())
    }

    /// The walk itself; what remains in the slots are the gradients of `Input` nodes.
    fn walk(self, output: &Var, seed: Tensor, gradients: &mut Gradients) -> Vec<Option<Tensor>> {
        let mut nodes = self.nodes.into_inner();
        let mut sink = Sink { slots: (0..nodes.len()).map(|_| None).collect(), gradients };
        sink.add(output.node, seed);
        while let Some(node) = nodes.pop() {
            let index = nodes.len();
            if matches!(node, Node::Input) {
                continue;
            }
            let Some(gradient) = sink.slots[index].take() else { continue };
            match node {
                Node::Op(backward) => backward(gradient, &mut sink),
                Node::Param(id) => sink.gradients.add(id, gradient),
                Node::Input => {}
            }
        }
        sink.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    /// Two norms, the second trainable: below it nothing is recorded, checkpointed or not.
    #[test]
    fn nothing_is_recorded_below_the_lowest_trainable_parameter() {
        let ones = || Weight::F32(Tensor::from_fn(1, 4, |_, _| 1.0));
        let mut params = Params::new();
        let lower = params.add("lower", &[4], ones(), false);
        let upper = params.add("upper", &[4], ones(), true);
        let x = Var::constant(Tensor::from_fn(3, 4, |r, c| (r * 4 + c) as f32 - 5.0));
        let gradient = |checkpoint: bool| {
            let tape = Tape::new(&params);
            let block = |id: ParamId, x: &Var| match checkpoint {
                true => tape.checkpoint(x, move |tape, x| ops::rms_norm(tape, x, &tape.param(id), 1e-5)),
                false => ops::rms_norm(&tape, x, &tape.param(id), 1e-5),
            };
            let below = block(lower, &x);
            assert!(below.node().is_none() && tape.is_empty());
            let y = block(upper, &below);
            assert!(y.node().is_some());
            let (seed, mut gradients) = (y.value().clone(), Gradients::new());
            tape.backward(&y, seed, &mut gradients);
            assert_eq!(gradients.iter().count(), 1);
            gradients.get(upper).expect("the trainable one").data().to_vec()
        };
        assert_eq!(gradient(false), gradient(true));
    }
}
