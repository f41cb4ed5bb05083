//! A kernel launch as a value: which kernel, how many CTAs, which parameters.
//!
//! The functions that build one are pure, so grids and parameters are tested without a driver; the
//! stream executes it, or records it into a graph. Two equal [`Launch`]es do the same work on
//! whatever the staged batch says, which is what graphs are keyed by.

use bytemuck::Pod;

/// The parameter struct of one kernel: `#[repr(C)]`, the same fields in the same order as the
/// CUDA struct that the kernel takes as its only parameter.
pub(crate) trait KernelParams: Pod {
    /// The kernel's name, `extern "C"`.
    const KERNEL: &'static str;
}

/// Bytes a parameter struct may have.
const PARAMS_MAX_BYTES: usize = 384;

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Launch {
    /// The kernel's name.
    pub(crate) kernel: &'static str,
    /// CTAs along x, y, z.
    pub(crate) grid: [u32; 3],
    /// Threads along x.
    pub(crate) threads: u32,
    /// Dynamic shared memory of a CTA.
    pub(crate) shared_bytes: u32,
    params: [u64; PARAMS_MAX_BYTES / 8],
}

impl Launch {
    /// A launch of the kernel that takes `params`.
    pub(crate) fn new<P: KernelParams>(
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Self {
        const { assert!(size_of::<P>() <= PARAMS_MAX_BYTES && align_of::<P>() <= 8) };
        let mut words = [0; PARAMS_MAX_BYTES / 8];
        let bytes = bytemuck::bytes_of(params);
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { kernel: P::KERNEL, grid, threads, shared_bytes, params: words }
    }

    /// The parameter struct's bytes, zeros behind it.
    pub(crate) fn params(&self) -> &[u64] {
        &self.params
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [x, y, z] = self.grid;
        let (threads, shared) = (self.threads, self.shared_bytes);
        write!(f, "{} <{x} x {y} x {z}, {threads} threads, {shared} B shared>", self.kernel)
    }
}
