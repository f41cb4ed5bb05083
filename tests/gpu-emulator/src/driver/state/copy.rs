//! Copies and memsets: checked at the call, done when their turn comes.
//!
//! A device range that is not inside one live allocation is an error of the call, as on the
//! hardware; one that is freed before the copy runs is a device fault.

use super::Driver;
use super::handles::Handle;
use super::host_memory::HostSpan;
use super::queue::OperationId;
use super::work::{Fill, HostSource, Word, Work};
use crate::driver::failure::{Code, Outcome, ensure, failure};

/// What a copy left behind in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// The operation, unless it was captured or had no bytes.
    pub operation: Option<OperationId>,
    /// Whether the host side was pageable memory.
    pub pageable: bool,
}

impl Copied {
    const NOTHING: Self = Self { operation: None, pageable: false };
}

impl Driver {
    fn check_device(&self, address: u64, bytes: u64, what: &str) -> Outcome {
        let inside = self
            .memory
            .allocation(address)
            .is_some_and(|found| found.bytes - (address - found.base) >= bytes);
        ensure!(
            inside,
            InvalidValue,
            "{what} of {bytes} bytes at {address:#x}: {}",
            self.memory.describe(address)
        );
        Ok(())
    }

    /// A capture cannot hold a copy with pageable memory: it would have to wait.
    fn refuse_pageable_in_capture(&mut self, stream: Handle) -> Outcome {
        if let Some(capture) = self.capture_of(stream)? {
            self.invalidate_capture(capture);
            let reason = "a copy with pageable host memory inside a capture";
            return Err(failure(Code::CaptureUnsupported, reason));
        }
        Ok(())
    }

    /// Copies from the host: pinned memory when the copy runs, pageable memory now.
    ///
    /// # Errors
    /// `InvalidValue` for a bad device range, and the stream's errors.
    pub fn upload(
        &mut self,
        stream: Handle,
        destination: u64,
        source: HostSpan,
    ) -> Outcome<Copied> {
        if source.bytes() == 0 {
            return Ok(Copied::NOTHING);
        }
        self.check_device(destination, source.bytes() as u64, "a copy to the device")?;
        let pageable = !self.host.is_pinned(source);
        let source = if pageable {
            self.refuse_pageable_in_capture(stream)?;
            HostSource::Staged(source.read().into())
        } else {
            HostSource::Pinned(source)
        };
        let operation = self.enqueue(stream, Work::Upload { destination, source })?;
        Ok(Copied { operation, pageable })
    }

    /// Copies to the host when the copy runs. With pageable memory the caller must then wait.
    ///
    /// # Errors
    /// `InvalidValue` for a bad device range, and the stream's errors.
    pub fn download(
        &mut self,
        stream: Handle,
        destination: HostSpan,
        source: u64,
    ) -> Outcome<Copied> {
        if destination.bytes() == 0 {
            return Ok(Copied::NOTHING);
        }
        self.check_device(source, destination.bytes() as u64, "a copy to the host")?;
        let pageable = !self.host.is_pinned(destination);
        if pageable {
            self.refuse_pageable_in_capture(stream)?;
        }
        let operation = self.enqueue(stream, Work::Download { destination, source })?;
        Ok(Copied { operation, pageable })
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// `InvalidValue` for a bad range, and the stream's errors.
    pub fn copy(
        &mut self,
        stream: Handle,
        destination: u64,
        source: u64,
        bytes: u64,
    ) -> Outcome<Copied> {
        if bytes == 0 {
            return Ok(Copied::NOTHING);
        }
        self.check_device(destination, bytes, "a copy to the device")?;
        self.check_device(source, bytes, "a copy from the device")?;
        let operation = self.enqueue(stream, Work::Copy { destination, source, bytes })?;
        Ok(Copied { operation, pageable: false })
    }

    /// Copies within the host, in the order of a stream.
    ///
    /// # Errors
    /// The stream's errors.
    pub fn host_copy(
        &mut self,
        stream: Handle,
        destination: HostSpan,
        source: HostSpan,
    ) -> Outcome<Copied> {
        let pageable = !self.host.is_pinned(destination) || !self.host.is_pinned(source);
        if pageable {
            self.refuse_pageable_in_capture(stream)?;
        }
        let operation = self.enqueue(stream, Work::HostCopy { destination, source })?;
        Ok(Copied { operation, pageable })
    }

    /// Whether an address is one of the device's.
    #[must_use]
    pub fn is_device_address(&self, address: u64) -> bool {
        self.memory.allocation(address).is_some()
    }

    /// Checks a word that a stream is to write or wait for.
    ///
    /// # Errors
    /// `InvalidValue` for a misaligned or unknown address.
    pub fn check_word(&self, word: &Word) -> Outcome {
        ensure!(
            word.address.is_multiple_of(word.bytes.into()),
            InvalidValue,
            "a word of {} bytes at {:#x}",
            word.bytes,
            word.address
        );
        self.check_device(word.address, word.bytes.into(), "a word")
    }

    /// Checks the range of a memset.
    ///
    /// # Errors
    /// `InvalidValue` for a bad range or a misaligned one.
    pub fn check_fill(&self, fill: &Fill) -> Outcome {
        let row_bytes = fill.width * u64::from(fill.element_bytes);
        ensure!(
            fill.destination.is_multiple_of(u64::from(fill.element_bytes))
                && (fill.height == 1 || fill.pitch_bytes >= row_bytes),
            InvalidValue,
            "a memset of {}-byte elements at {:#x} with pitch {}",
            fill.element_bytes,
            fill.destination,
            fill.pitch_bytes
        );
        let reach = fill.height.saturating_sub(1) * fill.pitch_bytes + row_bytes;
        self.check_device(fill.destination, reach, "a memset")
    }

    /// Sets elements of device memory.
    ///
    /// # Errors
    /// `InvalidValue` for a bad range or a misaligned one, and the stream's errors.
    pub fn fill(&mut self, stream: Handle, fill: Fill) -> Outcome<Copied> {
        if fill.bytes() == 0 {
            return Ok(Copied::NOTHING);
        }
        self.check_fill(&fill)?;
        let operation = self.enqueue(stream, Work::Fill(fill))?;
        Ok(Copied { operation, pageable: false })
    }
}
