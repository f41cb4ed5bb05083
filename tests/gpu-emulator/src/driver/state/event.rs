//! Events: marks in streams that other streams and the host may wait for.
//!
//! An event is the operation it was last recorded as. Waiting for an event that was never recorded
//! waits for nothing, as on the hardware.

use super::Driver;
use super::handles::Handle;
use super::queue::OperationId;
use super::work::Work;
use crate::driver::failure::{Code, Outcome, ensure};
use std::collections::BTreeSet;

/// `CU_EVENT_DISABLE_TIMING`.
pub const DISABLE_TIMING: u32 = 2;
const KNOWN_FLAGS: u32 = 7;

/// What an event was last recorded as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// Never.
    Never,
    /// An operation.
    Operation(OperationId),
    /// Nodes of a capture.
    Captured {
        /// Which capture.
        capture: u64,
        /// Its nodes that the event stands for.
        nodes: BTreeSet<usize>,
    },
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// The root of the context it was made in.
    pub root: Handle,
    /// Its flags.
    pub flags: u32,
    /// Its last record.
    pub recorded: Recorded,
}

impl Driver {
    /// Makes an event.
    ///
    /// # Errors
    /// `InvalidValue` for unknown flags.
    pub fn create_event(&mut self, flags: u32) -> Outcome<Handle> {
        let root = self.current_root()?;
        ensure!(flags & !KNOWN_FLAGS == 0, InvalidValue, "event flags {flags:#x}");
        Ok(self.events.insert(Event { root, flags, recorded: Recorded::Never }))
    }

    /// Destroys an event; a record or wait that was enqueued stays.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn destroy_event(&mut self, event: Handle) -> Outcome {
        self.events.remove(event).map(|_| ())
    }

    /// Records an event in a resolved stream.
    ///
    /// # Errors
    /// `InvalidHandle`, and the capture's errors.
    pub fn record_event(&mut self, event: Handle, stream: Handle) -> Outcome {
        let event_root = self.events.get(event)?.root;
        let stream_root = self.streams.get(stream)?.root;
        ensure!(event_root == stream_root, InvalidHandle, "event and stream of two contexts");
        let recorded = match self.capture_of(stream)? {
            Some(capture) => {
                Recorded::Captured { capture, nodes: self.capture_tip(capture, stream)? }
            }
            None => match self.enqueue(stream, Work::Mark)? {
                Some(id) => Recorded::Operation(id),
                None => Recorded::Never,
            },
        };
        self.events.get_mut(event)?.recorded = recorded;
        Ok(())
    }

    /// Makes a resolved stream wait for the event's last record.
    ///
    /// # Errors
    /// `InvalidHandle`, and the capture's errors.
    pub fn wait_event(&mut self, stream: Handle, event: Handle) -> Outcome {
        let recorded = self.events.get(event)?.recorded.clone();
        let own_capture = self.capture_of(stream)?;
        match (recorded, own_capture) {
            (Recorded::Captured { capture, nodes }, _) => {
                self.join_capture(capture, stream, &nodes)
            }
            (Recorded::Never | Recorded::Operation(_), Some(capture)) => {
                self.invalidate_capture(capture);
                Err(Code::CaptureIsolation.into())
            }
            (Recorded::Never, None) => Ok(()),
            (Recorded::Operation(id), None) => {
                let mut waits = self.waits_of(stream)?;
                waits.insert(id);
                let mark = self.push(stream, Work::Mark, waits);
                self.streams.get_mut(stream)?.tail = Some(mark);
                Ok(())
            }
        }
    }

    /// What the host waits for when it waits for the event; `None` when it was never recorded.
    ///
    /// # Errors
    /// `CapturedEvent` when it was last recorded in a capture (which that ends), `InvalidHandle`.
    pub fn event_target(&mut self, event: Handle) -> Outcome<Option<OperationId>> {
        match self.events.get(event)?.recorded.clone() {
            Recorded::Captured { capture, .. } if self.captures.contains_key(&capture) => {
                self.invalidate_capture(capture);
                Err(Code::CapturedEvent.into())
            }
            Recorded::Captured { .. } => Err(Code::CapturedEvent.into()),
            Recorded::Never => Ok(None),
            Recorded::Operation(id) => {
                self.refuse_unsafe_call("a wait for an event")?;
                Ok(Some(id))
            }
        }
    }

    /// "Milliseconds" between two events: a thousandth for every operation enqueued between them.
    /// A meaningless number that is never negative for events in order: no time here is a GPU's.
    ///
    /// # Errors
    /// `InvalidHandle` when one was never recorded or has no timing, `NotReady` when one has not
    /// happened yet.
    pub fn event_milliseconds(&mut self, start: Handle, end: Handle) -> Outcome<f32> {
        let mut order = [0; 2];
        for (event, order) in [start, end].into_iter().zip(&mut order) {
            let flags = self.events.get(event)?.flags;
            ensure!(flags & DISABLE_TIMING == 0, InvalidHandle, "the event has no timing");
            match self.events.get(event)?.recorded {
                Recorded::Operation(id) if self.queue.is_pending(id) => {
                    return Err(Code::NotReady.into());
                }
                Recorded::Operation(id) => *order = id.0 as i64,
                _ => return Err(Code::InvalidHandle.into()),
            }
        }
        Ok((order[1] - order[0]) as f32 * 1e-3)
    }
}
