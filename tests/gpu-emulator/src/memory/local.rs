//! Memory of which every lane of a warp has its own copy: local frames and call parameters.
//!
//! Words of the 32 lanes lie side by side, as registers do. It grows as frames are pushed.
//! Invariant: a lane's byte reads only what that lane wrote; an unwritten one is a fault.

use super::Violation;
use crate::launch::FaultKind;

/// The per-lane memory of one warp.
#[derive(Debug, Clone, Default)]
pub struct LocalMemory {
    /// `[byte][lane]`.
    bytes: Vec<[u8; 32]>,
    /// `[byte]`: which lanes wrote it.
    written: Vec<u32>,
}

impl LocalMemory {
    /// Bytes a lane.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Whether no lane has any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Makes it `bytes` long; what is new is unwritten.
    pub fn resize(&mut self, bytes: u32) {
        self.bytes.resize(bytes as usize, [0; 32]);
        self.written.resize(bytes as usize, 0);
    }

    /// Makes it `bytes` long and unwritten.
    pub fn renew(&mut self, bytes: u32) {
        self.written.clear();
        self.resize(bytes);
    }

    /// Makes a range unwritten for the lanes of `mask`.
    pub fn forget(&mut self, mask: u32, from: u32, bytes: u32) {
        for written in &mut self.written[from as usize..(from + bytes) as usize] {
            *written &= !mask;
        }
    }

    /// Checks an access of one lane.
    ///
    /// # Errors
    /// Out of bounds or misaligned.
    #[inline]
    pub fn check(&self, address: u32, size: u32) -> Result<(), Violation> {
        let limit = self.len();
        if address > limit || limit - address < size {
            let detail = format!("{size} bytes of local memory, of which a thread has {limit}");
            return Err(Violation::at(FaultKind::OutOfBounds, address.into(), detail));
        }
        if !address.is_multiple_of(size) {
            let detail = format!("{size} bytes of local memory must start at a multiple of {size}");
            return Err(Violation::at(FaultKind::Misaligned, address.into(), detail));
        }
        Ok(())
    }

    /// Whether this lane wrote all the bytes.
    ///
    /// # Errors
    /// The first byte it never wrote.
    #[inline]
    pub fn readable(&self, lane: usize, address: u32, size: u32) -> Result<(), Violation> {
        for at in address as usize..(address + size) as usize {
            if self.written[at] >> lane & 1 == 0 {
                let detail = format!("local byte {at:#x} was never written by this thread");
                return Err(Violation::at(FaultKind::Uninitialised, address.into(), detail));
            }
        }
        Ok(())
    }

    /// Reads 1, 2, 4 or 8 bytes of one lane, after `check` and `readable` have allowed them.
    #[inline]
    #[must_use]
    pub fn value(&self, lane: usize, address: u32, size: u32) -> u64 {
        let bytes = &self.bytes[address as usize..(address + size) as usize];
        bytes.iter().rev().fold(0, |value, lanes| value << 8 | u64::from(lanes[lane]))
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value` for one lane.
    #[inline]
    pub fn store(&mut self, lane: usize, address: u32, size: u32, value: u64) {
        for i in 0..size as usize {
            let at = address as usize + i;
            self.bytes[at][lane] = (value >> (8 * i)) as u8;
            self.written[at] |= 1 << lane;
        }
    }

    /// Copies a range of all lanes of `mask` from another memory; unwritten bytes stay so.
    pub fn copy_from(&mut self, mask: u32, to: u32, other: &Self, from: u32, bytes: u32) {
        for i in 0..bytes as usize {
            let (to, from) = (to as usize + i, from as usize + i);
            for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                self.bytes[to][lane] = other.bytes[from][lane];
            }
            self.written[to] = (self.written[to] & !mask) | (other.written[from] & mask);
        }
    }
}
