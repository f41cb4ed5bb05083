//! Opening the software GPU.

use forerun::device::cuda::{CudaDevice, CudaOptions};
use std::path::PathBuf;

/// The driver library, built beside the tests.
pub(crate) fn library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let folders = [deps, deps.parent().unwrap()];
    let found = folders.iter().map(|f| f.join("libgpu_emulator.so")).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no libgpu_emulator.so in {folders:?}; run `cargo build`"))
}

/// Whether there are kernels to test.
pub(crate) fn kernels() -> bool {
    let built = forerun::device::cuda::has_kernels();
    if !built {
        assert!(
            std::env::var_os("FORERUN_REQUIRE_KERNELS").is_none(),
            "built without CUDA kernels although FORERUN_REQUIRE_KERNELS is set"
        );
        eprintln!("skipped: built without CUDA kernels (no nvcc)");
    }
    built
}

/// Options that open the software GPU.
pub(crate) fn options() -> CudaOptions {
    CudaOptions { driver: Some(library()), ..CudaOptions::default() }
}

/// A device of its own.
pub(crate) fn device() -> CudaDevice {
    open(&options())
}

/// A device with these options; it must be the emulated one.
pub(crate) fn open(options: &CudaOptions) -> CudaDevice {
    use forerun::device::Device;
    let device = CudaDevice::open(options).unwrap_or_else(|e| panic!("{e}"));
    assert!(device.info().name.contains("emulated"), "{}", device.info().name);
    device
}

/// Seeds the order in which warps, CTAs and streams run from now on.
pub(crate) fn seed(seed: u64) {
    // SAFETY: the library is loaded already or loaded for good here; the symbol is its own and has
    // this signature.
    unsafe {
        let library = libloading::Library::new(library()).unwrap();
        let set: libloading::Symbol<'_, unsafe extern "C" fn(u64) -> u32> =
            library.get(b"forerun_emulator_set_seed").unwrap();
        assert_eq!(set(seed), 0);
        std::mem::forget(library);
    }
}

/// Whether the whole product of shapes was asked for.
pub(crate) fn full() -> bool {
    std::env::var_os("FORERUN_FULL").is_some()
}
