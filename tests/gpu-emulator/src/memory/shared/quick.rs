//! The common cases of an access, in a few instructions: everything written and settled, nothing
//! newer than what the warp knows. What needs a closer look goes to `races`.

use super::copies::words_of;
use super::{Access, EVERY_LANE, Reads, SharedMemory, bits_of};

/// Calls a function compiled for the number of units a lane's access has.
macro_rules! by_units {
    ($units:expr, $function:ident($($argument:expr),*)) => {
        match $units {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            4 => $function::<4>($($argument),*),
            8 => $function::<8>($($argument),*),
            _ => $function::<16>($($argument),*),
        }
    };
}

/// No thread: what a collective read counts as.
pub(super) const NOBODY: u32 = u32::MAX;

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
    pub(super) access: Access,
}

impl View {
    #[inline(always)]
    pub(super) fn thread(&self, lane: usize) -> u32 {
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
        by_units!(each, own_or_old(writes, self.floor, self.thread(0)))
    }
}

/// What `old` becomes when the lanes of `bits` read at `now`; `met` is when all lanes last met.
#[inline(always)]
pub(super) fn reads_after(old: Reads, met: u32, now: u32, bits: u32) -> Reads {
    let kept = if (old >> 32) as u32 > met { old as u32 } else { 0 };
    u64::from(now) << 32 | u64::from(kept | bits)
}

/// Whether each lane's units are older than `floor` or were last written by thread `first + lane`.
#[inline(always)]
fn own_or_old<const N: usize>(writes: &[u32], floor: u32, first: u32) -> bool {
    let mut known = true;
    for (stamps, thread) in writes.as_chunks::<N>().0.iter().zip(first..) {
        for stamp in stamps {
            known &= stamp >> 10 <= floor || stamp & 1023 == thread;
        }
    }
    known
}

/// Stamps each lane's units with `first + lane`.
#[inline(always)]
fn stamp<const N: usize>(writes: &mut [u32], first: u32) {
    for (stamps, stamp) in writes.as_chunks_mut::<N>().0.iter_mut().zip(first..) {
        *stamps = [stamp; N];
    }
}

/// Notes that each lane reads its units.
#[inline(always)]
fn note_reads<const N: usize>(reads: &mut [Reads], met: u32, now: u32) {
    for (lane, units) in reads.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        for unit in units {
            *unit = reads_after(*unit, met, now, 1 << lane);
        }
    }
}

impl SharedMemory {
    /// The common cases in one sweep: all lanes read the same place, or consecutive lanes read
    /// consecutive places. False when it is neither or needs a closer look; nothing has been
    /// recorded then.
    #[inline]
    pub(super) fn load_at_once(
        &mut self,
        view: &View,
        mask: u32,
        addresses: &[u32; 32],
        size: u32,
    ) -> bool {
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
        by_units!(each, note_reads(row, view.met, view.now));
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
    pub(super) fn quick_read(
        &mut self,
        view: &View,
        me: u32,
        bits: u32,
        address: u32,
        size: u32,
    ) -> bool {
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
    pub(super) fn quick_write(&mut self, view: &View, lane: usize, at: u32, size: u32) -> bool {
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
    pub(super) fn stamp_dense(&mut self, view: &View, addresses: &[u32; 32], size: u32) -> bool {
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
        by_units!(each, stamp(writes, view.now << 10 | view.thread(0)));
        for line in &mut self.write_lines[start..start + each * 32] {
            *line = view.access.mark();
        }
        true
    }

    #[inline]
    pub(super) fn is_pending(&self, address: u32, size: u32) -> bool {
        let (word, bits) = words_of(address, size);
        self.pending[word] & bits != 0
    }
}
