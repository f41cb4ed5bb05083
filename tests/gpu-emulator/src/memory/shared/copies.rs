//! `cp.async` into shared memory: copies in flight, by thread and group, until they are waited for.
//!
//! The bytes are in place at once, but their words are pending: nobody may touch them until the
//! thread that issued the copy has waited. Then they count as written by that thread at that time.

use super::{SharedMemory, View, bits_of, lanes};
use crate::memory::Violation;
use std::collections::VecDeque;

/// A copy on its way: destination, bytes, and the group it was committed to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    address: u32,
    bytes: u32,
    group: u32,
}

/// The copies of one thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights {
    pub(super) list: VecDeque<Flight>,
    /// The group the next copy joins; groups before it are committed.
    pub(super) group: u32,
}

/// The same for a set with a bit a word; a copy of up to 16 aligned bytes never crosses one.
#[inline(always)]
pub(super) fn words_of(address: u32, size: u32) -> (usize, u64) {
    let bits = (1 << size.div_ceil(4)) - 1;
    ((address / 256) as usize, bits << (address / 4 % 64))
}

impl SharedMemory {
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
}
