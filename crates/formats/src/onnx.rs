//! An ONNX file: a graph of operations and the tensors that it holds, read as data.
//!
//! Its format is protocol buffers (`onnx.proto`); the few messages that matter are read by hand ([`wire`]). Tensors stay in
//! the file until they are asked for. Subgraphs (`If`, `Loop`) and functions are not read.

mod tensor;
mod wire;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorSource, position};
use crate::{Dtype, limits};
use wire::{Field, Wire};

const FORMAT: &str = "ONNX";

/// An open file whose graph has been read and checked. Its tensors are the initializers and the values of `Constant`
/// nodes, by the names that nodes read them by.
#[derive(Debug)]
pub struct File {
    bytes: Bytes,
    table: Table,
    /// Tensors that do not lie in the file as they would in memory.
    decoded: Vec<Vec<u8>>,
    graph: Graph,
}

/// What is computed.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    /// In an order in which they can be computed.
    pub nodes: Vec<Node>,
    /// Values that must be given; initializers that are listed as inputs as well are not among them.
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// Version of the operations of ONNX itself.
    pub opset: i64,
    /// The program that wrote it, with its version.
    pub producer: String,
}

/// One operation.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    pub op_type: String,
    /// Empty for the operations of ONNX itself.
    pub domain: String,
    /// Names of values; empty for one that is left out.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<(String, Attribute)>,
}

/// A setting of an operation.
#[derive(Clone, Debug)]
pub enum Attribute {
    Float(f32),
    Int(i64),
    Text(String),
    /// Read by [`File::read_at`] and what builds on it.
    Tensor(TensorInfo),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Texts(Vec<String>),
    /// A subgraph or something as rare.
    Other,
}

/// A value that goes into the graph or comes out of it.
#[derive(Clone, Debug, Default)]
pub struct Value {
    pub name: String,
    /// `None` if it is no tensor, or of a type that isn't known.
    pub dtype: Option<Dtype>,
    /// `None` if nothing is said of it.
    pub shape: Option<Vec<Dim>>,
}

/// One dimension of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Size(usize),
    /// Any size; those of one name are the same.
    Named(String),
    Unknown,
}

impl File {
    /// Opens and checks a file; no tensor is read.
    ///
    /// # Errors
    /// A damaged file, tensors whose shapes do not fit their bytes or that lie in other files, two tensors of one name,
    /// nodes that read what nothing before them gives.
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        File::parse(Bytes::open(path.as_ref())?)
    }

    /// [`File::open`] for bytes in memory; `name` is for messages.
    ///
    /// # Errors
    /// Those of [`File::open`].
    pub fn from_memory(name: impl AsRef<Path>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<File> {
        File::parse(Bytes::from_memory(name.as_ref(), bytes))
    }

    /// What is computed.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parse(bytes: Bytes) -> Result<File> {
        bytes.refuse_stand_ins()?;
        let budget = usize::try_from(bytes.len()).unwrap_or(usize::MAX).saturating_mul(2);
        let mut wire = Wire::new(&bytes, budget.saturating_add(limits::ONNX_MEMORY_BYTES));
        let mut parts = Parts::default();
        let mut graphs = 0;
        wire.message("the model", 0..bytes.len(), &mut |wire, number, field| {
            match (number, field) {
                (2 | 3, field) => {
                    let text = wire.text("the name of the producer", field, limits::NAME_BYTES)?;
                    let space = if parts.graph.producer.is_empty() { "" } else { " " };
                    parts.graph.producer += &format!("{space}{text}");
                }
                (7, Field::Bytes(range)) => {
                    graphs += 1;
                    parts.graph(wire, range)?;
                }
                (8, Field::Bytes(range)) => {
                    let (domain, version) = opset(wire, range)?;
                    if matches!(domain.as_str(), "" | "ai.onnx") {
                        parts.graph.opset = version;
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        let invalid = |what: String| Error::invalid(bytes.path(), FORMAT, what);
        if graphs != 1 {
            return Err(invalid(format!("it has {graphs} graphs, one was expected")));
        }
        let Parts { mut graph, mut tensors, decoded } = parts;
        constants(&graph, &mut tensors);
        let twice = |name: String| invalid(format!("two tensors are named {}", quote(&name)));
        let table = Table::new(tensors).map_err(twice)?;
        graph.inputs.retain(|input| table.find(&input.name).is_none());
        check_order(&bytes, &graph, &table)?;
        Ok(File { bytes, table, decoded, graph })
    }
}

impl TensorSource for File {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn path(&self) -> &Path {
        self.bytes.path()
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        let at = position(self.path(), info, byte_offset, out.len())?;
        if info.shard == tensor::IN_FILE {
            return self.bytes.read_at(at, out);
        }
        let bytes = self.decoded.get(info.shard as usize);
        let part = bytes.and_then(|bytes| bytes.get(at as usize..)?.get(..out.len()));
        let gone = || Error::NoTensor { path: self.path().into(), name: info.name.clone(), nearest: None };
        out.copy_from_slice(part.ok_or_else(gone)?);
        Ok(())
    }

    fn check_unchanged(&self, _info: &TensorInfo) -> Result<()> {
        self.bytes.check_unchanged()
    }
}

impl Node {
    /// The setting of this name.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// A whole number; `default` if it isn't set, or is of another kind.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        if let Some(Attribute::Int(value)) = self.attribute(name) { *value } else { default }
    }

    /// A number; `default` if it isn't set, or is of another kind.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        if let Some(Attribute::Float(value)) = self.attribute(name) { *value } else { default }
    }

    /// Whole numbers, if it has such a setting.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(Attribute::Ints(values)) = self.attribute(name) { Some(values) } else { None }
    }

    /// A text, if it has such a setting.
    pub fn text(&self, name: &str) -> Option<&str> {
        if let Some(Attribute::Text(text)) = self.attribute(name) { Some(text) } else { None }
    }
}

#[derive(Default)]
struct Parts {
    graph: Graph,
    tensors: Vec<TensorInfo>,
    decoded: Vec<Vec<u8>>,
}

impl Parts {
    fn graph(&mut self, wire: &mut Wire, range: Range<u64>) -> Result<()> {
        wire.message("the graph", range, &mut |wire, number, field| {
            match (number, field) {
                (1, Field::Bytes(range)) => {
                    wire.take(size_of::<Node>())?;
                    let node = node(wire, range, &mut self.decoded)?;
                    self.graph.nodes.push(node);
                }
                (2, field) => {
                    self.graph.name = wire.text("the name of the graph", field, limits::NAME_BYTES)?
                }
                (5, Field::Bytes(range)) => {
                    wire.take(size_of::<TensorInfo>() + size_of::<Vec<u8>>())?;
                    let info = tensor::read(wire, range, &mut self.decoded)?;
                    if info.name.is_empty() {
                        return Err(wire.bad("an initializer has no name"));
                    }
                    self.tensors.push(info);
                }
                (11 | 12, Field::Bytes(range)) => {
                    wire.take(size_of::<Value>())?;
                    let value = value(wire, range)?;
                    match number {
                        11 => self.graph.inputs.push(value),
                        _ => self.graph.outputs.push(value),
                    }
                }
                (15, _) => {
                    let remedy = "give a model of plain tensors";
                    return Err(Error::unsupported(wire.path(), "it has sparse initializers", remedy));
                }
                _ => {}
            }
            Ok(())
        })
    }
}

fn opset(wire: &mut Wire, range: Range<u64>) -> Result<(String, i64)> {
    let (mut domain, mut version) = (String::new(), 0);
    wire.message("a set of operations", range, &mut |wire, number, field| {
        match (number, field) {
            (1, field) => domain = wire.text("the name of a set of operations", field, limits::NAME_BYTES)?,
            (2, Field::Varint(n)) => version = n as i64,
            _ => {}
        }
        Ok(())
    })?;
    Ok((domain, version))
}

fn node(wire: &mut Wire, range: Range<u64>, decoded: &mut Vec<Vec<u8>>) -> Result<Node> {
    let mut node = Node::default();
    wire.message("a node", range, &mut |wire, number, field| {
        let what = "a name in a node";
        match (number, field) {
            (1 | 2, field) => {
                wire.take(size_of::<String>())?;
                let name = wire.text(what, field, limits::NAME_BYTES)?;
                if number == 1 { node.inputs.push(name) } else { node.outputs.push(name) }
            }
            (3, field) => node.name = wire.text(what, field, limits::NAME_BYTES)?,
            (4, field) => node.op_type = wire.text(what, field, limits::NAME_BYTES)?,
            (5, Field::Bytes(range)) => {
                wire.take(size_of::<(String, Attribute)>())?;
                node.attributes.push(attribute(wire, range, decoded)?);
            }
            (7, field) => node.domain = wire.text(what, field, limits::NAME_BYTES)?,
            _ => {}
        }
        Ok(())
    })?;
    if node.domain == "ai.onnx" {
        node.domain.clear();
    }
    Ok(node)
}

fn attribute(wire: &mut Wire, range: Range<u64>, decoded: &mut Vec<Vec<u8>>) -> Result<(String, Attribute)> {
    let (mut name, mut kind) = (String::new(), 0);
    let (mut ints, mut floats, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    // What was found, for files without a type.
    let mut found = Attribute::Other;
    wire.message("an attribute", range, &mut |wire, number, field| {
        match (number, field) {
            (1, field) => name = wire.text("the name of an attribute", field, limits::NAME_BYTES)?,
            (2, Field::Fixed32(bits)) => found = Attribute::Float(f32::from_bits(bits)),
            (3, Field::Varint(n)) => found = Attribute::Int(n as i64),
            (4, field @ Field::Bytes(_)) => {
                // Any bytes are allowed; those that are no text are nothing that we need.
                let raw = wire.raw("an attribute", field, limits::ONNX_TEXT_BYTES)?;
                found = String::from_utf8(raw).map_or(Attribute::Other, Attribute::Text);
            }
            (5, Field::Bytes(range)) => {
                wire.take(size_of::<Vec<u8>>())?;
                found = Attribute::Tensor(tensor::read(wire, range, decoded)?);
            }
            (7, field) => wire.floats("an attribute", field, &mut floats)?,
            (8, field) => wire.varints("an attribute", field, &mut ints)?,
            (9, field) => {
                wire.take(size_of::<String>())?;
                texts.push(wire.text("an attribute", field, limits::ONNX_TEXT_BYTES)?);
            }
            (20, Field::Varint(n)) => kind = n,
            _ => {}
        }
        Ok(())
    })?;
    // `AttributeProto.AttributeType`: 1 float, 2 int, 3 string, 4 tensor, 6 floats, 7 ints, 8 strings.
    let value = match kind {
        0 if !floats.is_empty() => Attribute::Floats(floats),
        0 if !ints.is_empty() => Attribute::Ints(ints),
        0 if !texts.is_empty() => Attribute::Texts(texts),
        6 => Attribute::Floats(floats),
        7 => Attribute::Ints(ints),
        8 => Attribute::Texts(texts),
        // proto3 leaves out what is zero or empty.
        1 if matches!(found, Attribute::Other) => Attribute::Float(0.0),
        2 if matches!(found, Attribute::Other) => Attribute::Int(0),
        _ => found,
    };
    Ok((name, value))
}

/// `ValueInfoProto`.
fn value(wire: &mut Wire, range: Range<u64>) -> Result<Value> {
    let mut out = Value::default();
    let mut tensor_type = None;
    wire.message("a value", range, &mut |wire, number, field| {
        match (number, field) {
            (1, field) => out.name = wire.text("the name of a value", field, limits::NAME_BYTES)?,
            (2, Field::Bytes(range)) => wire.message("a type", range, &mut |_, number, field| {
                if let (1, Field::Bytes(range)) = (number, field) {
                    tensor_type = Some(range);
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    let Some(range) = tensor_type else { return Ok(out) };
    wire.message("a type", range, &mut |wire, number, field| {
        match (number, field) {
            (1, Field::Varint(n)) => out.dtype = tensor::dtype(n),
            (2, Field::Bytes(range)) => out.shape = Some(shape(wire, range)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(out)
}

fn shape(wire: &mut Wire, range: Range<u64>) -> Result<Vec<Dim>> {
    let mut dims = Vec::new();
    wire.message("a shape", range, &mut |wire, number, field| {
        let (1, Field::Bytes(range)) = (number, field) else { return Ok(()) };
        wire.take(size_of::<Dim>())?;
        let mut dim = Dim::Unknown;
        wire.message("a dimension", range, &mut |wire, number, field| {
            match (number, field) {
                (1, Field::Varint(n)) => {
                    let size = i64::try_from(n).ok().and_then(|n| usize::try_from(n).ok());
                    dim = Dim::Size(size.ok_or_else(|| wire.bad(format!("a dimension is {}", n as i64)))?);
                }
                (2, field) => {
                    let name = wire.text("the name of a dimension", field, limits::NAME_BYTES)?;
                    dim = if name.is_empty() { Dim::Unknown } else { Dim::Named(name) };
                }
                _ => {}
            }
            Ok(())
        })?;
        dims.push(dim);
        Ok(())
    })?;
    if dims.len() > limits::DIMS {
        return Err(wire.bad(format!(
            "a value has {} dimensions, the limit is {}",
            dims.len(),
            limits::DIMS
        )));
    }
    Ok(dims)
}

/// `Constant` nodes give tensors as initializers do.
fn constants(graph: &Graph, tensors: &mut Vec<TensorInfo>) {
    for node in graph.nodes.iter().filter(|node| node.op_type == "Constant") {
        if let (Some(Attribute::Tensor(info)), [name]) = (node.attribute("value"), node.outputs.as_slice()) {
            tensors.push(TensorInfo { name: name.clone(), ..info.clone() });
        }
    }
}

/// Every value that a node reads is there before it; no two nodes give the same one.
fn check_order(bytes: &Bytes, graph: &Graph, table: &Table) -> Result<()> {
    let invalid = |what: String| Error::invalid(bytes.path(), FORMAT, what);
    let mut known: HashSet<&str> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        let shown = || format!("node {i} ({} {})", quote(&node.op_type), quote(&node.name));
        let missing = node
            .inputs
            .iter()
            .find(|name| !name.is_empty() && !known.contains(name.as_str()) && table.find(name).is_none());
        if let Some(name) = missing {
            return Err(invalid(format!("{} reads {}, which nothing before it gives", shown(), quote(name))));
        }
        for name in node.outputs.iter().filter(|name| !name.is_empty()) {
            let is_constant = node.op_type == "Constant";
            if !known.insert(name) || table.find(name).is_some() && !is_constant {
                return Err(invalid(format!("{} gives {} a second time", shown(), quote(name))));
            }
        }
    }
    let missing =
        graph.outputs.iter().find(|o| !known.contains(o.name.as_str()) && table.find(&o.name).is_none());
    match missing {
        Some(output) => Err(invalid(format!("nothing gives its output {}", quote(&output.name)))),
        None => Ok(()),
    }
}
