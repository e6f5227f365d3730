//! Files of every kind that is read, and of many that are broken.

use super::*;
use crate::sound::{is_silent, quietest};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/sound").join(name)
}

/// A wav file: `format` 1 is whole numbers, 3 floats; `samples` are interleaved.
fn wav(rate: u32, channels: u16, format: u16, bits: u16, samples: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut out = b"RIFF".to_vec();
    out.extend((36 + samples.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt \x10\0\0\0");
    out.extend([format.to_le_bytes(), channels.to_le_bytes()].concat());
    out.extend([rate.to_le_bytes(), (rate * u32::from(block)).to_le_bytes()].concat());
    out.extend([block.to_le_bytes(), bits.to_le_bytes()].concat());
    out.extend(b"data");
    out.extend((samples.len() as u32).to_le_bytes());
    out.extend(samples);
    out
}

fn tone(rate: u32, n: usize) -> Vec<f32> {
    (0..n).map(|i| 0.5 * (i as f32 * 2_000.0 / rate as f32).sin()).collect()
}

fn shorts(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|x| ((x * 32_768.0) as i16).to_le_bytes()).collect()
}

fn floats(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|x| x.to_le_bytes()).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn message(&self, name: &str, bytes: &[u8]) -> String {
        let message = load(&self.file(name, bytes)).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        message
    }
}

#[test]
fn wav_of_any_width() {
    let folder = Folder::new();
    let wanted = tone(16_000, 5_000);
    let close = |found: &[f32], step: f32| {
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= step));
    };
    close(&load(&folder.file("a.wav", &wav(16_000, 1, 3, 32, &floats(&wanted)))).unwrap(), 0.0);
    close(&load(&folder.file("b.wav", &wav(16_000, 1, 1, 16, &shorts(&wanted)))).unwrap(), 1.0 / 32_768.0);
    let bytes: Vec<u8> = wanted.iter().map(|x| (x * 128.0 + 128.0) as u8).collect();
    close(&load(&folder.file("c.wav", &wav(16_000, 1, 1, 8, &bytes))).unwrap(), 1.0 / 64.0);
    // The mean of two channels.
    let stereo: Vec<f32> = wanted.iter().flat_map(|x| [x * 2.0, 0.0]).collect();
    close(&load(&folder.file("d.wav", &wav(16_000, 2, 3, 32, &floats(&stereo)))).unwrap(), 1e-6);
    let reader = Reader::open(&folder.file("e.wav", &wav(8_000, 2, 3, 32, &floats(&stereo)))).unwrap();
    assert_eq!((reader.seconds(), reader.rate(), reader.channels()), (Some(0.625), 8_000, 2));
}

/// As scripts/reference/make_sound_files.py makes it: beeps at 0.5 and 11.5 s of 12 s.
#[test]
fn flac_mp3_and_vorbis_keep_their_times() {
    let wanted = load(&data("beeps.flac")).unwrap();
    assert_eq!(wanted.len(), 12 * 16_000);
    assert!(is_silent(&wanted[9_000..180_000]) && !is_silent(&wanted[8_000..9_000]));
    for name in ["beeps.mp3", "beeps.ogg"] {
        let found = load(&data(name)).unwrap();
        assert!(found.len().abs_diff(wanted.len()) < 1_600, "{name}: {}", found.len());
        for beep in [8_000, 184_000] {
            // Where the two fit best: within a millisecond.
            let fit = |shift: isize| -> f32 {
                let at = |i: usize| found.get((i as isize + shift) as usize).copied().unwrap_or(0.0);
                (beep - 200..beep + 1_000).map(|i| wanted[i] * at(i)).sum()
            };
            let best = (-800..=800).max_by(|a, b| fit(*a).total_cmp(&fit(*b))).unwrap();
            assert!(best.abs() <= 16, "{name} at {beep}: {best}");
        }
    }
}

#[test]
fn parts_are_what_the_whole_has_there() {
    let folder = Folder::new();
    let long: Vec<f32> =
        (0..16 * 44_100).map(|i| 0.4 * (i as f32 * 0.01 + (i as f32 * 1e-5).powi(2)).sin()).collect();
    let long = folder.file("long.wav", &wav(44_100, 1, 1, 16, &shorts(&long)));
    for path in [long, data("beeps.flac"), data("beeps.mp3"), data("beeps.ogg")] {
        let whole = load(&path).unwrap();
        for (start, end) in [(0.25, 1.0), (10.75, 11.75), (11.25, 11.6)] {
            let part = load_part(&path, start, end).unwrap();
            assert_eq!(part.len(), samples(end - start), "{}", path.display());
            let there = &whole[samples(start)..];
            let worst = part.iter().zip(there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{} {start}: {worst}", path.display());
        }
        assert!(load_part(&path, 17.0, 18.0).unwrap_err().to_string().contains("ends before 17 s"));
        let rest = load_part(&path, 11.0, 99.0).unwrap();
        assert!(rest.len().abs_diff(whole.len() - 11 * 16_000) <= 1, "{}", path.display());
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = Folder::new();
    assert!(folder.message("a.wav", b"").contains("empty (0 bytes)"));
    assert!(folder.message("b.wav", b"hello, this is no sound at all").contains("no wav, flac, mp3 or ogg"));
    assert!(folder.message("c.m4a", b"x").contains(".m4a files are not read"));
    assert!(folder.message("d.wav", &wav(16_000, 1, 1, 16, &[])).contains("no sound in it (0 samples)"));
    let good = wav(16_000, 1, 1, 16, &shorts(&tone(16_000, 16_000)));
    assert!(folder.message("e.wav", &good[..good.len() / 2]).contains("cut short"));
    for value in [f32::NAN, f32::INFINITY] {
        let mut samples = tone(16_000, 1_000);
        samples[800] = value;
        let message = folder.message("f.wav", &wav(16_000, 1, 3, 32, &floats(&samples)));
        assert!(
            message.contains("0.050 s after its beginning") && message.contains("no number"),
            "{message}"
        );
    }
    let message = folder.message("g.wav", &wav(16_000, 1, 3, 32, &floats(&[20_000.0; 100])));
    assert!(message.contains("scale it"), "{message}");
    assert!(folder.message("h.wav", &wav(10, 1, 1, 16, &[0; 64])).contains("rate is 10 Hz"));
    folder.message("i.wav", &wav(16_000, 500, 1, 16, &[0; 4_000]));
    let message = load(&data("beeps.opus.ogg")).unwrap_err().to_string();
    assert!(message.contains("Opus is not read"), "{message}");
    assert!(load(folder.0.path()).unwrap_err().to_string().contains("not a regular file"));
    assert!(load(Path::new("/nowhere/x.wav")).unwrap_err().to_string().contains("cannot open"));
}

#[test]
fn damaged_files_end_in_a_sound_or_an_error() {
    let folder = Folder::new();
    let wave = wav(44_100, 2, 1, 16, &shorts(&tone(44_100, 4_000)));
    let files =
        ["beeps.flac", "beeps.mp3", "beeps.ogg"].map(|name| (name, std::fs::read(data(name)).unwrap()));
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n.max(1)
    };
    for (name, good) in files.into_iter().chain([("a.wav", wave)]) {
        for case in 0..24 {
            let mut bad = good.clone();
            match case % 3 {
                0 => bad.truncate(random(good.len())),
                1 => (0..4).for_each(|_| bad[random(good.len().min(300))] ^= 1 << random(8)),
                _ => (0..8).for_each(|_| bad[random(good.len())] = random(256) as u8),
            }
            let path = folder.file(name, &bad);
            if let Ok(found) = load(&path) {
                assert!(found.iter().all(|x| x.is_finite()) && found.len() < 30 * 16_000, "{name} {case}");
                quietest(&found, 0..found.len());
            }
            let _ = load_part(&path, 10.5, 11.0);
        }
    }
}
