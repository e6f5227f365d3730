//! AdamW over the trainable parameters: the moments, by name, and the norm clipping folded into the update.
//!
//! Moments lie in pages ([`moments`]), in memory or in a file beside the run ([`pages`]); an update passes through the pages
//! in order, with the same result wherever they lie. As transformers' Trainer does by default, parameters with one dimension
//! (biases, norm weights) are not decayed.

pub mod moments;
pub(crate) mod pages;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retune_formats::scratch::ScratchFile;
use retune_tensor::ops::{AdamW, adamw_8bit_step, adamw_step_bytes};
use retune_tensor::{Gradients, ParamId, Params};

use super::error::{Error, Result};
use super::settings::TrainSettings;
use moments::{Layout, MomentMemory, Moments, Part, Piece};
use pages::{Backing, Pages};

/// The optimiser's state: two moments for each trainable parameter, and the number of updates made.
pub struct Optimizer {
    slots: Vec<Slot>,
    layout: Layout,
    pages: Pages,
    updates: u64,
    dials: AdamW,
}

/// One parameter that is trained.
pub(crate) struct Slot {
    pub id: ParamId,
    pub name: String,
    pub shape: Vec<usize>,
    pub elements: usize,
    decayed: bool,
}

impl Optimizer {
    /// Zero moments for every trainable parameter. What the settings leave no memory for lies in a file in `folder`
    /// (without one, where the system keeps temporary files), which goes with the process.
    ///
    /// # Errors
    /// If nothing is trainable, a trainable parameter is not held in f32, or the disk has no room for the file.
    pub fn new(params: &Params, settings: &TrainSettings, folder: Option<&Path>) -> Result<Optimizer> {
        Optimizer::with_file(params, settings, |bytes| {
            let folder = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
            let file = ScratchFile::create(&folder, "optimizer-pages")?;
            file.reserve(bytes)?;
            Ok(Arc::new(file))
        })
    }

    /// As [`Optimizer::new`], in a file of so many bytes that `make` gives.
    pub(crate) fn with_file(
        params: &Params,
        settings: &TrainSettings,
        make: impl FnOnce(u64) -> retune_formats::Result<Arc<dyn Backing>>,
    ) -> Result<Optimizer> {
        let mut slots = Vec::new();
        for id in params.trainable() {
            let param = params.get(id);
            let storage = param.weight.storage();
            let retune_tensor::Weight::F32(tensor) = &param.weight else {
                return Err(Error::NotTrainable { name: param.name.clone(), format: storage.format() });
            };
            let (name, shape) = (param.name.clone(), param.shape.clone());
            slots.push(Slot { id, name, decayed: shape.len() > 1, shape, elements: tensor.len() });
        }
        if slots.is_empty() {
            return Err(Error::NoTrainableParameters);
        }
        let elements: Vec<usize> = slots.iter().map(|slot| slot.elements).collect();
        let layout = Layout::new(&elements, settings.optim, settings.optimizer_budget, settings.page_bytes);
        let sizes = layout.pages.iter().map(|page| (page.bytes, page.resident));
        let pages = Pages::new(sizes, layout.moving, make)?;
        let dials = AdamW {
            lr: 0.0,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            eps: settings.eps as f32,
            weight_decay: settings.weight_decay as f32,
        };
        Ok(Optimizer { slots, layout, pages, updates: 0, dials })
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Number of trainable values.
    pub fn elements(&self) -> u64 {
        self.slots.iter().map(|slot| slot.elements as u64).sum()
    }

    /// Bytes of all moments, wherever they lie.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// Where the moments lie.
    pub fn memory(&self) -> MomentMemory {
        self.layout.memory()
    }

    /// The file of the moments that are not in memory, under the name that it was made with.
    pub fn page_file(&self) -> Option<&Path> {
        self.pages.path()
    }

    /// Time that updates and checkpoints spent waiting for that file.
    pub fn waited(&self) -> Duration {
        self.pages.waited()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// One update. A parameter without a gradient is left alone, as torch does.
    ///
    /// `norm` is the gradient's global norm; above `max_grad_norm` (if that is not 0) the gradient counts
    /// `max_grad_norm / (norm + 1e-6)`.
    ///
    /// # Errors
    /// If pages cannot be moved. Some parameters are updated then and others are not: the run must end, and may go on from
    /// its last checkpoint.
    pub fn step(
        &mut self,
        params: &mut Params,
        gradients: &Gradients,
        lr: f64,
        norm: f64,
        max_grad_norm: f64,
    ) -> Result<()> {
        let clipped = max_grad_norm > 0.0 && norm > max_grad_norm;
        let scale = if clipped { (max_grad_norm / (norm + 1e-6)) as f32 } else { 1.0 };
        self.updates += 1;
        let Optimizer { slots, layout, pages, updates, dials } = self;
        pages.visit(|index, page| {
            let mut changed = false;
            for piece in &layout.pages[index].pieces {
                let slot = &slots[piece.slot];
                let (Some(gradient), Some(weight)) = (gradients.get(slot.id), params.tensor_mut(slot.id))
                else {
                    continue;
                };
                let weight_decay = if slot.decayed { dials.weight_decay } else { 0.0 };
                let dials = AdamW { lr: lr as f32, weight_decay, ..*dials };
                let range = piece.first..piece.first + piece.len;
                let (p, g) = (&mut weight.data_mut()[range.clone()], &gradient.data()[range]);
                match piece.moments(page) {
                    Moments::F32 { m, v } => adamw_step_bytes(dials, *updates, scale, p, g, m, v),
                    Moments::Eight { m, v } => adamw_8bit_step(dials, *updates, scale, p, g, m, v),
                }
                changed = true;
            }
            Ok(changed)
        })
    }

    /// The tensors of a checkpoint: parameter by parameter, part by part.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (usize, &Slot, bool, Part)> {
        self.slots.iter().enumerate().flat_map(|(index, slot)| {
            let eight = self.layout.eight[index];
            Part::all(eight).iter().map(move |part| (index, slot, eight, *part))
        })
    }

    /// Makes [`Optimizer::write_part`] possible.
    pub(crate) fn settle(&mut self) -> Result<()> {
        Ok(self.pages.settle()?)
    }

    /// Writes one part of a parameter's moments, page by page.
    pub(crate) fn write_part(
        &self,
        slot: usize,
        part: Part,
        write: &mut dyn FnMut(&[u8]) -> retune_formats::Result<()>,
    ) -> retune_formats::Result<()> {
        let mut bytes = Vec::new();
        for (page, piece) in self.layout.pieces(slot) {
            let range = piece.part(part);
            bytes.resize(range.len(), 0);
            self.pages.read(page, range.start, &mut bytes)?;
            write(&bytes)?;
        }
        Ok(())
    }

    /// Fills all moments, page by page: `fill` is handed the bytes of one part of one piece.
    pub(crate) fn fill(&mut self, mut fill: impl FnMut(&Piece, Part, &mut [u8]) -> Result<()>) -> Result<()> {
        let Optimizer { layout, pages, .. } = self;
        pages.visit(|index, page| {
            for piece in &layout.pages[index].pieces {
                for &part in Part::all(piece.eight) {
                    fill(piece, part, &mut page[piece.part(part)])?;
                }
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests;
