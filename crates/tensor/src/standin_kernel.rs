//! Stand-in until the kernel module lands.
use crate::storage::Storage;

#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}
impl<'a> MatRef<'a> {
    pub fn with_strides(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        MatRef { data, rows, cols, row_stride, col_stride }
    }
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        MatRef::with_strides(data, rows, cols, cols, 1)
    }
    pub fn t(self) -> Self {
        MatRef::with_strides(self.data, self.cols, self.rows, self.col_stride, self.row_stride)
    }
    pub fn at(&self, r: usize, c: usize) -> f32 {
        self.data[r * self.row_stride + c * self.col_stride]
    }
}
pub enum Rhs<'a> {
    Dense(MatRef<'a>),
    WeightT(&'a dyn Storage),
    Weight(&'a dyn Storage),
}
pub struct PackedLhs<'a> {
    life: std::marker::PhantomData<&'a f32>,
    m: usize,
    k: usize,
    d: Vec<f32>,
}
impl<'a> PackedLhs<'a> {
    pub fn new(a: MatRef<'a>) -> Self {
        let mut d = Vec::new();
        for r in 0..a.rows {
            for c in 0..a.cols {
                d.push(a.at(r, c));
            }
        }
        PackedLhs { m: a.rows, k: a.cols, d, life: std::marker::PhantomData }
    }
}
fn dense(r: &Rhs) -> (usize, usize, Vec<f32>) {
    match r {
        Rhs::Dense(m) => {
            let mut d = Vec::new();
            for r in 0..m.rows {
                for c in 0..m.cols {
                    d.push(m.at(r, c));
                }
            }
            (m.rows, m.cols, d)
        }
        Rhs::WeightT(s) => {
            let t = crate::params::decode_all(*s).transposed();
            (t.rows(), t.cols(), t.data().to_vec())
        }
        Rhs::Weight(s) => {
            let t = crate::params::decode_all(*s);
            (t.rows(), t.cols(), t.data().to_vec())
        }
    }
}
pub fn gemm(out: &mut [f32], ldc: usize, m: usize, n: usize, beta: f32, terms: &[(&PackedLhs, Rhs)]) {
    for r in 0..m {
        for c in 0..n {
            if beta == 0.0 {
                out[r * ldc + c] = 0.0;
            }
        }
    }
    for (a, b) in terms {
        let (k, bn, b) = dense(b);
        assert_eq!((a.m, a.k, bn), (m, k, n));
        for r in 0..m {
            for i in 0..k {
                let x = a.d[r * k + i];
                for c in 0..n {
                    out[r * ldc + c] += x * b[i * n + c];
                }
            }
        }
    }
}
pub fn gemm_serial(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef,
    b: MatRef,
    beta: f32,
    c: &mut [f32],
    ldc: usize,
) {
    for i in 0..m {
        for j in 0..n {
            let mut s = 0.0;
            for p in 0..k {
                s += a.at(i, p) * b.at(p, j);
            }
            let c = &mut c[i * ldc + j];
            *c = alpha * s + if beta == 0.0 { 0.0 } else { beta * *c };
        }
    }
}
pub fn gemm_tn_skinny(
    t: usize,
    r: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    alpha: f32,
    out: &mut [f32],
    beta: f32,
) {
    gemm_serial(r, k, t, alpha, MatRef::new(a, t, r).t(), MatRef::new(b, t, k), beta, out, k);
}
pub fn matvec(w: &dyn Storage, x: &[f32], m: usize, out: &mut [f32]) {
    matvec_many(&[w], x, m, &mut [out]);
}
pub fn matvec_many(ws: &[&dyn Storage], x: &[f32], m: usize, outs: &mut [&mut [f32]]) {
    for (w, out) in ws.iter().zip(outs) {
        for i in 0..m {
            let (k, n) = (w.cols(), w.rows());
            w.dot_rows(0, &x[i * k..(i + 1) * k], &mut out[i * n..(i + 1) * n]);
        }
    }
}
pub mod simd {
    #[inline(always)]
    pub fn exp(x: f32) -> f32 {
        x.exp()
    }
    #[inline(always)]
    pub fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }
}
