//! Global addresses of a warp: checked as a whole, counted in sectors, turned into offsets.
//!
//! Lanes that do not execute borrow the address of one that does, so loops need no branches.

use super::access::lanes;
use super::fault::{Outcome, Wrong};
use super::step::Step;
use super::tally::{SectorCount, sectors};
use crate::launch::FaultKind;
use crate::memory::{GLOBAL_BASE, Span, Violation};

/// A warp's global access after every check: offsets into global memory.
pub(super) struct Located {
    pub(super) offsets: [usize; 32],
    pub(super) shape: Shape,
}

/// How the lanes' places lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// All lanes execute and are one range.
    Dense,
    /// All executing lanes have one place.
    Same,
    Scattered,
}

/// Whether a global access counts as a load, a store, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Load,
    /// A load of what nobody changes while the kernel runs: `ld.global.nc`.
    LoadConstant,
    Store,
    Uncounted,
}

/// Gives the lanes outside `mask` the value of the first lane inside.
#[inline]
pub(super) fn fill_idle<T: Copy>(mask: u32, values: &mut [T; 32]) {
    if mask == u32::MAX {
        return;
    }
    let first = values[mask.trailing_zeros() as usize % 32];
    for (lane, value) in values.iter_mut().enumerate() {
        if mask >> lane & 1 == 0 {
            *value = first;
        }
    }
}

#[inline]
fn shape(mask: u32, addresses: &[u64; 32], size: u64) -> Shape {
    let first = addresses[0];
    let (mut dense, mut same) = (0, 0);
    for (lane, address) in addresses.iter().enumerate() {
        dense |= address ^ first.wrapping_add(lane as u64 * size);
        same |= address ^ first;
    }
    match (dense == 0 && mask == u32::MAX, same == 0) {
        (true, _) => Shape::Dense,
        (false, true) => Shape::Same,
        (false, false) => Shape::Scattered,
    }
}

/// What the addresses of a warp have in common.
struct Survey {
    low: u64,
    /// From the lowest to the end of the highest.
    bytes: u64,
    /// Every bit some address has.
    bits: u64,
    /// Zero when all are in global memory.
    tops: u64,
}

#[inline]
fn survey(shape: Shape, addresses: &[u64; 32], size: u64) -> Survey {
    let top = |address: u64| (address >> 48) ^ (GLOBAL_BASE >> 48);
    if shape != Shape::Scattered {
        let (low, high) = (addresses[0], addresses[31]);
        let bytes = if shape == Shape::Dense { size * 32 } else { size };
        return Survey { low, bytes, bits: low, tops: top(low) | top(high) };
    }
    let (mut low, mut high, mut bits, mut tops) = (u64::MAX, 0, 0, 0);
    for address in addresses {
        low = low.min(*address);
        high = high.max(*address);
        bits |= *address;
        tops |= top(*address);
    }
    Survey { low, bytes: (high - low).saturating_add(size), bits, tops }
}

#[cold]
fn misaligned(mask: u32, addresses: &[u64; 32], size: u32) -> Box<Wrong> {
    let off = |lane: &usize| addresses[*lane] & u64::from(size - 1) != 0;
    let lane = lanes(mask).find(off).unwrap_or(0);
    let detail = format!("{size} bytes of global memory must start at a multiple of {size}");
    Wrong::access(lane, Violation::at(FaultKind::Misaligned, addresses[lane], detail))
}

impl Step<'_, '_> {
    /// Checks a global access of `size` bytes a lane, counts it, and turns addresses into offsets.
    #[inline]
    pub(super) fn locate(
        &mut self,
        mask: u32,
        mut addresses: [u64; 32],
        size: u32,
        traffic: Traffic,
    ) -> Outcome<Located> {
        fill_idle(mask, &mut addresses);
        let shape = shape(mask, &addresses, size.into());
        let mut survey = survey(shape, &addresses, size.into());
        if survey.tops != 0 {
            addresses = self.pinned(mask, addresses)?;
            survey = self::survey(shape, &addresses, size.into());
        }
        if survey.bits & u64::from(size - 1) != 0 {
            return Err(misaligned(mask, &addresses, size));
        }
        let way = self.pc as usize;
        let slot = self.cta.tally.span(self.cta.grid.memory, way, survey.low, survey.bytes);
        match slot {
            Some(slot) => self.count(mask, &addresses, size, traffic, slot, shape),
            None => self.locate_apart(mask, &addresses, size, traffic)?,
        }
        if self.warp.early & mask != 0 {
            self.check_early(self.warp.early & mask, &addresses, size, traffic)?;
        } else if traffic == Traffic::LoadConstant
            && let Some(stored) = &self.cta.grid.launch.unfinished
            && slot.is_none_or(|slot| stored.contains(&self.cta.tally.base(slot)))
        {
            let what = "loads by ld.global.nc what may have changed since it began, before its";
            self.check_unfinished(mask, &addresses, size, what)?;
        }
        let offsets = addresses.map(|address| (address - GLOBAL_BASE) as usize);
        Ok(Located { offsets, shape })
    }

    /// What lanes may do that have not waited for the kernels before: store nothing, and load what
    /// those did not store to. Constants nobody stores to.
    #[cold]
    fn check_early(
        &mut self,
        early: u32,
        addresses: &[u64; 32],
        size: u32,
        traffic: Traffic,
    ) -> Outcome {
        if traffic == Traffic::Store {
            let lane = early.trailing_zeros() as usize;
            return Err(self.unwaited(lane, addresses[lane], size, "stores before"));
        }
        self.check_unfinished(early, addresses, size, "loads before")?;
        self.cta.tally.early_load(traffic != Traffic::Uncounted);
        Ok(())
    }

    /// No lane is in a buffer that an unfinished kernel stored to.
    #[cold]
    fn check_unfinished(&self, mask: u32, addresses: &[u64; 32], size: u32, what: &str) -> Outcome {
        let Some(stored) = &self.cta.grid.launch.unfinished else { return Ok(()) };
        let mut free = Span::EMPTY;
        for lane in lanes(mask) {
            let at = addresses[lane];
            if free.holds(at, size.into()) {
                continue;
            }
            let span = self.cta.grid.memory.span(at, size.into());
            free = span.map_err(|violation| Wrong::access(lane, violation))?;
            if stored.contains(&free.base) {
                return Err(self.unwaited(lane, at, size, what));
            }
        }
        Ok(())
    }

    fn unwaited(&self, lane: usize, at: u64, size: u32, what: &str) -> Box<Wrong> {
        let place = self.cta.grid.memory.describe(at);
        let detail = format!(
            "{what} griddepcontrol.wait, while the kernels before it may still run, {size} bytes: \
             {place}"
        );
        Wrong::access(lane, Violation::at(FaultKind::UnwaitedKernel, at, detail))
    }

    #[inline]
    fn count(
        &mut self,
        mask: u32,
        addresses: &[u64; 32],
        size: u32,
        traffic: Traffic,
        slot: u32,
        shape: Shape,
    ) {
        if traffic == Traffic::Uncounted {
            return;
        }
        let count = match shape {
            Shape::Dense => {
                let first = addresses[0];
                let last = first + u64::from(size) * 32 - 1;
                SectorCount { touched: ((last >> 5) - (first >> 5) + 1) as u32, ideal: size }
            }
            Shape::Same => SectorCount { touched: 1, ideal: 1 },
            Shape::Scattered => sectors(mask, addresses, size),
        };
        if traffic == Traffic::Store {
            self.cta.tally.stored(slot, count.touched);
        } else {
            self.cta.tally.loaded(slot, count.touched);
            self.cta.tally.load_request(size, count);
        }
    }

    /// Lanes in several allocations, or some lane in none.
    #[cold]
    fn locate_apart(
        &mut self,
        mask: u32,
        addresses: &[u64; 32],
        size: u32,
        traffic: Traffic,
    ) -> Outcome {
        let mut left = mask;
        let mut first_part = true;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let span = self
                .cta
                .grid
                .memory
                .span(addresses[lane], size.into())
                .map_err(|violation| Wrong::access(lane, violation))?;
            let mut these = 0u32;
            for lane in lanes(left) {
                these |= u32::from(span.holds(addresses[lane], size.into())) << lane;
            }
            left &= !these;
            if traffic == Traffic::Uncounted {
                continue;
            }
            let slot = self.cta.tally.slot(span.base);
            let count = sectors(these, addresses, size);
            if traffic == Traffic::Store {
                self.cta.tally.stored(slot, count.touched);
            } else {
                self.cta.tally.loaded(slot, count.touched);
                self.cta.tally.load_part(size, count, first_part);
            }
            first_part = false;
        }
        Ok(())
    }

    /// Replaces addresses of pinned host memory by the device's own for it.
    #[cold]
    fn pinned(&self, mask: u32, mut addresses: [u64; 32]) -> Outcome<[u64; 32]> {
        let memory = self.cta.grid.memory;
        for lane in lanes(mask) {
            let address = addresses[lane];
            if let Some(device) = memory.device_address(address) {
                addresses[lane] = device;
            } else if address < GLOBAL_BASE || address >> 48 != GLOBAL_BASE >> 48 {
                let what = if address < 1 << 16 { "a null pointer" } else { "no device address" };
                let detail = format!("{what}: {}", memory.describe(address));
                let violation = Violation::at(FaultKind::OutOfBounds, address, detail);
                return Err(Wrong::access(lane, violation));
            }
        }
        fill_idle(mask, &mut addresses);
        Ok(addresses)
    }

    /// Every byte the lanes read has been written.
    #[inline]
    pub(super) fn known(&self, mask: u32, located: &Located, size: u32) -> Outcome {
        let memory = self.cta.grid.memory;
        let size = size as usize;
        let first = located.offsets[0];
        let known = match located.shape {
            Shape::Dense => memory.is_written(first, size * 32),
            Shape::Same => memory.knows(first, size),
            Shape::Scattered => false,
        };
        if known {
            return Ok(());
        }
        for lane in lanes(mask) {
            let offset = located.offsets[lane];
            if !memory.knows(offset, size) {
                let at = offset + memory.written_bits(offset, size).trailing_ones() as usize;
                let address = GLOBAL_BASE + at as u64;
                let detail = format!("{} was never written", memory.describe(address));
                let violation = Violation::at(FaultKind::Uninitialised, address, detail);
                return Err(Wrong::access(lane, violation));
            }
        }
        Ok(())
    }
}
