//! How several matrices of one shape become one; each rule is PEFT's of the same name, value for value.

use retune_tensor::rng::Stream;
use retune_tensor::{Tensor, kernel, ops};

use super::{Combination, Options};
use crate::error::{Error, Result};

/// How matrices `T_i` with weights `w_i` become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `sum w_i T_i`
    Sum,
    /// Each pruned to its largest values; where signs differ, the mean of those that have the majority's.
    Ties,
    /// Values dropped at random and the rest scaled up; their weighted sum.
    DareLinear,
    /// As `DareLinear`, put together as `Ties`.
    DareTies,
    /// Each pruned to its largest values; their weighted sum.
    MagnitudePrune,
}

/// What decides the sign of a place in TIES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Majority {
    /// The sign of the sum of values.
    #[default]
    Total,
    /// The sign that more adapters have.
    Frequency,
}

/// Refuses settings that the combination cannot use.
pub fn check(how: Combination, options: &Options) -> Result<()> {
    let prunes = matches!(how, Combination::By(rule, _) if rule != Rule::Sum);
    match options.density {
        None if prunes => Err(Error::Input(format!(
            "{} needs a density: the share of values that is kept, such as 0.5",
            how.name()
        ))),
        Some(density) if prunes && !(density > 0.0 && density <= 1.0) => {
            Err(Error::Input(format!("the density is {density}; it must be above 0 and at most 1")))
        }
        _ if options.svd_rank == Some(0) => {
            Err(Error::Input("the rank of the result must be 1 or more".into()))
        }
        _ => Ok(()),
    }
}

impl Rule {
    /// # Errors
    /// If the matrices are of different shapes.
    pub fn apply(
        self,
        tensors: Vec<Tensor>,
        weights: &[f32],
        options: &Options,
        draws: &Stream,
    ) -> Result<Tensor> {
        if let Some(pair) =
            tensors.windows(2).find(|p| p[0].rows() != p[1].rows() || p[0].cols() != p[1].cols())
        {
            let shape = |t: &Tensor| format!("[{}, {}]", t.rows(), t.cols());
            let (a, b) = (shape(&pair[0]), shape(&pair[1]));
            let what = format!(
                "factors of {a} and {b} cannot be combined by this rule; \"cat\" and \"svd\" take any rank"
            );
            return Err(Error::Input(what));
        }
        let density = options.density.unwrap_or(1.0);
        let pruned = tensors.into_iter().enumerate().map(|(i, tensor)| match self {
            Rule::Sum => tensor,
            Rule::Ties | Rule::MagnitudePrune => keep_largest(tensor, density),
            Rule::DareLinear | Rule::DareTies => drop_at_random(tensor, density, draws, i as u64),
        });
        let pruned: Vec<Tensor> = pruned.collect();
        Ok(match self {
            Rule::Ties | Rule::DareTies => disjoint_mean(&pruned, weights, options.majority),
            _ => weighted_sum(&pruned, weights),
        })
    }
}

/// `scale B A`.
pub fn product(b: &Tensor, a: &Tensor, scale: f32) -> Tensor {
    let (rows, cols) = (b.rows(), a.cols());
    let mut out = Tensor::zeros(rows, cols);
    let packed = kernel::PackedLhs::new(ops::mat(b));
    kernel::gemm(out.data_mut(), cols, rows, cols, 0.0, &[(&packed, kernel::Rhs::Dense(ops::mat(a)))]);
    out.scale_assign(scale);
    out
}

/// The `floor(density n)` largest magnitudes stay, the first of equals.
fn keep_largest(mut tensor: Tensor, density: f64) -> Tensor {
    if density >= 1.0 {
        return tensor;
    }
    let values = tensor.data_mut();
    let keep = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    order[keep..].iter().for_each(|&i| values[i] = 0.0);
    tensor
}

/// Each value stays with probability `density` and is then divided by it.
fn drop_at_random(mut tensor: Tensor, density: f64, draws: &Stream, adapter: u64) -> Tensor {
    if density >= 1.0 {
        return tensor;
    }
    let n = tensor.len() as u64;
    for (i, x) in tensor.data_mut().iter_mut().enumerate() {
        let keep = draws.uniform_f64(adapter * n + i as u64) < density;
        *x = if keep { *x / density as f32 } else { 0.0 };
    }
    tensor
}

fn weighted_sum(tensors: &[Tensor], weights: &[f32]) -> Tensor {
    let (rows, cols) = tensors.first().map_or((0, 0), |t| (t.rows(), t.cols()));
    let at = |i: usize| tensors.iter().zip(weights).map(|(t, w)| t.data()[i] * w).sum();
    Tensor::from_fn(rows, cols, |r, c| at(r * cols + c))
}

/// At each place the mean, over the adapters that have the majority's sign there, of their weighted values.
fn disjoint_mean(tensors: &[Tensor], weights: &[f32], majority: Majority) -> Tensor {
    let (rows, cols) = tensors.first().map_or((0, 0), |t| (t.rows(), t.cols()));
    // torch's sign: that of zero is zero.
    let sign = |x: f32| if x == 0.0 { 0.0 } else { x.signum() };
    Tensor::from_fn(rows, cols, |r, c| {
        let values = || tensors.iter().map(|t| t.data()[r * cols + c]);
        let sum: f32 = match majority {
            Majority::Total => values().sum(),
            Majority::Frequency => values().map(sign).sum(),
        };
        let wanted = if sum >= 0.0 { 1.0 } else { -1.0 };
        let agreeing = || values().zip(weights).filter(|(x, _)| sign(*x) == wanted);
        let count = agreeing().count().max(1);
        agreeing().map(|(x, w)| x * w).sum::<f32>() / count as f32
    })
}
