//! Classes and boxes of pictures as a user learns and tells them, on tiny random networks.

mod common;

use std::path::PathBuf;

use common::{Ran, ran};
use retune_formats::TensorSource;
use retune_media::pictures::{Picture, decode};
use serde_json::{Value, json};

/// A folder with networks and pictures: red ones and blue ones, and grey ones with a bright square somewhere.
struct Shop {
    dir: tempfile::TempDir,
}

const CFG: &str = "[net]\nwidth=64\nheight=64\nchannels=3\n\n[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n\n\
[convolutional]\nbatch_normalize=1\nfilters=16\nsize=3\nstride=2\npad=1\nactivation=leaky\n\n[convolutional]\nbatch_normalize=1\nfilters=32\nsize=3\nstride=2\n\
pad=1\nactivation=leaky\n\n[convolutional]\nsize=1\nstride=1\npad=1\nfilters=21\nactivation=linear\n\n[yolo]\nmask=0,1,2\nanchors=12,12, 20,20, 32,32\n\
classes=2\nnum=3\nignore_thresh=.7\n";

impl Shop {
    fn new() -> Shop {
        let shop = Shop { dir: tempfile::tempdir().unwrap() };
        shop.colours();
        shop.squares();
        let vgg = json!({
            "model_type": "vgg", "cfg": [8, "M", 16, "M"], "batch_norm": true, "dense": [], "num_labels": 3,
            "image_input": {"width": 16, "height": 16, "fit": "stretch"},
        });
        let darknet = json!({"model_type": "darknet", "cfg": CFG});
        for (name, config) in [("vgg", vgg), ("yolo", darknet)] {
            std::fs::write(shop.path(&format!("{name}.json")), config.to_string()).unwrap();
            shop.retune(&format!("init --config {name}.json --out {name}")).ok();
        }
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn retune(&self, words: &str) -> Ran {
        ran(common::program().args(words.split_whitespace()).current_dir(self.dir.path()).output().unwrap())
    }

    /// Ends with an error that says this.
    fn refused(&self, words: &str, why: &str) {
        let ran = self.retune(words);
        assert!(ran.code != 0 && ran.stderr.contains(why), "no {why:?} in ({}):\n{}", ran.code, ran.stderr);
    }

    fn colours(&self) {
        for (class, colour) in [("red", [220, 30, 30]), ("blue", [30, 30, 220])] {
            let folder = self.path("colours").join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..12u8 {
                let shade = colour.map(|c: u8| c.saturating_add(2 * i));
                Picture::filled(20, 20, shade).write(&folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }

    fn squares(&self) {
        let folder = self.path("squares");
        for part in ["images", "labels"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        std::fs::write(folder.join("classes.txt"), "dark\nbright\n").unwrap();
        for i in 0..10usize {
            let (class, shade) = (i % 2, [40, 230][i % 2]);
            let (x, y) = (8 + 3 * i, 38 - 2 * i);
            let mut picture = Picture::filled(64, 64, [128; 3]);
            for dy in 0..18 {
                for dx in 0..18 {
                    picture.set(x + dx, y + dy, [shade; 3]);
                }
            }
            picture.write(&folder.join(format!("images/{i}.png"))).unwrap();
            let line = format!(
                "{class} {} {} {} {}\n",
                (x + 9) as f32 / 64.0,
                (y + 9) as f32 / 64.0,
                18.0 / 64.0,
                18.0 / 64.0
            );
            std::fs::write(folder.join(format!("labels/{i}.txt")), line).unwrap();
        }
    }

    fn json(&self, words: &str) -> Vec<Value> {
        self.retune(&format!("{words} --json")).ok().json_lines()
    }
}

#[test]
fn classes_are_learned_and_told() {
    let shop = Shop::new();
    let trained = shop
        .retune("train --model vgg --data colours --method full --epochs 20 --batch 8 --lr 1e-2 --out out")
        .ok();
    assert!(trained.stderr.contains("pictures/s"), "{}", trained.stderr);
    let report = std::fs::read_to_string(shop.path("out/report.html")).unwrap();
    assert!(report.contains("data:image/png;base64,"), "no pictures in the report");
    let told = shop.json("predict --model out --image colours/red/3.png --image colours/blue");
    assert_eq!(told.len(), 13);
    assert_eq!((told[0]["label"].as_str(), told[1]["label"].as_str()), (Some("red"), Some("blue")));
    let measured = shop.json("eval --model out --data colours");
    assert!(measured[0]["accuracy"].as_f64().unwrap() > 0.9, "{:?}", measured[0]);
}

#[test]
fn a_new_head_on_a_frozen_trunk_is_an_adapter() {
    let shop = Shop::new();
    let weights = std::fs::read(shop.path("vgg/model.safetensors")).unwrap();
    shop.retune(
        "train --model vgg --data colours --method head --image-size 24 --epochs 30 --lr 5e-2 --out head",
    )
    .ok();
    shop.retune("train --model vgg --data colours --method lora --epochs 2 --out lora").ok();
    assert_eq!(weights, std::fs::read(shop.path("vgg/model.safetensors")).unwrap());
    let measured = shop.json("eval --model vgg --adapter head --data colours");
    assert!(measured[0]["accuracy"].as_f64().unwrap() > 0.9, "{:?}", measured[0]);
    shop.retune("merge --model vgg --adapter lora --out merged").ok();
    let told = |words: &str| shop.json(&format!("predict {words} --image colours/red"));
    let (beside, inside) = (told("--model vgg --adapter lora"), told("--model merged"));
    for (a, b) in beside.iter().zip(&inside) {
        let (a, b) = (a["score"].as_f64().unwrap(), b["score"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn boxes_are_learned_drawn_and_hidden() {
    let shop = Shop::new();
    let trained = shop
        .retune(
            "train --model yolo --data squares --eval-data squares --method full --epochs 60 --batch 5 --lr 5e-3 --augment none \
             --out found",
        )
        .ok();
    assert!(trained.stdout.contains("map50"), "{}", trained.stdout);
    let measured = shop.json("eval --model found --data squares");
    let map50 = measured[0]["detection"]["map50"].as_f64().unwrap();
    assert!(map50 > 0.3, "mAP@50 {map50}");
    let told = shop.json("predict --model found --image squares/images/1.png --confidence 0.1 --draw drawn");
    let object = &told[0]["objects"][0];
    assert!(object["label"].is_string() && object["box"].as_array().unwrap().len() == 4, "{object}");
    assert_eq!(decode::read(&shop.path("drawn/1.png")).unwrap().width, 64);
    shop.retune(
        "predict --model found --image squares/images/1.png --confidence 0.1 --draw hidden --anonymise",
    )
    .ok();
    let (was, is) = ("squares/images/1.png", "hidden/1.png");
    assert_ne!(decode::read(&shop.path(was)).unwrap(), decode::read(&shop.path(is)).unwrap());
}

/// What `--freeze` counts is what `inspect` numbers; what is frozen is not in the adapter, and is computed once.
#[test]
fn the_first_layers_of_a_detector_are_frozen() {
    let shop = Shop::new();
    let seen = shop.retune("inspect yolo").ok().stdout;
    for line in ["reads            pictures of 64 x 64", "classes          2:", "layers.2  ", "layers.3  "] {
        assert!(seen.contains(line), "{seen}");
    }
    let train = "train --model yolo --data squares --method partial --epochs 2";
    shop.retune(&format!("{train} --freeze 2 --out frozen")).ok();
    let delta = &shop.json("inspect frozen")[0];
    assert_eq!(
        (&delta["facts"]["method"], &delta["facts"]["trained for"]),
        (&json!("partial"), &json!("object-detection"))
    );
    assert_eq!(delta["facts"]["settings"], json!("freeze = 2"));
    let changed: Vec<&str> =
        delta["tensors"].as_array().unwrap().iter().map(|tensor| tensor["name"].as_str().unwrap()).collect();
    let new_head = ["layers.3.conv.weight", "layers.3.conv.bias"];
    assert!(new_head.iter().all(|name| changed.contains(name)), "{changed:?}");
    let of_layer_2 = changed.iter().filter(|name| name.starts_with("layers.2.")).count();
    assert_eq!((of_layer_2, changed.len()), (3, 5), "{changed:?}");
    shop.refused(&format!("{train} --freeze 9 --out no"), "numbered 0 to 2");
    shop.refused("train --model yolo --data squares --freeze 2 --out no", "give --method partial");
    shop.refused(&format!("{train} --freeze 2 --train-params layers.1 --out no"), "give one of them");
}

#[test]
fn sets_of_pictures_are_inspected() {
    let shop = Shop::new();
    let seen = shop.retune("inspect squares").ok().stdout;
    assert!(seen.contains("10 with 10 boxes") && seen.contains("2: dark 5, bright 5"), "{seen}");
    let seen = shop.retune("inspect colours").ok().stdout;
    assert!(seen.contains("2: blue 12, red 12") && !seen.contains("parameters"), "{seen}");
    std::fs::create_dir(shop.path("nothing")).unwrap();
    shop.refused("inspect nothing", "no pictures to learn from");
}

/// What is trained on can be looked at: the pictures as the network is given them, with what is to be learned.
#[test]
fn pictures_are_previewed_as_they_are_trained_on() {
    let shop = Shop::new();
    let lines = shop.json("preview --model yolo --data squares --method full --rows 2 --draw seen");
    let [first, _, all] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&first["width"], &all["augmented"]), (&json!(64), &json!("each epoch anew")));
    // Two pictures in four epochs.
    let sheet = decode::read(&shop.path("seen/preview.png")).unwrap();
    assert!(sheet.width > 4 * 240 && sheet.height > 2 * 240, "{} x {}", sheet.width, sheet.height);

    let lines =
        shop.json("preview --model yolo --data squares --method partial --freeze 2 --rows 2 --draw seen");
    assert_eq!(
        lines[2]["drawn"],
        json!(format!("seen{}preview-1.png", std::path::MAIN_SEPARATOR)),
        "nothing is replaced"
    );
    // Nothing is changed in front of a frozen trunk: the box is the file's.
    let object = &lines[0]["objects"][0];
    assert_eq!((&object["label"], object["box"].as_array().unwrap().len()), (&json!("dark"), 4));
    assert!((object["box"][0].as_f64().unwrap() - 8.0).abs() < 1e-3, "{object}");

    let lines = shop.json("preview --model vgg --data colours --method full --rows 1");
    assert!(["red", "blue"].contains(&lines[0]["label"].as_str().unwrap()), "{:?}", lines[0]);
    assert_eq!(lines[1]["pictures"].as_str().map(|n| n.parse::<u32>().is_ok()), Some(true));
    shop.refused("preview --model vgg --data nowhere", "nowhere");
}

#[test]
fn tiles_of_a_photo_keep_its_boxes() {
    let shop = Shop::new();
    let told =
        shop.retune("tile squares --size 40 --overlap 10 --only 1,2 --one-class thing --out tiles").ok();
    assert!(told.stdout.contains("8 tiles"), "{}", told.stdout);
    let classes = std::fs::read_to_string(shop.path("tiles/classes.txt")).unwrap();
    assert_eq!(classes.trim(), "thing");
    shop.refused("tile squares --out tiles", "there already");
    shop.refused("tile squares --only 11 --out more", "no picture is called \"11\"");
}

#[test]
fn raw_numbers_are_those_of_ultralytics() {
    let shop = Shop::new();
    let vision = |name: &str| common::data("vision").join(name).display().to_string();
    let pictures = vision("ultralytics_outputs.safetensors");
    let words = format!("logits --model {} --pictures {pictures} --out said", vision("ultralytics.pt"));
    let shapes = &shop.json(&words)[0]["shapes"];
    assert_eq!(shapes, &json!([[1, 8, 12, 19], [1, 4, 6, 19], [1, 2, 3, 19]]));
    let open = |path: &std::path::Path| retune_formats::safetensors::File::open(path).unwrap();
    let (ours, theirs) = (open(&shop.path("said")), open(pictures.as_ref()));
    for i in 0..3 {
        let ours = ours.read_f32(&format!("logits.{i}")).unwrap();
        let theirs = theirs.read_f32(&format!("ultralytics.{i}")).unwrap();
        let off = ours.iter().zip(&theirs).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-4, "scale {i} is off by {off}");
    }
    shop.refused(&format!("logits --model vgg --ids {pictures} --out no"), "input_ids");
    shop.refused(
        &format!("logits --model {} --pictures said --out no", vision("ultralytics.pt")),
        "pictures",
    );
    shop.refused("logits --model vgg --out no", "--pictures");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let shop = Shop::new();
    let train = "train --model vgg --data colours --out no";
    shop.refused(&format!("{train} --method prefix"), "attention");
    shop.refused(&format!("{train} --method prompt"), "token");
    shop.refused(&format!("{train} --method head --task text-classification"), "pictures");
    shop.refused(&format!("{train} --method head --image-size 9 --augment-flip 2"), "flip");
    shop.refused("predict --model vgg --text hello", "reads pictures");
    shop.refused("generate --model vgg --prompt hello", "pictures");
    std::fs::write(shop.path("colours/red/3.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    shop.refused(&format!("{train} --method head"), "colours/red/3.png");
    std::fs::write(shop.path("squares/labels/3.txt"), "7 0.5 0.5 0.1 0.1\n").unwrap();
    shop.refused("train --model yolo --data squares --method head --out no", "3.txt");
}
