//! One operation of a stream, and what it does when its turn has come.
//!
//! The invariant that makes misuse visible: an operation holds what CUDA copies at the call
//! (parameters, pageable source bytes) and only points at what CUDA reads later (device memory,
//! pinned host memory).

use super::handles::Handle;
use super::host_memory::HostSpan;
use crate::driver::failure::{Failure, Outcome, failure};
use crate::launch::{Launch, Stored};
use crate::memory::GlobalMemory;
use std::sync::{Arc, OnceLock};

/// What a kernel stored to, and the kernels that it did not need to begin after: known when it has
/// run.
pub type Trail = Arc<OnceLock<Arc<Stored>>>;

/// A kernel launch with what its validation needs again when a graph node is changed.
#[derive(Debug, Clone)]
pub struct KernelWork {
    /// The function that was launched.
    pub function: Handle,
    /// Its name.
    pub name: Arc<str>,
    /// The launch; its serial number is given when it is enqueued.
    pub launch: Launch,
    /// Whether this launch must fail, because a test asked for it.
    pub must_fail: bool,
    /// Whether programmatic stream serialisation was asked for.
    pub programmatic: bool,
    /// The kernel it may overlap with, once it is enqueued behind one and asked for it.
    pub behind: Option<Trail>,
    /// What it leaves for the kernel behind it, a new one for each time it is enqueued.
    pub trail: Trail,
}

/// Where a copy to the device reads from.
#[derive(Debug, Clone)]
pub enum HostSource {
    /// Pinned memory, read when the copy runs.
    Pinned(HostSpan),
    /// Bytes of pageable memory, copied at the call.
    Staged(Arc<[u8]>),
}

/// A host function: what `cuLaunchHostFunc` was given.
#[derive(Debug, Clone, Copy)]
pub struct HostCall {
    /// The function.
    pub function: HostFunction,
    /// Its argument.
    pub data: usize,
}

/// The C signature of a host function.
pub type HostFunction = unsafe extern "C" fn(*mut std::ffi::c_void);

/// What an operation does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Runs a kernel.
    Kernel(Box<KernelWork>),
    /// Host to device.
    Upload {
        /// Device address.
        destination: u64,
        /// Where from.
        source: HostSource,
    },
    /// Device to host.
    Download {
        /// Where to.
        destination: HostSpan,
        /// Device address.
        source: u64,
    },
    /// Device to device.
    Copy {
        /// Device address.
        destination: u64,
        /// Device address.
        source: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Host to host, through `cuMemcpy`.
    HostCopy {
        /// Where to.
        destination: HostSpan,
        /// Where from.
        source: HostSpan,
    },
    /// Repeats an element over rows of device memory.
    Fill(Fill),
    /// Frees device memory.
    Free(u64),
    /// Stores a word.
    WriteWord(Word),
    /// Waits until a word compares.
    WaitWord(Word, Comparison),
    /// Calls the host.
    Host(HostCall),
    /// Nothing: an event record, a wait, the end of a graph.
    Mark,
}

/// A word of device memory and a value for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Device address, a multiple of `bytes`.
    pub address: u64,
    /// The value.
    pub value: u64,
    /// 4 or 8.
    pub bytes: u32,
}

/// How a word is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `word - value` is not negative, as a signed number.
    AtLeast,
    /// They are equal.
    Equal,
    /// They have a bit in common.
    And,
    /// There is a bit neither has.
    Nor,
}

impl Word {
    /// Whether what memory holds compares. An address that is gone compares: the failure comes
    /// when the operation runs.
    pub(super) fn compares(&self, comparison: Comparison, memory: &GlobalMemory) -> bool {
        let mut bytes = [0; 8];
        if memory.read(self.address, &mut bytes[..self.bytes as usize]).is_err() {
            return true;
        }
        let shift = 64 - 8 * self.bytes;
        let (word, value) = (u64::from_le_bytes(bytes) << shift, self.value << shift);
        match comparison {
            Comparison::AtLeast => word.wrapping_sub(value).cast_signed() >= 0,
            Comparison::Equal => word == value,
            Comparison::And => word & value != 0,
            Comparison::Nor => !(word | value) >> shift != 0,
        }
    }
}

/// A memset of one or more rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Device address.
    pub destination: u64,
    /// The element, in its low bytes.
    pub value: u32,
    /// Bytes of the element: 1, 2 or 4.
    pub element_bytes: u32,
    /// Elements in a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Bytes from one row to the next.
    pub pitch_bytes: u64,
}

impl Fill {
    /// Bytes that are written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.width * self.height * u64::from(self.element_bytes)
    }

    fn run(&self, memory: &GlobalMemory) -> Outcome<()> {
        let row_bytes = self.width * u64::from(self.element_bytes);
        let element = &self.value.to_le_bytes()[..self.element_bytes as usize];
        let uniform = element.iter().all(|byte| *byte == element[0]);
        for row in 0..self.height {
            let at = self.destination + row * self.pitch_bytes;
            if uniform {
                memory.fill(at, element[0], row_bytes).map_err(broken("a memset"))?;
            } else {
                let bytes = element.repeat(self.width as usize);
                memory.write(at, &bytes).map_err(broken("a memset"))?;
            }
        }
        Ok(())
    }
}

impl Work {
    /// The node type of this work in a graph, as `CUgraphNodeType` numbers it.
    #[must_use]
    pub fn node_type(&self) -> u32 {
        match self {
            Self::Kernel(_) => 0,
            Self::Upload { .. } | Self::Download { .. } => 1,
            Self::Copy { .. } | Self::HostCopy { .. } => 1,
            Self::Fill(_) => 2,
            Self::Host(_) => 3,
            Self::Mark => 5,
            Self::Free(_) => 11,
            Self::WriteWord(_) | Self::WaitWord(..) => 12,
        }
    }

    /// Bytes it moves.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Upload { source: HostSource::Pinned(span), .. } => Some(span.bytes() as u64),
            Self::Upload { source: HostSource::Staged(bytes), .. } => Some(bytes.len() as u64),
            Self::Download { destination, .. } => Some(destination.bytes() as u64),
            Self::HostCopy { destination, .. } => Some(destination.bytes() as u64),
            Self::Copy { bytes, .. } => Some(*bytes),
            Self::Fill(fill) => Some(fill.bytes()),
            Self::WriteWord(word) => Some(word.bytes.into()),
            Self::Kernel(_) | Self::Free(_) | Self::Host(_) => None,
            Self::WaitWord(..) | Self::Mark => None,
        }
    }

    /// Does the work of everything but kernels and host calls, which need more than memory.
    pub(super) fn move_bytes(&self, memory: &GlobalMemory) -> Outcome<()> {
        match self {
            Self::Upload { destination, source } => match source {
                HostSource::Staged(bytes) => memory.write(*destination, bytes),
                HostSource::Pinned(span) => memory.write(*destination, &span.read()),
            }
            .map_err(broken("a copy to the device")),
            Self::Download { destination, source } => {
                let mut bytes = vec![0; destination.bytes()];
                memory.read(*source, &mut bytes).map_err(broken("a copy to the host"))?;
                destination.write(&bytes);
                Ok(())
            }
            Self::Copy { destination, source, bytes } => memory
                .copy(*destination, *source, *bytes)
                .map_err(broken("a copy within the device")),
            Self::HostCopy { destination, source } => {
                destination.write(&source.read());
                Ok(())
            }
            Self::Fill(fill) => fill.run(memory),
            Self::Free(address) => memory.free(*address).map_err(broken("an asynchronous free")),
            Self::WriteWord(word) => memory
                .write(word.address, &word.value.to_le_bytes()[..word.bytes as usize])
                .map_err(broken("a stream's write of a word")),
            Self::Kernel(_) | Self::Host(_) | Self::WaitWord(..) | Self::Mark => Ok(()),
        }
    }
}

fn broken(what: &'static str) -> impl Fn(crate::memory::Violation) -> Failure {
    move |violation| {
        let code = crate::driver::failure::Code::of_fault(violation.kind);
        failure(code, format!("{what}: {violation}"))
    }
}
