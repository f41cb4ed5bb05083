//! The bytes of a model file: mapped from disk, compiled in, or built by a test.
//!
//! Weights are never read into memory here; a mapping lets the operating system bring in the pages
//! that are used. Invariant: the bytes behind a [`FileBytes`] do not move or change while it lives.
//! Read next: [`super::gguf`] and [`super::safetensors`], which make sense of them.

use std::fmt::Display;
use std::ops::Deref;
use std::path::Path;

use crate::error::LoadError;

/// Read-only bytes of one file.
pub struct FileBytes(Storage);

enum Storage {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a file. The file must not be truncated or rewritten in place while it is open: like
    /// every engine that maps weights, this one would then read the new bytes or be stopped by the
    /// operating system.
    ///
    /// # Errors
    /// [`LoadError::Io`] naming the path.
    pub fn map(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.display().to_string(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?;
        if length.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        if length.len() == 0 {
            // An empty mapping is an error on some systems; an empty file is ours to describe.
            return Ok(Self(Storage::Owned(Vec::new())));
        }
        // SAFETY: the mapping is private to this process and read-only, lives as long as `self`,
        // and is only handed out as `&[u8]`. That nobody shortens or rewrites the file meanwhile is
        // the documented condition of this function; nothing in this process writes to it.
        let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Self(Storage::Mapped(mapped)))
    }

    /// Gives the pages that were read back to the system, which keeps them in its file cache: they
    /// no longer count as memory of this process, and come back when they are read again.
    pub fn release(&self) {
        #[cfg(target_os = "linux")]
        if let Storage::Mapped(mapped) = &self.0 {
            // SAFETY: the mapping is of a file and nobody writes to it, so what is dropped is
            // read again, with the same bytes, by whoever looks.
            if let Err(e) = unsafe { mapped.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) } {
                // Only a matter of how memory is counted.
                tracing::debug!("pages of a model file stay: {e}");
            }
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Mapped(bytes) => bytes,
            Storage::Static(bytes) => bytes,
            Storage::Owned(bytes) => bytes,
        }
    }
}

impl From<&'static [u8]> for FileBytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self(Storage::Static(bytes))
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Storage::Owned(bytes))
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({} bytes)", self.len())
    }
}

/// The file an error is about; makes errors that name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blame<'a>(pub(super) &'a str);

impl Blame<'_> {
    /// A tensor or field that is not what the format demands.
    pub(super) fn malformed(
        self,
        what: impl Into<String>,
        expected: impl Display,
        got: impl Display,
    ) -> LoadError {
        LoadError::Malformed {
            file: self.0.to_owned(),
            what: what.into(),
            expected: expected.to_string(),
            got: excerpt(&got.to_string()),
        }
    }

    /// Something valid that this engine does not run.
    pub(super) fn unsupported(
        self,
        what: impl Into<String>,
        got: impl Display,
        supported: impl Display,
    ) -> LoadError {
        LoadError::Unsupported {
            file: self.0.to_owned(),
            what: what.into(),
            got: excerpt(&got.to_string()),
            supported: supported.to_string(),
        }
    }
}

/// At most 120 characters of foreign text, without control characters, for a message.
pub(super) fn excerpt(text: &str) -> String {
    const CHARACTERS_MAX: usize = 120;
    let mut short: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARACTERS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
