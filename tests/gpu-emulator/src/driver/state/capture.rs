//! Stream capture: work recorded as graph nodes instead of being enqueued.
//!
//! A capture begins in one stream and spreads to others through events. Each stream in it has a
//! *tip*, the nodes its next node depends on. What cannot be recorded (a wait, a query, an
//! allocation, a dependency on outside work) answers with CUDA's code and spoils the capture, which
//! only `cuStreamEndCapture` then ends.

use super::Driver;
use super::graph::{Graph, Node};
use super::handles::Handle;
use super::stream::Role;
use super::work::Work;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use std::collections::{BTreeMap, BTreeSet};

/// Who else is held to the rules of capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every thread.
    Global,
    /// The thread that began it.
    ThreadLocal,
    /// Nobody.
    Relaxed,
}

/// State of a stream with respect to capture, as `CUstreamCaptureStatus` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// It takes part in none.
    None = 0,
    /// It takes part in one.
    Active = 1,
    /// Its capture was spoilt.
    Invalidated = 2,
}

/// A capture that has begun and not ended.
#[derive(Debug)]
pub struct Capture {
    origin: Handle,
    mode: Mode,
    thread: u64,
    valid: bool,
    nodes: Vec<Node>,
    tips: BTreeMap<Handle, BTreeSet<usize>>,
}

impl Driver {
    /// The capture a resolved stream takes part in.
    ///
    /// # Errors
    /// `CaptureInvalidated` when that was spoilt, `InvalidHandle` when the stream is not live.
    pub fn capture_of(&self, stream: Handle) -> Outcome<Option<u64>> {
        let Some(capture) = self.streams.get(stream)?.capture else { return Ok(None) };
        let valid = self.captures.get(&capture).is_some_and(|capture| capture.valid);
        ensure!(valid, CaptureInvalidated, "an earlier call spoilt the capture");
        Ok(Some(capture))
    }

    /// State and number of the capture of a resolved stream.
    ///
    /// # Errors
    /// `InvalidHandle` when the stream is not live.
    pub fn capture_status(&self, stream: Handle) -> Outcome<(Status, u64)> {
        let Some(capture) = self.streams.get(stream)?.capture else {
            return Ok((Status::None, 0));
        };
        let valid = self.captures.get(&capture).is_some_and(|capture| capture.valid);
        Ok((if valid { Status::Active } else { Status::Invalidated }, capture))
    }

    /// Spoils a capture.
    pub fn invalidate_capture(&mut self, capture: u64) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.valid = false;
        }
    }

    /// Refuses a call that would wait for, or look at, a captured stream.
    ///
    /// # Errors
    /// `CaptureUnsupported`, after spoiling the capture.
    pub fn refuse_in_capture(&mut self, stream: Handle) -> Outcome {
        if let Some(capture) = self.capture_of(stream)? {
            self.invalidate_capture(capture);
            return Err(failure(Code::CaptureUnsupported, "the stream is being captured"));
        }
        Ok(())
    }

    /// Refuses a call that may not be made while a capture watches this thread, and spoils it.
    ///
    /// # Errors
    /// `CaptureUnsupported`.
    pub fn refuse_unsafe_call(&mut self, what: &str) -> Outcome {
        let thread = self.caller.thread;
        let mut watching = self.captures.values_mut().filter(|capture| match capture.mode {
            Mode::Global => true,
            Mode::ThreadLocal => capture.thread == thread,
            Mode::Relaxed => false,
        });
        if let Some(capture) = watching.next() {
            capture.valid = false;
            let reason = format!("{what} while a stream is being captured");
            return Err(failure(Code::CaptureUnsupported, reason));
        }
        Ok(())
    }

    /// Refuses work in a default stream that would wait for a blocking stream in a capture.
    ///
    /// # Errors
    /// `CaptureImplicit`, after spoiling the capture.
    pub(super) fn refuse_implicit_dependency(&mut self, stream: Handle) -> Outcome {
        let own = self.streams.get(stream)?;
        if own.role != Role::Legacy {
            return Ok(());
        }
        let context = own.context;
        let capture = self
            .streams
            .iter()
            .filter(|(_, other)| other.context == context && other.is_blocking())
            .find_map(|(_, other)| other.capture);
        if let Some(capture) = capture {
            self.invalidate_capture(capture);
            let reason = "work in the default stream while a blocking stream is captured";
            return Err(failure(Code::CaptureImplicit, reason));
        }
        Ok(())
    }

    /// Begins to capture a resolved stream.
    ///
    /// # Errors
    /// `CaptureUnsupported` for a default stream, `InvalidValue` when one has begun already.
    pub fn begin_capture(&mut self, stream: Handle, mode: Mode) -> Outcome {
        let info = self.streams.get(stream)?;
        ensure!(
            info.role != Role::Legacy,
            CaptureUnsupported,
            "the legacy default stream cannot be captured"
        );
        ensure!(info.capture.is_none(), InvalidValue, "the stream is being captured already");
        self.captures_begun += 1;
        let number = self.captures_begun;
        self.captures.insert(
            number,
            Capture {
                origin: stream,
                mode,
                thread: self.caller.thread,
                valid: true,
                nodes: Vec::new(),
                tips: BTreeMap::from([(stream, BTreeSet::new())]),
            },
        );
        self.streams.get_mut(stream)?.capture = Some(number);
        Ok(())
    }

    /// Records work as a node of a stream's capture.
    pub(super) fn capture_work(&mut self, capture: u64, stream: Handle, work: Work) -> Outcome {
        let capture = self.live_capture(capture)?;
        let index = capture.nodes.len();
        let waits_for = capture.tips.get(&stream).cloned().unwrap_or_default();
        capture.nodes.push(Node { work, waits_for });
        capture.tips.insert(stream, BTreeSet::from([index]));
        Ok(())
    }

    /// The nodes a stream's next node depends on.
    pub(super) fn capture_tip(&mut self, capture: u64, stream: Handle) -> Outcome<BTreeSet<usize>> {
        Ok(self.live_capture(capture)?.tips.get(&stream).cloned().unwrap_or_default())
    }

    /// Makes a stream wait for captured nodes, which draws it into their capture.
    pub(super) fn join_capture(
        &mut self,
        capture: u64,
        stream: Handle,
        nodes: &BTreeSet<usize>,
    ) -> Outcome {
        let own = self.capture_of(stream)?;
        if !self.captures.contains_key(&capture) {
            let reason = "the event was last recorded in a capture that has ended";
            return Err(failure(Code::CapturedEvent, reason));
        }
        if let Some(own) = own.filter(|own| *own != capture) {
            self.invalidate_capture(own);
            self.invalidate_capture(capture);
            return Err(Code::CaptureMerge.into());
        }
        if self.streams.get(stream)?.role == Role::Legacy {
            self.invalidate_capture(capture);
            return Err(Code::CaptureImplicit.into());
        }
        self.live_capture(capture)?.tips.entry(stream).or_default().extend(nodes);
        self.streams.get_mut(stream)?.capture = Some(capture);
        Ok(())
    }

    /// Ends the capture that began in a resolved stream; answers its graph.
    ///
    /// # Errors
    /// `CaptureInvalidated`, `CaptureUnmatched`, `CaptureWrongThread`, `CaptureUnjoined`,
    /// `InvalidValue` when the stream is in none. All but the first two of them end it.
    pub fn end_capture(&mut self, stream: Handle) -> Outcome<Handle> {
        let Some(number) = self.streams.get(stream)?.capture else {
            return Err(failure(Code::InvalidValue, "the stream is not being captured"));
        };
        let thread = self.caller.thread;
        let capture = self.captures.get_mut(&number).ok_or(Code::CaptureInvalidated)?;
        if capture.origin != stream {
            capture.valid = false;
            return Err(Code::CaptureUnmatched.into());
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread {
            return Err(Code::CaptureWrongThread.into());
        }
        let capture = self.captures.remove(&number).ok_or(Code::CaptureInvalidated)?;
        for (_, stream) in self.streams.iter_mut() {
            if stream.capture == Some(number) {
                stream.capture = None;
            }
        }
        ensure!(capture.valid, CaptureInvalidated, "an earlier call spoilt the capture");
        ensure!(
            capture.is_joined(),
            CaptureUnjoined,
            "work of another stream was not joined to the one the capture began in"
        );
        Ok(self.new_graph(Graph { nodes: capture.nodes, names: Vec::new() }))
    }

    fn live_capture(&mut self, capture: u64) -> Outcome<&mut Capture> {
        self.captures.get_mut(&capture).ok_or_else(|| Code::CaptureInvalidated.into())
    }
}

impl Capture {
    /// Whether every node is a prerequisite of the origin's tip.
    fn is_joined(&self) -> bool {
        let mut joined = BTreeSet::new();
        let mut open: Vec<usize> =
            self.tips.get(&self.origin).into_iter().flatten().copied().collect();
        while let Some(index) = open.pop() {
            if joined.insert(index) {
                open.extend(&self.nodes[index].waits_for);
            }
        }
        joined.len() == self.nodes.len()
    }
}
