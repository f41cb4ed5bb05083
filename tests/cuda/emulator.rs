//! Opening the software GPU.

use forerun::device::cuda::CudaOptions;
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
