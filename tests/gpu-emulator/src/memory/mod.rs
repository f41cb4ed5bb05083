//! What kernels touch: global memory, the shared memory of a CTA, and the local memory of a thread.
//!
//! Every access is checked here or on the way here; a broken rule comes back as a [`Violation`],
//! which `exec` completes with kernel, line, CTA and thread. Addresses are numbers of this device:
//! none of them is an address of the host.
//! Read next: [`global`] (allocations), then [`shared`] (races and pending copies).

pub mod banks;
pub mod global;
pub mod local;
pub(crate) mod order;
mod region;
pub mod shared;

pub use global::{Allocation, GlobalMemory, Info, Span};
pub use local::LocalMemory;
pub use shared::SharedMemory;

use crate::launch::FaultKind;
use std::fmt;

/// First address of global memory. It has bit 48 set, which no address of a process has: a host
/// that dereferences a device pointer stops at once.
pub const GLOBAL_BASE: u64 = 0x0001_0000_0000_0000;
/// First generic address of the shared window: generic = window + shared offset.
pub const SHARED_WINDOW: u64 = 0x0002_0000_0000_0000;
/// First generic address of the local window: generic = window + local offset.
pub const LOCAL_WINDOW: u64 = 0x0003_0000_0000_0000;
/// First generic address of the window onto the kernel's parameters.
pub const PARAM_WINDOW: u64 = 0x0004_0000_0000_0000;
/// What `AddressOf` gives for function 0; function `i` is at `i` more.
pub const FUNCTION_BASE: u64 = 0x0005_0000_0000_0000;
/// Bytes in each of the windows.
pub const WINDOW_BYTES: u64 = 0x0100_0000;

/// A rule an access broke, before anybody knows which instruction made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub kind: FaultKind,
    /// Where: an address of the space the access was in.
    pub address: u64,
    /// What lies there and what was wrong with it.
    pub detail: String,
}

impl Violation {
    /// A violation of `kind` at `address`.
    #[must_use]
    pub fn at(kind: FaultKind, address: u64, detail: impl Into<String>) -> Self {
        Self { kind, address, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:#x}: {}", self.kind, self.address, self.detail)
    }
}

impl std::error::Error for Violation {}
