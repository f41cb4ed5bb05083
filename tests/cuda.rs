//! The CUDA device on the software GPU: every operation against the reference, the bits of rows
//! against themselves, and whole answers against the CPU's.
//!
//! Needs kernels (nvcc at build time); without them every test says `skipped`, or fails where
//! `FORERUN_REQUIRE_KERNELS=1`. `FORERUN_FULL=1` runs the whole product of shapes.
//! `FORERUN_TEST_GPU=1` runs the same tests on this machine's GPU instead; then one at a time
//! (`--test-threads=1`), because an engine may take half of the memory.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "cuda/against_reference.rs"]
mod against_reference;
#[path = "cuda/answers.rs"]
mod answers;
#[path = "cuda/device.rs"]
mod device;
#[path = "cuda/emulator.rs"]
mod emulator;
#[path = "device_ops/harness.rs"]
mod harness;
#[path = "common/models.rs"]
mod models;
#[path = "cuda/overlap_sweep.rs"]
mod overlap_sweep;
#[path = "common/peers.rs"]
mod peers;
#[path = "device_ops/probes.rs"]
mod probes;
#[path = "common/problems.rs"]
mod problems;
#[path = "common/rollback.rs"]
mod rollback;
#[path = "cuda/row_invariance.rs"]
mod row_invariance;
#[path = "cuda/speculation.rs"]
mod speculation;
#[path = "common/wanted_rows.rs"]
mod wanted_rows;
