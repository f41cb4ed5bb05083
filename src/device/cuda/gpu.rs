//! Which GPU there is and what it can do, asked of the driver before a context is made on it.
//!
//! Invariant: nothing of `cudarc` is called before [`open_library`] has succeeded; without a driver
//! it would panic. Read next: [`super::driver`], what is done with a GPU.

use super::driver::check;
use crate::error::DeviceError;
use cudarc::driver::result;
use cudarc::driver::sys;
use std::fmt::Display;
use std::path::Path;

/// Compute capability, in tenths, from which a kernel may begin before the one before it has ended.
const DEPENDENT_LAUNCH_CAPABILITY: u32 = 90;
/// CUDA 12.3, as drivers number themselves: from then on graphs keep such launches.
const DEPENDENT_LAUNCH_DRIVER: i32 = 12_030;

fn unavailable(reason: impl Display) -> DeviceError {
    DeviceError::Unavailable { device: "cuda".into(), reason: reason.to_string() }
}

/// Whether this machine has a CUDA driver.
pub(crate) fn driver_present() -> bool {
    // SAFETY: opens the system's driver library and closes it again; what it runs on being opened
    // depends on nothing of ours.
    unsafe { sys::is_culib_present() }
}

/// Opens the driver library, the system's or a named one.
fn open_library(named: Option<&Path>) -> Result<(), DeviceError> {
    if let Some(path) = named {
        // SAFETY: loading a library runs its initialisers, which is what the user asked for by
        // naming it. It stays loaded for good, so no symbol of it is ever left dangling.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|e| unavailable(format!("driver {}: {e}", path.display())))?;
        std::mem::forget(library);
    }
    if driver_present() {
        Ok(())
    } else {
        Err(unavailable("no NVIDIA driver (libcuda.so) on this machine; use --device cpu"))
    }
}

/// What a device says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Properties {
    pub(crate) name: String,
    /// Major times 10 plus minor, such as 90.
    pub(crate) capability: u32,
    /// Major times 1000 plus minor times 10, such as 12080.
    driver: i32,
    pub(super) sms: usize,
    /// Shared memory a CTA can opt in to.
    pub(super) shared_optin_bytes: u32,
}

impl Properties {
    fn of(device: sys::CUdevice) -> Result<Self, DeviceError> {
        use sys::CUdevice_attribute as A;
        let attribute = |which: A| {
            // SAFETY: `device` is a valid handle.
            check(unsafe { result::device::get_attribute(device, which) }, || {
                format!("cuDeviceGetAttribute {which:?}")
            })
        };
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let sms = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut driver = 0;
        // SAFETY: the answer has a place.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut driver) };
        check(asked.result(), || "cuDriverGetVersion".into())?;
        Ok(Self {
            name: check(result::device::get_name(device), || "cuDeviceGetName".into())?,
            capability: (major * 10 + minor) as u32,
            driver,
            sms: sms as usize,
            shared_optin_bytes: shared as u32,
        })
    }

    /// Whether kernels may begin before the one before them has ended.
    pub(crate) fn dependent_launch(&self) -> bool {
        self.capability >= DEPENDENT_LAUNCH_CAPABILITY && self.driver >= DEPENDENT_LAUNCH_DRIVER
    }
}

/// Opens the driver, the system's or a named one, and looks at device `ordinal`.
///
/// # Errors
/// When there is no driver or no such device.
pub(super) fn open(
    ordinal: i32,
    driver: Option<&Path>,
) -> Result<(sys::CUdevice, Properties), DeviceError> {
    open_library(driver)?;
    check(result::init(), || "cuInit".into())?;
    let count = check(result::device::get_count(), || "cuDeviceGetCount".into())?;
    if ordinal >= count {
        return Err(unavailable(format!("device {ordinal} asked for, there are {count}")));
    }
    let device = check(result::device::get(ordinal), || format!("cuDeviceGet {ordinal}"))?;
    Ok((device, Properties::of(device)?))
}

/// The first device of the system's driver.
///
/// # Errors
/// When there is no driver or no device.
pub(crate) fn first() -> Result<Properties, DeviceError> {
    open(0, None).map(|(_, properties)| properties)
}
