//! Programmatic dependent launches through the driver API, in streams and in graphs.

use super::support::*;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult};
use cudarc::driver::{CudaStream, DevicePtr};
use std::ffi::c_void;
use std::sync::Arc;

/// `produce` doubles 32 words, `consume` adds one to what it finds there; `hasty` finds it before
/// it waits.
const KERNELS: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry produce(.param .u64 words, .param .u64 sums) {
  .reg .b32 %r<4>; .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [words]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4;
  add.u64 %rd3, %rd1, %rd2;
  griddepcontrol.wait;
  griddepcontrol.launch_dependents;
  ld.global.u32 %r2, [%rd3]; add.u32 %r2, %r2, %r2; st.global.u32 [%rd3], %r2;
}
.visible .entry consume(.param .u64 words, .param .u64 sums) {
  .reg .b32 %r<4>; .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [words]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4;
  add.u64 %rd3, %rd1, %rd2; ld.param.u64 %rd4, [sums]; add.u64 %rd5, %rd4, %rd2;
  griddepcontrol.wait;
  ld.global.u32 %r2, [%rd3];
  add.u32 %r2, %r2, 1; st.global.u32 [%rd5], %r2;
}
.visible .entry hasty(.param .u64 words, .param .u64 sums) {
  .reg .b32 %r<4>; .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [words]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4;
  add.u64 %rd3, %rd1, %rd2; ld.param.u64 %rd4, [sums]; add.u64 %rd5, %rd4, %rd2;
  ld.global.u32 %r2, [%rd3];
  griddepcontrol.wait;
  add.u32 %r2, %r2, 1; st.global.u32 [%rd5], %r2;
}
";

/// Launches a kernel of one warp, which may begin early.
fn launch(
    module: sys::CUmodule,
    name: &str,
    stream: &Arc<CudaStream>,
    mut buffers: [u64; 2],
    early: bool,
) -> CUresult {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the module is loaded.
    let function = unsafe { result::module::get_function(module, name) }.unwrap();
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: u32::from(early),
    };
    let [words, sums] = &mut buffers;
    let mut params: [*mut c_void; 2] = [(&raw mut *words).cast(), (&raw mut *sums).cast()];
    let (params, extra) = (params.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: two parameters of eight bytes; all pointers are alive during the call.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, params, extra) }
}

/// Doubles words of 20 and lets `second` find them, behind a copy if there is one between; what
/// became of it, and the report.
fn run(
    seed: u64,
    captured: bool,
    second: &str,
    between: bool,
) -> (Result<Vec<u32>, CUresult>, serde_json::Value) {
    let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
    let image = std::ffi::CString::new(KERNELS).unwrap();
    // SAFETY: PTX that ends with a NUL.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap();
    let stream = device.context.new_stream().unwrap();
    let words = stream.clone_htod(&[20_u32; 32]).unwrap();
    let mut sums = stream.alloc_zeros::<u32>(32).unwrap();
    let at = words.device_ptr(&stream).0;
    device.emulator.label(at, "words");
    let buffers = [at, sums.device_ptr(&stream).0];
    let spare = stream.clone_htod(&[0_u32; 32]).unwrap();
    stream.synchronize().unwrap();
    if captured {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
    }
    assert_eq!(launch(module, "produce", &stream, buffers, true), CUresult::CUDA_SUCCESS);
    if between {
        stream.memcpy_dtod(&spare, &mut sums).unwrap();
    }
    assert_eq!(launch(module, second, &stream, buffers, true), CUresult::CUDA_SUCCESS);
    if captured {
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        graph.launch().unwrap();
    }
    let outcome = stream.synchronize().map_err(|error| error.0);
    let outcome = outcome.map(|()| stream.clone_dtoh(&sums).unwrap());
    (outcome, device.emulator.report())
}

#[test]
fn a_kernel_that_waits_finds_what_the_one_before_left() {
    for (seed, captured) in SEEDS.flat_map(|seed| [(seed, false), (seed, true)]) {
        let (outcome, report) = run(seed, captured, "consume", false);
        assert_eq!(outcome.unwrap(), [41; 32], "seed {seed}, captured {captured}");
        let kernels = &report["kernels"];
        assert_eq!(kernels["produce"]["early_launches"], 0, "it is behind a copy");
        assert_eq!(kernels["consume"]["early_launches"], 1);
        assert_eq!(kernels["consume"]["dependency_waits"], 1);
        let log = report["log"].as_array().unwrap();
        let asked = |entry: &&serde_json::Value| entry["programmatic"] == true;
        assert_eq!(log.iter().filter(asked).count(), 2);
        if captured {
            let (_, early) = report["early_in_graphs"].as_object().unwrap().iter().next().unwrap();
            assert_eq!(*early, serde_json::json!([false, true]));
        }
    }
}

#[test]
fn a_kernel_that_does_not_wait_for_the_one_before_is_found_under_every_seed() {
    for (seed, captured) in SEEDS.flat_map(|seed| [(seed, false), (seed, true)]) {
        let (outcome, report) = run(seed, captured, "hasty", false);
        assert_eq!(outcome, Err(CUresult::CUDA_ERROR_LAUNCH_FAILED), "captured {captured}");
        let reason = report["failures"][0]["reason"].to_string();
        assert!(reason.contains("UnwaitedKernel") && reason.contains("hasty"), "{reason}");
        assert!(reason.contains("'words'"), "{reason}");
        // Behind a copy it begins when all has ended.
        let (outcome, _) = run(seed, captured, "hasty", true);
        assert_eq!(outcome.unwrap(), [41; 32], "seed {seed}, captured {captured}");
    }
}
