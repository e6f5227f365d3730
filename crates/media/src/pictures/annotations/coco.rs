//! COCO json: `images`, `annotations` with boxes `[left, top, width, height]` in pixels, `categories`.
//!
//! Classes are the categories in the order of their ids. Crowds (`iscrowd: 1`) are no single objects and are left out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result};
use serde::Deserialize;

use super::super::limits;
use super::super::problems::Problems;
use super::super::splits::{Splits, TEST, TRAIN, VAL};
use super::super::walk::{self, Listing};
use super::build::{Build, Note, Place};
use super::{Annotations, Rules};

/// Every field that is read is needed: what the file takes in memory is in proportion to its text.
#[derive(Deserialize)]
struct Coco {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    id: u64,
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

pub fn open(path: &Path, rules: Rules) -> Result<Annotations, Problems> {
    let text = Bytes::open(path)?.read_text("COCO annotations", limits::COCO_BYTES)?;
    let coco: Coco = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| Error::Json {
        path: path.to_path_buf(),
        line: e.line(),
        column: e.column(),
        what: format!("no COCO annotations: {e}"),
    })?;
    drop(text);
    let (names, class_of) = categories(path, coco.categories)?;
    let mut build = Build::new(rules, Some(names));
    let mut pictures = Pictures::new(path, coco.images, &mut build.problems);
    for annotation in coco.annotations {
        let place = Place::Annotation(path, annotation.id);
        let Some(&at) = pictures.index.get(&annotation.image_id) else {
            build.problems.push(
                place.error(format!("its picture, image_id {}, is not among `images`", annotation.image_id)),
            );
            continue;
        };
        let (image, boxes) = &mut pictures.all[at];
        let Some(&class) = class_of.get(&annotation.category_id) else {
            build.refuse(
                place,
                format!(
                    "category_id {} is not among the {} `categories`",
                    annotation.category_id,
                    class_of.len()
                ),
            );
            continue;
        };
        if annotation.iscrowd != 0 {
            build.note(Note::Crowd, || place.name());
            continue;
        }
        let [x, y, w, h] = annotation.bbox;
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        build.add(place, boxes, class, [x / width, y / height, (x + w) / width, (y + h) / height]);
    }
    for (image, boxes) in pictures.all {
        match find_picture(path, &image.file_name) {
            Some(found) => {
                let size = Some((image.width as usize, image.height as usize));
                build.picture(found, size, boxes, path.display().to_string());
            }
            None => build.problems.push(Error::missing(
                path,
                format!("there is no picture {:?} (image {})", image.file_name, image.id),
                "put the pictures beside the file, into a folder `images`, or into the one that the name says",
            )),
        }
    }
    build.finish(path)
}

/// Names by class index, and the class index of each id.
fn categories(path: &Path, mut categories: Vec<Category>) -> Result<(Vec<String>, HashMap<u64, u32>)> {
    categories.sort_by_key(|category| category.id);
    if let Some(pair) = categories.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Error::invalid(path, "COCO", format!("two categories have the id {}", pair[0].id)));
    }
    if categories.len() > limits::CLASSES {
        return Err(Error::limit(
            path,
            "the number of categories",
            categories.len() as u64,
            limits::CLASSES as u64,
        ));
    }
    let (mut names, mut index, mut class_of) = (Vec::new(), HashMap::new(), HashMap::new());
    for Category { id, name } in categories {
        // Roboflow writes a super-category of the same name as a class: one class for both.
        let class = *index.entry(name).or_insert_with_key(|name: &String| {
            names.push(name.clone());
            names.len() as u32 - 1
        });
        class_of.insert(id, class);
    }
    Ok((names, class_of))
}

/// The pictures of the file with their boxes, and where each id is.
struct Pictures {
    all: Vec<(Image, Vec<super::LabelledBox>)>,
    index: HashMap<u64, usize>,
}

impl Pictures {
    fn new(path: &Path, images: Vec<Image>, problems: &mut Problems) -> Pictures {
        let mut pictures = Pictures { all: Vec::with_capacity(images.len()), index: HashMap::new() };
        for image in images {
            if image.width == 0 || image.height == 0 {
                let what = format!(
                    "image {} ({:?}) is {} x {} pixels",
                    image.id, image.file_name, image.width, image.height
                );
                problems.push(Error::invalid(path, "COCO", what));
            } else if pictures.index.insert(image.id, pictures.all.len()).is_some() {
                problems.push(Error::invalid(path, "COCO", format!("two images have the id {}", image.id)));
            } else {
                pictures.all.push((image, Vec::new()));
            }
        }
        pictures
    }
}

/// The picture beside the file, in `images`, or in the folder that the file is named after (`instances_train2017.json`:
/// `../train2017`, `../images/train2017`).
fn find_picture(json: &Path, name: &str) -> Option<PathBuf> {
    let folder = json.parent().unwrap_or(Path::new(""));
    let stem = json.file_stem().unwrap_or_default().to_string_lossy();
    let part = stem.rsplit_once('_').map_or(&*stem, |(_, part)| part);
    let above = folder.parent().unwrap_or(folder);
    [
        folder.join(name),
        folder.join("images").join(name),
        above.join(part).join(name),
        above.join("images").join(part).join(name),
        above.join("images").join(name),
        above.join(name),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

/// The COCO files of a data set: in the folder, or in its `annotations`; parts by the names. Other json is passed over.
pub fn find(listing: &Listing) -> Result<Option<Splits<PathBuf>>> {
    let mut files = listing.files.clone();
    if let Some(inner) = listing.folders.iter().find(|f| walk::name(f).eq_ignore_ascii_case("annotations")) {
        files.extend(walk::list(inner)?.files);
    }
    files.retain(|f| {
        super::extension(f) == "json"
            && !walk::name(f).starts_with("captions_")
            && !walk::name(f).starts_with("person_keypoints")
    });
    let has = |names: &[&str]| {
        files
            .iter()
            .find(|f| names.iter().any(|name| walk::name(f).to_ascii_lowercase().contains(name)))
            .cloned()
    };
    Ok(match (has(&TRAIN[..1]), &files[..]) {
        (Some(train), _) => Some(Splits { train, val: has(&VAL[..1]), test: has(&TEST[..1]) }),
        (None, [only]) => Some(Splits::one(only.clone())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, pixels, refused, tree};

    fn json(annotations: &str) -> String {
        format!(
            r#"{{"info": {{}}, "images": [{{"id": 7, "file_name": "a.png", "width": 100, "height": 50}},
                {{"id": 9, "file_name": "b.png", "width": 200, "height": 100, "license": 1}}],
              "categories": [{{"id": 18, "name": "dog", "supercategory": "animal"}}, {{"id": 3, "name": "car"}}],
              "annotations": [{annotations}]}}"#
        )
    }

    const GOOD: &str = r#"{"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20.0, 30], "area": 600, "segmentation": [[1, 2, 3]], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 3, "bbox": [100, 20, 150, 40]},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [0, 0, 200, 100], "iscrowd": 1, "segmentation": {"counts": [1], "size": [1, 2]}}"#;

    #[test]
    fn the_layout_of_coco_itself() {
        let dir = tree(&[
            ("annotations/instances_train2017.json", &json(GOOD)),
            ("annotations/instances_val2017.json", &json("")),
            ("train2017/a.png", ""),
            ("train2017/b.png", ""),
            ("images/val2017/a.png", ""),
            ("images/val2017/b.png", ""),
        ]);
        let parts = open(&dir);
        assert_eq!(parts.train.classes, ["car", "dog"]);
        assert_eq!(pixels(&parts.train.pictures[0].boxes), [[1, 10, 5, 30, 35]]);
        // In a picture that is shown at half its size.
        assert_eq!(pixels(&parts.train.pictures[1].boxes), [[0, 50, 10, 100, 30]]);
        assert_eq!(parts.train.pictures[1].size, Some((200, 100)));
        let notes = parts.train.notes.join("; ");
        assert!(
            notes.contains("crowds") && notes.contains("clipped") && notes.contains("annotation 2"),
            "{notes}"
        );
        assert_eq!(parts.val.unwrap().len(), 2);
    }

    #[test]
    fn bad_annotations_are_named_all_at_once() {
        let bad = r#"{"id": 1, "image_id": 8, "category_id": 18, "bbox": [1, 1, 2, 2]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 1, 2, 2]},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 1, 0, 2]},
            {"id": 4, "image_id": 7, "category_id": 3, "bbox": [500, 1, 10, 2]}"#;
        let dir = tree(&[("set.json", &json(bad)), ("images/a.png", "")]);
        let message = refused(&dir);
        for part in [
            "annotation 1: its picture",
            "annotation 2: category_id 1",
            "annotation 3: the box has no area",
            "annotation 4: the box lies wholly outside",
            "no picture \"b.png\"",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        for (text, word) in [
            ("[1, 2]", "set.json:1"),
            (r#"{"images": [], "annotations": []}"#, "categories"),
            (
                r#"{"images": [{"id": 1, "file_name": "a.png", "width": 0, "height": 4}], "annotations": [], "categories": []}"#,
                "0 x 4",
            ),
            (
                r#"{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}"#,
                "the id 1",
            ),
            (r#"{"images": [], "annotations": [], "categories": []}"#, "no pictures"),
        ] {
            let dir = tree(&[("set.json", text)]);
            let message = refused(&dir);
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}
