//! IDX files, as MNIST has them: unsigned bytes behind a header, perhaps gzipped.
//!
//! Header, big-endian: 0, 0, type (8: unsigned bytes), rank, one u32 for each dimension. Pictures are `[n, h, w]` (grey)
//! or `[n, h, w, 3]`, labels `[n]`. A `classes.txt` beside them names the classes 0, 1, …, one a line.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result, quote};
use retune_formats::labels;

use super::super::limits;
use super::super::picture::Picture;
use super::super::splits::Splits;
use super::super::walk;
use super::{Labelled, Named, Source};

/// An open IDX file.
#[derive(Debug)]
pub struct Idx {
    path: PathBuf,
    bytes: Bytes,
    dims: Vec<usize>,
}

impl Idx {
    /// Opens a file of unsigned bytes and checks that it is as long as its header says.
    pub fn open(path: &Path) -> Result<Idx> {
        let file = Bytes::open(path)?;
        let mut magic = [0; 2];
        if file.len() >= 2 {
            file.read_at(0, &mut magic)?;
        }
        let bytes = if magic == [0x1f, 0x8b] { inflate(path, &file)? } else { file };
        let start = bytes.len().min(20) as usize;
        let mut header = [0; 20];
        bytes.read_at(0, &mut header[..start])?;
        let (dims, size) = shape(path, &header[..start])?;
        if bytes.len() != size {
            return Err(invalid(
                path,
                format!("{} bytes by its header {dims:?}, there are {}", size, bytes.len()),
            ));
        }
        Ok(Idx { path: path.to_path_buf(), bytes, dims })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of pictures or labels, and what follows it.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes of one entry.
    fn entry(&self, index: usize) -> Result<Vec<u8>> {
        let size: usize = self.dims[1..].iter().product();
        let mut out = vec![0; size];
        let header = 4 + 4 * self.dims.len();
        self.bytes.read_at((header + index * size) as u64, &mut out)?;
        Ok(out)
    }

    /// A picture: grey or RGB.
    pub fn picture(&self, index: usize) -> Result<Picture> {
        let entry = self.entry(index)?;
        match self.dims[..] {
            [_, height, width] => Ok(Picture::from_grey(width, height, &entry)),
            [_, height, width, 3] => Ok(Picture { width, height, data: entry }),
            _ => Err(invalid(&self.path, format!("pictures of shape {:?}; wanted [n, h, w]", self.dims))),
        }
    }

    /// All labels.
    fn labels(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.dims[0]];
        self.bytes.read_at(8, &mut out)?;
        Ok(out)
    }
}

fn invalid(path: &Path, what: impl Into<String>) -> Error {
    Error::invalid(path, "IDX", what)
}

/// Dimensions, and the bytes that the whole file has by them.
fn shape(path: &Path, header: &[u8]) -> Result<(Vec<usize>, u64)> {
    let [0, 0, kind, rank, dims @ ..] = header else {
        return Err(invalid(
            path,
            format!("it begins with {}", quote(&String::from_utf8_lossy(&header[..header.len().min(4)]))),
        ));
    };
    if *kind != 8 {
        return Err(Error::unsupported(
            path,
            format!("IDX values of type {kind:#x}"),
            "unsigned bytes (8) are read",
        ));
    }
    let rank = usize::from(*rank);
    if !(1..=4).contains(&rank) || dims.len() < 4 * rank {
        return Err(invalid(path, format!("{rank} dimensions, wanted 1 to 4 and their sizes")));
    }
    let dims: Vec<usize> = dims
        .chunks_exact(4)
        .take(rank)
        .map(|d| u32::from_be_bytes([d[0], d[1], d[2], d[3]]) as usize)
        .collect();
    let pixels = dims[1..].iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    match pixels.filter(|&n| n > 0 && n <= 3 * limits::PICTURE_PIXELS) {
        Some(pixels) if dims[0] <= limits::PICTURES => {
            Ok((dims.clone(), 4 + 4 * rank as u64 + pixels * dims[0] as u64))
        }
        _ => Err(invalid(path, format!("its header says {dims:?}"))),
    }
}

/// A gzipped IDX file in memory. The header is unpacked first, and says how much follows.
fn inflate(path: &Path, file: &Bytes) -> Result<Bytes> {
    let packed = file.read_all("a gzipped IDX file", limits::PICTURE_FILE_BYTES)?;
    let damaged =
        |e: std::io::Error| invalid(path, format!("the gzip data is damaged: {e}; download it again"));
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed[..]).take(20).read_to_end(&mut unpacked).map_err(damaged)?;
    let (_, size) = shape(path, &unpacked)?;
    if size > limits::IDX_BYTES {
        return Err(Error::limit(path, "the size of the unpacked file", size, limits::IDX_BYTES));
    }
    unpacked.clear();
    // One byte more than promised is enough to see that it does not fit.
    GzDecoder::new(&packed[..]).take(size + 1).read_to_end(&mut unpacked).map_err(damaged)?;
    Ok(Bytes::from_memory(path, unpacked))
}

/// A file of pictures and its labels.
type Pair = (PathBuf, PathBuf);

/// The pairs among the files of a folder: `…images…idx3…` and `…labels…idx1…`; `t10k` and `test` are the test part.
pub fn find(files: &[PathBuf]) -> Option<Splits<Pair>> {
    let pairs = files.iter().filter_map(|images| {
        let name = walk::name(images);
        let labels = images
            .with_file_name(name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1"));
        (name.contains("images") && name.contains("idx") && files.contains(&labels))
            .then(|| (images.clone(), labels))
    });
    let (mut train, mut val, mut test) = (None, None, None);
    for pair in pairs {
        let name = walk::name(&pair.0);
        let part = match () {
            () if name.starts_with("t10k") || name.starts_with("test") => &mut test,
            () if name.starts_with("val") => &mut val,
            () => &mut train,
        };
        part.get_or_insert(pair);
    }
    Some(Splits { train: train?, val, test })
}

/// Pictures and labels of an IDX pair.
pub fn open(images: &Path, labels: &Path) -> Result<Labelled> {
    let (images, labels) = (Arc::new(Idx::open(images)?), Idx::open(labels)?);
    let (have, want) = (labels.dims(), images.dims());
    if have.len() != 1 || have[0] != want[0] {
        let what =
            format!("labels of shape {have:?} for the pictures of {}, {want:?}", images.path().display());
        return Err(invalid(labels.path(), what));
    }
    if !matches!(want, [_, _, _] | [_, _, _, 3]) {
        return Err(invalid(
            images.path(),
            format!("pictures of shape {want:?}; wanted [n, h, w] or [n, h, w, 3]"),
        ));
    }
    if want[0] == 0 {
        return Err(Error::missing(images.path(), "there are no pictures in it", "is it the right file?"));
    }
    let names = class_names(&images.path().with_file_name("classes.txt"))?;
    let name = |label: u8| match &names {
        None => Ok(label.to_string()),
        Some(names) => names.get(usize::from(label)).cloned().ok_or_else(|| {
            invalid(labels.path(), format!("label {label}, and classes.txt names only {}", names.len()))
        }),
    };
    let named: Result<Vec<Named>> = labels
        .labels()?
        .iter()
        .enumerate()
        .map(|(i, &label)| {
            let source = Source::Idx(images.clone(), i);
            Ok(Named { origin: source.name(), source, label: name(label)? })
        })
        .collect();
    let mut labelled = Labelled::new(named?, &[], Vec::new())?;
    if let Some(names) = names {
        // The order of the file, as long as every name occurs in it once.
        labelled = labelled
            .with_classes(&names)
            .map_err(|p| p.list.into_iter().next().unwrap_or_else(|| invalid(labels.path(), "classes")))?;
    }
    Ok(labelled)
}

/// One name a line, if the file is there.
fn class_names(path: &Path) -> Result<Option<Vec<String>>> {
    if !path.is_file() {
        return Ok(None);
    }
    labels::read(path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 8, dims.len() as u8];
        out.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        out.extend(values);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn a_folder_as_mnist_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        let pixels: Vec<u8> = (0..18).collect();
        write("train-images-idx3-ubyte.gz", &gzip(&idx(&[3, 2, 3], &pixels)));
        write("train-labels-idx1-ubyte.gz", &gzip(&idx(&[3], &[7, 2, 7])));
        write("t10k-images-idx3-ubyte", &idx(&[1, 2, 3], &pixels[..6]));
        write("t10k-labels-idx1-ubyte", &idx(&[1], &[2]));
        let parts = Labelled::open(dir.path()).unwrap();
        assert_eq!((parts.train.classes.join(" "), parts.train.counts()), ("2 7".into(), vec![1, 2]));
        let p = parts.train.read(1).unwrap();
        assert_eq!((p.width, p.height, p.pixel(2, 1)), (3, 2, [11; 3]));
        assert!(parts.train.examples[1].origin.ends_with("ubyte.gz[1]"));
        let test = parts.test.unwrap();
        assert_eq!((test.len(), test.examples[0].class), (1, 0));
        write("classes.txt", b"a\nb\nboot\nc\nd\ne\nf\nshirt\n");
        let named = Labelled::open(dir.path()).unwrap().train;
        assert_eq!(
            (named.classes.len(), named.classes[named.examples[0].class as usize].as_str()),
            (8, "shirt")
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-images-idx3-ubyte");
        let whole = idx(&[2, 2, 2], &[0; 8]);
        for (bytes, word) in [
            (idx(&[u32::MAX, 2, 2], &[0; 8]), "header"),
            (idx(&[2, u32::MAX, u32::MAX], &[0; 8]), "header"),
            (idx(&[2, 0, 2], &[0; 8]), "header"),
            (whole[..15].to_vec(), "dimensions"),
            (whole[..20].to_vec(), "20"),
            (gzip(&idx(&[9_000_000, 5000, 5000], &[0; 8])), "limit"),
            (gzip(&whole[..20]), "20"),
            (gzip(&whole)[..25].to_vec(), "IDX"),
            (vec![0, 0, 13, 1, 0, 0, 0, 0], "0xd"),
            (b"hello".to_vec(), "hell"),
            (vec![], "IDX"),
        ] {
            fs::write(&path, bytes).unwrap();
            let message = Idx::open(&path).unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
        fs::write(&path, whole).unwrap();
        fs::write(dir.path().join("x-labels-idx1-ubyte"), idx(&[3], &[0; 3])).unwrap();
        assert!(Labelled::open(dir.path()).unwrap_err().to_string().contains("labels of shape [3]"));
    }
}
