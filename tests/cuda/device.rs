//! Devices of the tests' own on the software GPU.

use crate::emulator::{library, options};
use forerun::device::Device;
use forerun::device::cuda::{CudaDevice, CudaOptions};
use gpu_emulator::load::Emulator;

/// A device of its own.
pub(crate) fn device() -> CudaDevice {
    open(&options())
}

/// A device with these options; it must be the emulated one.
pub(crate) fn open(options: &CudaOptions) -> CudaDevice {
    let device = CudaDevice::open(options).unwrap_or_else(|e| panic!("{e}"));
    assert!(device.info().name.contains("emulated"), "{}", device.info().name);
    device
}

/// Seeds the order in which warps, CTAs and streams run from now on.
pub(crate) fn seed(seed: u64) {
    Emulator::open_at(&library()).unwrap().set_seed(seed);
}

/// Whether the whole product of shapes was asked for.
pub(crate) fn full() -> bool {
    std::env::var_os("FORERUN_FULL").is_some()
}
