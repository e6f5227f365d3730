//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), as torch computes it.
//!
//! `p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;`
//! `p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)`

use rayon::prelude::*;

/// The dials of the update. `weight_decay` may differ between parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// What one update does to every element of a parameter.
#[derive(Clone, Copy)]
pub(super) struct Update {
    beta1: f32,
    beta2: f32,
    eps: f32,
    grad_scale: f32,
    decay: f32,
    step_size: f32,
    root2: f32,
}

impl Update {
    /// The update of this number, counted from 1; `grad_scale` multiplies the gradient first.
    pub(super) fn new(o: AdamW, step: u64, grad_scale: f32) -> Update {
        let t = step as f64;
        let correction1 = 1.0 - f64::from(o.beta1).powf(t);
        let correction2 = 1.0 - f64::from(o.beta2).powf(t);
        Update {
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            grad_scale,
            decay: 1.0 - o.lr * o.weight_decay,
            step_size: (f64::from(o.lr) / correction1) as f32,
            root2: correction2.sqrt() as f32,
        }
    }

    #[inline(always)]
    pub(super) fn apply(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = g * self.grad_scale;
        *m = self.beta1 * *m + (1.0 - self.beta1) * g;
        *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
        *p = *p * self.decay - self.step_size * *m / (v.sqrt() / self.root2 + self.eps);
    }
}

/// Elements of one task.
pub(super) const CHUNK: usize = 16 * 1024;

/// One update of one parameter; `step` counts from 1. `grad_scale` multiplies the gradient first (clipping).
pub fn adamw_step(
    o: AdamW,
    step: u64,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len());
    let update = Update::new(o, step, grad_scale);
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((p, g), (m, v))| step_chunk(update, p, g, m, v));
}

/// [`adamw_step`] on moments that lie as f32 in little-endian bytes, as a page of a file holds them. The same numbers.
pub fn adamw_step_bytes(
    o: AdamW,
    step: u64,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    m: &mut [[u8; 4]],
    v: &mut [[u8; 4]],
) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len());
    let update = Update::new(o, step, grad_scale);
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((p, g), (m, v))| step_bytes(update, p, g, m, v));
}

crate::multiversion! {
    fn step_chunk(update: Update, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            update.apply(p, *g, m, v);
        }
    }

    fn step_bytes(update: Update, p: &mut [f32], g: &[f32], m: &mut [[u8; 4]], v: &mut [[u8; 4]]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let (mut first, mut second) = (f32::from_le_bytes(*m), f32::from_le_bytes(*v));
            update.apply(p, *g, &mut first, &mut second);
            (*m, *v) = (first.to_le_bytes(), second.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        let (mut p, mut m, mut v) = (vec![1.0, -2.0], vec![0.0; 2], vec![0.0; 2]);
        let o = AdamW { lr: 0.1, weight_decay: 0.0, ..AdamW::default() };
        adamw_step(o, 1, 1.0, &mut p, &[3.0, -0.5], &mut m, &mut v);
        assert!((p[0] - 0.9).abs() < 1e-6 && (p[1] + 1.9).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn weight_decay_is_decoupled() {
        let (mut p, mut m, mut v) = (vec![2.0], vec![0.0], vec![0.0]);
        let o = AdamW { lr: 0.1, weight_decay: 0.5, ..AdamW::default() };
        adamw_step(o, 1, 1.0, &mut p, &[0.0], &mut m, &mut v);
        assert!((p[0] - 1.9).abs() < 1e-6);
    }

    #[test]
    fn moments_in_bytes_are_the_same_numbers() {
        let g: Vec<f32> = (0..40_000).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 1e-3).collect();
        let (mut p, mut m, mut v) = (vec![0.5; g.len()], vec![0.0; g.len()], vec![0.0; g.len()]);
        let (mut q, mut mb, mut vb) = (p.clone(), vec![[0; 4]; g.len()], vec![[0; 4]; g.len()]);
        for step in 1..4 {
            adamw_step(AdamW::default(), step, 0.7, &mut p, &g, &mut m, &mut v);
            adamw_step_bytes(AdamW::default(), step, 0.7, &mut q, &g, &mut mb, &mut vb);
        }
        assert_eq!(p, q);
        assert!(m.iter().zip(&mb).all(|(x, b)| x.to_le_bytes() == *b));
        assert!(v.iter().zip(&vb).all(|(x, b)| x.to_le_bytes() == *b));
    }
}
