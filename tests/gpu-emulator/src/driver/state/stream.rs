//! Streams, and the order between them.
//!
//! A stream is the operation enqueued last. An operation waits for that one, and for nothing else
//! but what an event, a graph, or the legacy default stream adds: work in a context's default
//! stream waits for its blocking streams and they for it; non-blocking streams are free of both.
//! Priorities are remembered and change nothing.

use super::handles::{Handle, Kind};
use super::queue::OperationId;
use super::work::{Trail, Work};
use super::{Driver, Operation};
use crate::driver::failure::{Outcome, ensure};
use std::collections::BTreeSet;

/// `CU_STREAM_LEGACY`: the default stream of the current context, as the null handle is.
pub const LEGACY: Handle = Handle(1);
/// `CU_STREAM_PER_THREAD`.
pub const PER_THREAD: Handle = Handle(2);
/// `CU_STREAM_NON_BLOCKING`.
pub const NON_BLOCKING: u32 = 1;
/// The lowest and the highest priority, as an A100 or H100 has them.
pub const PRIORITIES: (i32, i32) = (0, -5);

/// What a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A context's legacy default stream.
    Legacy,
    /// A thread's default stream.
    PerThread(u64),
    /// Somebody made it.
    Made,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// The context it belongs to.
    pub context: Handle,
    /// That context's root.
    pub root: Handle,
    /// The green context whose SMs it uses.
    pub green: Option<Handle>,
    /// `CU_STREAM_NON_BLOCKING` or 0.
    pub flags: u32,
    /// Its priority.
    pub priority: i32,
    /// Default or made.
    pub role: Role,
    /// The operation enqueued last.
    pub tail: Option<OperationId>,
    /// The kernel enqueued last, and what it leaves for one that may begin early.
    pub kernel: Option<(OperationId, Trail)>,
    /// The capture it takes part in.
    pub capture: Option<u64>,
}

impl Stream {
    /// A context's default stream.
    #[must_use]
    pub fn legacy(context: Handle, root: Handle, green: Option<Handle>) -> Self {
        Self {
            context,
            root,
            green,
            flags: 0,
            priority: 0,
            role: Role::Legacy,
            tail: None,
            kernel: None,
            capture: None,
        }
    }

    /// Whether the legacy default stream waits for it.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.role != Role::Legacy && self.flags & NON_BLOCKING == 0
    }
}

impl Driver {
    /// The stream a handle means for this caller: null and the two special ones are resolved.
    ///
    /// # Errors
    /// `InvalidHandle` for a stale handle, `InvalidContext` without a current context.
    pub fn stream(&mut self, handle: Handle) -> Outcome<Handle> {
        let context = self.current_context()?;
        if handle.is_null() || handle == LEGACY {
            return Ok(self.contexts.get(context)?.legacy_stream);
        }
        if handle == PER_THREAD {
            return self.thread_stream(context);
        }
        self.streams.get(handle)?;
        Ok(handle)
    }

    fn thread_stream(&mut self, context: Handle) -> Outcome<Handle> {
        let role = Role::PerThread(self.caller.thread);
        let known = self
            .streams
            .iter()
            .find(|(_, stream)| stream.context == context && stream.role == role)
            .map(|(handle, _)| handle);
        match known {
            Some(handle) => Ok(handle),
            None => {
                let (root, green) = (self.root_of(context)?, self.contexts.get(context)?.green);
                let stream = Stream { role, ..Stream::legacy(context, root, green) };
                Ok(self.streams.insert(stream))
            }
        }
    }

    /// What the driver knows of a resolved stream.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn stream_info(&self, stream: Handle) -> Outcome<&Stream> {
        self.streams.get(stream)
    }

    /// Makes a stream in the current context.
    ///
    /// # Errors
    /// `InvalidValue` for unknown flags, `InvalidContext` without a current context.
    pub fn create_stream(&mut self, flags: u32, priority: i32) -> Outcome<Handle> {
        let context = self.current_context()?;
        let green = self.contexts.get(context)?.green;
        self.create_stream_in(context, green, flags, priority)
    }

    pub(super) fn create_stream_in(
        &mut self,
        context: Handle,
        green: Option<Handle>,
        flags: u32,
        priority: i32,
    ) -> Outcome<Handle> {
        ensure!(flags & !NON_BLOCKING == 0, InvalidValue, "stream flags {flags:#x}");
        let root = self.root_of(context)?;
        let (lowest, highest) = PRIORITIES;
        Ok(self.streams.insert(Stream {
            flags,
            priority: priority.clamp(highest, lowest),
            role: Role::Made,
            ..Stream::legacy(context, root, green)
        }))
    }

    /// Destroys a stream; what is in it still runs.
    ///
    /// # Errors
    /// `InvalidHandle` for a default stream or a stale handle.
    pub fn destroy_stream(&mut self, stream: Handle) -> Outcome {
        let role = self.streams.get(stream)?.role;
        ensure!(role == Role::Made, InvalidHandle, "a default stream cannot be destroyed");
        if let Some(capture) = self.streams.get(stream)?.capture {
            self.invalidate_capture(capture);
        }
        let gone = self.streams.remove(stream)?;
        let orphan = gone.tail.filter(|id| gone.is_blocking() && self.queue.is_pending(*id));
        self.contexts.get_mut(gone.context)?.orphans.extend(orphan);
        Ok(())
    }

    /// What an operation enqueued in `stream` now would wait for.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn waits_of(&self, stream: Handle) -> Outcome<BTreeSet<OperationId>> {
        let own = self.streams.get(stream)?;
        let mut waits: BTreeSet<_> = own.tail.into_iter().collect();
        let ordered = |other: &Stream| match own.role {
            Role::Legacy => other.is_blocking(),
            _ => own.is_blocking() && other.role == Role::Legacy,
        };
        let others = self.streams.iter().map(|(_, other)| other);
        waits.extend(
            others
                .filter(|other| other.context == own.context && ordered(other))
                .filter_map(|other| other.tail),
        );
        if own.role == Role::Legacy {
            waits.extend(&self.contexts.get(own.context)?.orphans);
        }
        waits.retain(|id| self.queue.is_pending(*id));
        Ok(waits)
    }

    /// Enqueues work in a resolved stream, or records it where the stream is being captured.
    /// Answers the operation, or `None` when it was captured.
    ///
    /// # Errors
    /// The capture's errors; `InvalidHandle` when the stream is not live.
    pub fn enqueue(&mut self, stream: Handle, mut work: Work) -> Outcome<Option<OperationId>> {
        self.healthy()?;
        if let Some(capture) = self.capture_of(stream)? {
            self.capture_work(capture, stream, work)?;
            return Ok(None);
        }
        self.refuse_implicit_dependency(stream)?;
        let waits = self.waits_of(stream)?;
        let mut trail = None;
        if let Work::Kernel(kernel) = &mut work {
            let own = self.streams.get(stream)?;
            let last = own.kernel.as_ref().filter(|(id, _)| own.tail == Some(*id));
            // Whatever else it waits for, it waits for the end of.
            let alone = waits.iter().all(|id| own.tail == Some(*id));
            let behind = last.filter(|_| kernel.programmatic && alone);
            kernel.behind = behind.map(|(_, trail)| Trail::clone(trail));
            kernel.trail = Trail::default();
            trail = Some(Trail::clone(&kernel.trail));
        }
        let id = self.push(stream, work, waits);
        let own = self.streams.get_mut(stream)?;
        own.tail = Some(id);
        own.kernel = trail.map(|trail| (id, trail));
        Ok(Some(id))
    }

    /// Puts an operation into the queue without touching the stream's tail.
    pub(super) fn push(
        &mut self,
        stream: Handle,
        mut work: Work,
        waits: impl IntoIterator<Item = OperationId>,
    ) -> OperationId {
        self.enqueued = true;
        if let Work::Kernel(kernel) = &mut work {
            self.launches_enqueued += 1;
            kernel.launch.serial = self.launches_enqueued;
            kernel.must_fail = self.count_launch(&kernel.name);
        }
        self.queue.push(Operation { work, stream }, waits)
    }

    /// Operations that `cuStreamSynchronize` waits for.
    ///
    /// # Errors
    /// `CaptureUnsupported` while it is being captured.
    pub fn stream_targets(&mut self, stream: Handle) -> Outcome<Vec<OperationId>> {
        self.refuse_in_capture(stream)?;
        self.refuse_unsafe_call("a wait for a stream")?;
        Ok(self.waits_of(stream)?.into_iter().collect())
    }

    /// Operations that `cuCtxSynchronize` waits for: all streams of the context and its green ones.
    ///
    /// # Errors
    /// `InvalidContext` without a current context, `CaptureUnsupported` while one is captured.
    pub fn context_targets(&mut self) -> Outcome<Vec<OperationId>> {
        let context = self.current_context()?;
        let is_root = self.contexts.get(context)?.root.is_none();
        let mut tails = Vec::new();
        let mut capturing = None;
        for (handle, stream) in self.streams.iter() {
            if stream.context == context || is_root && stream.root == context {
                tails.extend(stream.tail.filter(|id| self.queue.is_pending(*id)));
                capturing = capturing.or(stream.capture.map(|_| handle));
            }
        }
        match capturing {
            Some(stream) => self.refuse_in_capture(stream)?,
            None => self.refuse_unsafe_call("a wait for a context")?,
        }
        // Streams that were destroyed with work in them have no tail any more.
        if self.contexts.iter().filter(|(_, c)| c.root.is_none()).count() == 1 && is_root {
            return Ok(self.everything());
        }
        Ok(tails)
    }

    /// The number of a stream in logs; 0 is the default one.
    #[must_use]
    pub fn stream_number(&self, stream: Handle) -> u32 {
        match self.streams.get(stream) {
            Ok(info) if info.role == Role::Legacy => 0,
            _ => Kind::Stream.number_of(stream),
        }
    }
}
