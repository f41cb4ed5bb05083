//! Memory of packed weights: anonymous pages, huge ones where the system gives them.
//!
//! A decoded token streams every weight once. With 4 KiB pages that is a TLB miss every 64 cache
//! lines; on Linux the pages are therefore asked for as huge ones. Invariant: the memory starts at
//! a page boundary, so cells keep the alignment their sizes allow.

use crate::error::DeviceError;
use memmap2::MmapMut;

/// Bytes of one matrix.
#[derive(Debug)]
pub(super) struct Storage(MmapMut);

impl Storage {
    /// `size` bytes of zeros; `size` is not 0.
    pub(super) fn zeroed(size: usize, name: &str) -> Result<Self, DeviceError> {
        let map = MmapMut::map_anon(size).map_err(|error| DeviceError::OutOfMemory {
            what: format!("matrix {name}"),
            needed_bytes: size as u64,
            available_bytes: 0,
            advice: format!("the system says: {error}; use a smaller or more quantised model"),
        })?;
        // Only a matter of speed: a kernel without huge pages refuses, and that is all right.
        #[cfg(target_os = "linux")]
        if size >= 2 << 20 {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self(map))
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
