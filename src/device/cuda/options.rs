//! Choices of a CUDA device.

use super::stream::Overlap;
use std::path::PathBuf;

/// How a [`super::CudaDevice`] is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Which device, as the driver counts them.
    pub ordinal: i32,
    /// Share of the device's memory that may be taken, in (0, 1].
    pub memory_utilization: f64,
    /// How the two models share the device.
    pub overlap: Overlap,
    /// Percent of the SMs the draft gets with [`Overlap::GreenContexts`].
    pub draft_sm_pct: u32,
    /// Whether passes seen before run as graphs.
    pub graphs: bool,
    /// Whether a kernel may begin while the one before it ends, which changes no result: on compute
    /// capability 9.0 and later, and nothing elsewhere.
    pub dependent_launch: bool,
    /// A driver library to open instead of the system's, such as the software GPU of the tests. A
    /// process has one driver: the first device opened decides.
    pub driver: Option<PathBuf>,
    /// The only architecture to load kernels of, such as `compute_80`, instead of the best.
    pub image: Option<String>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            memory_utilization: 0.9,
            overlap: Overlap::default(),
            draft_sm_pct: 25,
            graphs: true,
            dependent_launch: true,
            driver: None,
            image: None,
        }
    }
}
