//! The wire format of protocol buffers: fields with a number and a value, read by position.
//!
//! Only what is asked for is read: a field of bytes is given as its place in the file, so gigabytes of weights are walked
//! over without being read. Groups, which no ONNX file has, are refused.

use std::ops::Range;
use std::path::Path;

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};

const FORMAT: &str = "ONNX";
/// Bytes read at a time.
const CHUNK: u64 = 16 << 10;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    /// A text, a message or packed numbers: where they lie.
    Bytes(Range<u64>),
}

/// Reads fields and counts the memory that is taken for them.
pub struct Wire<'a> {
    bytes: &'a Bytes,
    at: u64,
    buffer: Vec<u8>,
    /// Position in the file of the buffer.
    start: u64,
    /// Memory that may still be taken, in bytes.
    budget: usize,
}

impl<'a> Wire<'a> {
    pub fn new(bytes: &'a Bytes, budget: usize) -> Wire<'a> {
        Wire { bytes, at: 0, buffer: Vec::new(), start: 0, budget }
    }

    /// The file that messages name.
    pub fn path(&self) -> &'a Path {
        self.bytes.path()
    }

    pub fn bad(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.bytes.path(), FORMAT, what)
    }

    /// Counts memory before it is taken; twice, for a vector that grows.
    pub fn take(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(bytes.saturating_mul(2));
        self.budget = left.ok_or_else(|| self.bad("it describes more than a file of this size may hold"))?;
        Ok(())
    }

    fn byte(&mut self, end: u64) -> Result<u8> {
        if self.at >= end {
            return Err(self.bad(format!("a number is cut short at byte {}", self.at)));
        }
        let inside = self.at.checked_sub(self.start).and_then(|i| self.buffer.get(i as usize).copied());
        let byte = match inside {
            Some(byte) => byte,
            None => {
                let size = CHUNK.min(self.bytes.len() - self.at);
                self.buffer.resize(size as usize, 0);
                self.start = self.at;
                self.bytes.read_at(self.at, &mut self.buffer)?;
                self.buffer[0]
            }
        };
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte(end)?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.bad(format!("a number before byte {} has more than 64 bits", self.at)))
    }

    fn fixed<const N: usize>(&mut self, end: u64) -> Result<[u8; N]> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.byte(end)?;
        }
        Ok(out)
    }

    /// Hands the fields of a message to `each`, in their order. `what` is what the message is, for messages of ours.
    pub fn message(
        &mut self,
        what: &str,
        range: Range<u64>,
        each: &mut dyn FnMut(&mut Self, u64, Field) -> Result<()>,
    ) -> Result<()> {
        self.at = range.start;
        while self.at < range.end {
            let key = self.varint(range.end)?;
            let field = match key & 7 {
                0 => Field::Varint(self.varint(range.end)?),
                1 => Field::Fixed64(u64::from_le_bytes(self.fixed(range.end)?)),
                2 => {
                    let size = self.varint(range.end)?;
                    let end = self.at.checked_add(size).filter(|end| *end <= range.end);
                    let end = end.ok_or_else(|| {
                        let left = range.end - self.at;
                        self.bad(format!("{what}: {size} bytes wanted at byte {}, {left} follow", self.at))
                    })?;
                    Field::Bytes(self.at..end)
                }
                5 => Field::Fixed32(u32::from_le_bytes(self.fixed(range.end)?)),
                other => {
                    return Err(
                        self.bad(format!("{what}: a field of the unknown kind {other} at byte {}", self.at))
                    );
                }
            };
            let next = if let Field::Bytes(inside) = &field { inside.end } else { self.at };
            each(self, key >> 3, field)?;
            // What was read inside of the field moved it.
            self.at = next;
        }
        Ok(())
    }

    /// At most `limit` bytes.
    pub fn raw(&mut self, what: &str, field: Field, limit: u64) -> Result<Vec<u8>> {
        let Field::Bytes(range) = field else { return Err(self.bad(format!("{what} is no text"))) };
        let size = range.end - range.start;
        if size > limit {
            return Err(Error::limit(self.bytes.path(), format!("the length of {what}"), size, limit));
        }
        self.take(size as usize)?;
        let mut raw = vec![0; size as usize];
        self.bytes.read_at(range.start, &mut raw)?;
        Ok(raw)
    }

    /// A text of at most `limit` bytes.
    pub fn text(&mut self, what: &str, field: Field, limit: u64) -> Result<String> {
        String::from_utf8(self.raw(what, field, limit)?).map_err(|e| {
            let shown = quote(&String::from_utf8_lossy(e.as_bytes()));
            self.bad(format!("{what} is not UTF-8: {shown}"))
        })
    }

    /// Numbers of a repeated field: one, or many packed.
    pub fn varints(&mut self, what: &str, field: Field, out: &mut Vec<i64>) -> Result<()> {
        match field {
            Field::Varint(value) => {
                self.take(size_of::<i64>())?;
                out.push(value as i64);
            }
            Field::Bytes(range) => {
                self.at = range.start;
                while self.at < range.end {
                    let value = self.varint(range.end)?;
                    self.take(size_of::<i64>())?;
                    out.push(value as i64);
                }
            }
            _ => return Err(self.bad(format!("{what} are no whole numbers"))),
        }
        Ok(())
    }

    /// f32 of a repeated field: one, or many packed.
    pub fn floats(&mut self, what: &str, field: Field, out: &mut Vec<f32>) -> Result<()> {
        match field {
            Field::Fixed32(bits) => {
                self.take(size_of::<f32>())?;
                out.push(f32::from_bits(bits));
            }
            Field::Bytes(range) if (range.end - range.start) % 4 == 0 => {
                let size = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                self.take(size)?;
                let mut stored = vec![0; size];
                self.bytes.read_at(range.start, &mut stored)?;
                out.extend(stored.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            _ => return Err(self.bad(format!("{what} are no numbers of 32 bits"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u64, Field)>> {
        let bytes = Bytes::from_memory("m.onnx", bytes.to_vec());
        let mut out = Vec::new();
        Wire::new(&bytes, 1000).message("it", 0..bytes.len(), &mut |_, number, field| {
            out.push((number, field));
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn fields_of_every_kind_are_read() {
        let read = fields(b"\x08\x96\x01\x12\x02hi\x1d\0\0\x80\x3f\x21\x01\0\0\0\0\0\0\0").unwrap();
        let wanted = [
            (1, Field::Varint(150)),
            (2, Field::Bytes(5..7)),
            (3, Field::Fixed32(0x3f80_0000)),
            (4, Field::Fixed64(1)),
        ];
        assert_eq!(read, wanted);
        let negative = fields(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").unwrap();
        assert_eq!(negative, [(1, Field::Varint(u64::MAX))]);
    }

    #[test]
    fn damage_is_named() {
        for (bytes, word) in [
            (&b"\x08"[..], "cut short"),
            (b"\x08\x96", "cut short"),
            (b"\x12\x05hi", "5 bytes wanted at byte 2, 2 follow"),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "wanted at byte 11"),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "more than 64 bits"),
            (b"\x1d\0\0", "cut short"),
            (b"\x0b", "unknown kind 3"),
        ] {
            let message = fields(bytes).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn packed_and_single_numbers_are_the_same() {
        let bytes = Bytes::from_memory("m.onnx", &b"\x01\x96\x01\0\0\x80\x3f"[..]);
        let mut wire = Wire::new(&bytes, 1000);
        let (mut ints, mut floats) = (Vec::new(), Vec::new());
        wire.varints("ints", Field::Bytes(0..3), &mut ints).unwrap();
        wire.varints("ints", Field::Varint(u64::MAX), &mut ints).unwrap();
        wire.floats("floats", Field::Bytes(3..7), &mut floats).unwrap();
        wire.floats("floats", Field::Fixed32(2.0f32.to_bits()), &mut floats).unwrap();
        assert_eq!((ints, floats), (vec![1, 150, -1], vec![1.0, 2.0]));
        assert!(wire.floats("floats", Field::Bytes(0..3), &mut Vec::new()).is_err());
        assert!(wire.take(1000).unwrap_err().to_string().contains("more than a file of this size"));
    }
}
