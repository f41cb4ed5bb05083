//! Devices of the tests' own.

use crate::emulator::{library, on_hardware, options};
use forerun::device::Device;
use forerun::device::cuda::{CudaDevice, CudaOptions};
use gpu_emulator::load::Emulator;

/// A device of its own.
pub(crate) fn device() -> CudaDevice {
    open(&options())
}

/// A device with these options; it must be the emulated one, or on hardware must not.
pub(crate) fn open(options: &CudaOptions) -> CudaDevice {
    let device = CudaDevice::open(options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(device.info().is_emulated(), !on_hardware(), "{}", device.info().name);
    device
}

/// Seeds the order in which warps, CTAs and streams run from now on. Hardware has its own, so there
/// runs are only compared with one another.
pub(crate) fn seed(seed: u64) {
    if on_hardware() {
        eprintln!("NOT CHOSEN on hardware: the order of warps and CTAs, seed {seed}");
        return;
    }
    Emulator::open_at(&library()).unwrap().set_seed(seed);
}

/// Whether the whole product of shapes was asked for.
pub(crate) fn full() -> bool {
    std::env::var_os("FORERUN_FULL").is_some()
}
