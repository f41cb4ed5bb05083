//! Global memory: allocations with redzones, remembered after they are freed, and a bit for every
//! byte that says whether anybody wrote it.
//!
//! Device addresses are `GLOBAL_BASE + offset` into one lazily touched mapping that is much larger
//! than the device claims to be, so that an address is not given twice: a use after free is seen
//! for what it is. The hot path asks [`GlobalMemory::span`] once per instruction, keeps the answer,
//! and then works on offsets.
//! Invariant: the written bit of a byte outside every live allocation is clear.

use super::region::Region;
use super::{GLOBAL_BASE, Violation};
use crate::launch::FaultKind;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::RwLock;
use std::sync::atomic::Ordering::Relaxed;

/// Every allocation starts at a multiple of this.
pub const ALIGNMENT_BYTES: u64 = 256;
/// What the device claims to have unless told otherwise.
pub const DEFAULT_BYTES: u64 = 4 << 30;
/// How many times its claimed size the device has in addresses.
const ADDRESS_FACTOR: u64 = 16;
/// The longest range nobody may touch between two allocations.
const LONGEST_REDZONE_BYTES: u64 = 1 << 20;

/// One allocation, live or freed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Its device address.
    pub base: u64,
    /// Its length as asked for.
    pub bytes: u64,
    /// What its owner calls it; empty when it has no name.
    pub label: String,
}

impl Allocation {
    fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// "allocation 'kv' (4096 bytes at 0x…)".
    #[must_use]
    pub fn describe(&self) -> String {
        let name = if self.label.is_empty() { String::new() } else { format!("'{}' ", self.label) };
        format!("{name}({} bytes at {:#x})", self.bytes, self.base)
    }
}

/// A range of device addresses that one allocation, or one carved part of one, answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub base: u64,
    /// One past the last address.
    pub end: u64,
}

impl Span {
    /// A span that holds nothing.
    pub const EMPTY: Self = Self { base: 0, end: 0 };

    /// Whether `bytes` at `address` lie inside.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && address < self.end && self.end - address >= bytes
    }
}

/// How full the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Bytes the device claims to have.
    pub total_bytes: u64,
    /// Bytes allocated now.
    pub used_bytes: u64,
    /// The most that were ever allocated at once.
    pub peak_bytes: u64,
    /// Live allocations.
    pub allocations: usize,
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<u64, Allocation>,
    /// Named parts of live allocations, by address.
    parts: BTreeMap<u64, Allocation>,
    /// Freed allocations whose addresses have not been given again.
    freed: BTreeMap<u64, Allocation>,
    /// Where the next allocation is tried.
    next_offset: u64,
    used_bytes: u64,
    peak_bytes: u64,
}

/// The allocation at or before `address`.
fn before(map: &BTreeMap<u64, Allocation>, address: u64) -> Option<&Allocation> {
    map.range(..=address).next_back().map(|(_, allocation)| allocation)
}

/// The device's memory. Shared by every stream and every CTA.
#[derive(Debug)]
pub struct GlobalMemory {
    data: Region,
    /// One bit a byte of `data`.
    written: Region,
    table: RwLock<Table>,
    total_bytes: u64,
}

impl Default for GlobalMemory {
    fn default() -> Self {
        Self::with_bytes(DEFAULT_BYTES)
    }
}

impl GlobalMemory {
    /// A device that claims `total_bytes`; the host gives memory only where it is touched.
    ///
    /// # Panics
    /// When the host has no range of addresses for it.
    #[must_use]
    pub fn with_bytes(total_bytes: u64) -> Self {
        let (data, written) = (0..)
            .map(|halvings| (ADDRESS_FACTOR >> halvings).max(1) * total_bytes)
            .take(6)
            .find_map(|bytes| {
                let bytes = usize::try_from(bytes.next_multiple_of(1 << 16)).ok()? + (1 << 16);
                Some((Region::map(bytes)?, Region::map(bytes / 8)?))
            })
            .unwrap_or_else(|| panic!("the host has no {total_bytes} bytes of addresses to map"));
        let table = Table { next_offset: ALIGNMENT_BYTES, ..Table::default() };
        Self { data, written, table: RwLock::new(table), total_bytes }
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn table_mut(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Allocates `bytes` and returns their device address. Their contents are unwritten.
    ///
    /// # Errors
    /// When the device's claimed size does not have them.
    pub fn allocate(&self, bytes: u64, label: &str) -> Result<u64, Violation> {
        let mut table = self.table_mut();
        let room = self.total_bytes - table.used_bytes;
        if bytes == 0 || bytes > room {
            let detail = format!("cannot allocate {bytes} bytes ('{label}'): {room} are left");
            return Err(Violation::at(FaultKind::OutOfBounds, 0, detail));
        }
        let offset = self.place(&mut table, bytes).ok_or_else(|| {
            let detail = format!("no gap of {bytes} bytes ('{label}') between live allocations");
            Violation::at(FaultKind::OutOfBounds, 0, detail)
        })?;
        let base = GLOBAL_BASE + offset;
        let allocation = Allocation { base, bytes, label: label.to_owned() };
        table.live.insert(base, allocation);
        table.used_bytes += bytes;
        table.peak_bytes = table.peak_bytes.max(table.used_bytes);
        Ok(base)
    }

    /// Finds an offset: beyond everything given so far, or, once addresses run out, the first gap.
    fn place(&self, table: &mut Table, bytes: u64) -> Option<u64> {
        let redzone = (bytes / 4).clamp(4096, LONGEST_REDZONE_BYTES);
        let need = (bytes + redzone).next_multiple_of(ALIGNMENT_BYTES);
        let limit = self.data.bytes() as u64;
        if table.next_offset + need <= limit {
            let offset = table.next_offset;
            table.next_offset += need;
            return Some(offset);
        }
        let mut at = ALIGNMENT_BYTES;
        for allocation in table.live.values() {
            let start = allocation.base - GLOBAL_BASE;
            if at + need <= start {
                break;
            }
            at = (start + allocation.bytes + ALIGNMENT_BYTES).next_multiple_of(ALIGNMENT_BYTES);
        }
        if at + need > limit {
            return None;
        }
        let (start, end) = (GLOBAL_BASE + at, GLOBAL_BASE + at + need);
        table.freed.retain(|_, old| old.end() <= start || old.base >= end);
        Some(at)
    }

    /// Frees the allocation at `address`; any later use of its addresses is a fault.
    ///
    /// # Errors
    /// When no live allocation starts there.
    pub fn free(&self, address: u64) -> Result<(), Violation> {
        let mut table = self.table_mut();
        let Some(allocation) = table.live.remove(&address) else {
            drop(table);
            let detail = format!("cannot free: {}", self.describe(address));
            return Err(Violation::at(FaultKind::OutOfBounds, address, detail));
        };
        table.parts.retain(|base, _| *base < allocation.base || *base >= allocation.end());
        table.used_bytes -= allocation.bytes;
        let offset = (address - GLOBAL_BASE) as usize;
        let bytes = allocation.bytes as usize;
        self.data.release(offset, bytes);
        self.written.release(offset / 8, bytes.div_ceil(8));
        table.freed.insert(address, allocation);
        Ok(())
    }

    /// Names a part of a live allocation and gives it bounds of its own: from then on an access
    /// must lie inside one named part of that allocation. A part ends when its allocation does, or
    /// when another part is carved over it.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn carve(&self, address: u64, bytes: u64, label: &str) -> Result<(), Violation> {
        let mut table = self.table_mut();
        let inside = before(&table.live, address)
            .is_some_and(|a| Span { base: a.base, end: a.end() }.holds(address, bytes));
        if !inside || bytes == 0 {
            drop(table);
            let detail = format!("cannot name {bytes} bytes '{label}': {}", self.describe(address));
            return Err(Violation::at(FaultKind::OutOfBounds, address, detail));
        }
        table.parts.retain(|base, part| part.end() <= address || *base >= address + bytes);
        table.parts.insert(address, Allocation { base: address, bytes, label: label.to_owned() });
        Ok(())
    }

    /// Marks a range as unwritten, as a buffer that is handed to somebody new should be.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn forget(&self, address: u64, bytes: u64) -> Result<(), Violation> {
        let offset = self.check(address, bytes, "forget")?;
        self.set_written(offset, bytes as usize, false);
        Ok(())
    }

    /// Names a live allocation after the fact.
    pub fn relabel(&self, address: u64, label: &str) {
        if let Some(allocation) = self.table_mut().live.get_mut(&address) {
            label.clone_into(&mut allocation.label);
        }
    }

    /// The range the access at `address` may move in, or what is wrong with the address.
    ///
    /// # Errors
    /// Out of bounds, or freed.
    pub fn span(&self, address: u64, bytes: u64) -> Result<Span, Violation> {
        let table = self.table();
        if let Some(live) = before(&table.live, address) {
            let whole = Span { base: live.base, end: live.end() };
            if whole.holds(address, bytes) {
                let first = table.parts.range(live.base..live.end()).next();
                if first.is_none() {
                    return Ok(whole);
                }
                if let Some(part) = before(&table.parts, address) {
                    let span = Span { base: part.base, end: part.end() };
                    if span.holds(address, bytes) {
                        return Ok(span);
                    }
                }
            }
        }
        drop(table);
        let detail = format!("{bytes} bytes: {}", self.describe(address));
        Err(Violation::at(FaultKind::OutOfBounds, address, detail))
    }

    /// Where an address lies, in words.
    #[must_use]
    pub fn describe(&self, address: u64) -> String {
        let table = self.table();
        if let Some(live) = before(&table.live, address)
            && address < live.end()
        {
            let whole = live.describe();
            if let Some(part) = before(&table.parts, address)
                && part.base >= live.base
            {
                let at = address - part.base;
                return if address < part.end() {
                    format!("byte {at} of {} of allocation {whole}", part.describe())
                } else {
                    let past = address - part.end();
                    format!("{past} bytes past {} of allocation {whole}", part.describe())
                };
            }
            return format!("byte {} of allocation {whole}", address - live.base);
        }
        if let Some(freed) = before(&table.freed, address)
            && address < freed.end()
        {
            let at = address - freed.base;
            return format!("byte {at} of freed allocation {} (use after free)", freed.describe());
        }
        let below = before(&table.live, address).map(|a| {
            format!("{} bytes past the end of allocation {}", address - a.end(), a.describe())
        });
        let above =
            table.live.range((Excluded(address), Unbounded)).next().map(|(_, a)| {
                format!("{} bytes before allocation {}", a.base - address, a.describe())
            });
        match (below, above) {
            (Some(below), Some(above)) => format!("{below}, {above}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "no allocation is live".to_owned(),
        }
    }

    /// The live allocation that holds `address`.
    #[must_use]
    pub fn allocation(&self, address: u64) -> Option<Allocation> {
        before(&self.table().live, address).filter(|a| address < a.end()).cloned()
    }

    /// Every live allocation, by address.
    #[must_use]
    pub fn allocations(&self) -> Vec<Allocation> {
        self.table().live.values().cloned().collect()
    }

    /// How full the device is.
    #[must_use]
    pub fn info(&self) -> Info {
        let table = self.table();
        Info {
            total_bytes: self.total_bytes,
            used_bytes: table.used_bytes,
            peak_bytes: table.peak_bytes,
            allocations: table.live.len(),
        }
    }

    fn check(&self, address: u64, bytes: u64, what: &str) -> Result<usize, Violation> {
        match self.allocation(address) {
            Some(a) if a.end() - address >= bytes => Ok((address - GLOBAL_BASE) as usize),
            _ => {
                let detail = format!("{what} of {bytes} bytes: {}", self.describe(address));
                Err(Violation::at(FaultKind::OutOfBounds, address, detail))
            }
        }
    }

    /// Copies device bytes to the host. Unwritten bytes read as they are: a host copy is no fault.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Violation> {
        let offset = self.check(address, into.len() as u64, "read")?;
        self.data.read(offset, into);
        Ok(())
    }

    /// Copies host bytes to the device.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Violation> {
        let offset = self.check(address, from.len() as u64, "write")?;
        self.data.write(offset, from);
        self.set_written(offset, from.len(), true);
        Ok(())
    }

    /// Sets `count` bytes.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn fill(&self, address: u64, byte: u8, count: u64) -> Result<(), Violation> {
        let offset = self.check(address, count, "fill")?;
        self.data.fill(offset, byte, count as usize);
        self.set_written(offset, count as usize, true);
        Ok(())
    }

    /// Copies between device ranges, which may overlap; unwritten bytes stay unwritten at the
    /// destination.
    ///
    /// # Errors
    /// When either range is not inside one live allocation.
    pub fn copy(&self, destination: u64, source: u64, count: u64) -> Result<(), Violation> {
        let from = self.check(source, count, "copy from")?;
        let to = self.check(destination, count, "copy to")?;
        let count = count as usize;
        let mut bytes = vec![0u8; count];
        self.data.read(from, &mut bytes);
        let written: Vec<bool> =
            if self.is_written(from, count) { Vec::new() } else { self.written_bytes(from, count) };
        self.data.write(to, &bytes);
        if written.is_empty() {
            self.set_written(to, count, true);
        } else {
            for (i, known) in written.iter().enumerate() {
                self.set_written(to + i, 1, *known);
            }
        }
        Ok(())
    }

    /// The first byte of the range nobody has written, if there is one.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn first_unwritten(&self, address: u64, bytes: u64) -> Result<Option<u64>, Violation> {
        let offset = self.check(address, bytes, "look")?;
        Ok(self.unwritten_from(offset, bytes as usize).map(|at| GLOBAL_BASE + at as u64))
    }

    /// The host's view of an allocation, for memory that both sides use (pinned memory). The bytes
    /// count as written.
    ///
    /// # Errors
    /// When no live allocation holds `address`.
    pub fn host_pointer(&self, address: u64) -> Result<*mut u8, Violation> {
        let offset = self.check(address, 1, "map to the host")?;
        let allocation = self.allocation(address).expect("checked just now");
        let start = (allocation.base - GLOBAL_BASE) as usize;
        self.set_written(start, allocation.bytes as usize, true);
        Ok(self.data.host().wrapping_add(offset))
    }

    /// The device address of a pointer that [`Self::host_pointer`] gave, or `None` for any other.
    #[inline]
    #[must_use]
    pub fn device_address(&self, host: u64) -> Option<u64> {
        let offset = host.wrapping_sub(self.data.host() as u64);
        (offset < self.data.bytes() as u64).then(|| GLOBAL_BASE + offset)
    }

    // What follows works on offsets that a span vouched for.

    /// Reads 1, 2, 4 or 8 bytes at a multiple of their count.
    #[inline(always)]
    pub(crate) fn load(&self, offset: usize, size: usize) -> u64 {
        self.data.load(offset, size)
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value` at a multiple of their count. The caller marks
    /// them.
    #[inline(always)]
    pub(crate) fn store(&self, offset: usize, size: usize, value: u64) {
        self.data.store(offset, size, value);
    }

    /// The word for an atomic operation.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.data.u32_at(offset)
    }

    /// The double word for an atomic operation.
    #[inline]
    pub(crate) fn double_word(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.data.u64_at(offset)
    }

    /// Marks up to 64 bytes that do not cross a multiple of 64 as written.
    #[inline(always)]
    pub(crate) fn mark(&self, offset: usize, size: usize) {
        let bits = (u64::MAX >> (64 - size)) << (offset % 64);
        let word = self.written.u64_at(offset / 64 * 8);
        if word.load(Relaxed) & bits != bits {
            word.fetch_or(bits, Relaxed);
        }
    }

    /// Whether up to 64 bytes that do not cross a multiple of 64 are all written.
    #[inline(always)]
    pub(crate) fn knows(&self, offset: usize, size: usize) -> bool {
        let bits = (u64::MAX >> (64 - size)) << (offset % 64);
        self.written.u64_at(offset / 64 * 8).load(Relaxed) & bits == bits
    }

    /// Which of up to 64 bytes that do not cross a multiple of 64 are written; bit 0 is `offset`.
    #[inline]
    pub(crate) fn written_bits(&self, offset: usize, size: usize) -> u64 {
        let mask = u64::MAX >> (64 - size);
        (self.written.u64_at(offset / 64 * 8).load(Relaxed) >> (offset % 64)) & mask
    }

    /// Whether a range of any length is written.
    pub(crate) fn is_written(&self, offset: usize, bytes: usize) -> bool {
        self.unwritten_from(offset, bytes).is_none()
    }

    fn written_bytes(&self, offset: usize, bytes: usize) -> Vec<bool> {
        (offset..offset + bytes).map(|at| self.knows(at, 1)).collect()
    }

    fn unwritten_from(&self, offset: usize, bytes: usize) -> Option<usize> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let size = (64 - at % 64).min(end - at);
            let bits = self.written_bits(at, size) as u128 | (u128::MAX << size);
            let known = bits.trailing_ones() as usize;
            if known < size {
                return Some(at + known);
            }
            at += size;
        }
        None
    }

    /// Marks a range of any length as written or unwritten.
    pub(crate) fn set_written(&self, offset: usize, bytes: usize, to: bool) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let size = (64 - at % 64).min(end - at);
            let bits = (u64::MAX >> (64 - size)) << (at % 64);
            let word = self.written.u64_at(at / 64 * 8);
            if to {
                if word.load(Relaxed) & bits != bits {
                    word.fetch_or(bits, Relaxed);
                }
            } else {
                word.fetch_and(!bits, Relaxed);
            }
            at += size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GlobalMemory {
        GlobalMemory::with_bytes(1 << 24)
    }

    #[test]
    fn bytes_written_are_the_bytes_read() {
        let memory = memory();
        let at = memory.allocate(1000, "a").unwrap();
        let bytes: Vec<u8> = (0..997).map(|i| (i * 7) as u8).collect();
        memory.write(at + 3, &bytes).unwrap();
        let mut back = vec![0u8; 997];
        memory.read(at + 3, &mut back).unwrap();
        assert_eq!(bytes, back);
        assert_eq!(memory.first_unwritten(at, 1000).unwrap(), Some(at));
        assert_eq!(memory.first_unwritten(at + 3, 997).unwrap(), None);
    }

    #[test]
    fn allocations_are_aligned_apart_and_counted() {
        let memory = memory();
        let a = memory.allocate(1, "a").unwrap();
        let b = memory.allocate(1 << 20, "b").unwrap();
        assert_eq!((a % 256, b % 256), (0, 0));
        assert!(b > a + 4096);
        assert_eq!(memory.info().used_bytes, (1 << 20) + 1);
        memory.free(b).unwrap();
        assert_eq!(memory.info().used_bytes, 1);
        assert_eq!(memory.info().peak_bytes, (1 << 20) + 1);
    }

    #[test]
    fn more_than_the_device_has_is_refused() {
        let memory = memory();
        assert!(memory.allocate(1 << 25, "too much").is_err());
        assert!(memory.allocate(0, "nothing").is_err());
    }

    #[test]
    fn a_byte_past_the_end_is_out_of_bounds_and_says_of_what() {
        let memory = memory();
        let at = memory.allocate(100, "weights").unwrap();
        assert!(memory.span(at, 100).is_ok());
        let fault = memory.span(at + 97, 4).unwrap_err();
        assert_eq!(fault.kind, FaultKind::OutOfBounds);
        assert!(fault.detail.contains("'weights'"), "{}", fault.detail);
        assert!(memory.span(at + 5000, 4).unwrap_err().detail.contains("past the end"));
    }

    #[test]
    fn a_freed_range_is_remembered_and_its_address_not_given_again() {
        let memory = memory();
        let at = memory.allocate(4096, "old").unwrap();
        memory.write(at, &[1; 4096]).unwrap();
        memory.free(at).unwrap();
        let fault = memory.span(at + 8, 4).unwrap_err();
        assert!(fault.detail.contains("use after free"), "{}", fault.detail);
        assert!(memory.free(at).is_err());
        assert_ne!(memory.allocate(4096, "young").unwrap(), at);
    }

    #[test]
    fn addresses_come_back_when_they_run_out_and_come_back_unwritten() {
        let memory = memory();
        let keep = memory.allocate(1 << 20, "keep").unwrap();
        for _ in 0..100 {
            let at = memory.allocate(10 << 20, "big").unwrap();
            assert_eq!(memory.first_unwritten(at, 10 << 20).unwrap(), Some(at));
            memory.fill(at, 7, 10 << 20).unwrap();
            memory.free(at).unwrap();
        }
        assert!(memory.span(keep, 1 << 20).is_ok());
    }

    #[test]
    fn a_copy_carries_what_was_unwritten() {
        let memory = memory();
        let a = memory.allocate(256, "a").unwrap();
        let b = memory.allocate(256, "b").unwrap();
        memory.write(a, &[1; 100]).unwrap();
        memory.copy(b, a, 200).unwrap();
        assert_eq!(memory.first_unwritten(b, 200).unwrap(), Some(b + 100));
        memory.copy(a + 1, a, 100).unwrap();
        assert_eq!(memory.first_unwritten(a, 256).unwrap(), Some(a + 101));
    }

    #[test]
    fn a_named_part_has_bounds_of_its_own() {
        let memory = memory();
        let arena = memory.allocate(1 << 16, "arena").unwrap();
        memory.carve(arena + 256, 1000, "logits").unwrap();
        assert!(memory.span(arena + 256, 1000).is_ok());
        let fault = memory.span(arena + 256 + 998, 4).unwrap_err();
        assert!(fault.detail.contains("'logits'") && fault.detail.contains("'arena'"));
        assert!(memory.span(arena, 4).is_err());
        memory.carve(arena, 512, "over it").unwrap();
        assert!(memory.span(arena + 600, 4).is_err());
        assert!(memory.carve(arena + 65_000, 4096, "beyond").is_err());
    }

    #[test]
    fn pinned_memory_has_two_names() {
        let memory = memory();
        let at = memory.allocate(64, "pinned").unwrap();
        let host = memory.host_pointer(at + 4).unwrap();
        // SAFETY: the pointer is into a live allocation of 64 bytes.
        unsafe { host.cast::<u32>().write(0x0102_0304) };
        let mut back = [0; 4];
        memory.read(at + 4, &mut back).unwrap();
        assert_eq!(u32::from_ne_bytes(back), 0x0102_0304);
        assert_eq!(memory.device_address(host as u64), Some(at + 4));
        assert_eq!(memory.device_address(at), None);
    }
}
