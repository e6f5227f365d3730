//! Pascal VOC xml: a file for each picture, `object` elements with `name` and `bndbox` in pixels.
//!
//! Coordinates are taken as they stand (tools differ in whether the first pixel is 0 or 1). Classes are sorted by name,
//! unless a `classes.txt` gives them.

use std::path::{Path, PathBuf};

use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result, quote};
use roxmltree::{Document, Node, ParsingOptions};

use super::super::decode;
use super::super::limits;
use super::super::problems::Problems;
use super::super::splits::Splits;
use super::super::walk;
use super::build::{Build, Place};
use super::{Annotations, Rules, yolo};

/// `Annotations/*.xml` beside `JPEGImages/`; `ImageSets/Main/{train,val,test}.txt` say the parts, if they are there.
pub fn open_folder(root: &Path, annotations: &Path, rules: Rules) -> Result<Splits<Annotations>, Problems> {
    let mut files = walk::list(annotations)?.files;
    files.retain(|f| super::extension(f) == "xml");
    let names = yolo::class_names(root)?;
    let part = |name: &str| -> Result<Option<Vec<PathBuf>>> {
        let list = root.join("ImageSets").join("Main").join(format!("{name}.txt"));
        if !list.is_file() {
            return Ok(None);
        }
        let text = Bytes::open(&list)?.read_text("a list of pictures", limits::COCO_BYTES)?;
        let stems = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
        Ok(Some(stems.map(|stem| annotations.join(format!("{stem}.xml"))).collect()))
    };
    let Some(train) = part("train")? else { return Ok(Splits::one(open_files(&files, names, rules)?)) };
    let parts = Splits { train, val: part("val")?, test: part("test")? };
    parts.map(|files| open_files(&files, names.clone(), rules))?.with_one_vocabulary()
}

pub fn open_files(
    files: &[PathBuf],
    names: Option<Vec<String>>,
    rules: Rules,
) -> Result<Annotations, Problems> {
    let mut build = Build::new(rules, names);
    for path in files {
        if let Err(e) = read(&mut build, path) {
            build.problems.push(e);
        }
    }
    let source = files.first().and_then(|f| f.parent()).unwrap_or(Path::new(""));
    build.finish(source)
}

fn read(build: &mut Build, path: &Path) -> Result<()> {
    let text = Bytes::open(path)?.read_text("VOC annotations", limits::LABEL_FILE_BYTES)?;
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: limits::XML_NODES, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text.trim_start_matches('\u{feff}'), options).map_err(|e| {
            let (line, what) = (e.pos().row as usize, format!("not valid XML: {e}"));
            Error::Record { path: path.to_path_buf(), line, what }
        })?;
    let root = document.root_element();
    if !root.has_tag_name("annotation") {
        let what = format!(
            "its outermost element is {}; VOC files have `annotation`",
            quote(root.tag_name().name())
        );
        return Err(Error::invalid(path, "VOC", what));
    }
    let picture = find_picture(path, text_of(root, "filename"))?;
    let size = match stated_size(root) {
        Some(size) => size,
        None => decode::read_size(&picture)?,
    };
    let mut boxes = Vec::new();
    for object in root.children().filter(|node| node.has_tag_name("object")) {
        let place = Place::Line(path, document.text_pos_at(object.range().start).row as usize);
        let Some(corners) = corners(build, place, object) else { continue };
        let (w, h) = (size.0 as f64, size.1 as f64);
        let corners = [corners[0] / w, corners[1] / h, corners[2] / w, corners[3] / h];
        if let Some(class) = build.class(place, text_of(object, "name").unwrap_or_default()) {
            build.add(place, &mut boxes, class, corners);
        }
    }
    build.picture(picture, Some(size), boxes, path.display().to_string());
    Ok(())
}

/// xmin, ymin, xmax, ymax of an object.
fn corners(build: &mut Build, place: Place, object: Node) -> Option<[f64; 4]> {
    let Some(bounds) = object.children().find(|node| node.has_tag_name("bndbox")) else {
        build.refuse(place, "the object has no `bndbox`");
        return None;
    };
    let mut corners = [0.0; 4];
    for (corner, name) in corners.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
        let text = text_of(bounds, name).unwrap_or_default();
        match text.parse() {
            Ok(number) => *corner = number,
            Err(_) => {
                build.refuse(place, format!("`{name}` is {}; wanted a number of pixels", quote(text)));
                return None;
            }
        }
    }
    Some(corners)
}

/// The text of a child element.
fn text_of<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| child.has_tag_name(name)).and_then(|child| child.text()).map(str::trim)
}

/// Width and height as the file says them, unless they are missing or 0 (some tools write that).
fn stated_size(root: Node) -> Option<(usize, usize)> {
    let size = root.children().find(|node| node.has_tag_name("size"))?;
    let side = |name: &str| text_of(size, name)?.parse::<u32>().ok().filter(|v| *v > 0).map(|v| v as usize);
    Some((side("width")?, side("height")?))
}

/// The picture by its name, or with the name of the file: beside it, or in `JPEGImages` or `images` above.
fn find_picture(xml: &Path, name: Option<&str>) -> Result<PathBuf> {
    let folder = xml.parent().unwrap_or(Path::new(""));
    let above = folder.parent().unwrap_or(folder);
    let stem = xml.file_stem().unwrap_or_default().to_string_lossy();
    let names = [name.unwrap_or_default(), &*stem].map(str::to_string);
    let folders = [folder.to_path_buf(), above.join("JPEGImages"), above.join("images")];
    let candidates = names.iter().filter(|name| !name.is_empty());
    let mut candidates = candidates.flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.find_map(|path| walk::picture_file(&path)).ok_or_else(|| {
        let what = format!("there is no picture {}", quote(name.unwrap_or(&stem)));
        Error::missing(xml, what, "put it beside this file, or into JPEGImages/ or images/ beside its folder")
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, pixels, refused, tree};

    fn xml(objects: &str) -> String {
        format!(
            "<annotation>\n<filename>a.png</filename>\n<size><width>100</width><height>50</height><depth>3</depth></size>\n{objects}</annotation>\n"
        )
    }

    fn object(name: &str, corners: [&str; 4]) -> String {
        let [l, t, r, b] = corners;
        format!(
            "<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{l}</xmin><ymin>{t}</ymin><xmax>{r}</xmax><ymax>{b}</ymax></bndbox></object>\n"
        )
    }

    #[test]
    fn the_layout_of_voc_itself() {
        let two = object("dog", ["10", "5", "30", "40.5"]) + &object("a &amp; b", ["50", "0", "100", "51"]);
        let dir = tree(&[
            ("Annotations/a.xml", &xml(&two)),
            ("Annotations/b.xml", "<annotation><size><width>0</width><height>0</height></size></annotation>"),
            ("JPEGImages/a.png", ""),
            ("JPEGImages/b.jpg", ""),
        ]);
        let set = open(&dir).train;
        assert_eq!(set.classes, ["a & b", "dog"]);
        assert_eq!(pixels(&set.pictures[0].boxes), [[1, 10, 5, 30, 41], [0, 50, 0, 100, 50]]);
        assert_eq!((set.pictures[1].size, set.pictures[1].boxes.len()), (Some((100, 50)), 0));
        std::fs::create_dir_all(dir.path().join("ImageSets/Main")).unwrap();
        std::fs::write(dir.path().join("ImageSets/Main/train.txt"), "a\n").unwrap();
        std::fs::write(dir.path().join("ImageSets/Main/val.txt"), "b\n").unwrap();
        let parts = open(&dir);
        assert_eq!((parts.train.len(), parts.val.unwrap().classes.len()), (1, 2));
    }

    #[test]
    fn bad_objects_are_named_with_their_lines() {
        let objects = object("x", ["1", "1", "1", "5"])
            + &object("x", ["1", "y", "3", "5"])
            + "<object><name>x</name></object>\n"
            + &object("", ["1", "1", "3", "5"]);
        let dir = tree(&[("a.xml", &xml(&objects)), ("a.png", "")]);
        let message = refused(&dir);
        for part in [
            "a.xml:4: the box has no area",
            "a.xml:5: `ymin` is `y`",
            "a.xml:6: the object has no",
            "a.xml:7: the class is empty",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        for (text, word) in [
            ("<annotation><object></annotation>", "a.xml:1: not valid XML"),
            ("<html/>", "`html`"),
            ("<!DOCTYPE a [<!ENTITY b \"c\">]><annotation>&b;</annotation>", "not valid XML"),
            ("<annotation><filename>../no.png</filename></annotation>", "no.png"),
        ] {
            let dir = tree(&[("a.xml", text)]);
            assert!(refused(&dir).contains(word), "{word}: {}", refused(&dir));
        }
    }
}
