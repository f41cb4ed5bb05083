//! The driver without its C surface: contexts, streams, memory, modules, graphs, and what runs
//! when.
//!
//! One [`Driver`] is one device. Its methods are safe, know nothing of pointers the caller passed
//! (but for pinned memory, in `host_memory`), and never run anything by themselves: they enqueue.
//! Whoever holds the driver runs operations with [`Driver::step`], which is how a call of the host
//! can happen outside the lock.
//! Read next: `queue` and `scheduler` (what may run), then `stream`, `capture` and `graph`.

pub mod capture;
pub mod context;
pub mod copy;
pub mod device_memory;
pub mod event;
pub mod graph;
pub mod green;
pub mod handles;
pub mod host_memory;
pub mod launch;
pub mod module;
pub mod occupancy;
pub mod queue;
pub mod scheduler;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod work;

use super::failure::{Failure, Outcome};
use super::report::Report;
use super::settings::Settings;
use crate::launch::{Counters, Fault, Launch, Options};
use crate::memory::GlobalMemory;
use crate::ptx::ir;
use handles::{Handle, Kind, Table};
use queue::{OperationId, Queue};
use scheduler::Scheduler;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, Ordering};
use work::{HostCall, Work};

/// Page-locked host memory the device can hand out beside its own, bytes.
const PINNED_BYTES: u64 = 4 << 30;

/// Turns PTX text into a program, or says in words why it cannot.
pub type Parse = dyn Fn(&str) -> Result<ir::Module, String> + Send;
/// Runs a launch, as [`crate::exec::run`] does.
pub type Run = dyn Fn(&Launch, &GlobalMemory, Options) -> Result<Counters, Fault> + Send;

/// What turns PTX into programs and runs them: the other half of the emulator, or a test's
/// stand-in.
pub struct Machine {
    /// The parser.
    pub parse: Box<Parse>,
    /// The executor.
    pub run: Box<Run>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            parse: Box::new(|text| crate::ptx::parse(text).map_err(|error| error.to_string())),
            run: Box::new(crate::exec::run),
        }
    }
}

/// Who is calling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// The context current to the calling thread.
    pub context: Option<Handle>,
    /// The thread.
    pub thread: u64,
}

/// An enqueued operation.
#[derive(Debug)]
pub struct Operation {
    /// What it does.
    pub work: Work,
    /// The stream it is in.
    pub stream: Handle,
}

/// What became of one step.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// An operation ran.
    Ran,
    /// The host must be called, and [`Driver::finish_host_call`] after it.
    Host(OperationId, HostCall),
    /// Nothing may start now.
    Stuck,
}

/// One emulated device and everything made on it.
pub struct Driver {
    /// The device's properties and the seed.
    pub settings: Settings,
    /// Its memory.
    pub memory: GlobalMemory,
    /// What was done, for the report.
    pub report: Report,
    /// Who makes the call that is being answered.
    pub caller: Caller,
    machine: Machine,
    queue: Queue<Operation>,
    scheduler: Scheduler,
    sticky: Option<Failure>,
    host_calls_running: usize,
    /// Whether the call that is being answered enqueued anything.
    enqueued: bool,
    contexts: Table<context::Context>,
    primary: context::Primary,
    streams: Table<stream::Stream>,
    events: Table<event::Event>,
    modules: Table<module::Module>,
    functions: Table<module::Function>,
    graphs: Table<graph::Graph>,
    nodes: Table<graph::NodeName>,
    executables: Table<graph::Executable>,
    captures: BTreeMap<u64, capture::Capture>,
    captures_begun: u64,
    green_contexts: Table<green::GreenContext>,
    descriptors: Table<green::Descriptor>,
    default_pool: Handle,
    device: device_memory::DeviceMemory,
    host: host_memory::HostMemory,
    launches: BTreeMap<String, u64>,
    launches_enqueued: u64,
}

impl Driver {
    /// A fresh device.
    #[must_use]
    pub fn new(settings: Settings, machine: Machine) -> Self {
        static GENERATIONS: AtomicU16 = AtomicU16::new(1);
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Self {
            memory: GlobalMemory::with_bytes(settings.memory_bytes + PINNED_BYTES),
            report: Report::new(&settings),
            caller: Caller::default(),
            machine,
            queue: Queue::default(),
            scheduler: Scheduler::new(settings.seed),
            sticky: None,
            host_calls_running: 0,
            enqueued: false,
            contexts: Table::new(Kind::Context, generation),
            primary: context::Primary::default(),
            streams: Table::new(Kind::Stream, generation),
            events: Table::new(Kind::Event, generation),
            modules: Table::new(Kind::Module, generation),
            functions: Table::new(Kind::Function, generation),
            graphs: Table::new(Kind::Graph, generation),
            nodes: Table::new(Kind::Node, generation),
            executables: Table::new(Kind::Executable, generation),
            captures: BTreeMap::new(),
            captures_begun: 0,
            green_contexts: Table::new(Kind::GreenContext, generation),
            descriptors: Table::new(Kind::Descriptor, generation),
            default_pool: Kind::Pool.handle(generation, 1),
            device: device_memory::DeviceMemory::default(),
            host: host_memory::HostMemory::default(),
            launches: BTreeMap::new(),
            launches_enqueued: 0,
            settings,
        }
    }

    /// Schedules from now on by another seed.
    pub fn reseed(&mut self, seed: u64) {
        self.settings.seed = seed;
        self.scheduler = Scheduler::new(seed);
    }

    /// The error every later call answers with, once a kernel has failed.
    ///
    /// # Errors
    /// That error.
    pub fn healthy(&self) -> Outcome {
        self.sticky.clone().map_or(Ok(()), Err)
    }

    /// The device failed: from now on every call says so, and nothing that was enqueued runs.
    fn fail(&mut self, failure: Failure) {
        if self.sticky.is_some() {
            return;
        }
        eprintln!("forerun emulator: {failure}");
        self.report.failed(&failure);
        self.queue.abandon();
        self.sticky = Some(failure);
    }

    /// The memory pool every asynchronous allocation comes from.
    #[must_use]
    pub fn default_pool(&self) -> Handle {
        self.default_pool
    }

    /// Refuses every memory pool but the default one.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn check_pool(&self, pool: Handle) -> Outcome {
        if pool == self.default_pool { Ok(()) } else { Err(Kind::Pool.stale(pool)) }
    }

    /// Whether the operation has not finished.
    #[must_use]
    pub fn is_pending(&self, id: OperationId) -> bool {
        self.queue.is_pending(id)
    }

    /// The pending operations among `targets` and all they wait for.
    #[must_use]
    pub fn needed(&self, targets: &[OperationId]) -> BTreeSet<OperationId> {
        self.queue.needed(targets.iter().copied())
    }

    /// Every pending operation.
    #[must_use]
    pub fn everything(&self) -> Vec<OperationId> {
        self.queue.pending().collect()
    }

    /// Whether a host function is running outside the lock.
    #[must_use]
    pub fn host_is_called(&self) -> bool {
        self.host_calls_running > 0
    }

    /// How many operations to run unasked after a call, by the scheduler's whim.
    pub fn unasked(&mut self) -> usize {
        if std::mem::take(&mut self.enqueued) { self.scheduler.unasked() } else { 0 }
    }

    /// Runs one operation while somebody waits for `needed`, or any when nobody does.
    pub fn step(&mut self, needed: Option<&BTreeSet<OperationId>>) -> Step {
        let ready: Vec<_> = self.queue.ready().filter(|id| self.may_start(*id)).collect();
        let id = match needed {
            Some(needed) => self.scheduler.next(&ready, needed),
            None => self.scheduler.any(&ready),
        };
        let Some((id, operation)) = id.and_then(|id| Some((id, self.queue.start(id)?))) else {
            return Step::Stuck;
        };
        let outcome = match &operation.work {
            Work::Host(call) => {
                self.host_calls_running += 1;
                return Step::Host(id, *call);
            }
            Work::Kernel(kernel) => self.run_kernel(kernel),
            Work::Free(address) => {
                self.device.forget(*address);
                operation.work.move_bytes(&self.memory)
            }
            other => {
                self.note_unwritten_download(other);
                other.move_bytes(&self.memory)
            }
        };
        match outcome {
            Ok(()) => self.queue.finish(id),
            Err(failure) => self.fail(failure),
        }
        Step::Ran
    }

    /// Counts a copy to the host of bytes nobody wrote: legal, and rarely meant.
    fn note_unwritten_download(&mut self, work: &Work) {
        if let Work::Download { destination, source } = work {
            let unwritten = self.memory.first_unwritten(*source, destination.bytes() as u64);
            if matches!(unwritten, Ok(Some(_))) {
                self.report.downloaded_unwritten();
            }
        }
    }

    /// Whether a ready operation may start: all may but waits for a word that does not compare.
    fn may_start(&self, id: OperationId) -> bool {
        match self.queue.work(id).map(|operation| &operation.work) {
            Some(Work::WaitWord(word, comparison)) => word.compares(*comparison, &self.memory),
            _ => true,
        }
    }

    /// A host function returned.
    pub fn finish_host_call(&mut self, id: OperationId) {
        self.host_calls_running = self.host_calls_running.saturating_sub(1);
        self.queue.finish(id);
    }

    /// Runs operations until none of `targets` is pending, calling host functions in place.
    ///
    /// # Errors
    /// The device's sticky error, or `LaunchTimeout` when what is waited for can never run.
    pub fn complete(&mut self, targets: &[OperationId]) -> Outcome {
        let needed = self.needed(targets);
        while targets.iter().any(|id| self.is_pending(*id)) {
            match self.step(Some(&needed)) {
                Step::Ran => self.healthy()?,
                Step::Host(id, call) => {
                    call.invoke();
                    self.finish_host_call(id);
                }
                Step::Stuck => return Err(self.stuck()),
            }
        }
        self.healthy()
    }

    /// Declares that what is waited for can never run.
    pub fn stuck(&mut self) -> Failure {
        let failure = super::failure::failure(
            super::failure::Code::LaunchTimeout,
            "a wait for work that can never start: the operations wait for one another",
        );
        self.fail(failure.clone());
        failure
    }
}

impl HostCall {
    /// Calls the host.
    pub fn invoke(&self) {
        // SAFETY: the caller of cuLaunchHostFunc vouched that the function may be called with this
        // argument when the operation's turn has come, and that is now.
        unsafe { (self.function)(self.data as *mut std::ffi::c_void) }
    }
}
