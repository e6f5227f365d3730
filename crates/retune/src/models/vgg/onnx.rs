//! A VGG in an ONNX file, as its tensors would lie in a file with torchvision's names: the graph's operations, in their order, must be a VGG's.
//!
//! What TensorFlow exports is known: kernels `[out, in, h, w]`, dense matrices `[in, out]` (turned here), pixels flattened line, column, channel,
//! batch norms folded to `y = x scale + shift`.

use std::collections::HashMap;
use std::path::Path;

use retune_formats::onnx::{self, Attribute, Node};
use retune_formats::{Dtype, TensorInfo, TensorSource};
use retune_media::pictures::Prepare;
use retune_media::pictures::prepare::Fit;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// So small that `sqrt(1 + eps)` is 1: the statistics are folded away.
const NO_EPS: f64 = 1e-12;
/// Operations that work out shapes.
const SHAPES: &[&str] =
    &["Shape", "Gather", "Cast", "Slice", "Concat", "Unsqueeze", "Squeeze", "Constant", "Identity"];
const SIDE: usize = 224;
const SIDE_MAX: usize = 1 << 14;

/// An open file.
pub struct Onnx {
    file: onnx::File,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// What does not lie in the file as it is here; by name.
    made: HashMap<String, Vec<u8>>,
    config: Value,
}

impl Onnx {
    /// # Errors
    /// If the file is damaged, or its graph is no VGG's: the message names the operation.
    pub fn open(path: &Path) -> Result<Onnx> {
        let file = onnx::File::open(path)?;
        let mut walk = Walk::new(&file);
        for node in &file.graph().nodes {
            walk.node(node)?;
        }
        let (tensors, made, config) = walk.finish()?;
        let by_name = tensors.iter().enumerate().map(|(i, info)| (info.name.clone(), i)).collect();
        Ok(Onnx { tensors, by_name, made, config, file })
    }

    /// What would be its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }
}

impl TensorSource for Onnx {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> retune_formats::Result<()> {
        let Some(bytes) = self.made.get(&info.name) else { return self.file.read_at(info, byte_offset, out) };
        let part = usize::try_from(byte_offset).ok().and_then(|at| bytes.get(at..at.checked_add(out.len())?));
        let part = part.ok_or_else(|| retune_formats::Error::TensorRange {
            path: self.path().to_path_buf(),
            name: info.name.clone(),
            have: bytes.len() as u64,
            need: byte_offset.saturating_add(out.len() as u64),
        })?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn check_unchanged(&self, info: &TensorInfo) -> retune_formats::Result<()> {
        self.file.check_unchanged(info)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}

/// The graph, operation by operation.
struct Walk<'a> {
    file: &'a onnx::File,
    /// The value that the last operation gave.
    at: String,
    tensors: Vec<TensorInfo>,
    made: HashMap<String, Vec<u8>>,
    cfg: Vec<Value>,
    /// Steps of torchvision's `features`.
    step: usize,
    dense: Vec<usize>,
    dense_norm: Vec<bool>,
    flattened: bool,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn new(file: &'a onnx::File) -> Walk<'a> {
        let at = file.graph().inputs.first().map(|input| input.name.clone()).unwrap_or_default();
        Walk {
            file,
            at,
            tensors: Vec::new(),
            made: HashMap::new(),
            cfg: Vec::new(),
            step: 0,
            dense: Vec::new(),
            dense_norm: Vec::new(),
            flattened: false,
            ended: false,
        }
    }

    fn fail(&self, node: &Node, what: &str) -> Error {
        let name = node.outputs.first().map(String::as_str).unwrap_or_default();
        let what = format!(
            "operation {} (\"{name}\"): {what}; of ONNX files those of VGG networks can be used",
            node.op_type
        );
        Error::Model { path: self.file.path().to_path_buf(), what }
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        if SHAPES.contains(&node.op_type.as_str()) {
            return Ok(());
        }
        if self.ended || !node.inputs.contains(&self.at) {
            return Err(self.fail(node, "it is not in a row with the others"));
        }
        match node.op_type.as_str() {
            // To channels first and back: rows are pixels here either way.
            "Transpose" => match ints(node, "perm") {
                Some([0, 3, 1, 2]) if self.cfg.is_empty() => {}
                Some([0, 2, 3, 1]) if !self.flattened => {}
                _ => return Err(self.fail(node, "this order of dimensions is not a VGG's")),
            },
            "Conv" if !self.flattened => self.conv(node)?,
            "MaxPool" if !self.flattened => {
                let plain = |key: &str| ints(node, key) == Some(&[2, 2]);
                let padded = ints(node, "pads").is_some_and(|pads| pads.iter().any(|pad| *pad != 0));
                if !plain("kernel_shape") || !plain("strides") || padded {
                    return Err(self.fail(node, "a VGG's poolings are 2 x 2 by 2, without padding"));
                }
                self.cfg.push(json!("M"));
                self.step += 1;
            }
            "Relu" => {}
            "Reshape" | "Flatten" if !self.flattened => self.flattened = true,
            "MatMul" if self.flattened => self.matrix(node)?,
            "Mul" if self.flattened => self.vector(node, "scale")?,
            "Add" if self.flattened => self.vector(node, "shift")?,
            "Softmax" => self.ended = true,
            _ => return Err(self.fail(node, "it is not a VGG's, or not at this place")),
        }
        self.at = node.outputs.first().cloned().unwrap_or_default();
        Ok(())
    }

    /// The tensor of the file that an operation reads besides.
    fn constant(&self, node: &Node, input: usize, rank: usize) -> Result<TensorInfo> {
        let name = node.inputs.get(input).filter(|name| **name != self.at);
        let info = name.and_then(|name| self.file.find(name));
        let fits = |info: &&TensorInfo| info.shape.len() == rank && info.dtype == Dtype::F32;
        let what = format!("its input {input} should be a constant of {rank} dimensions, in f32");
        info.filter(fits).cloned().ok_or_else(|| self.fail(node, &what))
    }

    fn conv(&mut self, node: &Node) -> Result<()> {
        let kernel = self.constant(node, 1, 4)?;
        let one = |key: &str| ints(node, key).is_none_or(|all| all == [1, 1]);
        let group = node.attributes.iter().any(|(key, v)| key == "group" && !matches!(v, Attribute::Int(1)));
        let same = ints(node, "pads") == Some(&[1, 1, 1, 1]);
        if !one("strides") || !one("dilations") || group || !same || kernel.shape[2..] != [3, 3] {
            return Err(self.fail(node, "a VGG's convolutions are 3 x 3 by 1, with a border of 1"));
        }
        self.cfg.push(json!(kernel.shape[0]));
        let bias = self.constant(node, 2, 1)?;
        let name = |part: &str| format!("features.{}.{part}", self.step);
        self.tensors.push(renamed(kernel, name("weight")));
        self.tensors.push(renamed(bias, name("bias")));
        // The rectifier takes a step, too.
        self.step += 2;
        Ok(())
    }

    /// The last dense layer.
    fn layer(&self) -> usize {
        3 * self.dense.len().saturating_sub(1)
    }

    fn matrix(&mut self, node: &Node) -> Result<()> {
        let info = self.constant(node, 1, 2)?;
        let (rows, cols) = (info.shape[0], info.shape[1]);
        self.dense.push(cols);
        self.dense_norm.push(false);
        let values = self.file.read_f32(&info.name)?;
        let mut turned = Vec::with_capacity(4 * values.len());
        for col in 0..cols {
            (0..rows).for_each(|row| turned.extend(values[row * cols + col].to_le_bytes()));
        }
        self.make(format!("classifier.{}.weight", self.layer()), vec![cols, rows], &info, turned);
        Ok(())
    }

    /// A bias, or one half of a batch norm.
    fn vector(&mut self, node: &Node, what: &str) -> Result<()> {
        let place = usize::from(node.inputs.first() == Some(&self.at));
        let info = self.constant(node, place, 1)?;
        let width = self.dense.last().copied().unwrap_or(0);
        if info.shape != [width] {
            return Err(self.fail(node, "it does not have a number for each channel"));
        }
        let (bias, norm) =
            (format!("classifier.{}.bias", self.layer()), format!("classifier.{}", self.layer() + 2));
        let has = |name: &str| self.tensors.iter().any(|info| info.name == name);
        match what {
            "shift" if !has(&bias) => self.tensors.push(renamed(info, bias)),
            "scale" if has(&bias) && !has(&format!("{norm}.weight")) => {
                self.tensors.push(renamed(info.clone(), format!("{norm}.weight")));
                let numbers = |value: f32| value.to_le_bytes().repeat(width);
                self.make(format!("{norm}.running_mean"), vec![width], &info, numbers(0.0));
                self.make(format!("{norm}.running_var"), vec![width], &info, numbers(1.0));
            }
            "shift" if has(&format!("{norm}.weight")) && !has(&format!("{norm}.bias")) => {
                self.tensors.push(renamed(info, format!("{norm}.bias")));
                if let Some(last) = self.dense_norm.last_mut() {
                    *last = true;
                }
            }
            _ => return Err(self.fail(node, "it is not at a place where a VGG has one")),
        }
        Ok(())
    }

    fn make(&mut self, name: String, shape: Vec<usize>, like: &TensorInfo, bytes: Vec<u8>) {
        self.made.insert(name.clone(), bytes);
        let mut info = renamed(like.clone(), name);
        info.shape = shape;
        self.tensors.push(info);
    }

    fn finish(self) -> Result<(Vec<TensorInfo>, HashMap<String, Vec<u8>>, Value)> {
        let fail = |what: &str| Error::Model { path: self.file.path().to_path_buf(), what: what.into() };
        let Some((&labels, below)) = self.dense.split_last() else {
            return Err(fail(
                "its graph has no dense layers; of ONNX files those of VGG networks can be used",
            ));
        };
        let width = self.cfg.iter().rev().find_map(Value::as_u64).unwrap_or(3) as usize;
        let first = self.tensors.iter().find(|info| info.name == "classifier.0.weight");
        let pixels = first.map_or(0, |info| info.shape[1]) / width.max(1);
        let grid = pixels.isqrt();
        if grid * grid != pixels || self.dense_norm.last() == Some(&true) {
            return Err(fail(
                "its first dense layer does not read a square of pixels, or its last is not the end",
            ));
        }
        let config = json!({
            "model_type": "vgg", "cfg": self.cfg, "batch_norm": false, "dense": below, "grid": grid.max(1),
            "num_labels": labels, "channels_last": true, "norm_eps": NO_EPS,
            "dense_norm": &self.dense_norm[..below.len()], "image_input": input(self.file),
        });
        Ok((self.tensors, self.made, config))
    }
}

/// Keras' way with pictures: stretched to the input's size, v / 255.
fn input(file: &onnx::File) -> Prepare {
    let shape = file.graph().inputs.first().and_then(|input| input.shape.clone()).unwrap_or_default();
    let size = |at: usize| match shape.get(at) {
        Some(onnx::Dim::Size(n)) if (1..=SIDE_MAX).contains(n) => *n,
        _ => SIDE,
    };
    let (height, width) = (size(1), size(2));
    let default = Prepare::ultralytics(SIDE);
    Prepare { width, height, fit: Fit::Stretch, resample: default.resample, normalise: default.normalise }
}

fn renamed(mut info: TensorInfo, name: String) -> TensorInfo {
    info.name = name;
    info
}

fn ints<'n>(node: &'n Node, key: &str) -> Option<&'n [i64]> {
    node.attributes.iter().find_map(|(name, value)| match value {
        Attribute::Ints(all) if name == key => Some(all.as_slice()),
        _ => None,
    })
}
