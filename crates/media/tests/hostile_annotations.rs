//! Damaged annotation files end in boxes or in an error, never in a panic; and boxes that come out can be used.

use std::fs;

use retune_media::draws::Draws;
use retune_media::pictures::annotations::Rules;
use retune_media::pictures::{Annotations, Labelled, Picture, Splits};

const XML: &str = "<annotation><filename>a.png</filename><size><width>40</width><height>20</height></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>18.5</ymax></bndbox></object></annotation>";
const COCO: &str = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
"categories": [{"id": 3, "name": "dog"}], "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30.5, 10], "iscrowd": 0}]}"#;
const YAML: &str = "path: .\ntrain: images\nval: [images]\nnc: 2\nnames:\n  0: dog\n  1: 'a cat'\n";

/// A folder of one picture and some files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let picture = Picture::filled(40, 20, [9; 3]).to_png();
    for name in ["a.png", "images/a.png"] {
        fs::create_dir_all(dir.path().join("images")).unwrap();
        fs::write(dir.path().join(name), &picture).unwrap();
    }
    dir
}

/// The bytes with one to four of them changed, taken out or put in.
fn damaged(bytes: &[u8], draws: &mut Draws) -> Vec<u8> {
    const LIKELY: &[u8] = b"\"'{}[]<>&;:,.-eE0 9\n\0\xff\xc3*|";
    let mut out = bytes.to_vec();
    for _ in 0..1 + draws.below(4) {
        let at = draws.below(out.len().max(1));
        let byte = if draws.chance(0.7) { LIKELY[draws.below(LIKELY.len())] } else { draws.bits() as u8 };
        match draws.below(4) {
            _ if out.is_empty() => out.push(byte),
            0 => out[at] = byte,
            1 => out.insert(at, byte),
            2 => drop(out.remove(at)),
            _ => out.truncate(at),
        }
    }
    out
}

fn check(parts: &Splits<Annotations>) {
    for set in [Some(&parts.train), parts.val.as_ref(), parts.test.as_ref()].into_iter().flatten() {
        assert_eq!(set.counts().len(), set.classes.len());
        for b in set.pictures.iter().flat_map(|picture| &picture.boxes) {
            let [left, top, right, bottom] = b.bounds.corners();
            let inside = left >= -1e-6 && top >= -1e-6 && right <= 1.0 + 1e-6 && bottom <= 1.0 + 1e-6;
            assert!(b.bounds.is_proper() && inside && (b.class as usize) < set.classes.len(), "{b:?}");
        }
    }
}

fn attack(files: &[(&str, &str)], target: &str, open: &str) {
    let dir = folder(files);
    let path = dir.path().join(target);
    let whole = fs::read(&path).unwrap();
    let open = dir.path().join(open);
    check(&Annotations::open(&open, Rules::Strict).unwrap_or_else(|e| panic!("{target}: {e}")));
    for round in 0..150 {
        fs::write(&path, damaged(&whole, &mut Draws::new(1, 0, round))).unwrap();
        for rules in [Rules::Strict, Rules::Lenient] {
            match Annotations::open(&open, rules) {
                Ok(parts) => check(&parts),
                Err(problems) => assert!(!problems.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn voc() {
    attack(&[("a.xml", XML)], "a.xml", "a.xml");
}

#[test]
fn coco() {
    attack(&[("boxes.json", COCO)], "boxes.json", "boxes.json");
}

#[test]
fn yolo_labels() {
    let text = "1 0.5 0.5 0.25 0.5\n0 .1 .1 .3 .1 .3 .5\n";
    attack(&[("images/x", ""), ("labels/a.txt", text), ("data.yaml", YAML)], "labels/a.txt", "data.yaml");
}

#[test]
fn yolo_yaml() {
    attack(&[("labels/a.txt", "1 0.5 0.5 0.25 0.5\n"), ("data.yaml", YAML)], "data.yaml", "data.yaml");
}

#[test]
fn tables() {
    let text =
        "image_path,xmin,ymin,xmax,ymax,label\na.png,1,2,30,18,dog\na.png,,,,,\nimages/a.png,0,0,40,20,cat\n";
    attack(&[("boxes.csv", text)], "boxes.csv", "boxes.csv");
}

#[test]
fn idx() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let images = [&[0u8, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..], &[7; 8]].concat();
    let labels = [0, 0, 8, 1, 0, 0, 0, 2, 5, 6];
    write("train-labels-idx1-ubyte", &labels);
    for round in 0..150 {
        write("train-images-idx3-ubyte", &damaged(&images, &mut Draws::new(2, 0, round)));
        if let Ok(parts) = Labelled::open(dir.path()) {
            assert!((0..parts.train.len()).all(|i| parts.train.read(i).is_ok()));
        }
    }
    write("train-images-idx3-ubyte", &images);
    for round in 0..200 {
        write("train-labels-idx1-ubyte", &damaged(&labels, &mut Draws::new(3, 0, round)));
        let _ = Labelled::open(dir.path());
    }
}
