//! Green contexts: parts of the SMs, by the rules of the capability.

use super::support::*;
use cudarc::driver::{LaunchConfig, PushKernelArg, sys};

fn resource() -> sys::CUdevResource {
    // SAFETY: all-zero is a valid value of the structure: an invalid resource.
    unsafe { std::mem::zeroed() }
}

fn sm_count(resource: &sys::CUdevResource) -> u32 {
    // SAFETY: the driver filled it as an SM resource.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

/// Splits the device in one group of at least `minimum` SMs and the rest.
fn split(minimum: u32) -> Result<[sys::CUdevResource; 2], sys::CUresult> {
    let (mut all, mut part, mut rest) = (resource(), resource(), resource());
    let mut groups = 1;
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    // SAFETY: every pointer is to a live structure of the call's type.
    unsafe {
        sys::cuDeviceGetDevResource(0, &mut all, kind).result().unwrap();
        sys::cuDevSmResourceSplitByCount(&mut part, &mut groups, &all, &mut rest, 0, minimum)
            .result()
            .map_err(|error| error.0)?;
    }
    assert_eq!(groups, 1);
    Ok([part, rest])
}

#[test]
fn each_green_context_runs_on_its_own_sms() {
    for (capability, minimum, sizes) in [("80", 5, [6, 10]), ("90", 5, [8, 8])] {
        let device = device(&[("FORERUN_EMULATOR_CC", capability)]);
        let kernels = device.kernels();
        let function = kernels.function("where");
        let parts = split(minimum).unwrap();
        assert_eq!(parts.map(|part| sm_count(&part)), sizes);
        let mut used: Vec<Vec<u32>> = Vec::new();
        for mut part in parts {
            let mut descriptor = std::ptr::null_mut();
            let mut green = std::ptr::null_mut();
            let mut raw = std::ptr::null_mut();
            let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
            // SAFETY: every pointer is to a live value of the call's type.
            unsafe {
                sys::cuDevResourceGenerateDesc(&mut descriptor, &mut part, 1).result().unwrap();
                sys::cuGreenCtxCreate(&mut green, descriptor, 0, flags).result().unwrap();
                sys::cuGreenCtxStreamCreate(&mut raw, green, 1, 0).result().unwrap();
            }
            // SAFETY: the stream is live until the green context is destroyed below.
            let stream = unsafe { device.context.wrap_borrowed_stream(raw) };
            let mut ids = stream.alloc_zeros::<u32>(64).unwrap();
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut ids);
            let config =
                LaunchConfig { grid_dim: (64, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments are those of the kernel.
            unsafe { launch.launch(config) }.unwrap();
            let mut seen = stream.clone_dtoh(&ids).unwrap();
            seen.sort_unstable();
            seen.dedup();
            used.push(seen);
            drop((ids, stream));
            // SAFETY: live, and nothing of it is used any more.
            unsafe { sys::cuGreenCtxDestroy(green) }.result().unwrap();
        }
        assert!(used[0].iter().all(|id| !used[1].contains(id)), "{used:?}");
        assert_eq!(used.iter().map(|ids| ids.len() as u32).collect::<Vec<_>>(), sizes);
    }
}

#[test]
fn a_part_that_cannot_be_had_is_refused() {
    let device = device(&[]);
    let refused = split(17).err();
    assert_eq!(refused, Some(sys::CUresult::CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION));
    drop(device);
}
