//! Counting: what a CTA did, in plain integers the hot loop can bump.

use crate::launch::{Counters, WideLoads};
use crate::memory::banks::Wavefronts;
use crate::memory::{GlobalMemory, Span};
use crate::ptx::ir::{Op, Space};
use std::collections::BTreeMap;

/// Classes of instructions, in the order of [`NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    Alu,
    Float,
    Convert,
    Control,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    Local,
    Atomic,
    Shuffle,
    Barrier,
    Mma,
    LdMatrix,
    CpAsync,
    Other,
    /// A generic access: counted when its addresses are known.
    Generic,
}

const NAMES: [&str; 16] = [
    "alu",
    "float",
    "convert",
    "control",
    "global_load",
    "global_store",
    "shared_load",
    "shared_store",
    "local",
    "atomic",
    "shuffle",
    "barrier",
    "mma",
    "ldmatrix",
    "cp_async",
    "other",
];

impl Class {
    /// The class an instruction is counted in.
    pub(crate) fn of(op: &Op) -> Self {
        match op {
            Op::Float { .. }
            | Op::FloatUnary { .. }
            | Op::Fma { .. }
            | Op::Float3 { .. }
            | Op::Testp { .. } => Self::Float,
            Op::Cvt { .. } => Self::Convert,
            Op::Load { space, .. } => match space {
                Space::Global => Self::GlobalLoad,
                Space::Shared => Self::SharedLoad,
                Space::Local => Self::Local,
                Space::Generic => Self::Generic,
                Space::Const | Space::Param | Space::CallParam => Self::Other,
            },
            Op::Store { space, .. } => match space {
                Space::Global => Self::GlobalStore,
                Space::Shared => Self::SharedStore,
                Space::Local => Self::Local,
                Space::Generic => Self::Generic,
                Space::Const | Space::Param | Space::CallParam => Self::Other,
            },
            Op::Atom(_) => Self::Atomic,
            Op::CpAsync(_) | Op::CpAsyncCommit | Op::CpAsyncWait { .. } => Self::CpAsync,
            Op::Bra { .. }
            | Op::BrxIdx { .. }
            | Op::Call { .. }
            | Op::Ret { .. }
            | Op::Exit
            | Op::Trap
            | Op::Brkpt => Self::Control,
            Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::ActiveMask { .. }
            | Op::Elect { .. } => Self::Shuffle,
            Op::BarWarp { .. }
            | Op::Barrier { .. }
            | Op::ClusterArrive { .. }
            | Op::ClusterWait
            | Op::Mbarrier(_)
            | Op::Fence { .. }
            | Op::FenceProxy => Self::Barrier,
            Op::Mma(_) => Self::Mma,
            Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::MovMatrix { .. } => Self::LdMatrix,
            Op::Prefetch { .. }
            | Op::CreatePolicy { .. }
            | Op::Nanosleep { .. }
            | Op::GridDepControl { .. } => Self::Other,
            _ => Self::Alu,
        }
    }
}

/// Sectors of one allocation.
#[derive(Debug, Clone, Copy)]
struct Sectors {
    base: u64,
    loaded: u64,
    stored: u64,
}

/// Ways the cache of spans has; an instruction always looks in the same one.
const WAYS: usize = 64;

/// The counts of one host thread, and the spans its accesses moved in last.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    instructions: [u64; 17],
    sectors: Vec<Sectors>,
    spans: [(Span, u32); WAYS],
    load_requests: u64,
    ideal_load_sectors: u64,
    shared_wavefronts: u64,
    shared_replays: u64,
    replays: BTreeMap<(usize, u32), u64>,
    wide_loads: WideLoads,
    local_bytes: u64,
    dependency_waits: u64,
    dependency_launches: u64,
    early_load_requests: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            instructions: [0; 17],
            sectors: Vec::new(),
            spans: [(Span::EMPTY, 0); WAYS],
            load_requests: 0,
            ideal_load_sectors: 0,
            shared_wavefronts: 0,
            shared_replays: 0,
            replays: BTreeMap::new(),
            wide_loads: WideLoads::default(),
            local_bytes: 0,
            dependency_waits: 0,
            dependency_launches: 0,
            early_load_requests: 0,
        }
    }

    /// One warp instruction of a class.
    #[inline(always)]
    pub(crate) fn instruction(&mut self, class: Class) {
        self.instructions[class as usize] += 1;
    }

    /// Takes one back: the instruction had to wait and will be executed again.
    pub(crate) fn undo(&mut self, class: Class) {
        self.instructions[class as usize] -= 1;
    }

    /// The number of the allocation that holds `bytes` from `low`, if one does.
    #[inline(always)]
    pub(crate) fn span(
        &mut self,
        memory: &GlobalMemory,
        way: usize,
        low: u64,
        bytes: u64,
    ) -> Option<u32> {
        let (span, slot) = self.spans[way % WAYS];
        if span.holds(low, bytes) { Some(slot) } else { self.find_span(memory, way, low, bytes) }
    }

    #[cold]
    fn find_span(&mut self, memory: &GlobalMemory, way: usize, low: u64, n: u64) -> Option<u32> {
        let span = memory.span(low, n).ok()?;
        let slot = self.slot(span.base);
        self.spans[way % WAYS] = (span, slot);
        Some(slot)
    }

    /// The number of the allocation at `base`.
    pub(crate) fn slot(&mut self, base: u64) -> u32 {
        let found = self.sectors.iter().position(|s| s.base == base);
        let slot = found.unwrap_or_else(|| {
            self.sectors.push(Sectors { base, loaded: 0, stored: 0 });
            self.sectors.len() - 1
        });
        slot as u32
    }

    /// Where the allocation in `slot` begins.
    pub(crate) fn base(&self, slot: u32) -> u64 {
        self.sectors[slot as usize].base
    }

    /// A load of `sectors` from the allocation in `slot`.
    #[inline]
    pub(crate) fn loaded(&mut self, slot: u32, sectors: u32) {
        self.sectors[slot as usize].loaded += u64::from(sectors);
    }

    /// A store of `sectors` to the allocation in `slot`.
    #[inline]
    pub(crate) fn stored(&mut self, slot: u32, sectors: u32) {
        self.sectors[slot as usize].stored += u64::from(sectors);
    }

    /// A load request of `size` bytes a lane, and how it fell on sectors.
    #[inline]
    pub(crate) fn load_request(&mut self, size: u32, sectors: SectorCount) {
        self.load_part(size, sectors, true);
    }

    /// A part of a load request that falls on several allocations.
    #[inline]
    pub(crate) fn load_part(&mut self, size: u32, sectors: SectorCount, first: bool) {
        self.load_requests += u64::from(first);
        self.ideal_load_sectors += u64::from(sectors.ideal);
        if size == 16 {
            self.wide_loads.add(&WideLoads {
                requests: u64::from(first),
                sectors: u64::from(sectors.touched),
                ideal_sectors: u64::from(sectors.ideal),
            });
        }
    }

    /// A shared-memory access by the instruction `at`: a function and an index in its body.
    #[inline]
    pub(crate) fn shared(&mut self, at: (usize, u32), wavefronts: Wavefronts) {
        self.shared_wavefronts += u64::from(wavefronts.taken);
        let replays = u64::from(wavefronts.taken - wavefronts.ideal);
        if replays > 0 {
            self.shared_replays += replays;
            *self.replays.entry(at).or_default() += replays;
        }
    }

    /// A thread has this much local memory in use.
    pub(crate) fn local(&mut self, bytes: u32) {
        self.local_bytes = self.local_bytes.max(u64::from(bytes));
    }

    /// A `griddepcontrol`.
    pub(crate) fn dependency(&mut self, launch: bool) {
        if launch {
            self.dependency_launches += 1;
        } else {
            self.dependency_waits += 1;
        }
    }

    /// A global access before the wait; loads count.
    pub(crate) fn early_load(&mut self, is_load: bool) {
        self.early_load_requests += u64::from(is_load);
    }

    /// Adds everything to `counters`.
    pub(crate) fn add_to(&self, counters: &mut Counters) {
        let mut mine = Counters {
            load_requests: self.load_requests,
            ideal_load_sectors: self.ideal_load_sectors,
            shared_wavefronts: self.shared_wavefronts,
            shared_replays: self.shared_replays,
            replays: self.replays.clone(),
            wide_loads: self.wide_loads,
            local_bytes: self.local_bytes,
            dependency_waits: self.dependency_waits,
            dependency_launches: self.dependency_launches,
            early_load_requests: self.early_load_requests,
            ..Counters::default()
        };
        for (name, count) in NAMES.iter().zip(self.instructions) {
            if count > 0 {
                mine.instructions.insert(name, count);
            }
        }
        for s in &self.sectors {
            if s.loaded > 0 {
                mine.sectors_loaded.insert(s.base, s.loaded);
            }
            if s.stored > 0 {
                mine.sectors_stored.insert(s.base, s.stored);
            }
        }
        counters.add(&mine);
    }
}

/// How a warp's global access falls on 32-byte sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectorCount {
    /// Distinct sectors.
    pub(crate) touched: u32,
    /// Sectors the same distinct bytes would fill.
    pub(crate) ideal: u32,
}

/// Counts sectors of `size`-byte accesses, `size` a power of two up to 32, each aligned.
pub(crate) fn sectors(mask: u32, addresses: &[u64; 32], size: u32) -> SectorCount {
    let mut list = [0u64; 32];
    let mut count = 0;
    let mut sorted = true;
    for (lane, address) in addresses.iter().enumerate() {
        if mask >> lane & 1 == 1 {
            sorted &= count == 0 || list[count - 1] <= *address;
            list[count] = *address;
            count += 1;
        }
    }
    let list = &mut list[..count];
    if !sorted {
        list.sort_unstable();
    }
    let (mut touched, mut distinct) = (0, 0);
    let mut last = None;
    for address in list.iter().copied() {
        touched += u32::from(last.is_none_or(|l: u64| l >> 5 != address >> 5));
        distinct += u32::from(last != Some(address));
        last = Some(address);
    }
    SectorCount { touched, ideal: (distinct * size).div_ceil(32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(mask: u32, size: u32, address: impl Fn(u64) -> u64) -> (u32, u32) {
        let c = sectors(mask, &std::array::from_fn(|l| address(l as u64)), size);
        (c.touched, c.ideal)
    }

    #[test]
    fn known_patterns_touch_their_known_sectors() {
        assert_eq!(count(u32::MAX, 4, |l| 4 * l), (4, 4));
        assert_eq!(count(u32::MAX, 16, |l| 16 * l), (16, 16));
        assert_eq!(count(u32::MAX, 4, |l| 4 + 4 * l), (5, 4), "shifted by a word");
        assert_eq!(count(u32::MAX, 4, |l| 8 * l), (8, 4), "every other word");
        assert_eq!(count(u32::MAX, 4, |l| 4096 * l), (32, 4), "a column");
        assert_eq!(count(u32::MAX, 4, |_| 64), (1, 1), "a broadcast");
        assert_eq!(count(u32::MAX, 2, |l| 2 * (31 - l)), (2, 2), "backwards");
        assert_eq!(count(0b11, 4, |l| 4 * l), (1, 1));
    }
}
