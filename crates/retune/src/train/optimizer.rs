//! AdamW over the trainable parameters: the moments, by name, and the norm clipping folded into the update.
//!
//! As transformers' Trainer does by default, parameters with one dimension (biases, norm weights) are not decayed.

use retune_tensor::ops::{AdamW, adamw_step};
use retune_tensor::{Gradients, ParamId, Params, Tensor};

use super::error::{Error, Result};
use super::settings::TrainSettings;

/// The optimiser's state: two moments for each trainable parameter, and the number of updates made.
pub struct Optimizer {
    slots: Vec<Slot>,
    updates: u64,
    dials: AdamW,
}

/// One parameter's moments.
pub(crate) struct Slot {
    pub id: ParamId,
    pub name: String,
    pub shape: Vec<usize>,
    pub m: Tensor,
    pub v: Tensor,
    decayed: bool,
}

impl Optimizer {
    /// Zero moments for every trainable parameter.
    ///
    /// # Errors
    /// If nothing is trainable, or a trainable parameter is not held in f32.
    pub fn new(params: &Params, settings: &TrainSettings) -> Result<Optimizer> {
        let mut slots = Vec::new();
        for id in params.trainable() {
            let param = params.get(id);
            let storage = param.weight.storage();
            let retune_tensor::Weight::F32(tensor) = &param.weight else {
                return Err(Error::NotTrainable { name: param.name.clone(), format: storage.format() });
            };
            let moment = || Tensor::zeros(tensor.rows(), tensor.cols());
            let (name, shape) = (param.name.clone(), param.shape.clone());
            slots.push(Slot { id, name, decayed: shape.len() > 1, shape, m: moment(), v: moment() });
        }
        if slots.is_empty() {
            return Err(Error::NoTrainableParameters);
        }
        let dials = AdamW {
            lr: 0.0,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            eps: settings.eps as f32,
            weight_decay: settings.weight_decay as f32,
        };
        Ok(Optimizer { slots, updates: 0, dials })
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Number of trainable values.
    pub fn elements(&self) -> u64 {
        self.slots.iter().map(|slot| slot.m.len() as u64).sum()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    pub(crate) fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// One update. A parameter without a gradient is left alone, as torch does.
    ///
    /// `norm` is the gradient's global norm; above `max_grad_norm` (if that is not 0) the gradient counts
    /// `max_grad_norm / (norm + 1e-6)`.
    pub fn step(
        &mut self,
        params: &mut Params,
        gradients: &Gradients,
        lr: f64,
        norm: f64,
        max_grad_norm: f64,
    ) {
        let clipped = max_grad_norm > 0.0 && norm > max_grad_norm;
        let scale = if clipped { (max_grad_norm / (norm + 1e-6)) as f32 } else { 1.0 };
        self.updates += 1;
        for slot in &mut self.slots {
            let (Some(gradient), Some(weight)) = (gradients.get(slot.id), params.tensor_mut(slot.id)) else {
                continue;
            };
            let weight_decay = if slot.decayed { self.dials.weight_decay } else { 0.0 };
            let dials = AdamW { lr: lr as f32, weight_decay, ..self.dials };
            let (m, v) = (slot.m.data_mut(), slot.v.data_mut());
            adamw_step(dials, self.updates, scale, weight.data_mut(), gradient.data(), m, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_tensor::Weight;

    fn set_up(weight_decay: f64) -> (Params, Optimizer, Gradients) {
        let mut params = Params::new();
        let w = params.add("w", &[1, 2], Weight::F32(Tensor::from_vec(1, 2, vec![1.0, 1.0])), true);
        let b = params.add("b", &[2], Weight::F32(Tensor::from_vec(1, 2, vec![1.0, 1.0])), true);
        let settings = TrainSettings { weight_decay, ..TrainSettings::default() };
        let mut gradients = Gradients::new();
        gradients.add(w, Tensor::from_vec(1, 2, vec![0.0, 3.0]));
        gradients.add(b, Tensor::from_vec(1, 2, vec![0.0, 4.0]));
        (params.clone(), Optimizer::new(&params, &settings).unwrap(), gradients)
    }

    #[test]
    fn biases_and_norms_are_not_decayed() {
        let (mut params, mut optimizer, gradients) = set_up(0.5);
        optimizer.step(&mut params, &gradients, 0.1, 5.0, 0.0);
        let first = |name| params.get(params.find(name).unwrap()).weight.to_tensor().data()[0];
        assert!((first("w") - 0.95).abs() < 1e-6);
        assert_eq!(first("b"), 1.0);
    }

    #[test]
    fn clipping_scales_the_gradient_to_the_norm() {
        let (mut params, mut optimizer, gradients) = set_up(0.0);
        optimizer.step(&mut params, &gradients, 0.1, gradients.global_norm(), 1.0);
        // m = (1 - beta1) g / 5
        assert!((optimizer.slots()[0].m.data()[1] - 0.06).abs() < 1e-6);
        assert!((optimizer.slots()[1].m.data()[1] - 0.08).abs() < 1e-6);
    }
}
