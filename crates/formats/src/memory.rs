//! Named tensors in memory: what is made of one tool's files to be read as another's.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::{Table, TensorInfo, TensorOut, TensorSource, position};

/// Tensors that are not in any file.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    table: Table,
    /// The stored bytes, by [`TensorInfo::shard`].
    data: Vec<Vec<u8>>,
}

impl Memory {
    /// Holds the bytes of these tensors; `path` is where they came from, for messages.
    ///
    /// # Errors
    /// If a tensor's shape, type and data do not fit, or two have one name.
    pub fn new<'a>(path: &Path, tensors: impl IntoIterator<Item = TensorOut<'a>>) -> Result<Memory> {
        let (mut infos, mut data) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let size = tensor.check(path)?;
            infos.push(TensorInfo { bytes: size, shard: data.len() as u32, ..tensor.info() });
            let mut bytes = Vec::with_capacity(size as usize);
            tensor.write(path, size, &mut bytes)?;
            data.push(bytes);
        }
        let twice = |name: String| Error::Write {
            path: path.to_path_buf(),
            what: format!("two tensors are called {}", crate::error::quote(&name)),
        };
        Ok(Memory { path: path.to_path_buf(), table: Table::new(infos).map_err(twice)?, data })
    }
}

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        let start = position(&self.path, info, byte_offset, out.len())? as usize;
        let bytes = self.data.get(info.shard as usize).and_then(|bytes| bytes.get(start..start + out.len()));
        match bytes {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return Err(self.gone(info)),
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Memory {
    /// A tensor of another source was asked for.
    fn gone(&self, info: &TensorInfo) -> Error {
        Error::NoTensor { path: self.path.clone(), name: info.name.clone(), nearest: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_as_they_were() {
        let tensor = |name: &str| TensorOut::f32(name.to_string(), &[2, 2], vec![1.0, -2.0, 3.5, 0.0]);
        let memory = Memory::new(Path::new("here"), [tensor("b"), tensor("a")]).expect("memory");
        assert_eq!(memory.read_f32("a").expect("a"), [1.0, -2.0, 3.5, 0.0]);
        assert_eq!(memory.tensors()[0].name, "b");
        let info = memory.get("b").expect("b").clone();
        assert!(memory.read_at(&info, 12, &mut [0; 8]).is_err(), "beyond the end");
        let odd = TensorInfo { shard: 9, ..info };
        assert!(memory.read_at(&odd, 0, &mut [0; 4]).is_err(), "of another source");
        let twice = Memory::new(Path::new("here"), [tensor("a"), tensor("a")]).unwrap_err().to_string();
        assert!(twice.contains("\"a\"") || twice.contains("`a`"), "{twice}");
        let wrong = TensorOut::f32("c", &[3], vec![1.0]);
        assert!(Memory::new(Path::new("here"), [wrong]).is_err());
    }
}
