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

const CHUNK: usize = 16 * 1024;

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
    let t = step as f64;
    let correction1 = 1.0 - f64::from(o.beta1).powf(t);
    let correction2 = 1.0 - f64::from(o.beta2).powf(t);
    let step_size = (f64::from(o.lr) / correction1) as f32;
    let root2 = correction2.sqrt() as f32;
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((p, g), (m, v))| {
            step_chunk(o, (grad_scale, step_size, root2), p, g, m, v);
        });
}

crate::multiversion! {
    fn step_chunk(o: AdamW, scales: (f32, f32, f32), p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (grad_scale, step_size, root2) = scales;
        let decay = 1.0 - o.lr * o.weight_decay;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * grad_scale;
            *m = o.beta1 * *m + (1.0 - o.beta1) * g;
            *v = o.beta2 * *v + (1.0 - o.beta2) * g * g;
            *p = *p * decay - step_size * *m / (v.sqrt() / root2 + o.eps);
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
}
