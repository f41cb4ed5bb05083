//! The shared memory of one CTA, and everything that can be wrong with an access to it.
//!
//! Beside the bytes stand: a bit a byte for "written", a bit a word for "an unwaited `cp.async`
//! brings this", and for the race detector a stamp of the last write and, for every warp, of the
//! last reads of each unit. A unit is a word until somebody touches a half or a byte; then the
//! stamps are split, once, for good. [`super::order`] says which stamps are ordered before now.
//! What is reported: two threads, one unit, no barrier between, one of them writing something new.
//! Atomics, volatile and relaxed accesses do not race among each other.
//! Invariant: a stamp is never later than `order.now`.
//! Read next: `races` (who may touch what), `copies` (`cp.async`), `quick` (the common cases).

mod copies;
mod quick;
mod races;
#[cfg(test)]
mod tests;

use super::Violation;
use super::order::{Knowledge, Order, WARPS, join};
use crate::launch::FaultKind;
use copies::Flights;
use quick::NOBODY;
pub(crate) use quick::View;
use std::collections::HashMap;

/// The largest shared memory a CTA can have, in bytes: what Hopper offers.
pub const LARGEST_BYTES: u32 = 227 * 1024;

/// Who touches memory, for the race detector and for messages.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Warp of the CTA.
    pub warp: usize,
    /// PTX line.
    pub line: u32,
    /// Atomic, volatile or relaxed: does not race with its like.
    pub strong: bool,
}

/// Marks the line of a strong write.
const STRONG: u32 = 1 << 31;

impl Access {
    /// The line, marked when the access is strong.
    #[inline(always)]
    fn mark(self) -> u32 {
        self.line & !STRONG | if self.strong { STRONG } else { 0 }
    }
}

/// A violation and the lane that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneViolation {
    /// The lane.
    pub lane: usize,
    /// What it did.
    pub violation: Violation,
}

/// The reads of one warp of one unit since its lanes last met: the last one's time in the upper
/// half, the lanes in the lower. (A number, so that a fresh table costs nothing until touched.)
type Reads = u64;

/// The shared memory of one CTA.
#[derive(Debug)]
pub struct SharedMemory {
    bytes: Vec<u8>,
    written: Vec<u64>,
    /// Words under an unwaited copy.
    pending: Vec<u64>,
    pending_words: u32,
    flights: Vec<Flights>,
    order: Order,
    warps: usize,
    /// log2 of the bytes of a unit: 2, 1 or 0.
    unit_shift: u32,
    units: usize,
    /// Last write of each unit: time, then thread in the low ten bits.
    writes: Vec<u32>,
    /// PTX line of that write; the top bit says that it was strong.
    write_lines: Vec<u32>,
    /// `[warp][unit]`.
    reads: Vec<Reads>,
    /// The last time each warp read anything.
    last_reads: [u32; WARPS],
    /// What strong writes made known, by address.
    published: HashMap<u32, Knowledge>,
}

/// A whole lane mask: what a collective access, `ldmatrix`, counts as.
const EVERY_LANE: u32 = u32::MAX;

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32usize).filter(move |lane| mask >> lane & 1 == 1)
}

impl SharedMemory {
    /// The memory of a CTA of `threads` threads.
    #[must_use]
    pub fn new(bytes: u32, threads: u32) -> Self {
        let warps = threads.div_ceil(32) as usize;
        let mut memory = Self {
            bytes: Vec::new(),
            written: Vec::new(),
            pending: Vec::new(),
            pending_words: 0,
            flights: Vec::new(),
            order: Order::new(warps),
            warps,
            unit_shift: 2,
            units: 0,
            writes: Vec::new(),
            write_lines: Vec::new(),
            reads: Vec::new(),
            last_reads: [0; WARPS],
            published: HashMap::new(),
        };
        memory.bytes = vec![0; bytes.next_multiple_of(16) as usize];
        memory.bytes.truncate(bytes as usize);
        memory.written = vec![0; bytes.div_ceil(64) as usize + 1];
        memory.pending = vec![0; bytes.div_ceil(256) as usize + 1];
        memory.flights = vec![Flights::default(); warps * 32];
        memory.shape_units();
        memory
    }

    fn shape_units(&mut self) {
        self.units = (self.bytes.len() >> self.unit_shift) + 1;
        self.writes = vec![0; self.units];
        self.write_lines = vec![0; self.units];
        self.reads = vec![0; self.units * self.warps];
    }

    /// Makes it the memory of the next CTA of the same launch: nothing is written, nobody has met.
    pub fn next_cta(&mut self) {
        self.written.fill(0);
        if self.pending_words > 0 {
            self.pending.fill(0);
            self.pending_words = 0;
        }
        for flights in &mut self.flights {
            flights.list.clear();
            flights.group = 0;
        }
        self.published.clear();
        if self.order.next_cta(self.warps) {
            self.clear_stamps();
        }
    }

    fn clear_stamps(&mut self) {
        self.writes.fill(0);
        self.reads.fill(0);
        self.last_reads = [0; WARPS];
    }

    /// Splits every unit until one has at most `bytes` bytes; each part inherits the stamps.
    pub(crate) fn refine(&mut self, bytes: u32) {
        while 1 << self.unit_shift > bytes {
            self.unit_shift -= 1;
            let old_units = self.units;
            self.units = (self.bytes.len() >> self.unit_shift) + 1;
            let (units, warps) = (self.units, self.warps);
            let split = |i: usize| (i / 2).min(old_units - 1);
            self.writes = (0..units).map(|i| self.writes[split(i)]).collect();
            self.write_lines = (0..units).map(|i| self.write_lines[split(i)]).collect();
            self.reads = (0..units * warps)
                .map(|i| self.reads[i / units * old_units + split(i % units)])
                .collect();
        }
    }

    /// Bytes of the memory.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Whether the CTA has no shared memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    // --- reading and writing -------------------------------------------------------------------

    /// Checks and records that the lanes of `mask` each read `size` bytes, 1 to 16.
    ///
    /// # Errors
    /// The first broken rule, by lane.
    pub fn load(
        &mut self,
        by: Access,
        mask: u32,
        addresses: &[u32; 32],
        size: u32,
    ) -> Result<(), LaneViolation> {
        self.check_places(mask, addresses, size)?;
        self.refine(size);
        let view = self.view(by);
        if self.load_at_once(&view, mask, addresses, size) {
            return Ok(());
        }
        for lane in lanes(mask) {
            let address = addresses[lane];
            if self.quick_read(&view, view.thread(lane), 1 << lane, address, size) {
                continue;
            }
            self.readable(by, lane, address, size)
                .and_then(|()| self.read_units(by, lane, 1 << lane, address, size))
                .map_err(|violation| LaneViolation { lane, violation })?;
        }
        Ok(())
    }

    /// Checks, records and performs a store of `size` bytes, 1 to 16, by each lane of `mask`, of
    /// the low bytes of its four words.
    ///
    /// # Errors
    /// The first broken rule, by lane.
    pub fn store(
        &mut self,
        by: Access,
        mask: u32,
        addresses: &[u32; 32],
        size: u32,
        values: &[[u32; 4]; 32],
    ) -> Result<(), LaneViolation> {
        self.check_places(mask, addresses, size)?;
        self.refine(size);
        let view = self.view(by);
        let dense = mask == EVERY_LANE && self.stamp_dense(&view, addresses, size);
        for lane in lanes(mask) {
            let (address, bytes) = (addresses[lane], bytes_of(values[lane]));
            if !dense && !self.quick_write(&view, lane, address, size) {
                self.settled(by, lane, address, size)
                    .and_then(|()| self.write_units(by, lane, address, &bytes[..size as usize]))
                    .map_err(|violation| LaneViolation { lane, violation })?;
            }
            self.put(address, &bytes, size);
        }
        Ok(())
    }

    /// One matrix row of `ldmatrix`: 16 bytes that all lanes of the warp read.
    ///
    /// # Errors
    /// The first broken rule.
    pub(crate) fn load_row(&mut self, view: &View, address: u32) -> Result<[u8; 16], Violation> {
        self.check_place(address, 16)?;
        if !self.quick_read(view, NOBODY, EVERY_LANE, address, 16) {
            self.readable(view.access, 0, address, 16)?;
            self.read_units(view.access, usize::MAX, EVERY_LANE, address, 16)?;
        }
        Ok(self.get(address))
    }

    /// The bytes at `address`, after `load` has allowed them.
    #[inline(always)]
    #[must_use]
    pub fn get<const N: usize>(&self, address: u32) -> [u8; N] {
        let at = address as usize;
        self.bytes[at..at + N].try_into().expect("a slice of N bytes")
    }

    /// Reads 1, 2, 4 or 8 bytes, after `load` has allowed them.
    #[inline(always)]
    #[must_use]
    pub fn value(&self, address: u32, size: u32) -> u64 {
        match size {
            1 => u64::from(self.get::<1>(address)[0]),
            2 => u64::from(u16::from_ne_bytes(self.get(address))),
            4 => u64::from(u32::from_ne_bytes(self.get(address))),
            _ => u64::from_ne_bytes(self.get(address)),
        }
    }

    /// Writes the first `size` of `bytes`.
    #[inline(always)]
    fn put(&mut self, address: u32, bytes: &[u8; 16], size: u32) {
        let at = address as usize;
        match size {
            1 => self.bytes[at] = bytes[0],
            2 => self.bytes[at..at + 2].copy_from_slice(&bytes[..2]),
            4 => self.bytes[at..at + 4].copy_from_slice(&bytes[..4]),
            8 => self.bytes[at..at + 8].copy_from_slice(&bytes[..8]),
            _ => self.bytes[at..at + 16].copy_from_slice(bytes),
        }
        let (word, bits) = bits_of(address, size);
        self.written[word] |= bits;
    }

    /// One lane's atomic: `change` maps the old value to the new one. Returns the old value.
    ///
    /// # Errors
    /// The first broken rule.
    pub(crate) fn atomic(
        &mut self,
        view: &View,
        lane: usize,
        address: u32,
        size: u32,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<u64, Violation> {
        let by = view.access;
        self.check_place(address, size)?;
        self.readable(by, lane, address, size)?;
        let old = self.value(address, size);
        let new = change(old).to_ne_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&new);
        if !self.quick_write(view, lane, address, size) {
            self.read_check(by, lane, address, size)?;
            self.write_units(by, lane, address, &new[..size as usize])?;
        }
        self.put(address, &bytes, size);
        Ok(old)
    }

    // --- bounds, alignment, written, pending ----------------------------------------------------

    fn check_places(
        &self,
        mask: u32,
        addresses: &[u32; 32],
        size: u32,
    ) -> Result<(), LaneViolation> {
        let limit = self.bytes.len() as u32;
        let wrong = |a: u32| a & (size - 1) != 0 || a > limit || limit - a < size;
        let mut bad = 0u32;
        for (lane, address) in addresses.iter().enumerate() {
            bad |= u32::from(wrong(*address)) << lane;
        }
        if bad & mask == 0 {
            return Ok(());
        }
        let lane = (bad & mask).trailing_zeros() as usize;
        let violation = self.check_place(addresses[lane], size).expect_err("found wrong");
        Err(LaneViolation { lane, violation })
    }

    fn check_place(&self, address: u32, size: u32) -> Result<(), Violation> {
        let limit = self.bytes.len() as u32;
        if address > limit || limit - address < size {
            let detail =
                format!("{size} bytes of shared memory, of which the CTA has {limit} bytes");
            return Err(Violation::at(FaultKind::OutOfBounds, address.into(), detail));
        }
        if address & (size - 1) != 0 {
            let detail =
                format!("{size} bytes of shared memory must start at a multiple of {size}");
            return Err(Violation::at(FaultKind::Misaligned, address.into(), detail));
        }
        Ok(())
    }

    fn range_written(&self, address: u32, bytes: u32) -> bool {
        let (mut at, end) = (address, address + bytes);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let (word, bits) = bits_of(at, count);
            if self.written[word] & bits != bits {
                return false;
            }
            at += count;
        }
        true
    }

    /// Nothing under an unwaited copy, and every byte written.
    #[inline]
    fn readable(&self, by: Access, lane: usize, address: u32, size: u32) -> Result<(), Violation> {
        self.settled(by, lane, address, size)?;
        let (word, bits) = bits_of(address, size);
        let known = self.written[word] & bits;
        if known == bits {
            return Ok(());
        }
        let at = address + (!known & bits).trailing_zeros() - address % 64;
        let detail = format!("shared byte {at:#x} was never written in this CTA");
        Err(Violation::at(FaultKind::Uninitialised, address.into(), detail))
    }

    #[inline]
    fn settled(&self, by: Access, lane: usize, address: u32, size: u32) -> Result<(), Violation> {
        if self.pending_words == 0 {
            return Ok(());
        }
        let (first, last) = (address / 4, (address + size - 1) / 4);
        for word in first..=last {
            if self.pending[word as usize / 64] >> (word % 64) & 1 == 0 {
                continue;
            }
            let me = by.warp * 32 + lane.min(31);
            let unit = (word as usize * 4) >> self.unit_shift;
            let owner = self.writes[unit] as usize & 1023;
            let whose = if owner == me {
                "this thread itself".to_owned()
            } else {
                format!("thread {owner} of the CTA")
            };
            let detail = format!(
                "shared word {:#x} is the destination of a cp.async of {whose} (PTX line {}) that \
                 was not waited for",
                word * 4,
                self.write_lines[unit] & !STRONG
            );
            return Err(Violation::at(FaultKind::UnwaitedCopy, address.into(), detail));
        }
        Ok(())
    }

    // --- synchronisation ------------------------------------------------------------------------

    /// All warps of the CTA met at a barrier.
    pub fn everybody_met(&mut self) {
        if self.order.everybody_met() {
            self.clear_stamps();
            self.published.clear();
        }
    }

    /// What a warp that arrives somewhere makes known.
    pub fn release(&mut self, warp: usize) -> Knowledge {
        self.order.release(warp)
    }

    /// A warp learns what others made known.
    pub fn acquire(&mut self, warp: usize, knowledge: &Knowledge) {
        self.order.acquire(warp, knowledge);
    }

    /// The lanes of `mask` met at `bar.warp.sync`; `all` when no living lane is missing.
    pub fn lanes_met(&mut self, warp: usize, mask: u32, all: bool) {
        self.order.lanes_met(warp, mask, all);
    }

    /// A strong write at `address` after a fence publishes what its warp knows.
    pub fn publish(&mut self, warp: usize, address: u32) {
        let knowledge = self.order.release(warp);
        join(self.published.entry(address).or_insert([0; WARPS]), &knowledge);
    }

    /// A strong read at `address` learns what was published there.
    pub fn learn(&mut self, warp: usize, address: u32) {
        if let Some(knowledge) = self.published.get(&address) {
            self.order.acquire(warp, knowledge);
        }
    }

    /// Marks bytes as written without an access: an mbarrier object after its `init`.
    pub fn claim(&mut self, address: u32, size: u32) -> Result<(), Violation> {
        self.check_place(address, size)?;
        self.put(address, &[0; 16], size);
        Ok(())
    }
}

/// Words as bytes in memory order.
#[inline(always)]
fn bytes_of(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    std::array::from_fn(|i| [a, b, c, d][i / 4][i % 4])
}

/// The word of a bit-a-byte set that holds `size` bytes at `address`, and their bits in it. An
/// aligned access of up to 16 bytes never crosses a word.
#[inline(always)]
fn bits_of(address: u32, size: u32) -> (usize, u64) {
    ((address / 64) as usize, (u64::MAX >> (64 - size)) << (address % 64))
}
