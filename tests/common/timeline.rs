//! A trace that is kept in memory, for tests that look at what ran together.

use forerun::telemetry::Trace;
use serde_json::Value;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// What was written so far.
#[derive(Clone, Default)]
pub(crate) struct Timeline(Arc<Mutex<Vec<u8>>>);

impl Timeline {
    /// A trace that writes here.
    pub(crate) fn trace(&self) -> Arc<Trace> {
        Arc::new(Trace::to(self.clone()).expect("memory"))
    }

    /// Its events, once the engine that traces has ended.
    pub(crate) fn events(&self) -> Vec<Value> {
        let json = self.0.lock().expect("nobody panics");
        serde_json::from_slice(&json).expect("a trace")
    }
}

impl Write for Timeline {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
