//! Numbers against numbers: errors, the share of variance explained, Pearson's and Spearman's correlation.
//!
//! r = Σ (x - x̄)(y - ȳ) / sqrt(Σ (x - x̄)² Σ (y - ȳ)²); Spearman's is Pearson's of the ranks, equal values sharing the mean
//! of theirs.

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn mean_of(truth: &[f64], predicted: &[f64], of: fn(f64) -> f64) -> f64 {
    truth.iter().zip(predicted).map(|(t, p)| of(p - t)).sum::<f64>() / truth.len().max(1) as f64
}

/// Mean of (p - t)².
pub fn mean_squared_error(truth: &[f64], predicted: &[f64]) -> f64 {
    mean_of(truth, predicted, |d| d * d)
}

/// Mean of |p - t|.
pub fn mean_absolute_error(truth: &[f64], predicted: &[f64]) -> f64 {
    mean_of(truth, predicted, f64::abs)
}

/// 1 - Σ (p - t)² / Σ (t - t̄)²; of a constant truth 1 if all is right, else 0; `None` of fewer than two.
pub fn r2(truth: &[f64], predicted: &[f64]) -> Option<f64> {
    if truth.len() < 2 {
        return None;
    }
    let middle = mean(truth);
    let total: f64 = truth.iter().map(|t| (t - middle).powi(2)).sum();
    let rest = mean_squared_error(truth, predicted) * truth.len() as f64;
    Some(match (total > 0.0, rest > 0.0) {
        (true, _) => 1.0 - rest / total,
        (false, true) => 0.0,
        (false, false) => 1.0,
    })
}

/// Pearson's correlation; `None` if one side is constant or there are fewer than two.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() < 2 || x.len() != y.len() {
        return None;
    }
    let (mx, my) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        xy += (x - mx) * (y - my);
        xx += (x - mx).powi(2);
        yy += (y - my).powi(2);
    }
    let r = xy / (xx.sqrt() * yy.sqrt());
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

/// Spearman's correlation; `None` as for [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value from 1 on; equal ones share the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for group in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = first as f64 + (group.len() as f64 + 1.0) / 2.0;
        group.iter().for_each(|&i| ranks[i] = shared);
        first += group.len();
    }
    ranks
}
