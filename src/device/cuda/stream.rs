//! A model's stream: gathers a pass, then runs it as launches or as a graph.
//!
//! Operations only append to a list. [`Stream::submit`] uploads the staged batch, runs the list and
//! records an event; nothing waits on the host before a read-back point. Two streams are ordered by
//! events alone: with [`Overlap::Off`] each pass waits for the pass submitted before it, whoever's
//! it was. Invariant: the pinned bytes of a pass are not touched again before its stream was
//! synchronised.

use super::driver::{Context, Event, Pinned, Queue};
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

/// The end of the pass submitted last, by whichever stream.
pub(super) type LastPass = Arc<Mutex<Option<Arc<Event>>>>;

/// See the module.
pub(super) struct Stream {
    queue: Queue,
    kernels: Arc<Modules>,
    /// Where batches are staged on the device.
    pub(super) blob: Address,
    staging: Pinned,
    /// Bytes of `staging` that the next submit uploads.
    staged_bytes: usize,
    /// Where lists that go ahead of a pass lie on the device, and on their way there.
    lists: Address,
    lists_staging: Pinned,
    /// Bytes of lists since the last wait.
    lists_bytes: usize,
    /// A batch was submitted since the last wait: its upload may still read the staging memory.
    uploading: bool,
    recorded: Vec<Launch>,
    /// The pass submitted last.
    submitted: Vec<Launch>,
    graphs: Option<Graphs>,
    /// Present when passes of all streams follow one another.
    last_pass: Option<LastPass>,
    done: Arc<Event>,
}

impl Stream {
    /// A stream over `queue` with `blob_bytes` bytes at `blob` for staged batches and
    /// [`LISTS_BYTES`] at `lists`.
    pub(super) fn new(
        context: &Arc<Context>,
        queue: Queue,
        kernels: Arc<Modules>,
        (blob, blob_bytes): (Address, usize),
        lists: Address,
        graphs: bool,
        last_pass: Option<LastPass>,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            queue,
            kernels,
            blob,
            staging: Pinned::new(context, blob_bytes)?,
            staged_bytes: 0,
            lists,
            lists_staging: Pinned::new(context, LISTS_BYTES)?,
            lists_bytes: 0,
            uploading: false,
            recorded: vec![],
            submitted: vec![],
            graphs: graphs.then(Graphs::default),
            last_pass,
            done: Arc::new(Event::new(context)?),
        })
    }

    /// Where the host writes a batch. Waits only if the last pass was never collected.
    pub(super) fn staging(&mut self) -> Result<&mut [u8], DeviceError> {
        if self.uploading || !self.recorded.is_empty() {
            self.finish()?;
        }
        Ok(self.staging.bytes_mut())
    }

    /// The next pass uploads the first `bytes` bytes of the staging memory.
    pub(super) fn stage(&mut self, bytes: usize) {
        self.staged_bytes = bytes;
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
            self.queue.upload(self.blob, &self.staging.bytes()[..bytes])?;
        }
        self.submitted.clear();
        std::mem::swap(&mut self.submitted, &mut self.recorded);
        let launches = std::mem::take(&mut self.submitted);
        let outcome = self.run(&launches);
        self.submitted = launches;
        outcome?;
        self.queue.record(&self.done)?;
        if let Some(last) = &self.last_pass {
            *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some(self.done.clone());
        }
        Ok(())
    }

    fn run(&mut self, launches: &[Launch]) -> Result<(), DeviceError> {
        let (queue, kernels) = (&self.queue, &self.kernels);
        let each = || {
            launches.iter().try_for_each(|launch| queue.launch(kernels.get(launch.kernel)?, launch))
        };
        let Some(graphs) = &mut self.graphs else { return each() };
        match graphs.plan(launches) {
            Plan::Launch => each(),
            Plan::Replay(graph) => queue.run(graph),
            Plan::Capture(place) => queue.run(place.insert(queue.capture(each)?)),
        }
    }

    /// Copies results to the host, behind everything submitted, and waits: a read-back point.
    pub(super) fn fetch(
        &mut self,
        to: &mut Pinned,
        from: Address,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.submit()?;
        if bytes > 0 {
            self.queue.download(to, from, bytes)?;
        }
        self.wait()
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
        Ok(())
    }

    /// A failure that shows at a wait, with the launches it may come from.
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
        let at = self.lists.offset(range.start);
        self.lists_staging.bytes_mut()[range.clone()].copy_from_slice(bytes);
        self.queue.upload(at, &self.lists_staging.bytes()[range])?;
        Ok(at)
    }
}
