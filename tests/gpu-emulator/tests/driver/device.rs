//! What the device says it is, and plain work on it.

use super::support::*;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};

#[test]
fn cudarc_finds_the_emulator_and_takes_it_for_what_it_says() {
    for (capability, shared) in [("80", 163 << 10), ("90", 227 << 10)] {
        let device = device(&[
            ("FORERUN_EMULATOR_CC", capability),
            ("FORERUN_EMULATOR_SMS", "20"),
            ("FORERUN_EMULATOR_MEMORY_BYTES", "1073741824"),
        ]);
        // SAFETY: looks for a library, and ours is open.
        assert!(unsafe { sys::is_culib_present() });
        let context = &device.context;
        let major = capability[..1].parse().unwrap();
        assert_eq!(context.compute_capability().unwrap(), (major, 0));
        assert_eq!(context.total_mem().unwrap(), 1 << 30);
        let attribute = |which| context.attribute(which).unwrap();
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 20);
        let optin = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(attribute(optin), shared);
        assert_eq!(CudaContext::device_count().unwrap(), 1);
        let uuid = context.uuid().unwrap();
        assert!(uuid.bytes.iter().zip(b"forerun-emulated").all(|(a, b)| *a as u8 == *b));
        assert_eq!(code(CudaContext::new(1)), sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
}

#[test]
fn copies_memsets_and_a_kernel_give_what_rust_computes() {
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        let kernels = device.kernels();
        let stream = device.context.new_stream().unwrap();
        let from: Vec<f32> = (0..1000).map(|i| i as f32 * 0.25 - 100.0).collect();
        let source = stream.clone_htod(&from).unwrap();
        let mut result = stream.alloc_zeros::<f32>(1000).unwrap();
        kernels.scale(&stream, &mut result, &source, 3.0).unwrap();
        let again = stream.clone_dtod(&result).unwrap();
        let wanted: Vec<f32> = from.iter().map(|x| 3.0 * x).collect();
        assert_eq!(stream.clone_dtoh(&again).unwrap(), wanted, "seed {seed}");
    }
}

#[test]
fn cudarcs_own_event_tracking_works_over_several_streams() {
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        // SAFETY: nothing has been allocated yet.
        unsafe { device.context.enable_event_tracking() };
        let kernels = device.kernels();
        let (a, b) = (device.context.new_stream().unwrap(), device.context.new_stream().unwrap());
        let mut words = a.clone_htod(&[1_u32; 64]).unwrap();
        kernels.affine(&a, &mut words, 3, 4).unwrap();
        kernels.affine(&b, &mut words, 5, 6).unwrap();
        kernels.affine(&a, &mut words, 1, 1).unwrap();
        assert_eq!(b.clone_dtoh(&words).unwrap(), [42; 64], "seed {seed}");
    }
}

#[test]
fn parameters_of_every_size_arrive() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Pair {
        small: u8,
        large: f64,
    }
    // SAFETY: the layout is that of the kernel's structure, and any bytes are valid.
    unsafe impl cudarc::driver::DeviceRepr for Pair {}
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.default_stream();
    let mut result = stream.alloc_zeros::<f64>(6).unwrap();
    let function = kernels.function("gather");
    let mut launch = stream.launch_builder(&function);
    let pair = Pair { small: 200, large: 0.1 };
    launch.arg(&mut result).arg(&-5_i8).arg(&-300_i16).arg(&pair).arg(&(1_i64 << 40)).arg(&0.5_f32);
    let one = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(one) }.unwrap();
    let wanted = [-5.0, -300.0, 200.0, 0.1, (1_i64 << 40) as f64, 0.5];
    assert_eq!(stream.clone_dtoh(&result).unwrap(), wanted);
}

#[test]
fn dynamic_shared_memory_reaches_the_kernel_and_must_be_asked_for() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.default_stream();
    let words: Vec<u32> = (0..256).collect();
    let mut held = stream.clone_htod(&words).unwrap();
    let function = kernels.function("reverse");
    let mut run = |shared_mem_bytes| {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes };
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut held);
        // SAFETY: the arguments are those of the kernel.
        code(unsafe { launch.launch(config) })
    };
    assert_eq!(run(256 * 4), sys::CUresult::CUDA_SUCCESS);
    assert_eq!(run(100 << 10), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 100 << 10).unwrap();
    assert_eq!(run(100 << 10), sys::CUresult::CUDA_SUCCESS);
    assert_eq!(run(0), sys::CUresult::CUDA_SUCCESS);
    // The last launch has no shared memory to put its words in.
    let failed = stream.synchronize();
    assert_eq!(code(failed), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn occupancy_counts_threads_and_shared_memory() {
    let device = device(&[]);
    let kernels = device.kernels();
    let function = kernels.function("reverse");
    let blocks = |threads, shared| {
        function.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None).unwrap()
    };
    assert_eq!(blocks(1024, 0), 2);
    assert_eq!(blocks(32, 0), 32);
    assert_eq!(blocks(32, 47 << 10), 4);
    assert_eq!(kernels.function("affine").max_threads_per_block().unwrap(), 128);
}

#[test]
fn two_threads_drive_two_streams() {
    let device = device(&[("FORERUN_EMULATOR_SEED", "2")]);
    let kernels = device.kernels();
    std::thread::scope(|scope| {
        for factor in [2_u32, 3] {
            let (context, kernels) = (&device.context, &kernels);
            scope.spawn(move || {
                let stream = context.new_stream().unwrap();
                let mut words = stream.clone_htod(&[1_u32; 32]).unwrap();
                for _ in 0..10 {
                    kernels.affine(&stream, &mut words, factor, 0).unwrap();
                }
                assert_eq!(stream.clone_dtoh(&words).unwrap(), [factor.pow(10); 32]);
            });
        }
    });
}
