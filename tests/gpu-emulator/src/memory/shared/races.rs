//! Who may touch what: an access against the stamps of earlier ones.

use super::quick::reads_after;
use super::{Access, STRONG, SharedMemory, bits_of, lanes};
use crate::launch::FaultKind;
use crate::memory::Violation;
use crate::memory::order::LAST_TIME;

impl SharedMemory {
    #[inline]
    pub(super) fn units_of(&self, address: u32, size: u32) -> std::ops::Range<usize> {
        let first = (address >> self.unit_shift) as usize;
        first..first + ((size >> self.unit_shift) as usize).max(1)
    }

    #[inline]
    pub(super) fn read_check(
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
    pub(super) fn read_units(
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
    pub(super) fn write_known(&self, by: Access, lane: usize, unit: usize) -> bool {
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
    pub(super) fn unordered_read(
        &self,
        by: Access,
        lane: usize,
        unit: usize,
    ) -> Option<(usize, usize)> {
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
    pub(super) fn write_units(
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
    pub(super) fn holds(&self, address: u32, bytes: &[u8]) -> bool {
        let at = address as usize;
        let (word, bits) = bits_of(address, bytes.len() as u32);
        self.written[word] & bits == bits && self.bytes[at..at + bytes.len()] == *bytes
    }

    pub(super) fn race(&self, by: Access, unit: usize, stamp: u32, does: &str) -> Violation {
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
}
