//! Archives made by hand, not with any zip library, so that the two cannot agree on a mistake.

/// A zip archive of stored files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let (size, len) = ((bytes.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let at = (out.len() as u32).to_le_bytes();
        out.extend(
            [&b"PK\x03\x04"[..], &[0; 14], &size, &size, &len, &[0; 2], name.as_bytes(), bytes].concat(),
        );
        let head = [&b"PK\x01\x02"[..], &[0; 16], &size, &size, &len, &[0; 12], &at, name.as_bytes()];
        directory.extend(head.concat());
    }
    let (count, at) = ((files.len() as u16).to_le_bytes(), out.len() as u32);
    let size = (directory.len() as u32).to_le_bytes();
    out.extend(directory);
    out.extend([&b"PK\x05\x06"[..], &[0; 4], &count, &count, &size, &at.to_le_bytes(), &[0; 2]].concat());
    out
}
