//! One device for one test at a time.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig,
    PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use gpu_emulator::load::Emulator;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Seeds that reach every temper of the scheduler.
pub(crate) const SEEDS: std::ops::Range<u64> = 0..12;

/// The device, held by one test.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) emulator: Emulator,
    _alone: MutexGuard<'static, ()>,
}

/// A fresh device with these variables set. Event tracking is off, as in the runtime.
pub(crate) fn device(variables: &[(&str, &str)]) -> Device {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = emulator();
    emulator.reset(variables);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "forerun emulated GPU (no hardware)");
    // SAFETY: every test orders its streams itself.
    unsafe { context.disable_event_tracking() };
    Device { context, emulator, _alone: alone }
}

/// The library, opened before cudarc looks for one.
pub(crate) fn emulator() -> Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    *EMULATOR.get_or_init(|| Emulator::open().unwrap())
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/driver").join(name)
}

pub(crate) fn ptx(target: u32) -> Ptx {
    Ptx::from_src(std::fs::read_to_string(fixture(&format!("kernels.{target}.ptx"))).unwrap())
}

pub(crate) fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    result.map_or_else(|error| error.0, |_| sys::CUresult::CUDA_SUCCESS)
}

impl Device {
    pub(crate) fn kernels(&self) -> Kernels {
        Kernels { module: self.context.load_module(ptx(80)).unwrap() }
    }
}

/// The kernels of the fixture.
pub(crate) struct Kernels {
    pub(crate) module: Arc<CudaModule>,
}

impl Kernels {
    pub(crate) fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    /// `word = word * factor + add`, for all words.
    pub(crate) fn affine(
        &self,
        stream: &Arc<CudaStream>,
        words: &mut CudaSlice<u32>,
        factor: u32,
        add: u32,
    ) -> Result<(), DriverError> {
        let function = self.function("affine");
        let config = LaunchConfig {
            grid_dim: (1, 1, 1),
            block_dim: (words.len() as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = stream.launch_builder(&function);
        launch.arg(words).arg(&factor).arg(&add);
        // SAFETY: the arguments are those of the kernel, the block is as long as the words.
        unsafe { launch.launch(config) }.map(|_| ())
    }

    /// `to = factor * from`.
    pub(crate) fn scale(
        &self,
        stream: &Arc<CudaStream>,
        to: &mut CudaSlice<f32>,
        from: &CudaSlice<f32>,
        factor: f32,
    ) -> Result<(), DriverError> {
        let function = self.function("scale");
        let count = to.len() as i32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(to).arg(from).arg(&factor).arg(&count);
        // SAFETY: the arguments are those of the kernel, which checks the count.
        unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }.map(|_| ())
    }
}
