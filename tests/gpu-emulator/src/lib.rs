//! A software GPU: the CUDA driver API over an interpreter of PTX that is stricter than hardware.
//!
//! `driver` answers the `cu*` calls, `ptx` turns PTX text into typed programs, `exec` runs a launch
//! warp by warp, `memory` holds what the warps touch and checks every access. Nothing here is fast
//! in the way hardware is fast: no time measured on it is ever a GPU's.
//! Read next: [`launch`], the seam between the driver and the executor.

pub mod driver;
pub mod exec;
pub mod launch;
pub mod load;
pub mod memory;
pub mod ptx;
