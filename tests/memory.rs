//! Claims about the memory of a process, measured in one of its own: no other test runs in it.

#![cfg(target_os = "linux")]

#[path = "common/models.rs"]
mod models;

use forerun::device::cpu::{CpuDevice, CpuOptions};
use forerun::ids::TokenId;
use forerun::model::{Checkpoint, PassLimits, Solo};

/// The largest resident memory of this process so far, in bytes.
fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("kibibytes");
    kib << 10
}

#[test]
fn a_loaded_model_takes_at_most_its_file_and_a_seventh() {
    let Some(path) = models::model_path("qwen2.5-coder-0.5b") else { return };
    let file_bytes = std::fs::metadata(&path).expect("the size of the model").len();
    let before = peak_resident_bytes();
    let checkpoint = Checkpoint::open(&path).expect("a model");
    let device = CpuDevice::new(CpuOptions::default()).expect("this processor");
    let limits = PassLimits { rows: 16, full_rows: 1, positions: 64 };
    let mut solo = Solo::load(device, &checkpoint, limits).expect("memory for the model");
    solo.next(&[TokenId(1); 16]).expect("a pass");
    let taken = peak_resident_bytes() - before;
    let ratio = taken as f64 / file_bytes as f64;
    eprintln!("{taken} bytes for a file of {file_bytes}: {ratio:.3}");
    assert!(ratio <= 1.15, "{taken} bytes for a file of {file_bytes}: {ratio:.3}");
}
