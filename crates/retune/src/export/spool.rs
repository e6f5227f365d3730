//! Tensors that are made before their file can be begun: parts of quantised weights wait on the disk, not in memory.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use retune_formats::source::Data;
use retune_formats::{Dtype, Error as FormatError, Result, TensorOut};

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// A file of tensors' bytes, one after the other; it vanishes with this.
pub struct Spool {
    path: PathBuf,
    out: BufWriter<File>,
    read: RefCell<File>,
    len: u64,
}

/// A tensor that waits.
pub struct Waiting {
    pub name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    at: u64,
    bytes: u64,
}

impl Spool {
    /// Makes the file, which must not be there.
    pub fn create(path: &Path) -> Result<Spool> {
        let out = File::create_new(path).map_err(FormatError::io(path, "create"))?;
        let read = File::open(path).map_err(FormatError::io(path, "open"))?;
        let out = BufWriter::with_capacity(CHUNK, out);
        Ok(Spool { path: path.to_path_buf(), out, read: RefCell::new(read), len: 0 })
    }

    /// Takes a tensor with its bytes.
    pub fn put(&mut self, tensor: TensorOut) -> Result<Waiting> {
        let mut counted = Counted { out: &mut self.out, written: 0 };
        let failed = FormatError::io(&self.path, "write");
        match tensor.data {
            Data::Bytes(bytes) => counted.write_all(&bytes).map_err(failed)?,
            Data::F32(values) => {
                values.iter().try_for_each(|v| counted.write_all(&v.to_le_bytes())).map_err(failed)?;
            }
            Data::Stream(stream) => stream(&mut counted)?,
        }
        let (at, bytes) = (self.len, counted.written);
        self.len += bytes;
        Ok(Waiting { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, at, bytes })
    }

    /// All that was put in can be taken out from now on.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(FormatError::io(&self.path, "write"))
    }

    /// A tensor, to be written where it belongs.
    pub fn take(&self, waiting: &Waiting) -> TensorOut<'_> {
        let (at, bytes) = (waiting.at, waiting.bytes);
        let stream = move |out: &mut dyn Write| {
            let mut file = self.read.borrow_mut();
            file.seek(SeekFrom::Start(at)).map_err(FormatError::io(&self.path, "read"))?;
            let mut buffer = vec![0; CHUNK.min(bytes as usize)];
            let mut left = bytes as usize;
            while left > 0 {
                let piece = left.min(buffer.len());
                file.read_exact(&mut buffer[..piece]).map_err(FormatError::io(&self.path, "read"))?;
                out.write_all(&buffer[..piece]).map_err(FormatError::io(&self.path, "copy"))?;
                left -= piece;
            }
            Ok(())
        };
        TensorOut {
            name: waiting.name.clone(),
            dtype: waiting.dtype,
            shape: waiting.shape.clone(),
            data: Data::Stream(Box::new(stream)),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // It lies in a folder that is removed too.
        let _ = fs::remove_file(&self.path);
    }
}

struct Counted<'a> {
    out: &'a mut BufWriter<File>,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_formats::{TensorSource, safetensors};

    #[test]
    fn what_waits_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let mut spool = Spool::create(&path).unwrap();
        let values = [1.5f32, -2.0, 3.25];
        let waiting = [
            spool.put(TensorOut::bytes("b", Dtype::U8, &[5], vec![1u8, 2, 3, 4, 5])).unwrap(),
            spool.put(TensorOut::f32("a", &[3], &values[..])).unwrap(),
        ];
        spool.flush().unwrap();
        let bytes = safetensors::to_bytes(waiting.iter().map(|w| spool.take(w)), &[]).unwrap();
        let file = safetensors::File::from_memory("m", bytes).unwrap();
        assert_eq!(file.read("b").unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(file.read_f32("a").unwrap(), values);
        drop(file);
        drop(spool);
        assert!(!path.exists());
    }
}
