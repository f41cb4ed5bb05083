//! The shared library as the CUDA driver of unmodified `cudarc`.
//!
//! Every test takes the one device of the process for itself, resets it, and runs what it claims
//! under several seeds where order matters.

#![allow(clippy::unwrap_used)] // a test's own helpers may panic

#[path = "driver/support.rs"]
mod support;

#[path = "driver/dependent.rs"]
mod dependent;
#[path = "driver/device.rs"]
mod device;
#[path = "driver/failures.rs"]
mod failures;
#[path = "driver/graphs.rs"]
mod graphs;
#[path = "driver/green.rs"]
mod green;
#[path = "driver/modules.rs"]
mod modules;
#[path = "driver/report.rs"]
mod report;
#[path = "driver/streams.rs"]
mod streams;
#[path = "driver/symbols.rs"]
mod symbols;
