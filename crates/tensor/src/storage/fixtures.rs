//! Every GGUF type against the `gguf` package (tests/data/gguf_types, written by scripts/reference/make_gguf_types.py).

use std::path::PathBuf;

use super::{Format, encode, from_bytes};

const ROWS: usize = 2;
const TYPES: &str = "gguf_types";

/// A file of tests/data.
pub(super) fn read(folder: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(folder).join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The numbers of such a file.
pub(super) fn floats(folder: &str, name: &str) -> Vec<f32> {
    read(folder, name).as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)).collect()
}

#[test]
fn every_quantised_type_decodes_to_the_bits_of_the_reference() {
    for format in Format::all().filter(|f| f.block() > 1) {
        let want = floats(TYPES, &format!("{}.f32", format.name()));
        let cols = want.len() / ROWS;
        let w = from_bytes(format, ROWS, cols, read(TYPES, &format!("{}.bin", format.name()))).unwrap();
        let mut got = vec![f32::NAN; cols];
        for (row, want) in want.chunks_exact(cols).enumerate() {
            w.decode(row, 0, &mut got);
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!(g == w, "{} row {row} column {i}: {g} {w}", format.name());
            }
        }
    }
}

#[test]
fn encoding_gives_the_bytes_of_the_reference() {
    let (plain, k_quants) = (floats(TYPES, "source.f32"), floats(TYPES, "k_source.f32"));
    for format in Format::all().filter(|f| *f != Format::F32) {
        let source = if format.block() == 256 { &k_quants } else { &plain };
        let got = encode(format, ROWS, source.len() / ROWS, source).unwrap();
        let want = read(TYPES, &format!("{}.encoded", format.name()));
        let wrong = got.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!((wrong, got.len()), (None, want.len()), "{}", format.name());
    }
}

#[test]
fn what_was_encoded_decodes_near_its_source() {
    let source = floats(TYPES, "source.f32");
    let cols = source.len() / ROWS;
    for (format, worst) in
        [(Format::Q8_0, 0.005), (Format::Q5_1, 0.04), (Format::Q4_0, 0.13), (Format::F16, 0.0006)]
    {
        let w = from_bytes(format, ROWS, cols, encode(format, ROWS, cols, &source).unwrap()).unwrap();
        let mut got = vec![0.0; cols];
        w.decode(1, 0, &mut got);
        for (got, want) in got.chunks(32).zip(source[cols..].chunks(32)) {
            let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= worst * most), "{}", format.name());
        }
    }
}
