//! The driver API in our own terms: opened once, every handle with its owner, every error with the
//! place it came from.
//!
//! Only this file, `gpu`, `arena` and `green` call into `cudarc`. Handles keep the [`Context`] they
//! belong to alive, so they are destroyed before it. Invariant: nothing here decides what runs
//! when.

use super::gpu::{self, Properties};
use super::launch::Launch;
use super::layout::Address;
use crate::error::DeviceError;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

/// Says what failed where: `what: CUDA_ERROR_… (number), the driver's own words`.
pub(super) fn check<T>(
    outcome: Result<T, DriverError>,
    what: impl FnOnce() -> String,
) -> Result<T, DeviceError> {
    outcome.map_err(|error| {
        let words = |text: Result<&std::ffi::CStr, _>| {
            text.map_or_else(|_| "unknown".into(), |t| t.to_string_lossy().into_owned())
        };
        let message = format!(
            "{}: {} ({}), {}",
            what(),
            words(error.error_name()),
            error.0 as u32,
            words(error.error_string()),
        );
        if is_sticky(error.0 as u32) {
            DeviceError::Lost(message)
        } else {
            DeviceError::Failed(message)
        }
    })
}

/// Errors after which a context answers every call with the same error: a kernel that broke a rule
/// or ran too long (700, 702, 714 to 720), memory that cannot be corrected (214), a device that
/// went away (46), and what the driver itself does not know (999).
fn is_sticky(code: u32) -> bool {
    matches!(code, 46 | 214 | 700 | 702 | 714..=720 | 999)
}

/// The primary context of one device.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    pub(super) properties: Properties,
}

// SAFETY: a CUcontext is a handle the driver lets any thread make current.
unsafe impl Send for Context {}
// SAFETY: as above; calls that take it are thread-safe in the driver.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the driver, the system's or a named one, and retains the primary context of device
    /// `ordinal`.
    pub(super) fn open(ordinal: i32, driver: Option<&Path>) -> Result<Arc<Self>, DeviceError> {
        let (device, properties) = gpu::open(ordinal, driver)?;
        // SAFETY: `device` is a valid handle; the release is in `drop`.
        let raw = check(unsafe { result::primary_ctx::retain(device) }, || {
            format!("cuDevicePrimaryCtxRetain {}", properties.name)
        })?;
        let context = Arc::new(Self { device, raw, properties });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on this thread; needed before any other call from it.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: `raw` is retained until `drop`.
        check(unsafe { result::ctx::set_current(self.raw) }, || "cuCtxSetCurrent".into())
    }

    /// The raw device, for green contexts.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Bytes free and in all.
    pub(super) fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let (free, all) = check(result::mem_get_info(), || "cuMemGetInfo".into())?;
        Ok((free as u64, all as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; every handle that belongs to it held an Arc of it.
        if let Err(error) = unsafe { result::primary_ctx::release(self.device) } {
            tracing::warn!("releasing the CUDA context: {error}");
        }
    }
}

/// A block of device memory.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<Context>,
    pub(super) address: Address,
}

impl DeviceMemory {
    pub(super) fn new(
        context: &Arc<Context>,
        bytes: usize,
        what: &str,
    ) -> Result<Self, DeviceError> {
        // SAFETY: the context is current (the caller bound it); freed once, in `drop`.
        let address = check(unsafe { result::malloc_sync(bytes) }, || {
            format!("cuMemAlloc of {bytes} bytes for {what}")
        })?;
        Ok(Self { context: context.clone(), address: Address(address) })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`; streams that used it were synchronised when their device was
        // dropped, and after a device error nothing runs any more.
        let _ = unsafe { result::free_sync(self.address.0) };
    }
}

/// Page-locked host memory, readable by the device while a copy runs.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    raw: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `bytes` zeros, cached on the host (readable at full speed, unlike write-combined memory).
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        // SAFETY: freed once, in `drop`.
        let raw =
            check(unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }, || {
                format!("cuMemHostAlloc of {bytes} bytes")
            })?
            .cast::<u8>();
        // SAFETY: `raw` points to `bytes` writable bytes nobody else knows of.
        unsafe { raw.write_bytes(0, bytes) };
        Ok(Self { context: context.clone(), raw, bytes })
    }

    /// The bytes; the caller knows that no copy into them is under way.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes, alive as long as self; the device writes them only
        // between an enqueued copy and the synchronisation that precedes this call.
        unsafe { std::slice::from_raw_parts(self.raw, self.bytes) }
    }

    /// The bytes; the caller knows that no copy from or into them is under way.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes other host access.
        unsafe { std::slice::from_raw_parts_mut(self.raw, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`; copies from or into it are over, as for `DeviceMemory`.
        let _ = unsafe { result::free_host(self.raw.cast()) };
    }
}

/// A kernel, ready to launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: a handle; the module it belongs to lives as long as the device.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// A loaded image.
#[derive(Debug)]
pub(super) struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: a handle the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin, or PTX text that ends with a NUL.
    pub(super) fn load(
        context: &Arc<Context>,
        name: &str,
        image: &[u8],
    ) -> Result<Self, DeviceError> {
        // SAFETY: an image carries its own length (ELF) or ends with a NUL (PTX: the build adds
        // it), and the driver copies what it needs before it returns.
        let raw = check(unsafe { result::module::load_data(image.as_ptr().cast()) }, || {
            format!("cuModuleLoadData {name}")
        })?;
        Ok(Self { context: context.clone(), raw })
    }

    /// A kernel of the module, allowed to use all the shared memory a CTA can have.
    pub(super) fn function(&self, name: &str) -> Result<Function, DeviceError> {
        let c_name = CString::new(name).expect("kernel names have no NUL");
        // SAFETY: the module is loaded.
        let function = check(unsafe { result::module::get_function(self.raw, c_name) }, || {
            format!("cuModuleGetFunction {name}")
        })?;
        let bytes = self.context.properties.shared_optin_bytes as i32;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // Static shared memory counts against the same limit.
        let kind = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let at = || format!("shared memory of {name}");
        // SAFETY: the function is valid.
        let fixed = unsafe { result::function::get_function_attribute(function, kind) };
        let room = bytes - check(fixed, at)?;
        // SAFETY: the function is valid.
        check(unsafe { result::function::set_function_attribute(function, attribute, room) }, at)?;
        Ok(Function(function))
    }

    /// The words of a module-scope array of `u32`.
    pub(super) fn words(&self, name: &str) -> Result<Vec<u32>, DeviceError> {
        let c_name = CString::new(name).expect("names have no NUL");
        // SAFETY: the module is loaded.
        let (address, bytes) =
            check(unsafe { result::module::get_global(self.raw, c_name) }, || {
                format!("cuModuleGetGlobal {name}")
            })?;
        let mut words = vec![0_u32; bytes / 4];
        // SAFETY: the variable has `bytes` bytes and nothing writes it.
        check(unsafe { result::memcpy_dtoh_sync(&mut words, address) }, || format!("read {name}"))?;
        Ok(words)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`, unloaded once; no launch of it is pending at this point.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: a handle the driver lets any thread use.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        Self::create(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// A mark that [`Event::elapsed_ms`] can be asked of.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Self, DeviceError> {
        Self::create(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn create(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self, DeviceError> {
        let raw = check(result::event::create(flags), || "cuEventCreate".into())?;
        Ok(Self { context: context.clone(), raw })
    }

    /// Milliseconds of the device from `begin` to this mark; both were recorded, and waited for.
    pub(super) fn elapsed_ms(&self, begin: &Self) -> Result<f64, DeviceError> {
        // SAFETY: both were created by `timed` and are alive.
        let ms = unsafe { result::event::elapsed(begin.raw, self.raw) };
        check(ms, || "cuEventElapsedTime".into()).map(f64::from)
    }

    /// Whether the work it was last recorded behind is done.
    pub(super) fn is_done(&self) -> Result<bool, DeviceError> {
        // SAFETY: created in `new` and alive; asking changes nothing.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code.result(), || "cuEventQuery".into()).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

/// When a kernel of a queue may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// When all before it has ended.
    AfterAll,
    /// While the kernel before it ends, for which it waits itself.
    Early,
}

/// An ordered queue of the driver.
#[derive(Debug)]
pub(super) struct Queue {
    context: Arc<Context>,
    raw: sys::CUstream,
    name: String,
}

// SAFETY: a handle the driver lets any thread use.
unsafe impl Send for Queue {}

impl Queue {
    /// A queue that does not wait for the legacy default stream. `urgent` asks for the highest
    /// priority there is.
    pub(super) fn new(
        context: &Arc<Context>,
        name: &str,
        urgent: bool,
    ) -> Result<Self, DeviceError> {
        let (least, greatest) =
            check(result::stream::get_priority_range(), || "stream priorities".into())?;
        let priority = if urgent { greatest } else { least };
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = check(result::stream::create_with_priority(kind, priority), || {
            format!("cuStreamCreateWithPriority {name}")
        })?;
        Ok(Self::from_raw(context, name, raw))
    }

    /// Takes over a queue somebody else created.
    pub(super) fn from_raw(context: &Arc<Context>, name: &str, raw: sys::CUstream) -> Self {
        Self { context: context.clone(), raw, name: name.into() }
    }

    /// Waits on the host until the queue is empty.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: `raw` is alive until `drop`; the same in every method below.
        check(unsafe { result::stream::synchronize(self.raw) }, || {
            format!("waiting for the stream of {}", self.name)
        })
    }

    /// Records `event` at the end of the queue.
    pub(super) fn record(&self, event: &Event) -> Result<(), DeviceError> {
        // SAFETY: both handles are alive.
        check(unsafe { result::event::record(event.raw, self.raw) }, || "cuEventRecord".into())
    }

    /// Lets nothing enqueued from now on begin before `event`.
    pub(super) fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles are alive.
        check(unsafe { result::stream::wait_event(self.raw, event.raw, flags) }, || {
            "cuStreamWaitEvent".into()
        })
    }

    /// Copies `bytes`, a part of pinned memory, to the device when the queue gets there.
    pub(super) fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: `bytes` is pinned and its owner does not touch it before the next
        // synchronisation; `to` has room for it.
        check(unsafe { result::memcpy_htod_async(to.0, bytes, self.raw) }, || {
            format!("cuMemcpyHtoDAsync of {} bytes", bytes.len())
        })
    }

    /// Copies `bytes` bytes from the device to the start of `to` when the queue gets there.
    pub(super) fn download(
        &self,
        to: &mut Pinned,
        from: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let to = &mut to.bytes_mut()[..bytes];
        // SAFETY: `to` is pinned and its owner does not look at it before the next
        // synchronisation; `from` has so many bytes.
        check(unsafe { result::memcpy_dtoh_async(to, from.0, self.raw) }, || {
            format!("cuMemcpyDtoHAsync of {bytes} bytes")
        })
    }

    /// Launches a kernel.
    pub(super) fn launch(
        &self,
        function: Function,
        launch: &Launch,
        begin: Begin,
    ) -> Result<(), DeviceError> {
        let mut params: [*mut c_void; 1] = [launch.params().as_ptr().cast_mut().cast()];
        let [x, y, z] = launch.grid;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.raw,
            attrs: &raw mut early,
            numAttrs: u32::from(begin == Begin::Early),
        };
        let (config, params, none) = (&raw const config, params.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the kernel takes one parameter struct; `params` points to at least as many bytes
        // as it has (a test compares both sides' layouts), read before the call returns, as the
        // configuration is. What the struct points to is memory of this device's arena, ordered by
        // this queue, and by the kernel itself if it begins early.
        let outcome = unsafe { sys::cuLaunchKernelEx(config, function.0, params, none) };
        check(outcome.result(), || format!("launch of {launch}"))
    }

    /// Turns what `enqueue` puts on this queue into a graph instead of running it.
    pub(super) fn capture(
        &self,
        enqueue: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: ended below on every path.
        check(unsafe { result::stream::begin_capture(self.raw, mode) }, || "begin capture".into())?;
        let enqueued = enqueue();
        // SAFETY: a capture of this queue is under way.
        let graph =
            check(unsafe { result::stream::end_capture(self.raw) }, || "end capture".into());
        enqueued?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: `graph` is valid and destroyed right after, which its executable survives.
        let raw = unsafe { result::graph::instantiate(graph, flags) };
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(graph) };
        let raw = check(raw, || "cuGraphInstantiate".into())?;
        Ok(Graph { context: self.context.clone(), raw })
    }

    /// Runs a graph.
    pub(super) fn run(&self, graph: &Graph) -> Result<(), DeviceError> {
        // SAFETY: both handles are alive; the memory its kernels name is, as for `launch`.
        check(unsafe { result::graph::launch(graph.raw, self.raw) }, || "cuGraphLaunch".into())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `new` or handed over in `from_raw`; destroyed once, after its work.
        let _ = unsafe { result::stream::synchronize(self.raw) };
        // SAFETY: as above.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

/// An executable graph.
#[derive(Debug)]
pub(super) struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: a handle the driver lets any thread use.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: instantiated in `capture`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}
