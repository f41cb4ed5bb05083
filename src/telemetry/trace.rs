//! A timeline of everything the engine does, in the format of Chrome's and Perfetto's viewers.
//!
//! One track a model, with its passes; two tracks a request, one for what each model does for it;
//! and a counter of the pool's pages. Events are written as they happen; a file that was broken
//! off still opens in the viewers. The format is the JSON array of the *Trace Event Format*:
//! `X` events have a beginning and a length in microseconds, `i` events a moment, `C` events
//! values, `M` events name tracks.

use crate::ids::{RequestId, Role};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Where an event is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Track {
    /// Passes of a model.
    Model(Role),
    /// What a model does for a request.
    Request(RequestId, Role),
}

impl Track {
    /// Process and thread, as the viewers call them.
    #[must_use]
    pub fn ids(self) -> (u64, u64) {
        match self {
            Self::Model(role) => (1, role.index() as u64),
            Self::Request(request, role) => (2, request.0 * 2 + role.index() as u64),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Model(role) => role.to_string(),
            Self::Request(request, role) => format!("{request}, {role}"),
        }
    }
}

/// The counter of the pool's pages.
const POOL: u64 = 3;

/// A trace being written.
pub struct Trace {
    began: Instant,
    out: Mutex<Out>,
}

struct Out {
    to: Box<dyn Write + Send>,
    named: HashSet<Track>,
    /// The first write that failed; nothing is written after it.
    failed: Option<io::Error>,
}

impl Trace {
    /// Begins a trace in a new file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::to(BufWriter::new(std::fs::File::create(path)?))
    }

    /// Begins a trace.
    ///
    /// # Errors
    /// When `to` cannot be written to.
    pub fn to(mut to: impl Write + Send + 'static) -> io::Result<Self> {
        write!(to, "[")?;
        let out = Out { to: Box::new(to), named: HashSet::new(), failed: None };
        let trace = Self { began: Instant::now(), out: Mutex::new(out) };
        for (pid, name) in [(1, "models"), (2, "requests"), (POOL, "KV pool")] {
            trace.with(|out| out.write(&name_event("process_name", (pid, 0), name)));
        }
        Ok(trace)
    }

    /// Something that took from `began` until now.
    pub fn span(&self, track: Track, name: &str, began: Instant, args: Value) {
        let (from, to) = (self.us(began), self.us(Instant::now()));
        self.write(track, json!({ "ph": "X", "name": name, "ts": from, "dur": to - from }), args);
    }

    /// Something that happened now.
    pub fn instant(&self, track: Track, name: &str, args: Value) {
        let now = self.us(Instant::now());
        self.write(track, json!({ "ph": "i", "s": "t", "name": name, "ts": now }), args);
    }

    /// Pages of the pool by who holds them.
    pub fn pages(&self, pages: Value) {
        let now = self.us(Instant::now());
        let event = json!({ "ph": "C", "name": "pages", "ts": now, "pid": POOL, "args": pages });
        self.with(|out| out.write(&event));
    }

    /// Hands everything written so far to the operating system.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn flush(&self) -> io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.to.flush()?;
        out.failed.take().map_or(Ok(()), Err)
    }

    fn us(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64() * 1e6
    }

    fn write(&self, track: Track, mut event: Value, args: Value) {
        let (pid, tid) = track.ids();
        event["pid"] = pid.into();
        event["tid"] = tid.into();
        event["args"] = args;
        self.with(|out| {
            if out.named.insert(track) {
                out.write(&name_event("thread_name", (pid, tid), &track.name()));
            }
            out.write(&event);
        });
    }

    fn with(&self, write: impl FnOnce(&mut Out)) {
        write(&mut self.out.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Out {
    fn write(&mut self, event: &Value) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = writeln!(self.to, "{event},") {
            tracing::warn!("the trace ends here: {error}");
            self.failed = Some(error);
        }
    }
}

fn name_event(kind: &str, (pid, tid): (u64, u64), name: &str) -> Value {
    json!({ "ph": "M", "name": kind, "pid": pid, "tid": tid, "args": { "name": name } })
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.with(|out| {
            // An array does not end with a comma: it ends with one event more.
            let end = name_event("process_name", (POOL, 0), "KV pool");
            let ended = writeln!(out.to, "{end}]").and_then(|()| out.to.flush());
            if out.failed.is_none() && ended.is_err() {
                tracing::warn!("the trace could not be ended");
            }
        });
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_trace_is_json_and_names_every_track_once() {
        let text = Shared::default();
        let trace = Trace::to(text.clone()).unwrap();
        let began = Instant::now();
        for role in Role::ALL {
            trace.span(Track::Model(role), "pass", began, json!({ "rows": 3 }));
            trace.instant(Track::Request(RequestId(7), role), "accept", json!({ "score": 8.5 }));
        }
        trace.span(Track::Model(Role::Base), "pass", began, json!({}));
        trace.pages(json!({ "base": 4 }));
        drop(trace);
        let events: Vec<Value> = serde_json::from_slice(&text.0.lock().unwrap()).unwrap();
        let count = |ph: &str| events.iter().filter(|e| e["ph"] == ph).count();
        assert_eq!((count("X"), count("i"), count("C")), (3, 2, 1));
        let names: Vec<_> = events
            .iter()
            .filter(|e| e["name"] == "thread_name")
            .map(|e| e["args"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["draft", "request 7, draft", "base", "request 7, base"]);
        let span = events.iter().find(|e| e["ph"] == "X").unwrap();
        assert!(span["dur"].as_f64().unwrap() >= 0.0 && span["args"]["rows"] == 3);
    }

    #[test]
    fn a_trace_that_cannot_be_written_says_so() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes == b"[" { Ok(1) } else { Err(io::Error::other("no room")) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let trace = Trace::to(Full).unwrap();
        assert_eq!(trace.flush().unwrap_err().to_string(), "no room");
    }
}
