//! LoRA on a look-up: `y[t] = x[t] + s B A[:, ids[t]]`, as PEFT's `lora_embedding_A` `[R, V]` and `lora_embedding_B` `[C, R]`.
//!
//! Backward, with `u[t] = s A[:, ids[t]]`: `dx = g`, `dB = gᵀ u`, and each row of `s g B` added to the column of its id in `dA`.

use super::linear::mat;
use crate::kernel::{self, PackedLhs, Rhs};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Adds the low-rank rows of `ids` to `x` `[T, C]`, the rows that the frozen table gave.
///
/// # Panics
/// If an id is not below `V`: ids are checked where text becomes tokens.
pub fn embedding_lora(tape: &Tape, x: &Var, ids: &[u32], a: &Var, b: &Var, scale: f32) -> Var {
    let (rank, rows, cols) = (a.rows(), x.rows(), x.cols());
    assert_eq!((rows, cols, rank), (ids.len(), b.rows(), b.cols()), "embedding_lora: shapes");
    let table = a.value().data();
    let vocab = a.cols();
    let u = Tensor::from_fn(rows, rank, |t, r| scale * table[r * vocab + ids[t] as usize]);
    let mut y = x.value().clone();
    let packed = PackedLhs::new(mat(&u));
    kernel::gemm(y.data_mut(), cols, rows, cols, 1.0, &[(&packed, Rhs::WeightT(b.value()))]);
    drop(packed);

    let (nx, na, nb) = (x.node(), a.node(), b.node());
    let (b, ids) = (b.value().clone(), ids.to_vec());
    tape.record(y, nx.is_some() || na.is_some() || nb.is_some(), move |g, sink| {
        if nb.is_some() {
            let mut db = Tensor::scratch(rank, cols);
            kernel::gemm_tn_skinny(rows, rank, cols, u.data(), g.data(), 1.0, db.data_mut(), 0.0);
            sink.add(nb, db.transposed());
        }
        if na.is_some() {
            sink.add(na, table_gradient(&g, &b, &ids, vocab, scale));
        }
        sink.add(nx, g);
    })
}

/// `dA` `[R, V]`: zero but for the columns of the ids.
fn table_gradient(g: &Tensor, b: &Tensor, ids: &[u32], vocab: usize, scale: f32) -> Tensor {
    let rank = b.cols();
    let mut du = Tensor::scratch(g.rows(), rank);
    let packed = PackedLhs::new(mat(g));
    kernel::gemm(du.data_mut(), rank, g.rows(), rank, 0.0, &[(&packed, Rhs::Weight(b))]);
    let mut da = Tensor::zeros(rank, vocab);
    let data = da.data_mut();
    for (t, &id) in ids.iter().enumerate() {
        for (r, du) in du.row(t).iter().enumerate() {
            data[r * vocab + id as usize] += scale * du;
        }
    }
    da
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;

    #[test]
    fn gradient_with_a_repeated_id() {
        check(&[random(4, 5, 1), random(2, 7, 2), random(5, 2, 3)], |tape, x| {
            embedding_lora(tape, &x[0], &[6, 0, 6, 3], &x[1], &x[2], 0.5)
        });
    }

    #[test]
    fn equals_the_product() {
        let params = crate::Params::new();
        let tape = Tape::inference(&params);
        let (a, b) = (random(2, 7, 2), random(5, 2, 3));
        let vars = [Tensor::zeros(1, 5), a.clone(), b.clone()].map(Var::constant);
        let y = embedding_lora(&tape, &vars[0], &[4], &vars[1], &vars[2], 2.0);
        for (c, y) in y.value().data().iter().enumerate() {
            let want: f32 = (0..2).map(|r| 2.0 * b.row(c)[r] * a.row(r)[4]).sum();
            assert!((y - want).abs() < 1e-6, "{y} {want}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let ids: Vec<u32> = (0..300).map(|i| i * 7 % 50).collect();
        assert_same_on_any_threads(&[random(300, 65, 1), random(4, 50, 2), random(65, 4, 3)], |tape, x| {
            embedding_lora(tape, &x[0], &ids, &x[1], &x[2], 0.5)
        });
    }
}
