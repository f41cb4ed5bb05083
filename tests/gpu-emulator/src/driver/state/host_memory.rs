//! Host memory as the driver sees it: pinned by us, registered by the caller, or pageable.
//!
//! Pinned blocks live in the device's own range of memory, so a kernel may use them too, and both
//! sides see the same bytes. The difference between pinned and pageable decides when an
//! asynchronous copy reads: pinned memory when the copy runs, pageable memory at the call.
//! All raw host pointers of the driver's core are in this file.

use crate::driver::failure::{Outcome, ensure};
use std::collections::BTreeMap;

/// A range of host memory somebody handed to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSpan {
    address: usize,
    bytes: usize,
}

impl HostSpan {
    /// The range of `bytes` at `address`.
    ///
    /// # Safety
    /// It must be valid for reads and, if it is ever a destination, for writes, until every
    /// operation that was enqueued with it has finished. Other threads must not touch it meanwhile.
    #[must_use]
    pub unsafe fn new(address: usize, bytes: usize) -> Self {
        Self { address, bytes }
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// The bytes as they are now.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        if self.bytes == 0 {
            return Vec::new();
        }
        // SAFETY: whoever made the span vouched that it is valid and quiet until its operations
        // have finished, and this is one of them.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }.to_vec()
    }

    /// Overwrites it with `bytes`, as many as it is long.
    pub fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes, "a copy of another length than its destination");
        // SAFETY: as in `read`; source and destination cannot overlap, `bytes` is ours.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address as *mut u8, self.bytes);
        }
    }
}

/// A block of page-locked memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedBlock {
    /// Host address of the first byte.
    pub host: usize,
    /// How many bytes.
    pub bytes: usize,
    /// Device address of the same bytes, when the driver allocated them.
    pub device: Option<u64>,
    /// The flags it was allocated or registered with.
    pub flags: u32,
}

/// Every block of page-locked memory.
#[derive(Debug, Default)]
pub struct HostMemory {
    blocks: BTreeMap<usize, PinnedBlock>,
}

impl HostMemory {
    /// Adds a block.
    ///
    /// # Errors
    /// `HostMemoryAlreadyRegistered` when it overlaps one that is there.
    pub fn insert(&mut self, block: PinnedBlock) -> Outcome<()> {
        let end = block.host + block.bytes;
        let overlaps = self
            .blocks
            .range(..end)
            .next_back()
            .is_some_and(|(_, other)| other.host + other.bytes > block.host);
        ensure!(
            !overlaps,
            HostMemoryAlreadyRegistered,
            "{:#x} overlaps a pinned block",
            block.host
        );
        self.blocks.insert(block.host, block);
        Ok(())
    }

    /// Removes the block that starts at `host`.
    pub fn remove(&mut self, host: usize) -> Option<PinnedBlock> {
        self.blocks.remove(&host)
    }

    /// The block that holds `host`.
    #[must_use]
    pub fn find(&self, host: usize) -> Option<PinnedBlock> {
        let (_, block) = self.blocks.range(..=host).next_back()?;
        (host - block.host < block.bytes).then_some(*block)
    }

    /// Whether the whole span is page-locked.
    #[must_use]
    pub fn is_pinned(&self, span: HostSpan) -> bool {
        self.find(span.address)
            .is_some_and(|block| block.host + block.bytes - span.address >= span.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_pinned_only_when_all_of_it_is() {
        let mut host = HostMemory::default();
        let block = PinnedBlock { host: 4096, bytes: 100, device: None, flags: 0 };
        host.insert(block).unwrap();
        // SAFETY: these spans are only looked up, never read.
        let span = |address, bytes| unsafe { HostSpan::new(address, bytes) };
        assert!(host.is_pinned(span(4096, 100)));
        assert!(host.is_pinned(span(4100, 96)));
        assert!(!host.is_pinned(span(4100, 97)));
        assert!(!host.is_pinned(span(4095, 2)));
        assert!(host.insert(PinnedBlock { host: 4195, bytes: 1, ..block }).is_err());
        assert!(host.insert(PinnedBlock { host: 4196, bytes: 1, ..block }).is_ok());
        assert_eq!(host.remove(4096), Some(block));
        assert!(!host.is_pinned(span(4096, 1)));
    }
}
