//! The `gemm` crate behind a safe function: the benchmarks measure against it.

use gemm::Parallelism;

/// C[m, n] = A[m, k] B[k, n] with the `gemm` crate; each matrix with its row and column stride.
pub fn library(size: [usize; 3], a: (&[f32], [usize; 2]), b: (&[f32], [usize; 2]), c: &mut [f32]) {
    let ([m, n, k], threads) = (size, Parallelism::Rayon(0));
    assert!(c.len() == m * n && a.0.len() == m * k && b.0.len() == k * n);
    let ([a_row, a_col], [b_row, b_col]) = (a.1.map(|s| s as isize), b.1.map(|s| s as isize));
    let (c, c_row) = (c.as_mut_ptr(), n as isize);
    let (a, b) = (a.0.as_ptr(), b.0.as_ptr());
    // SAFETY: the sizes were checked, and every caller's strides are those of a whole matrix or its transpose.
    unsafe {
        gemm::gemm(
            m, n, k, c, 1, c_row, false, a, a_col, a_row, b, b_col, b_row, 0.0f32, 1.0f32, false, false,
            false, threads,
        );
    }
}
