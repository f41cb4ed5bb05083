//! The shared memory of one CTA, and everything that can be wrong with an access to it.
//!
//! Beside the bytes stand: a bit a byte for "written", a bit a word for "an unwaited `cp.async`
//! brings this", and for the race detector a stamp of the last write and, for every warp, of the
//! last reads of each unit. A unit is a word until somebody touches a half or a byte; then the
//! stamps are split, once, for good. [`super::order`] says which stamps are ordered before now.
//! What is reported: two threads, one unit, no barrier between, one of them writing something new.
//! Atomics, volatile and relaxed accesses do not race among each other.
//! Invariant: a stamp is never later than `order.now`.

use super::Violation;
use super::order::{Knowledge, LAST_TIME, Order, WARPS, join};
use crate::launch::FaultKind;
use std::collections::{HashMap, VecDeque};

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

/// What `old` becomes when the lanes of `bits` read at `now`; `met` is when all lanes last met.
#[inline(always)]
fn reads_after(old: Reads, met: u32, now: u32, bits: u32) -> Reads {
    let kept = if (old >> 32) as u32 > met { old as u32 } else { 0 };
    u64::from(now) << 32 | u64::from(kept | bits)
}

/// A copy on its way: destination, bytes, and the group it was committed to.
#[derive(Debug, Clone, Copy)]
struct Flight {
    address: u32,
    bytes: u32,
    group: u32,
}

/// The copies of one thread.
#[derive(Debug, Clone, Default)]
struct Flights {
    list: VecDeque<Flight>,
    /// The group the next copy joins; groups before it are committed.
    group: u32,
}

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
        if size < 1 << self.unit_shift {
            self.refine(size);
        }
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

    /// The common cases in one sweep: all lanes read the same place, or consecutive lanes read
    /// consecutive places. False when it is neither or needs a closer look; nothing has been
    /// recorded then.
    #[inline]
    fn load_at_once(&mut self, view: &View, mask: u32, addresses: &[u32; 32], size: u32) -> bool {
        let first = addresses[0];
        let (mut same, mut dense) = (0, 0);
        for (lane, address) in addresses.iter().enumerate() {
            same |= address ^ first;
            dense |= address ^ first.wrapping_add(lane as u32 * size);
        }
        if same == 0 {
            return self.quick_read(view, NOBODY, mask, first, size);
        }
        if dense != 0
            || mask != EVERY_LANE
            || self.pending_words != 0
            || !self.range_written(first, size * 32)
        {
            return false;
        }
        let start = (first >> self.unit_shift) as usize;
        let each = (size >> self.unit_shift) as usize;
        let writes = &self.writes[start..start + each * 32];
        if !view.all_known(writes, each) {
            return false;
        }
        self.last_reads[view.warp] = view.now;
        let row = &mut self.reads[view.row + start..view.row + start + each * 32];
        for (lane, units) in row.chunks_exact_mut(each).enumerate() {
            for unit in units {
                *unit = reads_after(*unit, view.met, view.now, 1 << lane);
            }
        }
        true
    }

    /// What the quick paths need to know of a warp.
    ///
    /// A view made before the warp has learned more is stale only on the safe side.
    #[inline]
    pub(crate) fn view(&self, by: Access) -> View {
        let known = self.order.knowledge(by.warp);
        let late = |warp: &usize| self.last_reads[*warp] > known[*warp];
        View {
            floor: self.order.floor(by.warp),
            met: known[by.warp],
            now: self.order.now,
            warp: by.warp,
            row: by.warp * self.units,
            late: (0..self.warps).filter(late).fold(0, |all, warp| all | 1 << warp),
            access: by,
        }
    }

    /// Reads a place if nothing about it needs a closer look.
    #[inline(always)]
    fn quick_read(&mut self, view: &View, me: u32, bits: u32, address: u32, size: u32) -> bool {
        let (word, written) = bits_of(address, size);
        if self.pending_words != 0 && self.is_pending(address, size) {
            return false;
        }
        if self.written[word] & written != written || view.access.strong {
            return false;
        }
        let units = self.units_of(address, size);
        let mut known = true;
        for stamp in &self.writes[units.clone()] {
            known &= stamp >> 10 <= view.floor || stamp & 1023 == me;
        }
        if !known {
            return false;
        }
        self.last_reads[view.warp] = view.now;
        for unit in &mut self.reads[view.row + units.start..view.row + units.end] {
            *unit = reads_after(*unit, view.met, view.now, bits);
        }
        true
    }

    /// Stamps a write of a place if nothing about it needs a closer look.
    #[inline(always)]
    fn quick_write(&mut self, view: &View, lane: usize, at: u32, size: u32) -> bool {
        if self.pending_words != 0 && self.is_pending(at, size) {
            return false;
        }
        let me = view.thread(lane);
        let units = self.units_of(at, size);
        let mut known = true;
        for stamp in &self.writes[units.clone()] {
            known &= stamp >> 10 <= view.floor || stamp & 1023 == me;
        }
        let mut late = view.late;
        while late != 0 {
            let warp = late.trailing_zeros() as usize;
            late &= late - 1;
            let limit = self.order.known(view.warp, warp);
            let mine = if warp == view.warp { 1 << lane } else { 0 };
            let row = warp * self.units;
            for reads in &self.reads[row + units.start..row + units.end] {
                known &= (reads >> 32) as u32 <= limit || *reads as u32 == mine;
            }
        }
        if !known {
            return false;
        }
        for stamp in &mut self.writes[units.clone()] {
            *stamp = view.now << 10 | me;
        }
        for line in &mut self.write_lines[units] {
            *line = view.access.mark();
        }
        true
    }

    /// Stamps writes of consecutive places by consecutive lanes if nothing needs a closer look.
    #[inline]
    fn stamp_dense(&mut self, view: &View, addresses: &[u32; 32], size: u32) -> bool {
        let first = addresses[0];
        let mut off = 0;
        for (lane, address) in addresses.iter().enumerate() {
            off |= address ^ first.wrapping_add(lane as u32 * size);
        }
        if off != 0 || self.pending_words != 0 || view.late != 0 {
            return false;
        }
        let start = (first >> self.unit_shift) as usize;
        let each = (size >> self.unit_shift) as usize;
        let writes = &mut self.writes[start..start + each * 32];
        if !view.all_known(writes, each) {
            return false;
        }
        for (lane, stamps) in writes.chunks_exact_mut(each).enumerate() {
            for stamp in stamps {
                *stamp = view.now << 10 | view.thread(lane);
            }
        }
        for line in &mut self.write_lines[start..start + each * 32] {
            *line = view.access.mark();
        }
        true
    }

    #[inline]
    fn is_pending(&self, address: u32, size: u32) -> bool {
        let (word, bits) = words_of(address, size);
        self.pending[word] & bits != 0
    }

    /// Checks, records and performs a store of `size` bytes, 1 to 16, by each lane of `mask`;
    /// `value` gives a lane's bytes, low ones first.
    ///
    /// # Errors
    /// The first broken rule, by lane.
    pub fn store(
        &mut self,
        by: Access,
        mask: u32,
        addresses: &[u32; 32],
        size: u32,
        value: impl Fn(usize) -> [u8; 16],
    ) -> Result<(), LaneViolation> {
        self.check_places(mask, addresses, size)?;
        if size < 1 << self.unit_shift {
            self.refine(size);
        }
        let view = self.view(by);
        if mask == EVERY_LANE && self.stamp_dense(&view, addresses, size) {
            for (lane, address) in addresses.iter().enumerate() {
                self.put(*address, &value(lane), size);
            }
            return Ok(());
        }
        for lane in lanes(mask) {
            let (address, bytes) = (addresses[lane], value(lane));
            if !self.quick_write(&view, lane, address, size) {
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
    pub fn load_row(&mut self, by: Access, address: u32) -> Result<[u8; 16], Violation> {
        self.check_place(address, 16)?;
        let view = self.view(by);
        if !self.quick_read(&view, NOBODY, EVERY_LANE, address, 16) {
            self.readable(by, 0, address, 16)?;
            self.read_units(by, usize::MAX, EVERY_LANE, address, 16)?;
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

    // --- races ----------------------------------------------------------------------------------

    #[inline]
    fn units_of(&self, address: u32, size: u32) -> std::ops::Range<usize> {
        let first = (address >> self.unit_shift) as usize;
        first..first + ((size >> self.unit_shift) as usize).max(1)
    }

    #[inline]
    fn read_check(
        &self,
        by: Access,
        lane: usize,
        address: u32,
        size: u32,
    ) -> Result<(), Violation> {
        let floor = self.order.floor(by.warp);
        for unit in self.units_of(address, size) {
            let stamp = self.writes[unit];
            if stamp >> 10 > floor && !self.write_known(by, lane, unit) {
                return Err(self.race(by, unit, stamp, "reads"));
            }
        }
        Ok(())
    }

    /// Checks a read against writes and remembers it. `lane` is `usize::MAX` for a collective read.
    #[inline]
    fn read_units(
        &mut self,
        by: Access,
        lane: usize,
        bits: u32,
        address: u32,
        size: u32,
    ) -> Result<(), Violation> {
        self.read_check(by, lane, address, size)?;
        if by.strong {
            return Ok(());
        }
        let (now, met) = (self.order.now, self.order.known(by.warp, by.warp));
        self.last_reads[by.warp] = now;
        let units = self.units_of(address, size);
        let row = by.warp * self.units;
        for unit in &mut self.reads[row + units.start..row + units.end] {
            *unit = reads_after(*unit, met, now, bits);
        }
        Ok(())
    }

    /// Whether the last write of `unit` is ordered before what `lane` does now.
    fn write_known(&self, by: Access, lane: usize, unit: usize) -> bool {
        let stamp = self.writes[unit];
        let (time, writer_warp, writer_lane) =
            (stamp >> 10, (stamp >> 5 & 31) as usize, (stamp & 31) as usize);
        if time == LAST_TIME || (by.strong && self.write_lines[unit] & STRONG != 0) {
            return true;
        }
        if writer_warp != by.warp {
            return time <= self.order.known(by.warp, writer_warp);
        }
        if lane == usize::MAX {
            return time <= self.order.known(by.warp, by.warp)
                || (0..32).all(|l| self.order.lanes_ordered(by.warp, l, writer_lane, time));
        }
        self.order.lanes_ordered(by.warp, lane, writer_lane, time)
    }

    /// A read of `unit` that is not ordered before a write by `lane` now: warp, lane.
    fn unordered_read(&self, by: Access, lane: usize, unit: usize) -> Option<(usize, usize)> {
        for warp in 0..self.warps {
            let known = self.order.known(by.warp, warp);
            if self.last_reads[warp] <= known {
                continue;
            }
            let reads = self.reads[warp * self.units + unit];
            let (time, readers) = ((reads >> 32) as u32, reads as u32);
            if time <= known || time == LAST_TIME {
                continue;
            }
            let other =
                |l: &usize| warp != by.warp || !self.order.lanes_ordered(warp, lane, *l, time);
            if let Some(reader) = lanes(readers).find(other) {
                return Some((warp, reader));
            }
        }
        None
    }

    /// Checks a write of `bytes` against reads and writes, and stamps it.
    #[inline]
    fn write_units(
        &mut self,
        by: Access,
        lane: usize,
        address: u32,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let size = bytes.len() as u32;
        let floor = self.order.floor(by.warp);
        let read_since = self.last_reads[..self.warps].iter().any(|time| *time > floor);
        let stamp = self.order.now << 10 | (by.warp * 32 + lane) as u32;
        for unit in self.units_of(address, size) {
            let old = self.writes[unit];
            if old >> 10 > floor && !self.write_known(by, lane, unit) && !self.holds(address, bytes)
            {
                return Err(self.race(by, unit, old, "writes"));
            }
            if read_since && let Some((warp, reader)) = self.unordered_read(by, lane, unit) {
                let detail = format!(
                    "writes shared byte {:#x}, which thread {} of the CTA reads with no barrier \
                     between the two",
                    unit << self.unit_shift,
                    warp * 32 + reader
                );
                return Err(Violation::at(FaultKind::SharedRace, address.into(), detail));
            }
            self.writes[unit] = stamp;
            self.write_lines[unit] = by.mark();
        }
        Ok(())
    }

    /// Whether memory holds these bytes already: writing the same twice harms nobody.
    fn holds(&self, address: u32, bytes: &[u8]) -> bool {
        let at = address as usize;
        let (word, bits) = bits_of(address, bytes.len() as u32);
        self.written[word] & bits == bits && self.bytes[at..at + bytes.len()] == *bytes
    }

    fn race(&self, by: Access, unit: usize, stamp: u32, does: &str) -> Violation {
        let writer = stamp as usize & 1023;
        let near =
            if writer / 32 == by.warp { " (same warp: lockstep is not promised)" } else { "" };
        let address = (unit << self.unit_shift) as u64;
        let detail = format!(
            "{does} shared byte {address:#x}, which thread {writer} of the CTA{near} writes (PTX \
             line {}) with no barrier between the two",
            self.write_lines[unit] & !STRONG
        );
        Violation::at(FaultKind::SharedRace, address, detail)
    }

    // --- copies ---------------------------------------------------------------------------------

    /// Starts a `cp.async` of one lane into `address`. `size` of `bytes` are what will land there
    /// and `written` says, a bit a byte, which of them anybody wrote at the source.
    ///
    /// # Errors
    /// The first broken rule.
    pub(crate) fn copy_in(
        &mut self,
        view: &View,
        lane: usize,
        address: u32,
        bytes: &[u8; 16],
        size: u32,
        written: u32,
    ) -> Result<(), Violation> {
        let by = view.access;
        self.check_place(address, size)?;
        if !self.quick_write(view, lane, address, size) {
            self.settled(by, lane, address, size)?;
            self.write_units(by, lane, address, &bytes[..size as usize])?;
        }
        self.put(address, bytes, size);
        let (word, bits) = bits_of(address, size);
        self.written[word] &= !bits | u64::from(written) << (address % 64);
        let (word, bits) = words_of(address, size);
        self.pending[word] |= bits;
        self.pending_words += size / 4;
        let flights = &mut self.flights[by.warp * 32 + lane];
        flights.list.push_back(Flight { address, bytes: size, group: flights.group });
        Ok(())
    }

    /// `cp.async.commit_group` of the lanes of `mask`.
    pub fn commit(&mut self, warp: usize, mask: u32) {
        for lane in lanes(mask) {
            self.flights[warp * 32 + lane].group += 1;
        }
    }

    /// `cp.async.wait_group` of the lanes of `mask`: at most `open` of each lane's committed groups
    /// may still be on their way afterwards. What landed counts as written by that lane now.
    pub fn wait(&mut self, warp: usize, mask: u32, open: u32) {
        for lane in lanes(mask) {
            let thread = warp * 32 + lane;
            let committed = self.flights[thread].group;
            self.land(thread, committed.saturating_sub(open));
        }
    }

    /// `cp.async.wait_all`, or what `cp.async.mbarrier.arrive` waits for: all copies of the lanes.
    pub fn wait_all(&mut self, warp: usize, mask: u32) {
        for lane in lanes(mask) {
            self.land(warp * 32 + lane, u32::MAX);
        }
    }

    /// Lands the copies of the groups before `group`.
    fn land(&mut self, thread: usize, group: u32) {
        while let Some(flight) = self.flights[thread].list.front().copied()
            && flight.group < group
        {
            self.flights[thread].list.pop_front();
            let (word, bits) = words_of(flight.address, flight.bytes);
            self.pending[word] &= !bits;
            self.pending_words -= flight.bytes / 4;
            let stamp = self.order.now << 10 | thread as u32;
            for unit in self.units_of(flight.address, flight.bytes) {
                self.writes[unit] = stamp;
            }
        }
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

/// The word of a bit-a-byte set that holds `size` bytes at `address`, and their bits in it. An
/// aligned access of up to 16 bytes never crosses a word.
#[inline(always)]
fn bits_of(address: u32, size: u32) -> (usize, u64) {
    ((address / 64) as usize, (u64::MAX >> (64 - size)) << (address % 64))
}

/// The same for a set with a bit a word; a copy of up to 16 aligned bytes never crosses one.
#[inline(always)]
fn words_of(address: u32, size: u32) -> (usize, u64) {
    let bits = (1 << size.div_ceil(4)) - 1;
    ((address / 256) as usize, bits << (address / 4 % 64))
}

/// No thread: what a collective read counts as.
const NOBODY: u32 = u32::MAX;

/// What the quick paths know of the warp that accesses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    floor: u32,
    met: u32,
    now: u32,
    warp: usize,
    /// Where the warp's reads begin.
    row: usize,
    /// Warps that may have read something this warp does not know of.
    late: u32,
    access: Access,
}

impl View {
    #[inline(always)]
    fn thread(&self, lane: usize) -> u32 {
        (self.warp * 32 + lane) as u32
    }

    /// Whether every write is known to the warp or is its own lane's, `each` units a lane.
    #[inline(always)]
    fn all_known(&self, writes: &[u32], each: usize) -> bool {
        let mut latest = 0;
        for stamp in writes {
            latest = latest.max(*stamp);
        }
        if latest >> 10 <= self.floor {
            return true;
        }
        let mut known = true;
        for (lane, stamps) in writes.chunks_exact(each).enumerate() {
            for stamp in stamps {
                known &= stamp >> 10 <= self.floor || stamp & 1023 == self.thread(lane);
            }
        }
        known
    }
}

#[cfg(test)]
mod tests;
