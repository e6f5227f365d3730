//! Picture files in and out: PNG, JPEG, WebP and BMP to RGB bytes, whatever the file's own pixels are.
//!
//! The content decides what a file is, not its name. The size is read and held to [`limits::PICTURE_PIXELS`] before
//! anything is decoded. The EXIF orientation is applied. Grey becomes three equal channels, palettes their colours,
//! 16 bits are rounded to 8 (v / 257), and what is transparent lies over white: v = a c + (1 - a) 255. Colour profiles
//! are not applied.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader};
use retune_formats::atomic;
use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result, quote};

use super::limits;
use super::picture::Picture;

/// Endings of the names of picture files, as data sets are searched for them.
pub const EXTENSIONS: &[&str] = &["bmp", "jpeg", "jpg", "png", "webp"];

/// Is this the name of a picture file?
pub fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}

/// Reads a picture file.
///
/// # Errors
/// The file cannot be read, is not a picture of a known format, is damaged or cut short, or is larger than
/// [`limits`] allow.
pub fn read(path: &Path) -> Result<Picture> {
    let bytes = Bytes::open(path)?.read_all("a picture", limits::PICTURE_FILE_BYTES)?;
    decode(path, &bytes)
}

/// Decodes a picture; `name` stands for its file in messages.
pub fn decode(name: &Path, bytes: &[u8]) -> Result<Picture> {
    let (decoder, format) = open(name, bytes)?;
    if format == ImageFormat::Jpeg {
        check_jpeg(name, bytes)?;
    }
    let mut decoder = decoder;
    let orientation = decoder.orientation().map_err(|e| damaged(name, format, &e))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| damaged(name, format, &e))?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Picture { width, height, data: rgb(image) })
}

/// Width and height of a picture file as [`read`] will give it, from its header alone.
pub fn read_size(path: &Path) -> Result<(usize, usize)> {
    use image::metadata::Orientation::*;
    let bytes = Bytes::open(path)?.read_all("a picture", limits::PICTURE_FILE_BYTES)?;
    let (mut decoder, format) = open(path, &bytes)?;
    let (width, height) = decoder.dimensions();
    let turned = match decoder.orientation().map_err(|e| damaged(path, format, &e))? {
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => (height, width),
        NoTransforms | Rotate180 | FlipHorizontal | FlipVertical => (width, height),
    };
    Ok((turned.0 as usize, turned.1 as usize))
}

/// Reads the header and refuses what is too large.
fn open<'a>(name: &Path, bytes: &'a [u8]) -> Result<(impl ImageDecoder + 'a, ImageFormat)> {
    let format = format(name, bytes)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut most = image::Limits::default();
    // The widest pixels have 8 bytes; a progressive JPEG keeps its coefficients beside them.
    most.max_alloc = Some(16 * limits::PICTURE_PIXELS);
    reader.limits(most);
    let decoder = reader.into_decoder().map_err(|e| damaged(name, format, &e))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Error::invalid(
            name,
            format_name(format),
            format!("it says it has {width} x {height} pixels"),
        ));
    }
    if width.max(height) > limits::PICTURE_SIDE {
        let (side, most) = (u64::from(width.max(height)), u64::from(limits::PICTURE_SIDE));
        return Err(Error::limit(name, format!("the longer side of {width} x {height} pixels"), side, most));
    }
    if pixels > limits::PICTURE_PIXELS {
        let what = format!("the number of pixels ({width} x {height})");
        return Err(Error::limit(name, what, pixels, limits::PICTURE_PIXELS));
    }
    Ok((decoder, format))
}

/// What the first bytes say.
fn format(name: &Path, bytes: &[u8]) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Jpeg, Png, WebP};
    if bytes.is_empty() {
        return Err(Error::unsupported(name, "this file is empty", "a picture was expected"));
    }
    match image::guess_format(bytes) {
        Ok(format @ (Png | Jpeg | WebP | Bmp)) => Ok(format),
        _ => {
            let what = match other_kind(bytes) {
                Some(kind) => format!("this is {kind}"),
                None => format!(
                    "this is no picture; it begins with {}",
                    quote(&String::from_utf8_lossy(&bytes[..bytes.len().min(12)]))
                ),
            };
            Err(Error::unsupported(name, what, "PNG, JPEG, WebP and BMP are read; convert it to one of them"))
        }
    }
}

/// The name of a format that is known and not read.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let brand = bytes.get(4..8).filter(|b| *b == b"ftyp").and_then(|_| bytes.get(8..12));
    match brand {
        Some(b"avif" | b"avis") => return Some("an AVIF picture"),
        Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1") => {
            return Some("a HEIC picture");
        }
        Some(_) => return Some("a film (MP4 or QuickTime)"),
        None => {}
    }
    match () {
        () if starts(b"GIF8") => Some("a GIF"),
        () if starts(b"II*\0") || starts(b"MM\0*") => Some("a TIFF picture"),
        () if starts(b"%PDF") => Some("a PDF document"),
        () if starts(b"8BPS") => Some("a Photoshop file"),
        () if starts(b"\0\0\x01\0") => Some("an icon"),
        () if starts(b"<svg") || starts(b"<?xml") => Some("an XML (SVG?) file"),
        () if starts(b"\xff\x0a") || starts(b"\0\0\0\x0cJXL") => Some("a JPEG XL picture"),
        () if starts(b"version https://git-lfs") => {
            Some("a Git LFS pointer, not the file itself (run `git lfs pull`)")
        }
        () if starts(b"<!") || starts(b"<html") => Some("a web page, not the file itself"),
        () => None,
    }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        _ => "BMP",
    }
}

fn damaged(name: &Path, format: ImageFormat, e: &image::ImageError) -> Error {
    let what = e.to_string();
    Error::invalid(
        name,
        format_name(format),
        format!("{}; copy or download it again", what.trim_end_matches('.')),
    )
}

/// Walks over the segments of a JPEG to its end marker: the decoder would fill up what is missing with grey.
fn check_jpeg(name: &Path, bytes: &[u8]) -> Result<()> {
    let cut = || {
        let what = "it ends before its end marker, so a part of it is missing; copy or download it again";
        Error::invalid(name, "JPEG", what)
    };
    let (mut at, mut scans) = (2, 0);
    loop {
        // To the next marker: 0xFF and a byte that is neither stuffing (0), a restart (D0 to D7) nor filling (FF).
        while bytes.get(at) != Some(&0xff) || matches!(bytes.get(at + 1), Some(0 | 0xd0..=0xd7 | 0xff)) {
            at += 1;
            if at >= bytes.len() {
                return Err(cut());
            }
        }
        match bytes.get(at + 1) {
            None => return Err(cut()),
            Some(0xd9) => return Ok(()),
            Some(0x01 | 0xd8) => at += 2,
            Some(marker) => {
                scans += usize::from(*marker == 0xda);
                if scans > limits::JPEG_SCANS {
                    return Err(Error::limit(
                        name,
                        "the number of scans",
                        scans as u64,
                        limits::JPEG_SCANS as u64,
                    ));
                }
                let length = bytes.get(at + 2..at + 4).ok_or_else(cut)?;
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}

/// RGB bytes, what is transparent over white.
fn rgb(image: DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageLuma8(grey) => grey.into_raw().into_iter().flat_map(|g| [g; 3]).collect(),
        other if other.color().has_alpha() => {
            let over =
                |c: u8, a: u8| ((u32::from(c) * u32::from(a) + 255 * (255 - u32::from(a)) + 127) / 255) as u8;
            let rgba = other.into_rgba8().into_raw();
            rgba.chunks_exact(4)
                .flat_map(|p| [over(p[0], p[3]), over(p[1], p[3]), over(p[2], p[3])])
                .collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}

impl Picture {
    /// The bytes of a PNG file.
    pub fn to_png(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(image::codecs::png::PngEncoder::new(&mut out));
        out
    }

    /// The bytes of a JPEG file; `quality` 1 to 100.
    pub fn to_jpeg(&self, quality: u8) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, quality));
        out
    }

    fn encode(&self, encoder: impl ImageEncoder) {
        let (width, height) = (self.width as u32, self.height as u32);
        // A vector takes every write, and the sizes agree.
        encoder.write_image(&self.data, width, height, ExtendedColorType::Rgb8).expect("a picture in memory");
    }

    /// Writes a `.png`, or a `.jpg`/`.jpeg` of quality 90, atomically.
    pub fn write(&self, path: &Path) -> Result<()> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let bytes = match extension.as_str() {
            "png" => self.to_png(),
            "jpg" | "jpeg" if self.width.max(self.height) <= 65_535 => self.to_jpeg(90),
            "jpg" | "jpeg" => {
                return Err(Error::unsupported(path, "JPEG ends at 65,535 pixels a side", "write a .png"));
            }
            other => {
                let what =
                    format!("pictures are written as .png or .jpg, this name ends in {}", quote(other));
                return Err(Error::unsupported(path, what, "choose one of them"));
            }
        };
        atomic::write_bytes(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayAlphaImage, ImageBuffer, Luma, Rgba, RgbaImage};

    fn picture() -> Picture {
        Picture { width: 7, height: 5, data: (0..105).map(|i| (i * 2) as u8).collect() }
    }

    fn refused(bytes: &[u8]) -> String {
        decode(Path::new("p.png"), bytes).unwrap_err().to_string()
    }

    fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    #[test]
    fn png_bmp_and_webp_come_back_and_jpeg_nearly() {
        let p = picture();
        let name = Path::new("wrong.gif");
        assert_eq!(decode(name, &p.to_png()).unwrap(), p);
        let image = DynamicImage::ImageRgb8(ImageBuffer::from_raw(7, 5, p.data.clone()).unwrap());
        for format in [ImageFormat::Bmp, ImageFormat::WebP] {
            assert_eq!(decode(name, &encoded(image.clone(), format)).unwrap(), p);
        }
        let smooth = Picture::filled(20, 10, [200, 40, 90]);
        let jpeg = decode(name, &smooth.to_jpeg(95)).unwrap();
        assert!(jpeg.data.iter().zip(&smooth.data).all(|(a, b)| a.abs_diff(*b) < 6));
    }

    #[test]
    fn transparent_pixels_lie_over_white_and_16_bits_are_rounded() {
        let name = Path::new("p");
        let rgba = RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 100, 0, 200, 51]).unwrap();
        let p = decode(name, &encoded(rgba.into(), ImageFormat::Png)).unwrap();
        assert_eq!(p.data, [255, 255, 255, 224, 204, 244]);
        let grey = GrayAlphaImage::from_raw(1, 1, vec![0, 128]).unwrap();
        assert_eq!(decode(name, &encoded(grey.into(), ImageFormat::Png)).unwrap().data, [127; 3]);
        let deep = ImageBuffer::<Luma<u16>, _>::from_raw(3, 1, vec![0, 257 * 7 + 128, u16::MAX]).unwrap();
        let p = decode(name, &encoded(deep.into(), ImageFormat::Png)).unwrap();
        assert_eq!(p.data, [0, 0, 0, 7, 7, 7, 255, 255, 255]);
        let deep = ImageBuffer::<Rgba<u16>, _>::from_raw(1, 1, vec![u16::MAX, 0, 0, u16::MAX]).unwrap();
        assert_eq!(decode(name, &encoded(deep.into(), ImageFormat::Png)).unwrap().data, [255, 0, 0]);
    }

    /// A JPEG whose EXIF says how it is to be turned.
    fn oriented(orientation: u8) -> Vec<u8> {
        let mut p = Picture::filled(32, 16, [0; 3]);
        p.put(&Picture::filled(16, 16, [255; 3]), 0, 0, p.whole());
        let jpeg = p.to_jpeg(95);
        let mut exif = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        [&jpeg[..2], &exif, &jpeg[2..]].concat()
    }

    #[test]
    fn exif_orientation_is_applied() {
        // Where the white half is after turning: left upper and right lower corner.
        for (orientation, size, corners) in [
            (1, (32, 16), (255, 0)),
            (3, (32, 16), (0, 255)),
            (2, (32, 16), (0, 255)),
            (6, (16, 32), (255, 0)),
            (8, (16, 32), (0, 255)),
        ] {
            let p = decode(Path::new("p"), &oriented(orientation)).unwrap();
            assert_eq!((p.width, p.height), size, "{orientation}");
            let near = |a: u8, b: u8| a.abs_diff(b) < 5;
            let (first, last) = (p.data[0], p.data[p.data.len() - 1]);
            assert!(near(first, corners.0) && near(last, corners.1), "{orientation}: {first} {last}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turned.jpg");
        std::fs::write(&path, oriented(6)).unwrap();
        assert_eq!(read_size(&path).unwrap(), (16, 32));
    }

    #[test]
    fn bombs_are_refused_before_decoding() {
        // A PNG header of 60,000 x 60,000 pixels, and nothing behind it.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        png.extend([0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60, 8, 2, 0, 0, 0]);
        let crc = crc32(&png[12..]);
        png.extend(crc.to_be_bytes());
        png.extend(b"\0\0\0\x01IDATx\0\0\0\0");
        let message = refused(&png);
        assert!(message.contains("60000 x 60000") && message.contains("3600000000"), "{message}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &b| {
            (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
        })
    }

    #[test]
    fn damaged_files_name_what_is_wrong() {
        let p = picture();
        let image = DynamicImage::ImageRgb8(ImageBuffer::from_raw(7, 5, p.data.clone()).unwrap());
        let files = [
            p.to_png(),
            p.to_jpeg(90),
            encoded(image.clone(), ImageFormat::Bmp),
            encoded(image, ImageFormat::WebP),
        ];
        for whole in &files {
            for part in [whole.len() * 9 / 10, whole.len() / 2, 30] {
                let message = refused(&whole[..part]);
                assert!(message.contains("p.png") && message.contains("again"), "{message}");
            }
            // Bits turned over: an error or a picture, never a panic.
            for i in 0..whole.len() {
                let mut hurt = whole.clone();
                hurt[i] ^= 0x55;
                let _ = decode(Path::new("p"), &hurt);
            }
        }
        for (bytes, word) in [
            (&b"GIF89a......"[..], "a GIF"),
            (b"\0\0\0\x18ftypheic....", "HEIC"),
            (b"\0\0\0\x18ftypavif....", "AVIF"),
            (b"II*\0aaaaaaaa", "TIFF"),
            (b"hello, world", "`hello, world`"),
            (b"", "empty"),
            (b"<!doctype html>", "web page"),
        ] {
            assert!(refused(bytes).contains(word), "{}", refused(bytes));
        }
    }

    #[test]
    fn a_jpeg_of_too_many_scans_is_refused() {
        let jpeg = picture().to_jpeg(90);
        let scans = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0".repeat(limits::JPEG_SCANS + 1);
        let many = [&jpeg[..jpeg.len() - 2], &scans, &jpeg[jpeg.len() - 2..]].concat();
        assert!(refused(&many).contains("scans"), "{}", refused(&many));
    }

    #[test]
    fn pictures_are_written_by_the_ending_of_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let p = picture();
        p.write(&dir.path().join("a.png")).unwrap();
        p.write(&dir.path().join("a.jpeg")).unwrap();
        assert_eq!(read(&dir.path().join("a.png")).unwrap(), p);
        assert_eq!(read(&dir.path().join("a.jpeg")).unwrap().width, 7);
        assert!(p.write(&dir.path().join("a.gif")).unwrap_err().to_string().contains(".png or .jpg"));
    }
}
