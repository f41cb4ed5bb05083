//! A range of zeroed memory that the host gives only when it is touched.
//!
//! Kernels of several CTAs touch it from several host threads at once, so every access is a relaxed
//! atomic of its size: a racing kernel gets some interleaving of values, never undefined behaviour
//! here. (Racing accesses of *different* sizes to one word remain the kernel's fault and the
//! hardware's business; the host performs them as separate loads and stores.)
//! Invariant: `bytes` is a multiple of 8 and no access passes it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The mapping.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is owned by the region alone and is only reached through atomics.
unsafe impl Send for Region {}
// SAFETY: as above; all shared access is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` (rounded up to pages by the kernel) of zeroes, or `None` when the host refuses.
    pub(crate) fn map(bytes: usize) -> Option<Self> {
        let bytes = bytes.next_multiple_of(8);
        // SAFETY: an anonymous private mapping at an address the host picks touches no other
        // memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(Self { start: NonNull::new(start.cast())?, bytes })
    }

    /// Host address of the first byte.
    pub(crate) fn host(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The pointer to `offset`, after checking that `size` bytes are there.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(offset <= self.bytes - size, "an access past the mapped region");
        // SAFETY: offset + size <= bytes, so the result stays inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    #[inline(always)]
    fn u8_at(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: in bounds by `at`, alive while `self` is, only ever reached as an atomic.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    #[inline(always)]
    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2), "a misaligned u16");
        // SAFETY: in bounds by `at`, aligned because the mapping is and `offset` is, alive.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    /// The 32-bit word at `offset`, a multiple of 4.
    #[inline(always)]
    pub(crate) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "a misaligned u32");
        // SAFETY: in bounds by `at`, aligned because the mapping is and `offset` is, alive.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    /// The 64-bit word at `offset`, a multiple of 8.
    #[inline(always)]
    pub(crate) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "a misaligned u64");
        // SAFETY: in bounds by `at`, aligned because the mapping is and `offset` is, alive.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Reads 1, 2, 4 or 8 bytes at a multiple of their count.
    #[inline(always)]
    pub(crate) fn load(&self, offset: usize, size: usize) -> u64 {
        match size {
            1 => u64::from(self.u8_at(offset).load(Relaxed)),
            2 => u64::from(self.u16_at(offset).load(Relaxed)),
            4 => u64::from(self.u32_at(offset).load(Relaxed)),
            _ => self.u64_at(offset).load(Relaxed),
        }
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value` at a multiple of their count.
    #[inline(always)]
    pub(crate) fn store(&self, offset: usize, size: usize, value: u64) {
        match size {
            1 => self.u8_at(offset).store(value as u8, Relaxed),
            2 => self.u16_at(offset).store(value as u16, Relaxed),
            4 => self.u32_at(offset).store(value as u32, Relaxed),
            _ => self.u64_at(offset).store(value, Relaxed),
        }
    }

    /// Copies bytes out, eight at a time where both ends allow.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let head = (offset.next_multiple_of(8) - offset).min(into.len());
        let (first, rest) = into.split_at_mut(head);
        for (i, byte) in first.iter_mut().enumerate() {
            *byte = self.u8_at(offset + i).load(Relaxed);
        }
        let mut at = offset + head;
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.u64_at(at).load(Relaxed).to_ne_bytes());
            at += 8;
        }
        for (i, byte) in words.into_remainder().iter_mut().enumerate() {
            *byte = self.u8_at(at + i).load(Relaxed);
        }
    }

    /// Copies bytes in, eight at a time where both ends allow.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let head = (offset.next_multiple_of(8) - offset).min(from.len());
        let (first, rest) = from.split_at(head);
        for (i, byte) in first.iter().enumerate() {
            self.u8_at(offset + i).store(*byte, Relaxed);
        }
        let mut at = offset + head;
        let words = rest.chunks_exact(8);
        let tail = words.remainder();
        for word in words {
            let word = word.try_into().expect("chunks of eight");
            self.u64_at(at).store(u64::from_ne_bytes(word), Relaxed);
            at += 8;
        }
        for (i, byte) in tail.iter().enumerate() {
            self.u8_at(at + i).store(*byte, Relaxed);
        }
    }

    /// Sets `count` bytes.
    pub(crate) fn fill(&self, offset: usize, byte: u8, count: usize) {
        let end = offset + count;
        let mut at = offset;
        while at < end && !at.is_multiple_of(8) {
            self.u8_at(at).store(byte, Relaxed);
            at += 1;
        }
        while at + 8 <= end {
            self.u64_at(at).store(u64::from_ne_bytes([byte; 8]), Relaxed);
            at += 8;
        }
        while at < end {
            self.u8_at(at).store(byte, Relaxed);
            at += 1;
        }
    }

    /// Zeroes a range and gives its whole pages back to the host.
    pub(crate) fn release(&self, offset: usize, count: usize) {
        const PAGE: usize = 4096;
        let (first, last) = (offset.next_multiple_of(PAGE), (offset + count) / PAGE * PAGE);
        if first >= last {
            self.fill(offset, 0, count);
            return;
        }
        self.fill(offset, 0, first - offset);
        self.fill(last, 0, offset + count - last);
        // SAFETY: whole pages inside this mapping; private anonymous pages read as zero afterwards.
        let code = unsafe {
            libc::madvise(self.at(first, last - first).cast(), last - first, libc::MADV_DONTNEED)
        };
        if code != 0 {
            self.fill(first, 0, last - first);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with these very bounds and nothing outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
