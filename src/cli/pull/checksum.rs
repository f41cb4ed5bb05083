//! SHA-256 while bytes pass by.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Result, Write};
use std::path::Path;

/// Passes bytes on and remembers their checksum.
pub(super) struct Hashing<W> {
    inner: W,
    state: Sha256,
}

impl<W: Write> Hashing<W> {
    /// Nothing has passed yet.
    pub(super) fn new(inner: W) -> Self {
        Self { inner, state: Sha256::new() }
    }

    /// The writer, and the checksum of what passed, in lower-case hexadecimal.
    pub(super) fn finish(self) -> (W, String) {
        let digest = self.state.finalize();
        (self.inner, digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.inner.write(bytes)?;
        self.state.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

/// The checksum of a file. `progress` hears the bytes of each block.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn of_file(path: &Path, mut progress: impl FnMut(u64)) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hashing = Hashing::new(std::io::sink());
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hashing.finish().1),
            read => {
                hashing.write_all(&block[..read])?;
                progress(read as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        // FIPS 180-2, appendix B.1, and the checksum of nothing.
        std::fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(&path, |_| {}).unwrap(), abc);
        std::fs::write(&path, "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of_file(&path, |_| {}).unwrap(), empty);
    }
}
