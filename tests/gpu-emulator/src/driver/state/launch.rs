//! From a launch request to an operation: what the hardware's driver would refuse is refused here.

use super::Driver;
use super::green;
use super::handles::Handle;
use super::queue::OperationId;
use super::work::{KernelWork, Trail, Work};
use crate::driver::failure::{Code, Failure, Outcome, ensure, failure};
use crate::driver::settings::{Settings, THREADS_PER_BLOCK};
use crate::launch::{Launch, Options, Stored};
use std::sync::Arc;

const GRID_MAX: [u32; 3] = [0x7FFF_FFFF, 65_535, 65_535];
const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];
/// Compute capability, in tenths, from which a launch may begin before its predecessor has ended.
const PROGRAMMATIC_CAPABILITY: u32 = 90;

/// What a launch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchRequest {
    /// The entry.
    pub function: Handle,
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub dynamic_shared_bytes: u32,
    /// The parameter space.
    pub params: Vec<u8>,
    /// Whether all CTAs must be resident at once.
    pub cooperative: bool,
    /// Whether it may start before its predecessor in the stream has finished.
    pub programmatic: bool,
    /// Cluster dimensions; ones mean none.
    pub cluster: [u32; 3],
}

/// Offset and size of each parameter.
pub type ParamLayout = Vec<(u32, u32)>;

impl Driver {
    /// Where the parameters of an entry lie, and the bytes of them all.
    ///
    /// # Errors
    /// `InvalidHandle` when the function is not live.
    pub fn param_layout(&self, function: Handle) -> Outcome<(ParamLayout, u32)> {
        let entry = self.functions.get(function)?.entry();
        let layout = entry.params.iter().map(|param| (param.offset, param.size)).collect();
        Ok((layout, entry.param_bytes))
    }

    /// Checks a request and makes it a kernel for a stream of these SMs.
    ///
    /// # Errors
    /// `InvalidValue` and its kin, with the limit that was broken.
    pub fn prepare(&self, request: &LaunchRequest, stream: Handle) -> Outcome<KernelWork> {
        let function = self.functions.get(request.function)?;
        let stream = self.streams.get(stream)?;
        ensure!(
            function.root == stream.root,
            InvalidHandle,
            "{} was loaded in another context than the stream's",
            function.entry().name
        );
        let name = &function.entry().name;
        let named = |failure: Failure| Failure {
            reason: format!("launch of {name}: {}", failure.reason),
            ..failure
        };
        check_shape(request).map_err(named)?;
        let capability = self.settings.capability.number();
        if request.programmatic && capability < PROGRAMMATIC_CAPABILITY {
            let (major, minor) = (capability / 10, capability % 10);
            let reason = format!("programmatic launches need 9.0, the device is {major}.{minor}");
            return Err(named(failure(Code::NotSupported, reason)));
        }
        check_function(request, function).map_err(named)?;
        let sms = green::sms_of(self, stream.green)?;
        if request.cooperative {
            self.check_cooperative(request, sms.len() as u32).map_err(named)?;
        }
        Ok(KernelWork {
            function: request.function,
            name: Arc::from(name.as_str()),
            must_fail: false,
            programmatic: request.programmatic,
            behind: None,
            trail: Trail::default(),
            launch: Launch {
                module: Arc::clone(&function.loaded),
                function: function.index,
                grid: request.grid,
                block: request.block,
                dynamic_shared_bytes: request.dynamic_shared_bytes,
                params: request.params.clone(),
                sms,
                sm_count: self.settings.sm_count,
                serial: 0,
                unfinished: None,
            },
        })
    }

    /// Enqueues a launch in a resolved stream.
    ///
    /// # Errors
    /// As [`Self::prepare`], and the stream's errors.
    pub fn launch(
        &mut self,
        stream: Handle,
        request: &LaunchRequest,
    ) -> Outcome<Option<OperationId>> {
        let kernel = self.prepare(request, stream)?;
        self.enqueue(stream, Work::Kernel(Box::new(kernel)))
    }

    fn check_cooperative(&self, request: &LaunchRequest, sms: u32) -> Outcome {
        let threads = request.block.iter().product();
        let resident =
            self.blocks_per_sm(request.function, threads, request.dynamic_shared_bytes)? * sms;
        let blocks: u64 = request.grid.iter().map(|n| u64::from(*n)).product();
        ensure!(
            blocks <= u64::from(resident),
            CooperativeLaunchTooLarge,
            "{blocks} blocks, of which {resident} fit at once"
        );
        Ok(())
    }

    /// Counts a launch and says whether it is the one that must fail.
    pub(super) fn count_launch(&mut self, kernel: &str) -> bool {
        let count = self.launches.entry(kernel.to_owned()).or_default();
        *count += 1;
        let injection = self.settings.injection.as_ref();
        injection.is_some_and(|wanted| wanted.kernel == kernel && wanted.launch == *count)
    }

    /// Makes the `n`-th launch of a kernel from now on fail.
    pub fn inject(&mut self, injection: crate::driver::settings::Injection) {
        self.launches.remove(&injection.kernel);
        self.settings.injection = Some(injection);
    }

    /// Runs a kernel whose turn has come.
    pub(super) fn run_kernel(&mut self, kernel: &KernelWork) -> Outcome {
        if kernel.must_fail {
            let reason = format!("{} failed because FORERUN_EMULATOR_FAIL says so", kernel.name);
            return Err(failure(Code::LaunchFailed, reason));
        }
        let Settings { seed, threads, .. } = self.settings;
        let options = Options { seed, threads };
        let unfinished =
            kernel.behind.as_ref().map(|trail| trail.get().cloned().unwrap_or_default());
        let early = unfinished
            .clone()
            .map(|stored| Launch { unfinished: Some(stored), ..kernel.launch.clone() });
        let launch = early.as_ref().unwrap_or(&kernel.launch);
        match (self.machine.run)(launch, &self.memory, options) {
            Ok(counters) => {
                self.report.ran(&kernel.name, launch, &counters, &self.memory);
                let mut stored: Stored = counters.sectors_stored.keys().copied().collect();
                stored.extend(unfinished.iter().flat_map(|before| before.iter()));
                kernel.trail.set(Arc::new(stored)).ok();
                Ok(())
            }
            Err(fault) => Err(failure(Code::of_fault(fault.kind), fault.to_string())),
        }
    }
}

fn check_shape(request: &LaunchRequest) -> Outcome {
    for axis in 0..3 {
        let (grid, block) = (request.grid[axis], request.block[axis]);
        ensure!(
            (1..=GRID_MAX[axis]).contains(&grid),
            InvalidValue,
            "grid {:?}; the most is {GRID_MAX:?}",
            request.grid
        );
        ensure!(
            (1..=BLOCK_MAX[axis]).contains(&block),
            InvalidValue,
            "block {:?}; the most is {BLOCK_MAX:?}",
            request.block
        );
    }
    let threads: u32 = request.block.iter().product();
    ensure!(
        threads <= THREADS_PER_BLOCK,
        InvalidValue,
        "block {:?} has {threads} threads; the most is {THREADS_PER_BLOCK}",
        request.block
    );
    ensure!(
        request.cluster == [1; 3],
        InvalidClusterSize,
        "clusters {:?} are not emulated",
        request.cluster
    );
    Ok(())
}

fn check_function(request: &LaunchRequest, function: &super::module::Function) -> Outcome {
    let entry = function.entry();
    let threads: u32 = request.block.iter().product();
    if let Some(limit) = entry.limits.max_threads {
        let most: u32 = limit.iter().product();
        ensure!(threads <= most, InvalidValue, "{threads} threads; .maxntid allows {most}");
    }
    if let Some(exact) = entry.limits.required_threads {
        ensure!(
            request.block == exact,
            InvalidValue,
            "block {:?}; .reqntid demands {exact:?}",
            request.block
        );
    }
    ensure!(
        request.dynamic_shared_bytes <= function.dynamic_shared_bytes_max,
        InvalidValue,
        "{} bytes of dynamic shared memory beside {} static; {} are allowed \
         (cuFuncSetAttribute MAX_DYNAMIC_SHARED_SIZE_BYTES allows more)",
        request.dynamic_shared_bytes,
        entry.static_shared_bytes,
        function.dynamic_shared_bytes_max
    );
    ensure!(
        request.params.len() == entry.param_bytes as usize,
        InvalidValue,
        "{} bytes of parameters; the PTX declares {}",
        request.params.len(),
        entry.param_bytes
    );
    Ok(())
}
