//! What can be loaded and what is found in it.

use super::support::*;
use cudarc::driver::{LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

#[test]
fn ptx_text_files_and_fat_binaries_load_and_the_newest_fitting_target_is_taken() {
    for (capability, target) in [("80", 80), ("90", 90)] {
        let device = device(&[("FORERUN_EMULATOR_CC", capability)]);
        let fat = std::fs::read(fixture("kernels.fatbin")).unwrap();
        let images =
            [Ptx::from_binary(fat), Ptx::from_file(fixture("kernels.fatbin")), ptx(target)];
        for image in images {
            let module = device.context.load_module(image).unwrap();
            let function = module.load_function("scale").unwrap();
            assert_eq!(function.ptx_version().unwrap(), target as i32);
        }
        let old = device.context.load_module(Ptx::from_file(fixture("kernels.80.ptx"))).unwrap();
        assert_eq!(old.load_function("scale").unwrap().ptx_version().unwrap(), 80);
    }
}

#[test]
fn machine_code_and_ptx_for_a_newer_device_ask_for_another_image() {
    let device = device(&[("FORERUN_EMULATOR_CC", "80")]);
    let load = |image| code(device.context.load_module(image));
    let wanted = sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU;
    assert_eq!(load(Ptx::from_binary(b"\x7fELF\x02\x01\x01\x00rest".to_vec())), wanted);
    assert_eq!(load(ptx(90)), wanted);
    let failed = load(Ptx::from_file(fixture("no such file")));
    assert_eq!(failed, sys::CUresult::CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn ptx_that_cannot_be_parsed_says_where_in_the_report() {
    let device = device(&[]);
    let broken = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n\
                  frobnicate.u32 %r1, %r2;\nret;\n}\n";
    let failed = code(device.context.load_module(Ptx::from_src(broken)));
    assert_eq!(failed, sys::CUresult::CUDA_ERROR_INVALID_PTX);
    let reason = device.emulator.report()["failures"][0]["reason"].to_string();
    assert!(reason.contains("line 6") && reason.contains("frobnicate"), "{reason}");
}

#[test]
fn a_name_that_is_not_there_is_not_found() {
    let device = device(&[]);
    let kernels = device.kernels();
    let missing = kernels.module.load_function("no_such_kernel");
    assert_eq!(code(missing), sys::CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn module_variables_have_their_values_and_can_be_written() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.default_stream();
    let function = kernels.function("look_up");
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (4, 1, 1), shared_mem_bytes: 0 };
    let mut result = stream.alloc_zeros::<f32>(4).unwrap();
    let mut run = || {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut result);
        // SAFETY: the arguments are those of the kernel.
        unsafe { launch.launch(config) }.unwrap();
        stream.clone_dtoh(&result).unwrap()
    };
    assert_eq!(run(), [1.5, 50.0, 450.0, 10_000.0]);
    let mut table = kernels.module.get_global("table", &stream).unwrap();
    assert_eq!(table.len(), 16);
    let bytes: Vec<u8> = [2_u32, 4, 6, 8].iter().flat_map(|word| word.to_le_bytes()).collect();
    stream.memcpy_htod(&bytes, &mut table).unwrap();
    assert_eq!(run(), [3.0, 10.0, 9.0, 20.0]);
}
