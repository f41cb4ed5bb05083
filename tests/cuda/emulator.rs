//! Opening the software GPU.

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

/// Options that open the software GPU.
pub(crate) fn options() -> CudaOptions {
    CudaOptions { driver: Some(library()), ..CudaOptions::default() }
}
