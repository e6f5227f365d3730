//! 95 % confidence intervals: Wilson's for a share of rows, Student's t for the mean over folds or seeds.

use serde::{Deserialize, Serialize};

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 97.5 % points of Student's t for 1..=30 degrees of freedom.
const T: [f64; 30] = [
    12.706204736,
    4.302652730,
    3.182446305,
    2.776445105,
    2.570581836,
    2.446911851,
    2.364624252,
    2.306004135,
    2.262157163,
    2.228138852,
    2.200985160,
    2.178812830,
    2.160368656,
    2.144786688,
    2.131449546,
    2.119905299,
    2.109815578,
    2.100922040,
    2.093024054,
    2.085963447,
    2.079613845,
    2.073873068,
    2.068657610,
    2.063898562,
    2.059538553,
    2.055529439,
    2.051830516,
    2.048407142,
    2.045229642,
    2.042272456,
];

/// A value and what it may be as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Around `hits / n`, within 0..=1; all of it if n is 0.
pub fn wilson(hits: u64, n: u64) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (p, n) = (hits.min(n) as f64 / n as f64, n as f64);
    let z2 = Z * Z / n;
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

/// Around the mean of a few measurements (folds, seeds): mean ± t s / sqrt(n). `None` of fewer than two.
pub fn t_interval(values: &[f64]) -> Option<(f64, Interval)> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = t_point(values.len() - 1) * (variance / n).sqrt();
    half.is_finite().then_some((mean, Interval { low: mean - half, high: mean + half }))
}

/// The 97.5 % point; beyond the table, Cornish and Fisher's expansion, right to seven digits there.
fn t_point(freedom: usize) -> f64 {
    if let Some(point) = freedom.checked_sub(1).and_then(|i| T.get(i)) {
        return *point;
    }
    let (z, n) = (Z, freedom as f64);
    let [z3, z5, z7] = [z.powi(3), z.powi(5), z.powi(7)];
    z + (z3 + z) / (4.0 * n)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n.powi(3))
}
