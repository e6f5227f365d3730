//! Every kernel against a product in double precision, and against itself on other threads, strides, and batches.

use super::gemm::serial_on;
use super::micro::Kernels;
use super::skinny::Skinny;
use super::*;
use crate::storage::{Code4, Format, FourBit, RowInt8, Storage, encode, from_bytes};

const SIZES: &[usize] = &[1, 2, 3, 5, 7, 13, 16, 31, 33, 65, 127];

/// Numbers in -1..1 that look random.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn product(a: MatRef, b: MatRef) -> Vec<f64> {
    let mut c = Vec::new();
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            c.push((0..a.cols()).map(|k| f64::from(a.at(i, k)) * f64::from(b.at(k, j))).sum());
        }
    }
    c
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], k: usize) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= 2e-6 * (k as f64 + 1.0).sqrt() + 1e-6, "element {i}: {g} {w}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// The same matrix in several layouts: row-major, transposed, with gaps, with gaps in both directions.
fn layouts(m: MatRef) -> Vec<(Vec<f32>, usize, usize)> {
    let (rows, cols) = (m.rows(), m.cols());
    [(cols, 1), (1, rows), (cols + 3, 1), (1, rows + 5), (2 * cols, 2)]
        .map(|(rs, cs)| {
            let mut data = vec![f32::NAN; rows * rs.max(1) + cols * cs.max(1)];
            for i in 0..rows {
                for j in 0..cols {
                    data[i * rs + j * cs] = m.at(i, j);
                }
            }
            (data, rs, cs)
        })
        .into()
}

#[test]
fn packed_products_are_right_for_odd_shapes_on_every_level() {
    for &level in Level::available() {
        let kernels = Kernels::of(level);
        for (s, &m) in SIZES.iter().enumerate() {
            for (i, &n) in SIZES.iter().enumerate() {
                let k = SIZES[(s * 5 + i * 3) % SIZES.len()];
                let (a, b) = (noise(m * k, 1), noise(k * n, 2));
                let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
                let lhs = PackedLhs::on(kernels, a);
                // A result with gaps, which must stay as they are.
                let ldc = n + 3;
                let mut out = vec![f32::NAN; m * ldc];
                gemm(&mut out, ldc, m, n, 0.0, &[(&lhs, Rhs::Dense(b))]);
                assert!(out.chunks(ldc).all(|row| row[n..].iter().all(|v| v.is_nan())));
                let tight: Vec<f32> = out.chunks(ldc).flat_map(|row| row[..n].to_vec()).collect();
                assert_close(&tight, &product(a, b), k);
            }
        }
    }
}

#[test]
fn strides_do_not_matter() {
    for &level in Level::available() {
        let kernels = Kernels::of(level);
        for (m, n, k) in [(13, 33, 65), (25, 16, 700), (5, 127, 3)] {
            let (a, b) = (noise(m * k, 3), noise(k * n, 4));
            let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
            let mut want = vec![0.0; m * n];
            gemm(&mut want, n, m, n, 0.0, &[(&PackedLhs::on(kernels, a), Rhs::Dense(b))]);
            assert_close(&want, &product(a, b), k);
            for (data, rs, cs) in layouts(a) {
                let a = MatRef::with_strides(&data, m, k, rs, cs);
                let lhs = PackedLhs::on(kernels, a);
                for (data, rs, cs) in layouts(b) {
                    let b = MatRef::with_strides(&data, k, n, rs, cs);
                    let mut out = vec![f32::NAN; m * n];
                    gemm(&mut out, n, m, n, 0.0, &[(&lhs, Rhs::Dense(b))]);
                    assert_eq!(bits(&out), bits(&want));
                    out.fill(f32::NAN);
                    serial_on(kernels, m, n, k, 1.0, a, b, 0.0, &mut out, n);
                    assert_eq!(bits(&out), bits(&want), "serial");
                }
            }
        }
    }
}

#[test]
fn terms_of_several_depths_are_added_up() {
    for &level in Level::available() {
        let kernels = Kernels::of(level);
        let (m, n) = (50, 70);
        let ks = [576, 16, 1536, 641, 0];
        let parts: Vec<_> = ks.iter().map(|&k| (noise(m * k, 5), noise(k * n, 6), k)).collect();
        let mut want: Vec<f64> = vec![1.0; m * n];
        for (a, b, k) in &parts {
            let one = product(MatRef::new(a, m, *k), MatRef::new(b, *k, n));
            want.iter_mut().zip(one).for_each(|(w, v)| *w += v);
        }
        let lhs: Vec<_> =
            parts.iter().map(|(a, _, k)| PackedLhs::on(kernels, MatRef::new(a, m, *k))).collect();
        let rhs = parts.iter().map(|(_, b, k)| Rhs::Dense(MatRef::new(b, *k, n)));
        let terms: Vec<_> = lhs.iter().zip(rhs).collect();
        let mut out = vec![1.0; m * n];
        gemm(&mut out, n, m, n, 1.0, &terms);
        assert_close(&out, &want, 576 + 1536 + 641);
    }
}

#[test]
fn empty_dimensions_give_zeros_or_nothing() {
    let lhs = PackedLhs::new(MatRef::new(&[], 2, 0));
    let b = Rhs::Dense(MatRef::new(&[], 0, 3));
    let mut out = vec![7.0; 6];
    gemm(&mut out, 3, 2, 3, 1.0, &[(&lhs, b)]);
    assert_eq!(out, [7.0; 6]);
    gemm(&mut out, 3, 2, 3, 0.0, &[(&lhs, b)]);
    assert_eq!(out, [0.0; 6]);
    gemm(&mut [], 3, 0, 3, 0.0, &[(&PackedLhs::new(MatRef::new(&[], 0, 0)), b)]);
    gemm_serial(0, 0, 0, 1.0, MatRef::new(&[], 0, 0), MatRef::new(&[], 0, 0), 0.0, &mut [], 0);
    let mut out = [7.0; 2];
    gemm_tn_skinny(0, 1, 2, &[], &[], 1.0, &mut out, 0.0);
    assert_eq!(out, [0.0; 2]);
    gemm_tn_skinny(0, 0, 2, &[], &[], 1.0, &mut [], 0.0);
    let w = from_bytes(Format::F32, 0, 4, vec![]).unwrap();
    matvec(w.as_ref(), &[0.0; 4], 1, &mut []);
}

#[test]
fn nan_and_infinity_stay_in_their_row_and_column() {
    for &level in Level::available() {
        let kernels = Kernels::of(level);
        let (m, n, k) = (17, 45, 20);
        let (mut a, mut b) = (noise(m * k, 7), noise(k * n, 8));
        a[3 * k + 2] = f32::NAN;
        b[5 * n + 44] = f32::INFINITY;
        let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
        let mut out = vec![f32::NAN; m * n];
        gemm(&mut out, n, m, n, 0.0, &[(&PackedLhs::on(kernels, a), Rhs::Dense(b))]);
        for (i, row) in out.chunks(n).enumerate() {
            for (j, v) in row.iter().enumerate() {
                assert_eq!(v.is_finite(), i != 3 && j != 44, "{i} {j}");
            }
        }
    }
}

#[test]
fn threads_and_batches_do_not_change_a_byte() {
    let (m, n, k) = (300, 576, 1152);
    let (a, w) = (noise(m * k, 9), noise(n * k, 10));
    let w = crate::Tensor::from_vec(n, k, w);
    let run = |rows: usize| {
        let lhs = PackedLhs::new(MatRef::new(&a[..rows * k], rows, k));
        let mut out = vec![0.0; rows * n];
        gemm(&mut out, n, rows, n, 0.0, &[(&lhs, Rhs::WeightT(&w))]);
        bits(&out)
    };
    let want = on_threads(1, || run(m));
    for threads in [2, 4, 7] {
        assert_eq!(on_threads(threads, || run(m)), want, "{threads} threads");
        for rows in [1, 8, 64, 131] {
            assert_eq!(on_threads(threads, || run(rows)), want[..rows * n], "{rows} rows");
        }
    }
    let skinny = |t: usize| {
        let mut out = vec![0.0; 16 * k];
        gemm_tn_skinny(t, 16, k, &noise(t * 16, 1), &a[..t * k], 1.0, &mut out, 0.0);
        bits(&out)
    };
    let want = on_threads(1, || skinny(m));
    for threads in [2, 4] {
        assert_eq!(on_threads(threads, || skinny(m)), want);
    }
}

#[test]
fn serial_products_scale_and_accumulate() {
    for &level in Level::available() {
        let kernels = Kernels::of(level);
        for (m, n, k) in [(1, 1, 1), (64, 64, 64), (33, 80, 1300), (7, 31, 5)] {
            let (a, b) = (noise(m * k, 11), noise(k * n, 12));
            let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
            let want: Vec<f64> = product(a, b).iter().map(|v| 0.5 * v + 2.0).collect();
            let mut out = vec![2.0; m * n];
            serial_on(kernels, m, n, k, 0.5, a, b, 1.0, &mut out, n);
            assert_close(&out, &want, k);
        }
    }
}

#[test]
fn skinny_products_are_right_on_every_level() {
    for &level in Level::available() {
        for r in [1, 2, 8, 13, 16, 64] {
            for (t, k) in [(1, 1), (5, 33), (300, 576), (513, 47)] {
                let (a, b) = (noise(t * r, 13), noise(t * k, 14));
                let (a, b) = (MatRef::new(&a, t, r), MatRef::new(&b, t, k));
                let want: Vec<f64> = product(a.t(), b).iter().map(|v| 0.25 * v + 1.0).collect();
                let mut out = vec![1.0; r * k];
                Skinny { kernels: Kernels::of(level), a, b, alpha: 0.25 }.run(&mut out, 1.0);
                assert_close(&out, &want, t);
            }
        }
    }
}

/// A random matrix in a format.
fn stored(format: Format, rows: usize, cols: usize, seed: u32) -> Box<dyn Storage> {
    let bytes = encode(format, rows, cols, &noise(rows * cols, seed)).unwrap();
    from_bytes(format, rows, cols, bytes).unwrap()
}

/// Random matrices in every storage: rows of about 37 `blocks` columns where the storage takes any number, so that its own blocks straddle them.
fn storages(rows: usize, blocks: usize, seed: u32) -> Vec<Box<dyn Storage>> {
    let cols = 37 * blocks;
    let data = noise(rows * cols, seed);
    let formats =
        Format::all().map(|f| stored(f, rows, if f.block() == 1 { cols } else { f.block() * blocks }, seed));
    let mut all: Vec<_> = formats.collect();
    for (code, double) in Code4::ALL.into_iter().flat_map(|code| [(code, false), (code, true)]) {
        for blocksize in [64, 8] {
            all.push(Box::new(FourBit::quantize(code, blocksize, double, rows, cols, &data).unwrap()));
        }
    }
    all.push(Box::new(RowInt8::quantize(rows, cols, &data).unwrap()));
    all
}

fn decoded(w: &dyn Storage) -> Vec<f32> {
    let mut all = vec![0.0; w.rows() * w.cols()];
    for (i, row) in all.chunks_exact_mut(w.cols()).enumerate() {
        w.decode(i, 0, row);
    }
    all
}

#[test]
fn every_storage_multiplies_as_its_decoded_self_in_both_orientations() {
    for (rows, blocks, m) in [(1, 1, 1), (33, 3, 13), (70, 5, 40)] {
        for w in storages(rows, blocks, 20 + blocks as u32) {
            for &level in Level::available() {
                let kernels = Kernels::of(level);
                let (format, cols) = (w.format(), w.cols());
                let plain = decoded(w.as_ref());
                let plain = MatRef::new(&plain, rows, cols);
                let (x, g) = (noise(m * cols, 15), noise(m * rows, 16));
                let x = PackedLhs::on(kernels, MatRef::new(&x, m, cols));
                let g = PackedLhs::on(kernels, MatRef::new(&g, m, rows));
                let run = |lhs: &PackedLhs, rhs: Rhs| {
                    let n = rhs.width();
                    let mut out = vec![f32::NAN; m * n];
                    gemm(&mut out, n, m, n, 0.0, &[(lhs, rhs)]);
                    bits(&out)
                };
                assert_eq!(
                    run(&x, Rhs::WeightT(w.as_ref())),
                    run(&x, Rhs::Dense(plain.t())),
                    "{format} {rows} x {cols}"
                );
                assert_eq!(
                    run(&g, Rhs::Weight(w.as_ref())),
                    run(&g, Rhs::Dense(plain)),
                    "{format} {rows} x {cols}"
                );
            }
        }
    }
}

#[test]
fn one_row_products_follow_the_decoded_weight() {
    for (rows, blocks) in [(1, 1), (9, 2), (67, 5)] {
        for w in storages(rows, blocks, 30) {
            let cols = w.cols();
            let plain = decoded(w.as_ref());
            for m in [1, 3] {
                let x = noise(m * cols, 17);
                let want = product(MatRef::new(&x, m, cols), MatRef::new(&plain, rows, cols).t());
                let mut out = vec![f32::NAN; m * rows];
                matvec(w.as_ref(), &x, m, &mut out);
                assert_close(&out, &want, cols);
                for threads in [1, 2, 4] {
                    let mut again = vec![f32::NAN; m * rows];
                    let mut other = vec![f32::NAN; m * rows];
                    on_threads(threads, || {
                        matvec_many(&[w.as_ref(), w.as_ref()], &x, m, &mut [&mut again, &mut other])
                    });
                    assert_eq!((bits(&again), bits(&other)), (bits(&out), bits(&out)));
                }
            }
        }
    }
}

#[test]
fn pieces_of_a_row_decode_as_the_whole() {
    for w in storages(3, 7, 40) {
        let (cols, block) = (w.cols(), w.block());
        let whole = decoded(w.as_ref());
        let blocks = cols / block;
        for (from, to) in
            [(0, 1), (2, 5), (blocks - 1, blocks), (3, 3), (1, blocks), (2, blocks - 1), (5, 5 + blocks / 2)]
        {
            let to = to.min(blocks);
            let mut piece = vec![f32::NAN; (to - from) * block];
            w.decode(1, from * block, &mut piece);
            let at = cols + from * block;
            assert_eq!(bits(&piece), bits(&whole[at..at + piece.len()]), "{} {from}..{to}", w.format());
        }
    }
}
