//! Factorisations of matrices, in f64: singular values for adapters' inits and for combining them.

use nalgebra::DMatrix;
use retune_tensor::Tensor;

fn matrix(x: &Tensor) -> DMatrix<f64> {
    DMatrix::from_row_iterator(x.rows(), x.cols(), x.data().iter().map(|x| f64::from(*x)))
}

fn tensor(x: &DMatrix<f64>) -> Tensor {
    Tensor::from_fn(x.nrows(), x.ncols(), |r, c| x[(r, c)] as f32)
}

/// `(U [m, k], s [k], Vᵀ [k, n])` of the `k = min(rank, m, n)` largest singular values of `x` `[m, n]`, falling.
pub fn truncated_svd(x: &Tensor, rank: usize) -> (Tensor, Vec<f32>, Tensor) {
    leading(matrix(x), rank)
}

/// [`truncated_svd`] of the product `b` `[m, r]` times `a` `[r, n]`, which is not built: `b = Q_b R_b`, `aᵀ = Q_a R_a`, and
/// only `R_b R_aᵀ` is taken apart.
pub fn truncated_svd_of_product(b: &Tensor, a: &Tensor, rank: usize) -> (Tensor, Vec<f32>, Tensor) {
    let (b, a) = (matrix(b).qr(), matrix(a).transpose().qr());
    let (u, s, vt) = leading(b.r() * a.r().transpose(), rank);
    (tensor(&(b.q() * matrix(&u))), s, tensor(&(matrix(&vt) * a.q().transpose())))
}

fn leading(x: DMatrix<f64>, rank: usize) -> (Tensor, Vec<f32>, Tensor) {
    let k = rank.min(x.nrows()).min(x.ncols());
    let (m, n) = (x.nrows(), x.ncols());
    let svd = x.svd(true, true);
    // Both were asked for.
    let u = svd.u.unwrap_or_else(|| DMatrix::zeros(m, k));
    let vt = svd.v_t.unwrap_or_else(|| DMatrix::zeros(k, n));
    let s = svd.singular_values.iter().take(k).map(|s| *s as f32).collect();
    (tensor(&u.columns(0, k).into_owned()), s, tensor(&vt.rows(0, k).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_tensor::rng::Stream;

    fn random(rows: usize, cols: usize, name: &str) -> Tensor {
        let stream = Stream::named(1, name);
        Tensor::from_fn(rows, cols, |r, c| stream.normal((r * cols + c) as u64))
    }

    fn rebuilt((u, s, vt): &(Tensor, Vec<f32>, Tensor)) -> Tensor {
        Tensor::from_fn(u.rows(), vt.cols(), |r, c| {
            (0..s.len()).map(|k| u.row(r)[k] * s[k] * vt.row(k)[c]).sum()
        })
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn all_singular_values_rebuild_the_matrix() {
        for (rows, cols) in [(7, 5), (5, 7), (1, 4)] {
            let x = random(rows, cols, "x");
            let svd = truncated_svd(&x, 99);
            assert!(svd.1.windows(2).all(|s| s[0] >= s[1]));
            assert!(worst(&rebuilt(&svd), &x) < 1e-5);
        }
    }

    #[test]
    fn of_a_product_without_building_it() {
        let (b, a) = (random(9, 3, "b"), random(3, 6, "a"));
        let product = Tensor::from_fn(9, 6, |r, c| (0..3).map(|k| b.row(r)[k] * a.row(k)[c]).sum());
        let svd = truncated_svd_of_product(&b, &a, 3);
        assert!(worst(&rebuilt(&svd), &product) < 1e-5);
        let (two, full) = (truncated_svd_of_product(&b, &a, 2), truncated_svd(&product, 2));
        assert!(worst(&rebuilt(&two), &rebuilt(&full)) < 1e-5);
    }
}
