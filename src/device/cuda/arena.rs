//! All device memory: taken at start-up, given back at the end, nothing in between.
//!
//! Each piece is an allocation of its own, so that a checker of memory accesses sees where it ends;
//! the arena owns them all and refuses to grow once it is sealed.

use super::driver::{Context, DeviceMemory, check};
use super::layout::Address;
use crate::error::DeviceError;
use cudarc::driver::result;
use std::sync::{Arc, Mutex};

/// See the module.
#[derive(Debug)]
pub(super) struct Arena {
    context: Arc<Context>,
    limit_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sealed: bool,
    used_bytes: u64,
    pieces: Vec<DeviceMemory>,
}

impl Arena {
    /// An arena of at most `limit_bytes`.
    pub(super) fn new(context: &Arc<Context>, limit_bytes: u64) -> Self {
        Self { context: context.clone(), limit_bytes, state: Mutex::default() }
    }

    /// Bytes that can still be taken.
    pub(super) fn available_bytes(&self) -> u64 {
        self.limit_bytes - self.state().used_bytes
    }

    /// Takes `bytes` bytes, aligned to 256.
    ///
    /// # Errors
    /// When there is not so much left, or after the seal.
    pub(super) fn take(&self, bytes: usize, what: &str) -> Result<Address, DeviceError> {
        let mut state = self.state();
        if state.sealed {
            return Err(DeviceError::Failed(format!("{what}: allocation after start-up")));
        }
        let available_bytes = self.limit_bytes - state.used_bytes;
        let needed_bytes = bytes.max(1) as u64;
        if needed_bytes > available_bytes {
            return Err(DeviceError::OutOfMemory {
                what: what.into(),
                needed_bytes,
                available_bytes,
                advice: "lower --kv-cache-memory-bytes or --max-model-len, raise \
                         --gpu-memory-utilization, or take a smaller model"
                    .into(),
            });
        }
        self.context.bind()?;
        let piece = DeviceMemory::new(&self.context, bytes.max(1), what)?;
        let address = piece.address;
        state.used_bytes += needed_bytes;
        state.pieces.push(piece);
        Ok(address)
    }

    /// Refuses every later [`Arena::take`].
    pub(super) fn seal(&self) {
        self.state().sealed = true;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Copies `bytes` to `to` at start-up, and waits.
pub(super) fn upload_now(to: Address, bytes: &[u8], what: &str) -> Result<(), DeviceError> {
    // SAFETY: `to` has room for `bytes`, and nothing runs yet.
    check(unsafe { result::memcpy_htod_sync(to.0, bytes) }, || format!("upload of {what}"))
}

/// Zeroes `bytes` bytes at `to` at start-up, and waits. That is a copy: `cuMemsetD8` returns before
/// it has ended, and the streams here do not wait for it.
pub(super) fn zero_now(to: Address, bytes: usize) -> Result<(), DeviceError> {
    upload_now(to, &vec![0; bytes], "zeros")
}

/// Copies from the device at a read-back point, and waits.
pub(super) fn download_now(to: &mut [u8], from: Address) -> Result<(), DeviceError> {
    let bytes = to.len();
    // SAFETY: `from` has so many bytes; the caller synchronised the stream that wrote them.
    check(unsafe { result::memcpy_dtoh_sync(to, from.0) }, || format!("read of {bytes} bytes"))
}
