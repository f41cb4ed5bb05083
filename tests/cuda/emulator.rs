//! Opening the software GPU, or this machine's own where `FORERUN_TEST_GPU` is set.

use forerun::device::cuda::CudaOptions;
use std::path::PathBuf;

/// The driver library, built beside the tests.
pub(crate) fn library() -> PathBuf {
    gpu_emulator::load::path().unwrap_or_else(|e| panic!("{e}"))
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

/// Whether the tests run on this machine's GPU, by its own driver.
pub(crate) fn on_hardware() -> bool {
    std::env::var_os("FORERUN_TEST_GPU").is_some()
}

/// Options that open the GPU under test.
pub(crate) fn options() -> CudaOptions {
    CudaOptions { driver: (!on_hardware()).then(library), ..CudaOptions::default() }
}
