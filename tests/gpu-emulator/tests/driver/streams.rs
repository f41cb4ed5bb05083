//! Order that was asked for holds under every seed; order that was forgotten is found.

use super::support::*;
use cudarc::driver::{CudaContext, DriverError, sys};
use std::sync::Arc;

/// Doubles words in one stream and adds to them in another.
fn two_streams(device: &Device, with_wait: bool) -> Result<Vec<u32>, DriverError> {
    let kernels = device.kernels();
    let (a, b) = (device.context.new_stream()?, device.context.new_stream()?);
    let mut words = a.clone_htod(&[20_u32; 32])?;
    a.synchronize()?;
    kernels.affine(&a, &mut words, 2, 0)?;
    let done = a.record_event(None)?;
    if with_wait {
        b.wait(&done)?;
    }
    kernels.affine(&b, &mut words, 1, 2)?;
    b.synchronize()?;
    a.synchronize()?;
    a.clone_dtoh(&words)
}

#[test]
fn a_dropped_event_wait_is_found_under_some_seed() {
    let mut found = 0;
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        assert_eq!(two_streams(&device, true), Ok(vec![42; 32]), "seed {seed}");
        found += usize::from(two_streams(&device, false) != Ok(vec![42; 32]));
    }
    assert!(found >= 3, "{found} of 12 seeds find it");
}

/// Uploads from one pinned buffer twice, waiting or not before it is reused.
fn staging(context: &Arc<CudaContext>, with_wait: bool) -> Result<Vec<u32>, DriverError> {
    let stream = context.new_stream()?;
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<u32>(8, 0) }?;
    let pointer = pinned.as_mut_ptr()?;
    let mut both = stream.alloc_zeros::<u32>(16)?;
    for (half, value) in [(0, 1), (1, 2)] {
        for index in 0..8 {
            // SAFETY: eight words of live pinned memory.
            unsafe { pointer.add(index).write(value) };
        }
        stream.memcpy_htod(&pinned, &mut both.slice_mut(half * 8..half * 8 + 8))?;
        if with_wait {
            stream.synchronize()?;
        }
    }
    stream.clone_dtoh(&both)
}

#[test]
fn a_pinned_buffer_that_is_reused_too_early_is_found_under_some_seed() {
    let wanted: Vec<u32> = [[1; 8], [2; 8]].concat();
    let mut found = 0;
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        assert_eq!(staging(&device.context, true).unwrap(), wanted, "seed {seed}");
        found += usize::from(staging(&device.context, false).unwrap() != wanted);
    }
    assert!(found >= 6, "{found} of 12 seeds find it");
}

#[test]
fn polling_an_event_comes_to_an_end_and_begins_with_not_yet() {
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        let kernels = device.kernels();
        let stream = device.context.new_stream().unwrap();
        let mut words = stream.clone_htod(&[0_u32; 32]).unwrap();
        for _ in 0..20 {
            kernels.affine(&stream, &mut words, 1, 1).unwrap();
        }
        let event = stream.record_event(None).unwrap();
        let polls = (0..1000).take_while(|_| !event.try_is_complete().unwrap()).count();
        assert!(polls < 1000, "seed {seed}");
        assert!(polls > 0 || seed % 4 > 1, "seed {seed}");
        assert_eq!(stream.clone_dtoh(&words).unwrap(), [20; 32]);
    }
}

#[test]
fn priorities_are_accepted_and_answered() {
    let device = device(&[]);
    let stream = device.context.new_stream_with_priority(-3).unwrap();
    let mut priority = 0;
    // SAFETY: a live stream and a place for the result.
    unsafe { sys::cuStreamGetPriority(stream.cu_stream(), &mut priority) }.result().unwrap();
    assert_eq!(priority, -3);
}

unsafe extern "C" fn note(data: *mut std::ffi::c_void) {
    // SAFETY: the test passes a pointer to a list that outlives the stream's work.
    unsafe { (*data.cast::<std::sync::Mutex<Vec<u32>>>()).lock().unwrap().push(7) };
}

#[test]
fn a_host_function_runs_once_and_in_its_place() {
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        let stream = device.context.new_stream().unwrap();
        let notes = std::sync::Mutex::new(Vec::<u32>::new());
        let data = (&raw const notes).cast_mut().cast();
        // SAFETY: the list outlives the synchronisation below.
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(note), data) }.result().unwrap();
        stream.synchronize().unwrap();
        assert_eq!(*notes.lock().unwrap(), [7], "seed {seed}");
    }
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    let device = device(&[]);
    let stream = device.context.new_stream().unwrap();
    let raw = stream.cu_stream() as usize;
    let told = std::thread::spawn(move || {
        // SAFETY: the handle is live; the call checks the context first.
        unsafe { sys::cuStreamSynchronize(raw as sys::CUstream) }
    });
    assert_eq!(told.join().unwrap(), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
}
