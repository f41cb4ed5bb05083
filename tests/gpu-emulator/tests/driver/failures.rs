//! Failures: found, explained, final, and injected.

use super::support::*;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use std::sync::Arc;

fn overrun(kernels: &Kernels, stream: &Arc<CudaStream>, words: &mut CudaSlice<u32>) {
    let function = kernels.function("overrun");
    let count = words.len() as u32;
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(words).arg(&count);
    // SAFETY: it writes one word too many, which is what the emulator is to find.
    unsafe { launch.launch(config) }.unwrap();
}

#[test]
fn a_write_past_the_end_fails_the_device_for_good_and_says_where() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let mut words = stream.alloc_zeros::<u32>(10).unwrap();
    device.emulator.label(words.device_ptr(&stream).0, "ten words");
    overrun(&kernels, &stream, &mut words);
    let wanted = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(code(stream.synchronize()), wanted);
    assert_eq!(code(stream.synchronize()), wanted);
    assert_eq!(code(stream.alloc_zeros::<u32>(1)), wanted);
    assert_eq!(code(device.context.load_module(ptx(80))), wanted);
    let failures = device.emulator.report()["failures"].clone();
    assert_eq!(failures.as_array().unwrap().len(), 1);
    assert_eq!(failures[0]["name"], "CUDA_ERROR_ILLEGAL_ADDRESS");
    let reason = failures[0]["reason"].to_string();
    assert!(reason.contains("overrun") && reason.contains("ten words"), "{reason}");
}

#[test]
fn memory_nobody_wrote_cannot_be_read_by_a_kernel() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    // SAFETY: never written, which is what the emulator is to find.
    let from = unsafe { stream.alloc::<f32>(32) }.unwrap();
    let mut to = stream.alloc_zeros::<f32>(32).unwrap();
    kernels.scale(&stream, &mut to, &from, 1.0).unwrap();
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let reason = device.emulator.report()["failures"][0]["reason"].to_string();
    assert!(reason.contains("Uninitialised"), "{reason}");
}

#[test]
fn a_named_part_of_an_arena_has_bounds_of_its_own() {
    for named in [false, true] {
        let device = device(&[]);
        let kernels = device.kernels();
        let stream = device.context.new_stream().unwrap();
        let mut arena = stream.alloc_zeros::<u32>(64).unwrap();
        stream.synchronize().unwrap();
        if named {
            let at = arena.device_ptr(&stream).0;
            device.emulator.carve(at, 40, "first ten");
            device.emulator.carve(at + 64, 64, "others");
        }
        let function = kernels.function("overrun");
        let config =
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut arena).arg(&10_u32);
        // SAFETY: inside the arena.
        unsafe { launch.launch(config) }.unwrap();
        let wanted =
            if named { CUresult::CUDA_ERROR_ILLEGAL_ADDRESS } else { CUresult::CUDA_SUCCESS };
        assert_eq!(code(stream.synchronize()), wanted);
    }
}

#[test]
fn the_launch_that_was_asked_to_fail_fails() {
    let device = device(&[("FORERUN_EMULATOR_FAIL", "affine:3")]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let mut words = stream.clone_htod(&[0_u32; 32]).unwrap();
    for launch in 1..=3 {
        kernels.affine(&stream, &mut words, 1, 1).unwrap();
        let wanted = match launch {
            3 => CUresult::CUDA_ERROR_LAUNCH_FAILED,
            _ => CUresult::CUDA_SUCCESS,
        };
        assert_eq!(code(stream.synchronize()), wanted, "launch {launch}");
    }
}

#[test]
fn memory_runs_out_where_the_settings_say() {
    let device = device(&[("FORERUN_EMULATOR_MEMORY_BYTES", "1048576")]);
    let stream = device.context.new_stream().unwrap();
    let held = stream.alloc_zeros::<u8>(1 << 19).unwrap();
    let refused = code(stream.alloc_zeros::<u8>((1 << 19) + 1));
    assert_eq!(refused, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(device.context.mem_get_info().unwrap(), (1 << 19, 1 << 20));
    drop(held);
    stream.synchronize().unwrap();
    assert!(stream.alloc_zeros::<u8>(1 << 20).is_ok());
}
