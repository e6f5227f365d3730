//! NF4, FP4 and int8 against bitsandbytes (tests/data/bnb, written by scripts/reference/make_bnb.py), and what their parts must be.

use super::fixtures::{floats, read};
use super::*;

const MATRIX: (usize, usize) = (151, 127);
const EDGE: (usize, usize) = (5, 67);

fn file(name: &str) -> Vec<u8> {
    read("bnb", name)
}

fn numbers(name: &str) -> Vec<f32> {
    floats("bnb", name)
}

/// The script's matrix: louder in some blocks.
fn matrix() -> Vec<f32> {
    let mut s = 1u32;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..MATRIX.0 * MATRIX.1).map(|i| next() * (1 + i / 64 % 7) as f32).collect()
}

fn decoded(w: &dyn Storage) -> Vec<f32> {
    let mut all = vec![f32::NAN; w.rows() * w.cols()];
    all.chunks_exact_mut(w.cols()).enumerate().for_each(|(i, row)| w.decode(i, 0, row));
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Equal values; zeros of either sign are.
#[track_caller]
fn assert_values(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w, "element {i}: {g} {w}");
    }
}

fn single(w: &FourBit) -> &[f32] {
    match w.constants() {
        Constants::Single(absmax) => absmax,
        Constants::Double { .. } => panic!("{} has quantised constants", w.format()),
    }
}

#[test]
fn four_bits_are_the_bytes_of_the_reference() {
    for code in [Code4::Nf4, Code4::Fp4] {
        for (name, (rows, cols), data) in [("matrix", MATRIX, matrix()), ("edge", EDGE, numbers("edge.f32"))]
        {
            let w = FourBit::quantize(code, 64, false, rows, cols, &data).unwrap();
            let name = format!("{}_{name}", code.name());
            assert_eq!(bits(single(&w)), bits(&numbers(&format!("{name}.absmax"))), "{name}");
            let want = file(&format!("{name}.packed"));
            let wrong = w.packed().iter().zip(&want).position(|(a, b)| a != b);
            assert_eq!((wrong, w.packed().len()), (None, want.len()), "{name}");
            if name.ends_with("edge") {
                assert_values(&decoded(&w), &numbers(&format!("{name}.decoded")));
            }
        }
    }
}

#[test]
fn a_block_of_zeros_has_the_code_of_zero() {
    for (code, zero) in [(Code4::Nf4, 0x77), (Code4::Fp4, 0), (Code4::Int4, 0x77)] {
        // The last block is short, and the number of elements odd.
        let w = FourBit::quantize(code, 64, false, 1, 67, &[0.0; 67]).unwrap();
        assert_eq!(w.packed(), [zero; 34]);
        assert_values(&decoded(&w), &[0.0; 67]);
    }
}

#[test]
fn constants_are_quantised_as_in_the_reference() {
    let w = FourBit::quantize(Code4::Nf4, 64, true, MATRIX.0, MATRIX.1, &matrix()).unwrap();
    let Constants::Double { codes, map, absmax, blocksize, offset } = w.constants() else { panic!() };
    assert_eq!(w.packed(), file("nf4_matrix.packed"));
    assert_eq!((*blocksize, map.as_ref()), (256, dynamic_map(true)));
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
    assert!(near(*offset, numbers("double.offset")[0]));
    assert!(absmax.iter().zip(numbers("double.absmax")).all(|(a, b)| near(*a, b)));
    let want = file("double.codes");
    assert!(codes.iter().zip(&want).all(|(a, b)| a.abs_diff(*b) <= 1));
    let equal = codes.iter().zip(&want).filter(|(a, b)| a == b).count();
    assert!(equal * 1000 >= 995 * want.len(), "{equal} of {}", want.len());
}

#[test]
fn parts_of_the_reference_decode_to_its_values() {
    let constants = Constants::Double {
        codes: file("double.codes"),
        map: Box::new(*dynamic_map(true)),
        absmax: numbers("double.absmax"),
        blocksize: 256,
        offset: numbers("double.offset")[0],
    };
    let packed = file("nf4_matrix.packed");
    let map = *Code4::Nf4.table();
    let w = FourBit::from_parts(Code4::Nf4, 64, MATRIX.0, MATRIX.1, packed, map, constants).unwrap();
    let want = numbers("double.decoded");
    assert_values(&decoded(&w)[MATRIX.0 * MATRIX.1 - want.len()..], &want);
    assert_eq!((w.format(), w.bytes()), ("nf4+dq", 9589 + 300 + 2 * 4 + 1024 + 4));
    assert_eq!(w.bytes(), FourBit::size(64, true, MATRIX.0, MATRIX.1).unwrap());
}

#[test]
fn rows_of_int8_are_those_of_the_reference() {
    let (rows, cols) = (7, MATRIX.1);
    let w = RowInt8::quantize(rows, cols, &numbers("int8.f32")).unwrap();
    assert_eq!(bits(w.scales()), bits(&numbers("int8.scales")));
    assert!(w.values().iter().map(|q| *q as u8).eq(file("int8.values")));
    assert_values(&decoded(&w), &numbers("int8.decoded"));
    assert_eq!(w.bytes(), RowInt8::size(rows, cols).unwrap());
    let again = RowInt8::from_parts(rows, cols, w.values().to_vec(), w.scales().to_vec()).unwrap();
    assert_eq!(bits(&decoded(&again)), bits(&decoded(&w)));
}

/// Every element by the formula, for all codes, block sizes, odd sizes; the same on 1 and 3 threads.
#[test]
fn elements_are_the_nearest_code_times_their_constant() {
    let all = matrix();
    for (rows, cols) in [(1, 1), (3, 5), (2, 64), (7, 100), (151, 127), (40, 1024)] {
        let data: Vec<f32> = all.iter().cycle().take(rows * cols).copied().collect();
        for blocksize in [1, 2, 8, 64, 4096] {
            for (code, double) in Code4::ALL.into_iter().flat_map(|c| [(c, false), (c, true)]) {
                let w = FourBit::quantize(code, blocksize, double, rows, cols, &data).unwrap();
                let got = decoded(&w);
                for (i, v) in got.iter().enumerate() {
                    let q = w.packed()[i / 2] >> (4 - i % 2 * 4) & 15;
                    let constant = w.constants().at(i / blocksize);
                    assert_eq!(v.to_bits(), (w.map()[usize::from(q)] * constant).to_bits());
                    let most = data[i / blocksize * blocksize..].iter().take(blocksize);
                    let most = most.fold(0.0f32, |m, v| m.max(v.abs()));
                    let nearest = code.table().iter().map(|c| (c - data[i] / most).abs()).fold(9.0, f32::min);
                    let distance = (w.map()[usize::from(q)] - data[i] / most).abs();
                    assert!(distance <= nearest + 1e-6, "{} {rows} x {cols} element {i}", w.format());
                }
                let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
                let again = pool.install(|| FourBit::quantize(code, blocksize, double, rows, cols, &data));
                let again = again.unwrap();
                assert!(again.packed() == w.packed() && again.constants() == w.constants());
            }
        }
    }
}

/// Standard normal numbers: sums of twelve would not have the tails, so Box and Muller's.
fn normal(n: usize) -> Vec<f32> {
    let uniform = |i: usize, k: u32| {
        let mut s = (i as u64 * 2 + u64::from(k)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        s = (s ^ s >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        s = (s ^ s >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((s ^ s >> 31) >> 11) as f64 / (1u64 << 53) as f64
    };
    let one = |i| (-2.0 * (1.0 - uniform(i, 0)).ln()).sqrt() * (std::f64::consts::TAU * uniform(i, 1)).cos();
    (0..n).map(|i| one(i) as f32).collect()
}

#[test]
fn errors_on_normal_numbers_are_those_of_the_reference() {
    let (rows, cols) = (512, 1024);
    let data = normal(rows * cols);
    let rmse = |w: &dyn Storage| {
        let sum: f64 = decoded(w).iter().zip(&data).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (sum / data.len() as f64).sqrt()
    };
    for (code, double, want) in [
        (Code4::Nf4, false, 0.0920),
        (Code4::Nf4, true, 0.0920),
        (Code4::Fp4, false, 0.1219),
        (Code4::Int4, false, 0.1076),
    ] {
        let w = FourBit::quantize(code, 64, double, rows, cols, &data).unwrap();
        let got = rmse(&w);
        assert!((got - want).abs() < 3e-4, "{}: {got}", w.format());
    }
    let got = rmse(&RowInt8::quantize(rows, cols, &data).unwrap());
    assert!(got < 0.009, "int8: {got}");
    let bits = |double| FourBit::size(64, double, 2048, 2048).unwrap() as f64 * 8.0 / (2048.0 * 2048.0);
    assert_eq!(bits(false), 4.5);
    assert!((bits(true) - 4.126_953_125 - 8.0 * 1028.0 / 4_194_304.0).abs() < 1e-12);
}

#[test]
fn what_is_not_finite_is_not_quantised() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 17, 63, 64, 100, 130] {
            let mut data = vec![1.0; 131];
            data[at] = bad;
            for code in Code4::ALL {
                let error = FourBit::quantize(code, 64, true, 1, 131, &data).err().unwrap().to_string();
                assert!(error.contains(&format!("row 0, column {at} is {bad}")), "{error}");
            }
            assert!(RowInt8::quantize(1, 131, &data).is_err());
        }
    }
    assert!(matches!(
        RowInt8::quantize(2, 2, &[0.0; 3]),
        Err(StorageError::Elements { want: 4, got: 3, .. })
    ));
    for blocksize in [0, 3, 63, 1 << 20, usize::MAX] {
        let error = FourBit::quantize(Code4::Nf4, blocksize, false, 1, 2, &[0.0; 2]).err().unwrap();
        assert!(matches!(error, StorageError::Blocksize { .. }));
    }
}

fn double(change: impl FnOnce(&mut Vec<u8>, &mut Box<[f32; 256]>, &mut Vec<f32>, &mut f32)) -> Constants {
    let (mut codes, mut map, mut absmax, mut offset) =
        (vec![7; 3], Box::new(*dynamic_map(true)), vec![1.0], 2.0);
    change(&mut codes, &mut map, &mut absmax, &mut offset);
    Constants::Double { codes, map, absmax, blocksize: 256, offset }
}

#[test]
fn damaged_parts_are_errors_that_say_what() {
    let open = |packed: usize, map: [f32; 16], constants| {
        let w = FourBit::from_parts(Code4::Nf4, 64, 3, 43, vec![0; packed], map, constants);
        w.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let map = *Code4::Nf4.table();
    let ok = || Constants::Single(vec![1.0; 3]);
    assert_eq!(open(65, map, ok()), "");
    assert_eq!(open(65, map, double(|_, _, _, _| ())), "");
    for (got, want) in [
        (open(64, map, ok()), "takes 65 bytes, not 64"),
        (open(66, map, ok()), "takes 65 bytes, not 66"),
        (open(65, [f32::NAN; 16], ok()), "entry of the map 0 of nf4 is NaN"),
        (open(65, [2.0; 16], ok()), "entry of the map 0 of nf4 is 2"),
        (open(65, map, Constants::Single(vec![1.0; 2])), "needs 3 absmax constants, not 2"),
        (open(65, map, Constants::Single(vec![1.0, -1.0, 1.0])), "absmax constant 1 of nf4 is -1"),
        (open(65, map, Constants::Single(vec![1.0, 1.0, f32::INFINITY])), "absmax constant 2 of nf4 is inf"),
        (open(65, map, double(|codes, _, _, _| codes.push(0))), "needs 3 quantised absmax constants, not 4"),
        (
            open(65, map, double(|_, map, _, _| map[9] = f32::NAN)),
            "entry of the nested map 9 of nf4+dq is NaN",
        ),
        (open(65, map, double(|_, _, absmax, _| absmax.clear())), "needs 1 nested absmax constants, not 0"),
        (open(65, map, double(|_, _, absmax, _| absmax[0] = f32::NAN)), "nested absmax constant 0"),
        (
            open(65, map, double(|_, _, absmax, _| absmax[0] = -0.5)),
            "nested absmax constant 0 of nf4+dq is -0.5",
        ),
        (open(65, map, double(|_, _, _, offset| *offset = f32::NAN)), "nested offset"),
        (open(65, map, double(|_, _, a, offset| (a[0], *offset) = (f32::MAX, f32::MAX))), "nested offset"),
    ] {
        assert!(got.contains(want), "{got:?} should say {want:?}");
    }
    let huge = FourBit::from_parts(Code4::Fp4, 64, usize::MAX, 3, vec![], map, ok());
    assert!(matches!(huge, Err(StorageError::Huge { .. })));
    let wrong = [
        RowInt8::from_parts(2, 3, vec![0; 5], vec![1.0; 2]),
        RowInt8::from_parts(2, 3, vec![0; 6], vec![1.0; 3]),
        RowInt8::from_parts(2, 3, vec![0; 6], vec![1.0, f32::NAN]),
        RowInt8::from_parts(2, 3, vec![0; 6], vec![-1.0, 0.0]),
        RowInt8::from_parts(usize::MAX, usize::MAX, vec![], vec![]),
    ];
    assert!(wrong.into_iter().all(|w| w.is_err()));
}

#[test]
fn empty_matrices_are_matrices() {
    for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
        let w = FourBit::quantize(Code4::Nf4, 64, true, rows, cols, &[]).unwrap();
        assert_eq!((w.packed().len(), w.constants().len()), (0, 0));
        assert!(RowInt8::quantize(rows, cols, &[]).is_ok());
    }
}
