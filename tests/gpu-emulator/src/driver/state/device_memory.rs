//! Allocations: who owns which, how much the device claims to have left, and pinned host blocks.
//!
//! The memory itself, its bounds and its written bits are `memory::GlobalMemory`'s. Asynchronous
//! allocation gives an address at the call; using it in another stream too early is not detected
//! (a freed address is).

use super::Driver;
use super::handles::Handle;
use super::host_memory::PinnedBlock;
use super::work::Work;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use std::collections::BTreeMap;

#[derive(Debug)]
struct Owned {
    root: Handle,
    bytes: u64,
    free_is_enqueued: bool,
}

/// The device's live allocations, pinned blocks not counted.
#[derive(Debug, Default)]
pub struct DeviceMemory {
    owned: BTreeMap<u64, Owned>,
    used_bytes: u64,
}

impl DeviceMemory {
    /// Bytes allocated now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Addresses of everything allocated under a root context.
    #[must_use]
    pub fn owned_by(&self, root: Handle) -> Vec<u64> {
        self.owned.iter().filter(|(_, own)| own.root == root).map(|(at, _)| *at).collect()
    }

    /// The allocation is freed.
    pub(super) fn forget(&mut self, address: u64) {
        if let Some(own) = self.owned.remove(&address) {
            self.used_bytes -= own.bytes;
        }
    }
}

impl Driver {
    /// Allocates device memory.
    ///
    /// # Errors
    /// `InvalidValue` for nothing, `OutOfMemory`, `CaptureUnsupported` during a capture.
    pub fn allocate(&mut self, bytes: u64, label: &str) -> Outcome<u64> {
        self.refuse_unsafe_call("an allocation")?;
        self.allocate_now(bytes, label)
    }

    pub(super) fn allocate_now(&mut self, bytes: u64, label: &str) -> Outcome<u64> {
        let root = self.current_root()?;
        ensure!(bytes > 0, InvalidValue, "an allocation of no bytes");
        let left = self.settings.memory_bytes - self.device.used_bytes;
        ensure!(bytes <= left, OutOfMemory, "{bytes} bytes wanted, {left} left");
        let address = self
            .memory
            .allocate(bytes, label)
            .map_err(|violation| failure(Code::OutOfMemory, violation.to_string()))?;
        self.device.used_bytes += bytes;
        self.device.owned.insert(address, Owned { root, bytes, free_is_enqueued: false });
        self.report.allocated(address, bytes, label);
        Ok(address)
    }

    /// Allocates in the order of a stream.
    ///
    /// # Errors
    /// As [`Self::allocate`]; a captured allocation node is not supported.
    pub fn allocate_async(&mut self, stream: Handle, bytes: u64, label: &str) -> Outcome<u64> {
        if let Some(capture) = self.capture_of(stream)? {
            self.invalidate_capture(capture);
            let reason = "the emulator captures no allocations; allocate before capturing";
            return Err(failure(Code::CaptureUnsupported, reason));
        }
        self.allocate_now(bytes, label)
    }

    /// Checks that `cuMemFree` may free this; the caller then waits for the device, and frees.
    ///
    /// # Errors
    /// `InvalidValue` when no live allocation starts there, `CaptureUnsupported` in a capture.
    pub fn check_free(&mut self, address: u64) -> Outcome {
        self.refuse_unsafe_call("a free")?;
        let own = self.device.owned.get(&address);
        ensure!(
            own.is_some_and(|own| !own.free_is_enqueued),
            InvalidValue,
            "cannot free {address:#x}: {}",
            self.memory.describe(address)
        );
        Ok(())
    }

    /// Frees device memory now.
    ///
    /// # Errors
    /// As [`Self::check_free`].
    pub fn free(&mut self, address: u64) -> Outcome {
        self.check_free(address)?;
        self.device.forget(address);
        self.report.freed(address);
        self.memory
            .free(address)
            .map_err(|violation| failure(Code::InvalidValue, violation.to_string()))
    }

    /// Frees device memory when a stream comes to it.
    ///
    /// # Errors
    /// `InvalidValue` when no live allocation starts there or it is being freed already.
    pub fn free_async(&mut self, stream: Handle, address: u64) -> Outcome {
        if let Some(capture) = self.capture_of(stream)? {
            self.invalidate_capture(capture);
            return Err(Code::CaptureUnsupported.into());
        }
        let described = self.memory.describe(address);
        let own = self.device.owned.get_mut(&address).filter(|own| !own.free_is_enqueued);
        let Some(own) = own else {
            return Err(failure(Code::InvalidValue, format!("cannot free: {described}")));
        };
        own.free_is_enqueued = true;
        self.report.freed(address);
        self.enqueue(stream, Work::Free(address)).map(|_| ())
    }

    /// Free and total bytes.
    #[must_use]
    pub fn memory_info(&self) -> (u64, u64) {
        let total = self.settings.memory_bytes;
        (total - self.device.used_bytes, total)
    }

    /// Names an allocation in faults and in the report.
    ///
    /// # Errors
    /// `InvalidValue` when no live allocation starts there.
    pub fn label(&mut self, address: u64, label: &str) -> Outcome {
        let known = self.memory.allocation(address).filter(|found| found.base == address);
        ensure!(known.is_some(), InvalidValue, "{}", self.memory.describe(address));
        self.memory.relabel(address, label);
        self.report.labelled(address, label);
        Ok(())
    }

    /// Names a part of an allocation and gives it bounds of its own.
    ///
    /// # Errors
    /// `InvalidValue` when the range is not inside one live allocation.
    pub fn carve(&mut self, address: u64, bytes: u64, label: &str) -> Outcome {
        self.memory
            .carve(address, bytes, label)
            .map_err(|violation| failure(Code::InvalidValue, violation.to_string()))?;
        self.report.carved(address, bytes, label);
        Ok(())
    }

    /// Declares a range unwritten, so that reading it before writing it is a fault again.
    ///
    /// # Errors
    /// `InvalidValue` when the range is not inside one live allocation.
    pub fn forget_contents(&mut self, address: u64, bytes: u64) -> Outcome {
        self.memory
            .forget(address, bytes)
            .map_err(|violation| failure(Code::InvalidValue, violation.to_string()))
    }

    /// Allocates page-locked host memory; answers its host address.
    ///
    /// # Errors
    /// `InvalidValue` for nothing, `OutOfMemory`, `CaptureUnsupported` during a capture.
    pub fn allocate_pinned(&mut self, bytes: usize, flags: u32) -> Outcome<usize> {
        self.refuse_unsafe_call("an allocation of pinned memory")?;
        self.current_context()?;
        ensure!(bytes > 0, InvalidValue, "an allocation of no bytes");
        let exhausted = |violation: crate::memory::Violation| {
            failure(Code::OutOfMemory, format!("pinned memory: {violation}"))
        };
        let device = self.memory.allocate(bytes as u64, "pinned host").map_err(exhausted)?;
        let host = self.memory.host_pointer(device).map_err(exhausted)? as usize;
        self.host.insert(PinnedBlock { host, bytes, device: Some(device), flags })?;
        Ok(host)
    }

    /// Frees page-locked memory. The caller has waited for the device.
    ///
    /// # Errors
    /// `InvalidValue` when it was not allocated by [`Self::allocate_pinned`].
    pub fn free_pinned(&mut self, host: usize) -> Outcome {
        self.refuse_unsafe_call("a free of pinned memory")?;
        let device = self.host.find(host).filter(|block| block.host == host);
        let Some(device) = device.and_then(|block| block.device) else {
            let reason = format!("{host:#x} is not the start of allocated pinned memory");
            return Err(failure(Code::InvalidValue, reason));
        };
        self.host.remove(host);
        self.memory
            .free(device)
            .map_err(|violation| failure(Code::InvalidValue, violation.to_string()))
    }

    /// Registers the caller's memory as page-locked. Kernels cannot reach it.
    ///
    /// # Errors
    /// `HostMemoryAlreadyRegistered` when part of it is, `InvalidValue` for nothing.
    pub fn register_host(&mut self, host: usize, bytes: usize, flags: u32) -> Outcome {
        self.refuse_unsafe_call("a registration of host memory")?;
        self.current_context()?;
        ensure!(host != 0 && bytes > 0, InvalidValue, "{bytes} bytes at {host:#x}");
        self.host.insert(PinnedBlock { host, bytes, device: None, flags })
    }

    /// Ends a registration. The caller has waited for the device.
    ///
    /// # Errors
    /// `HostMemoryNotRegistered` when there is none.
    pub fn unregister_host(&mut self, host: usize) -> Outcome {
        self.refuse_unsafe_call("a registration of host memory")?;
        let block = self.host.find(host).filter(|b| b.host == host && b.device.is_none());
        ensure!(block.is_some(), HostMemoryNotRegistered, "{host:#x} is not registered");
        self.host.remove(host);
        Ok(())
    }

    /// The pinned block that holds a host address.
    #[must_use]
    pub fn pinned_block(&self, host: usize) -> Option<PinnedBlock> {
        self.host.find(host)
    }

    /// The device address of a byte of pinned memory.
    ///
    /// # Errors
    /// `InvalidValue` when it is not pinned, `NotSupported` when it was registered.
    pub fn device_address_of_host(&self, host: usize) -> Outcome<u64> {
        let Some(block) = self.host.find(host) else {
            return Err(failure(Code::InvalidValue, format!("{host:#x} is not pinned")));
        };
        let Some(device) = block.device else {
            let reason = "kernels of the emulator cannot reach registered host memory";
            return Err(failure(Code::NotSupported, reason));
        };
        Ok(device + (host - block.host) as u64)
    }
}
