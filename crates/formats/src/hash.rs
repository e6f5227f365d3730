//! BLAKE3 of a file, as hexadecimal: what manifests and the record of a base model hold.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The BLAKE3 hash of a file's bytes, 64 hexadecimal digits. The file is streamed.
pub fn file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 256 << 10];
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(n) => hasher.update(&buf[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(path, "read")(e)),
        };
    }
}

/// The BLAKE3 hash of bytes in memory, 64 hexadecimal digits.
pub fn bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_known_hash_of_nothing_and_of_a_file() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(super::bytes(b""), empty);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let text = vec![7u8; 600_000];
        std::fs::write(&path, &text).unwrap();
        assert_eq!(super::file(&path).unwrap(), super::bytes(&text));
    }
}
