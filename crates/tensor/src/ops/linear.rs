//! `y = x Wᵀ + b + sum_j s_j (x_j A_jᵀ) B_jᵀ`: a weight in any storage, with optional LoRA branches (Hu et al., 2021).
//!
//! Backward: `dx = g W + sum_j du_j A_j` with `du_j = s_j g B_j`; `dA = duᵀ x`, `dB = gᵀ (s u)`, `dW = gᵀ x`,
//! `db = sum over rows of g`. The branch rides in the same packed product as the base weight; W + BA is never built.

use super::add_bias::add_to_rows;
use super::parallel::sum_rows;
use crate::kernel::{self, MatRef, PackedLhs, Rhs};
use crate::tape::{NodeId, Saved, Sink, Tape, Var, WeightVar};
use crate::tensor::Tensor;

/// Up to this many rows a product is decode-and-dot: packing the weight would not pay.
const FEW_ROWS: usize = 4;

/// A low-rank branch: `a` `[R, K]`, `b` `[N, R]`, `scale` = lora_alpha / r.
pub struct LoraBranch<'a> {
    pub a: &'a Var,
    pub b: &'a Var,
    pub scale: f32,
    /// The branch's input if it is not the layer's (after dropout).
    pub input: Option<&'a Var>,
}

/// A tensor as a matrix view.
pub fn mat(x: &Tensor) -> MatRef<'_> {
    MatRef::new(x.data(), x.rows(), x.cols())
}

/// What the backward pass keeps of a branch.
struct Branch {
    a: Tensor,
    b: Tensor,
    u: Tensor,
    na: Option<NodeId>,
    nb: Option<NodeId>,
    scale: f32,
    /// The branch's own input and its node, if it is not the layer's.
    input: Option<(Saved, Option<NodeId>)>,
}

/// `x` `[T, K]` times a weight `[N, K]` transposed, plus bias `[1, N]` and branches: `[T, N]`.
pub fn linear(tape: &Tape, x: &Var, w: &WeightVar, bias: Option<&Var>, lora: &[LoraBranch]) -> Var {
    let storage = w.weight.storage();
    assert_eq!(x.cols(), storage.cols(), "linear: input features");
    let mut y = Tensor::scratch(x.rows(), storage.rows());
    let us = if x.rows() <= FEW_ROWS { few_rows(x, w, lora, &mut y) } else { many_rows(x, w, lora, &mut y) };
    if let Some(bias) = bias {
        add_to_rows(&mut y, bias.value().data());
    }

    let nb = bias.and_then(Var::node);
    let node = |v: &Var| v.node().is_some();
    let in_branch = lora.iter().any(|l| node(l.a) || node(l.b) || l.input.is_some_and(node));
    let needed = node(x) || w.node.is_some() || nb.is_some() || in_branch;
    if !needed {
        return Var::constant(y);
    }
    let branches: Vec<Branch> = lora.iter().zip(us).map(|(l, u)| keep_branch(l, u)).collect();
    let needs_x = w.node.is_some() || branches.iter().any(|b| b.na.is_some() && b.input.is_none());
    let saved = needs_x.then(|| x.saved());
    let (w, nx) = (w.clone(), x.node());
    tape.record(y, true, move |g, sink| backward(&g, nx, saved, &w, nb, &branches, sink))
}

fn keep_branch(l: &LoraBranch, u: Tensor) -> Branch {
    Branch {
        a: l.a.value().clone(),
        b: l.b.value().clone(),
        u,
        na: l.a.node(),
        nb: l.b.node(),
        scale: l.scale,
        input: l.input.map(|v| (v.saved(), v.node())),
    }
}

/// The product with the base weight and all branches in one; returns each branch's `s x Aᵀ` `[T, R]`.
fn many_rows(x: &Var, w: &WeightVar, lora: &[LoraBranch], y: &mut Tensor) -> Vec<Tensor> {
    let input = PackedLhs::new(mat(x.value()));
    let scaled_down = |l: &LoraBranch| {
        let mut u = Tensor::scratch(x.rows(), l.a.rows());
        let (rows, rank) = (u.rows(), u.cols());
        let product = |u: &mut Tensor, input: &PackedLhs| {
            kernel::gemm(u.data_mut(), rank, rows, rank, 0.0, &[(input, Rhs::WeightT(l.a.value()))]);
        };
        match l.input {
            Some(own) => product(&mut u, &PackedLhs::new(mat(own.value()))),
            None => product(&mut u, &input),
        }
        u.scale_assign(l.scale);
        u
    };
    let us: Vec<Tensor> = lora.iter().map(scaled_down).collect();
    let packed: Vec<PackedLhs> = us.iter().map(|u| PackedLhs::new(mat(u))).collect();
    let mut terms = vec![(&input, Rhs::WeightT(w.weight.storage()))];
    terms.extend(packed.iter().zip(lora).map(|(u, l)| (u, Rhs::WeightT(l.b.value()))));
    let (m, n) = (y.rows(), y.cols());
    kernel::gemm(y.data_mut(), n, m, n, 0.0, &terms);
    us
}

/// As [`many_rows`], decode-and-dot.
fn few_rows(x: &Var, w: &WeightVar, lora: &[LoraBranch], y: &mut Tensor) -> Vec<Tensor> {
    let rows = x.rows();
    kernel::matvec(w.weight.storage(), x.value().data(), rows, y.data_mut());
    let mut branch = Tensor::scratch(rows, y.cols());
    let mut us = Vec::with_capacity(lora.len());
    for l in lora {
        let mut u = Tensor::scratch(rows, l.a.rows());
        kernel::matvec(l.a.value(), l.input.unwrap_or(x).value().data(), rows, u.data_mut());
        u.scale_assign(l.scale);
        kernel::matvec(l.b.value(), u.data(), rows, branch.data_mut());
        y.add_assign(&branch);
        us.push(u);
    }
    us
}

fn backward(
    g: &Tensor,
    nx: Option<NodeId>,
    saved: Option<Saved>,
    w: &WeightVar,
    nb: Option<NodeId>,
    branches: &[Branch],
    sink: &mut Sink,
) {
    let packed = PackedLhs::new(mat(g));
    let dus: Vec<Tensor> = branches.iter().map(|b| branch_gradient(&packed, g.rows(), b)).collect();
    if nx.is_some() {
        let dx = input_gradient(sink.take(nx), &packed, g.rows(), w, branches, &dus);
        sink.add(nx, dx);
    }
    let x = saved.map(|s| s.get());
    for (branch, du) in branches.iter().zip(dus) {
        branch_backward(g, branch, du, x.as_ref(), sink);
    }
    if let (Some(_), Some(x)) = (w.node, &x) {
        sink.add(w.node, weight_gradient(g, x));
    }
    if nb.is_some() {
        sink.add(nb, column_sums(g));
    }
}

/// `du = s g B` `[T, R]`.
fn branch_gradient(g: &PackedLhs, rows: usize, b: &Branch) -> Tensor {
    let rank = b.b.cols();
    let mut du = Tensor::scratch(rows, rank);
    kernel::gemm(du.data_mut(), rank, rows, rank, 0.0, &[(g, Rhs::Weight(&b.b))]);
    du.scale_assign(b.scale);
    du
}

/// `g W + sum du A`, the branches with an input of their own left out, added to the gradient so far.
fn input_gradient(
    so_far: Option<Tensor>,
    g: &PackedLhs,
    rows: usize,
    w: &WeightVar,
    branches: &[Branch],
    dus: &[Tensor],
) -> Tensor {
    let storage = w.weight.storage();
    let inside: Vec<(PackedLhs, &Tensor)> = branches
        .iter()
        .zip(dus)
        .filter(|(b, _)| b.input.is_none())
        .map(|(b, du)| (PackedLhs::new(mat(du)), &b.a))
        .collect();
    let mut terms = vec![(g, Rhs::Weight(storage))];
    terms.extend(inside.iter().map(|(du, a)| (du, Rhs::Weight(*a))));
    let beta = if so_far.is_some() { 1.0 } else { 0.0 };
    let mut dx = so_far.unwrap_or_else(|| Tensor::scratch(rows, storage.cols()));
    let n = dx.cols();
    kernel::gemm(dx.data_mut(), n, rows, n, beta, &terms);
    dx
}

fn branch_backward(g: &Tensor, branch: &Branch, du: Tensor, x: Option<&Tensor>, sink: &mut Sink) {
    let (t, rank) = (du.rows(), du.cols());
    if branch.nb.is_some() {
        // u holds the scale already: dB = gᵀ u, computed as (uᵀ g)ᵀ.
        let mut db = Tensor::scratch(rank, g.cols());
        kernel::gemm_tn_skinny(t, rank, g.cols(), branch.u.data(), g.data(), 1.0, db.data_mut(), 0.0);
        sink.add(branch.nb, db.transposed());
    }
    let own = branch.input.as_ref().map(|(saved, _)| saved.get());
    if let (Some(_), Some(x)) = (branch.na, own.as_ref().or(x)) {
        let mut da = Tensor::scratch(rank, x.cols());
        kernel::gemm_tn_skinny(t, rank, x.cols(), du.data(), x.data(), 1.0, da.data_mut(), 0.0);
        sink.add(branch.na, da);
    }
    if let Some((_, Some(node))) = branch.input {
        let mut dx = Tensor::scratch(t, branch.a.cols());
        let n = dx.cols();
        let packed = PackedLhs::new(mat(&du));
        kernel::gemm(dx.data_mut(), n, t, n, 0.0, &[(&packed, Rhs::Weight(&branch.a))]);
        sink.add(Some(node), dx);
    }
}

/// `gᵀ x` `[N, K]`.
fn weight_gradient(g: &Tensor, x: &Tensor) -> Tensor {
    let mut dw = Tensor::scratch(g.cols(), x.cols());
    let (m, n) = (dw.rows(), dw.cols());
    let gt = PackedLhs::new(mat(g).t());
    kernel::gemm(dw.data_mut(), n, m, n, 0.0, &[(&gt, Rhs::Dense(mat(x)))]);
    dw
}

/// Sum over rows: `[1, N]`.
pub(crate) fn column_sums(g: &Tensor) -> Tensor {
    let mut sum = Tensor::zeros(1, g.cols());
    sum_rows(g.rows(), sum.data_mut(), |first, last, out| {
        for row in first..last {
            for (s, g) in out.iter_mut().zip(g.row(row)) {
                *s += g;
            }
        }
    });
    sum
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Weight;

    fn weight(v: &Var) -> WeightVar {
        WeightVar { weight: Weight::F32(v.value().clone()), node: v.node() }
    }

    #[test]
    fn gradient_of_everything() {
        for rows in [1, 3, 9] {
            let inputs =
                [random(rows, 7, 1), random(5, 7, 2), random(1, 5, 3), random(2, 7, 4), random(5, 2, 5)];
            check(&inputs, |tape, x| {
                let lora = LoraBranch { a: &x[3], b: &x[4], scale: 0.5, input: None };
                linear(tape, &x[0], &weight(&x[1]), Some(&x[2]), &[lora])
            });
        }
    }

    #[test]
    fn gradient_with_a_branch_input_of_its_own() {
        let inputs = [random(6, 4, 1), random(6, 4, 2), random(3, 4, 3), random(2, 4, 4), random(3, 2, 5)];
        check(&inputs, |tape, x| {
            let lora = LoraBranch { a: &x[3], b: &x[4], scale: 2.0, input: Some(&x[1]) };
            linear(tape, &x[0], &weight(&x[2]), None, &[lora])
        });
    }

    #[test]
    fn a_zero_branch_changes_nothing() {
        let (x, w, a) = (random(9, 16, 1), random(8, 16, 2), random(4, 16, 3));
        let params = crate::Params::new();
        let tape = Tape::inference(&params);
        let (x, a, b) = (Var::constant(x), Var::constant(a), Var::constant(Tensor::zeros(8, 4)));
        let w = WeightVar { weight: Weight::F32(w), node: None };
        let plain = linear(&tape, &x, &w, None, &[]);
        let with = linear(&tape, &x, &w, None, &[LoraBranch { a: &a, b: &b, scale: 2.0, input: None }]);
        assert_eq!(plain.value().data(), with.value().data());
    }
}
