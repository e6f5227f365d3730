//! Every limit that a picture or an annotation file is held to: one constant each, the table that docs/pictures.md prints.

/// Largest picture file, in bytes.
pub const PICTURE_FILE_BYTES: u64 = 256 << 20;
/// Most pixels of a picture, before anything is decoded (8192 x 8192).
pub const PICTURE_PIXELS: u64 = 64 << 20;
/// Longest side of a picture, in pixels.
pub const PICTURE_SIDE: u32 = 65_535;
/// Most scans of a progressive JPEG; each one is a pass over all pixels.
pub const JPEG_SCANS: usize = 256;
/// Most pictures of a data set.
pub const PICTURES: usize = 10_000_000;
/// Largest gzipped IDX file once it is unpacked, in bytes; others are read from the disk picture by picture.
pub const IDX_BYTES: u64 = 1 << 30;
/// Most classes of a data set.
pub const CLASSES: usize = 100_000;
/// Most boxes of one picture.
pub const BOXES: usize = 100_000;
/// Largest label file of one picture (YOLO txt, VOC xml), in bytes.
pub const LABEL_FILE_BYTES: u64 = 16 << 20;
/// Largest file of boxes of a whole data set (COCO json), in bytes.
pub const COCO_BYTES: u64 = 1 << 30;
/// Largest `data.yaml`, in bytes.
pub const DATA_YAML_BYTES: u64 = 1 << 20;
/// Most elements of a VOC xml file.
pub const XML_NODES: u32 = 1_000_000;
/// Longest problem list that is kept; what is beyond it is counted.
pub const PROBLEMS: usize = 20;
/// Most pixels of a drawn contact sheet or tile.
pub const SHEET_PIXELS: usize = 64 << 20;
