//! SIGNATURES ONLY.
use crate::error::DeviceError;
pub struct Threads {}
impl Threads {
    /// `threads` counts the caller; 1 starts no worker.
    pub fn new(threads: usize) -> Result<Self, DeviceError> { unimplemented!() }
    /// `FORERUN_THREADS`, or one per physical core.
    pub fn from_env() -> Result<Self, DeviceError> { unimplemented!() }
    pub fn count(&self) -> usize { unimplemented!() }
    /// Calls `task(0..tasks)`, each once, on the workers and the caller; returns when all are done.
    /// A panic in a task is passed on to the caller. Inside a task it runs inline.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) { unimplemented!() }
}
