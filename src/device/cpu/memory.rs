//! Memory of the CPU device: how much there is, how much is taken, and page-aligned regions.
//!
//! Regions are anonymous maps: zeroed, aligned to pages, and marked for huge pages, which spares
//! the pool and the activations most of their TLB misses. Invariant: the sum of live
//! [`Reservation`]s never exceeds what was available when the device was made.

use crate::error::DeviceError;
use memmap2::MmapMut;
use std::fs::read_to_string;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a device may take, and has taken.
#[derive(Debug)]
pub(super) struct Account {
    available_bytes: u64,
    taken_bytes: AtomicU64,
    sealed: AtomicBool,
}

impl Account {
    /// An account of the memory this process could still get, now.
    pub(super) fn of_this_machine() -> Self {
        Self::new(available_bytes())
    }

    /// An account of a given size.
    pub(super) fn new(available_bytes: u64) -> Self {
        Self { available_bytes, taken_bytes: AtomicU64::new(0), sealed: AtomicBool::new(false) }
    }

    /// Bytes that may be taken in total.
    pub(super) fn available_bytes(&self) -> u64 {
        self.available_bytes
    }

    /// Refuses every later reservation.
    pub(super) fn seal(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    /// Sets `bytes` aside for `what`.
    pub(super) fn reserve(
        self: &Arc<Self>,
        what: &str,
        bytes: u64,
    ) -> Result<Reservation, DeviceError> {
        if self.sealed.load(Ordering::Relaxed) {
            return Err(DeviceError::Failed(format!(
                "{what}: {bytes} bytes asked for after start-up; allocate before the seal"
            )));
        }
        let take =
            |taken: u64| taken.checked_add(bytes).filter(|total| *total <= self.available_bytes);
        let relaxed = Ordering::Relaxed;
        match self.taken_bytes.fetch_update(relaxed, relaxed, take) {
            Ok(_) => Ok(Reservation { account: Arc::clone(self), bytes }),
            Err(taken) => Err(DeviceError::OutOfMemory {
                what: what.to_owned(),
                needed_bytes: bytes,
                available_bytes: self.available_bytes - taken,
                advice: "lower --kv-cache-memory-bytes or --max-model-len, or choose smaller \
                         or more strongly quantised models"
                    .to_owned(),
            }),
        }
    }
}

/// Bytes set aside; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    account: Arc<Account>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.taken_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Zeroed memory aligned to pages.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapMut,
    _reservation: Reservation,
}

impl Region {
    /// Takes `bytes` for `what`.
    pub(super) fn new(
        account: &Arc<Account>,
        what: &str,
        bytes: usize,
    ) -> Result<Self, DeviceError> {
        let reservation = account.reserve(what, bytes as u64)?;
        // An empty map is an error to some systems.
        let map = MmapMut::map_anon(bytes.max(1))
            .map_err(|e| DeviceError::Failed(format!("{what}: cannot map {bytes} bytes: {e}")))?;
        #[cfg(target_os = "linux")]
        if let Err(e) = map.advise(memmap2::Advice::HugePage) {
            // Kernels without huge pages refuse; ordinary pages hold the same bytes.
            tracing::debug!("{what}: no huge pages: {e}");
        }
        Ok(Self { map, _reservation: reservation })
    }

    /// The bytes as elements.
    pub(super) fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.map.len() / size_of::<T>() * size_of::<T>()])
    }

    /// The bytes as elements, to write.
    pub(super) fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        let whole = self.map.len() / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.map[..whole])
    }
}

/// The smaller of what the machine has available and what the control group leaves; unlimited
/// where the system does not say.
fn available_bytes() -> u64 {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let number = |path: &str| read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group =
        |limit: &str, usage: &str| Some(number(limit)?.saturating_sub(number(usage).unwrap_or(0)));
    // Version 2 says "max" and version 1 a huge number where there is no limit.
    let limits = [
        group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        group(
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ];
    limits.into_iter().flatten().chain(machine).min().unwrap_or(u64::MAX)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_refused_beyond_what_there_is_and_can_be_given_back() {
        let account = Arc::new(Account::new(100));
        let held = account.reserve("pool", 60).unwrap();
        let error = account.reserve("weights", 41).unwrap_err().to_string();
        assert!(error.contains("weights needs 41 bytes, 40 are available"), "{error}");
        drop(held);
        assert!(account.reserve("weights", 100).is_ok());
        assert!(account.reserve("forged size", u64::MAX).is_err());
    }

    #[test]
    fn nothing_can_be_reserved_after_the_seal() {
        let account = Arc::new(Account::new(100));
        account.seal();
        let error = account.reserve("pool", 1).unwrap_err().to_string();
        assert!(error.contains("pool") && error.contains("after start-up"), "{error}");
    }

    #[test]
    fn regions_are_zeroed_and_aligned() {
        let account = Arc::new(Account::of_this_machine());
        for bytes in [0, 4, 4096, 3 << 20] {
            let mut region = Region::new(&account, "region", bytes).unwrap();
            let values = region.as_mut_slice::<f32>();
            assert_eq!(values.len(), bytes.max(1) / 4);
            assert!(values.as_ptr().addr().is_multiple_of(64));
            assert!(values.iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        let text = "MemTotal:       16000000 kB\nMemAvailable:    1234 kB\nBuffers: 1 kB\n";
        assert_eq!(mem_available(text), Some(1234 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }
}
