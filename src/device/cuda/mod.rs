//! The CUDA device: hand-written kernels, driven through the driver API.
//!
//! `launch` describes one kernel launch as a value; the operation files build launches; the stream
//! runs them. Read next: `launch`, then `kernels/common/batch.cuh` for what a kernel sees.
#![allow(dead_code, reason = "operations land before the device that enqueues them")]

mod launch;
mod layout;
