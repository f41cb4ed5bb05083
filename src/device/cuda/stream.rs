//! A model's stream: gathers a pass, then runs it as launches or as a graph.
//!
//! Operations only append to a list. [`Stream::submit`] uploads the staged batch, runs the list and
//! records an event; nothing waits on the host before a read-back point. Two streams are ordered by
//! events alone: with [`Overlap::Off`] each pass waits for the pass submitted before it, whoever's
//! it was. Inside a submission a kernel may begin while the one before it ends
//! (`kernels/common/dependent.cuh`). Invariant: the pinned bytes of a pass are not touched again
//! before its stream was synchronised.

use super::driver::{Begin, Context, Event, Pinned, Queue};
use super::graph::{Graphs, Plan};
use super::launch::Launch;
use super::layout::Address;
use super::modules::Modules;
use crate::error::DeviceError;
use std::sync::{Arc, Mutex};

/// How the two models share the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// One pass at a time.
    Off,
    /// Two streams, the hardware decides; the draft's has priority.
    #[default]
    Stream,
    /// Each model has SMs of its own.
    GreenContexts,
}

impl std::str::FromStr for Overlap {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "off" => Ok(Self::Off),
            "stream" => Ok(Self::Stream),
            "green-ctx" => Ok(Self::GreenContexts),
            _ => Err(format!("unknown overlap {name:?}; there are off, stream and green-ctx")),
        }
    }
}

/// Bytes of lists between two waits before one more is forced.
pub(super) const LISTS_BYTES: usize = 64 << 10;

/// Batches begin at multiples of this.
const BATCH_ALIGNMENT: usize = 256;

/// The end of the pass submitted last, by whichever stream.
pub(super) type LastPass = Arc<Mutex<Option<Arc<Event>>>>;

/// Device memory that a stream copies to and from: addresses, and bytes where they vary.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamMemory {
    /// Staged batches.
    pub(super) blob: Address,
    pub(super) blob_bytes: usize,
    /// [`LISTS_BYTES`] of lists.
    pub(super) lists: Address,
    /// Results of a chain of passes.
    pub(super) results: Address,
    pub(super) results_bytes: usize,
}

/// See the module.
pub(super) struct Stream {
    queue: Queue,
    kernels: Arc<Modules>,
    memory: StreamMemory,
    /// Batches on their way to the device.
    staging: Pinned,
    /// Bytes of `staging` that the next submit uploads.
    staged_bytes: usize,
    /// Lists on their way to the device, ahead of a pass.
    lists_staging: Pinned,
    /// Bytes of lists since the last wait.
    lists_bytes: usize,
    /// Where one copy brings results.
    results_host: Pinned,
    /// Bytes of results of the batches staged since the last wait.
    results_bytes: usize,
    /// A batch was submitted since the last wait: its upload may still read the staging memory.
    uploading: bool,
    recorded: Vec<Launch>,
    /// The pass submitted last.
    submitted: Vec<Launch>,
    graphs: Option<Graphs>,
    /// Kernels that wait for their predecessors themselves may begin before those have ended.
    dependent_launch: bool,
    /// Present when passes of all streams follow one another.
    last_pass: Option<LastPass>,
    done: Arc<Event>,
}

impl Stream {
    /// A stream over `queue`.
    pub(super) fn new(
        context: &Arc<Context>,
        queue: Queue,
        kernels: Arc<Modules>,
        memory: StreamMemory,
        [graphs, dependent_launch]: [bool; 2],
        last_pass: Option<LastPass>,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            queue,
            kernels,
            memory,
            staging: Pinned::new(context, memory.blob_bytes)?,
            staged_bytes: 0,
            lists_staging: Pinned::new(context, LISTS_BYTES)?,
            lists_bytes: 0,
            results_host: Pinned::new(context, memory.results_bytes)?,
            results_bytes: 0,
            uploading: false,
            recorded: vec![],
            submitted: vec![],
            graphs: graphs.then(Graphs::default),
            dependent_launch,
            last_pass,
            done: Arc::new(Event::new(context)?),
        })
    }

    /// Where the host writes a batch, and where that will lie: behind the batches staged since the
    /// last submit. Waits only if what was submitted was never collected.
    pub(super) fn staging(&mut self) -> Result<(&mut [u8], Address), DeviceError> {
        if self.uploading {
            self.finish()?;
        }
        let begin = self.staged_bytes;
        Ok((&mut self.staging.bytes_mut()[begin..], self.memory.blob.offset(begin)))
    }

    /// The batch just written has `bytes` bytes, which the next submit uploads; returns where it
    /// leaves `results_bytes` bytes of results.
    ///
    /// # Panics
    /// If more results are staged than the stream was made for.
    pub(super) fn stage(&mut self, bytes: usize, results_bytes: usize) -> Address {
        self.staged_bytes = (self.staged_bytes + bytes).next_multiple_of(BATCH_ALIGNMENT);
        let at = self.results_bytes;
        self.results_bytes = (at + results_bytes).next_multiple_of(BATCH_ALIGNMENT);
        let max = self.results_host.bytes().len();
        assert!(self.results_bytes <= max, "{} bytes of results of {max}", self.results_bytes);
        self.memory.results.offset(at)
    }

    /// Appends to the pass.
    pub(super) fn enqueue(&mut self, launches: impl IntoIterator<Item = Launch>) {
        self.recorded.extend(launches);
    }

    /// Runs what was gathered; the host does not wait.
    pub(super) fn submit(&mut self) -> Result<(), DeviceError> {
        if self.recorded.is_empty() && self.staged_bytes == 0 {
            return Ok(());
        }
        if let Some(last) = &self.last_pass {
            let last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(event) = last.as_ref().filter(|event| !Arc::ptr_eq(event, &self.done)) {
                self.queue.wait(event)?;
            }
        }
        let bytes = std::mem::take(&mut self.staged_bytes);
        if bytes > 0 {
            self.uploading = true;
            self.queue.upload(self.memory.blob, &self.staging.bytes()[..bytes])?;
        }
        std::mem::swap(&mut self.submitted, &mut self.recorded);
        self.recorded.clear();
        self.run()?;
        self.queue.record(&self.done).map_err(|error| self.located(error))?;
        if let Some(last) = &self.last_pass {
            *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some(self.done.clone());
        }
        Ok(())
    }

    /// Runs what was gathered and waits; milliseconds between an event before it and one behind it.
    pub(super) fn submit_timed(&mut self, context: &Arc<Context>) -> Result<f64, DeviceError> {
        let [begin, end] = [Event::timed(context)?, Event::timed(context)?];
        self.queue.record(&begin)?;
        self.submit()?;
        self.queue.record(&end)?;
        self.wait()?;
        end.elapsed_ms(&begin)
    }

    /// Whether the pass submitted last is done.
    pub(super) fn is_done(&self) -> Result<bool, DeviceError> {
        self.done.is_done().map_err(|error| self.located(error))
    }

    fn run(&mut self) -> Result<(), DeviceError> {
        let (queue, kernels, launches) = (&self.queue, &self.kernels, &self.submitted);
        let each = || {
            launches.iter().enumerate().try_for_each(|(i, launch)| {
                let kernel = kernels.get(launch.kernel)?;
                // The first is behind a copy, a wait or another submission: what those bring is
                // there for all that follow, which read it before they wait for kernels.
                let early = self.dependent_launch && i > 0 && kernel.waits;
                let begin = if early { Begin::Early } else { Begin::AfterAll };
                queue.launch(kernel.function, launch, begin)
            })
        };
        let Some(graphs) = &mut self.graphs else { return each() };
        match graphs.plan(launches) {
            Plan::Launch => each(),
            Plan::Replay(graph) => queue.run(graph),
            Plan::Capture(place) => queue.run(place.insert(queue.capture(each)?)),
        }
    }

    /// Brings the results of everything staged since the last wait to the host in one copy: a
    /// read-back point. What it returns takes where a batch left its results.
    pub(super) fn read_back<'a>(&'a mut self) -> Result<impl Fn(Address) -> &'a [u8], DeviceError> {
        self.submit()?;
        let bytes = self.results_bytes;
        if bytes > 0 {
            let copied = self.queue.download(&mut self.results_host, self.memory.results, bytes);
            copied.map_err(|error| self.located(error))?;
        }
        self.wait()?;
        let (base, host) = (self.memory.results, &self.results_host);
        Ok(move |at: Address| &host.bytes()[(at.0 - base.0) as usize..bytes])
    }

    /// Runs what was gathered and waits: a read-back point.
    pub(super) fn finish(&mut self) -> Result<(), DeviceError> {
        self.submit()?;
        self.wait()
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.queue.synchronize().map_err(|error| self.located(error))?;
        self.uploading = false;
        self.lists_bytes = 0;
        self.results_bytes = 0;
        Ok(())
    }

    /// A failure that shows after a pass was submitted, with the launches it may come from.
    fn located(&self, error: DeviceError) -> DeviceError {
        match (error, self.submitted.as_slice()) {
            (DeviceError::Lost(why), [first, .., last]) => DeviceError::Lost(format!(
                "{why}; the pass was {} launches, {first} to {last}; with CUDA_LAUNCH_BLOCKING=1 \
                 and without graphs (--enforce-eager) the launch that failed is named",
                self.submitted.len()
            )),
            (error, _) => error,
        }
    }

    /// Brings a list to the device, ahead of what is submitted next; returns where it lies until
    /// the next wait. Waits itself only if [`LISTS_BYTES`] are used up.
    ///
    /// # Panics
    /// If the list alone is longer than that.
    pub(super) fn list(&mut self, bytes: &[u8]) -> Result<Address, DeviceError> {
        if self.lists_bytes + bytes.len() > LISTS_BYTES {
            self.finish()?;
        }
        let range = self.lists_bytes..self.lists_bytes + bytes.len();
        self.lists_bytes = range.end.next_multiple_of(16);
        let at = self.memory.lists.offset(range.start);
        self.lists_staging.bytes_mut()[range.clone()].copy_from_slice(bytes);
        self.queue.upload(at, &self.lists_staging.bytes()[range])?;
        Ok(at)
    }
}
