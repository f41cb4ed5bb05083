//! Every operation of the CPU device against the reference, and the bits of its rows against
//! themselves: alone, in company, in other chunks, at other widths and thread counts.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "device_ops/against_reference.rs"]
mod against_reference;
#[path = "device_ops/harness.rs"]
mod harness;
#[path = "device_ops/heads.rs"]
mod heads;
#[path = "device_ops/probes.rs"]
mod probes;
#[path = "device_ops/row_invariance.rs"]
mod row_invariance;
#[path = "device_ops/tables.rs"]
mod tables;

use forerun::device::KvType;
use forerun::device::cpu::simd::SimdLevel;
use forerun::device::cpu::{CpuDevice, CpuOptions};

/// A CPU device at a level this processor has.
fn cpu(simd: SimdLevel, threads: usize, kv: KvType) -> CpuDevice {
    CpuDevice::new(CpuOptions { threads: Some(threads), simd: Some(simd), kv, widen: false })
        .unwrap()
}

/// The levels to test; says on stderr which ones this processor cannot run.
fn levels() -> Vec<SimdLevel> {
    let available = SimdLevel::available();
    for level in [SimdLevel::Avx2, SimdLevel::Avx512] {
        if !available.contains(&level) {
            eprintln!("skipped: this processor has no {}", level.name());
        }
    }
    available
}
