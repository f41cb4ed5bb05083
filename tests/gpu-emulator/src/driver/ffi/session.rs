//! What every entry point does first and last: take the lock, check, log, answer a number.
//!
//! The device is a process-wide value behind one lock. A call that must wait runs operations itself
//! until its turn has come ([`Session::complete`]); functions of the host are called with the lock
//! released. The current context is the calling thread's.

use super::Status;
use crate::driver::failure::{Code, Failure, Outcome, failure};
use crate::driver::report::Call;
use crate::driver::settings::Settings;
use crate::driver::state::handles::Handle;
use crate::driver::state::queue::OperationId;
use crate::driver::state::{Caller, Driver, Machine, Step};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// The device, once `cuInit` has been called. From then on there always is one.
static DEVICE: Mutex<Option<Box<Driver>>> = Mutex::new(None);
/// Signalled when a host function has returned.
static HOST_RETURNED: Condvar = Condvar::new();
/// Reasons printed to stderr so far; more than this many stay in the report only.
static REASONS_PRINTED: AtomicU64 = AtomicU64::new(0);
const REASONS_PRINTED_MAX: u64 = 50;

thread_local! {
    static CONTEXTS: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// The calling thread's stack of current contexts.
pub fn with_contexts<T>(act: impl FnOnce(&mut Vec<Handle>) -> T) -> T {
    CONTEXTS.with_borrow_mut(act)
}

fn caller() -> Caller {
    let context = with_contexts(|stack| stack.last().copied().filter(|top| !top.is_null()));
    Caller { context, thread: THREAD.with(|thread| *thread) }
}

/// Which calls an entry point belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers before `cuInit` and after a device failure alike; not logged.
    Anytime,
    /// Needs `cuInit`; answers after a device failure. Counted, not logged.
    Query,
    /// Needs `cuInit` and a healthy device. Counted, not logged.
    Quiet,
    /// Needs `cuInit` and a healthy device. Logged.
    Work,
}

/// A call that is being answered: the locked device and the log entry to be.
pub struct Session {
    guard: Option<MutexGuard<'static, Option<Box<Driver>>>>,
    /// What the log will say.
    pub call: Call,
}

fn lock() -> MutexGuard<'static, Option<Box<Driver>>> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Session {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        self.guard
            .as_ref()
            .and_then(|guard| guard.as_deref())
            .expect("a session is made over an initialised device and keeps it locked")
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Driver {
        self.guard
            .as_mut()
            .and_then(|guard| guard.as_deref_mut())
            .expect("a session is made over an initialised device and keeps it locked")
    }
}

impl Session {
    /// Waits on the host for operations, running them and whatever the scheduler likes besides.
    ///
    /// # Errors
    /// The device's sticky error.
    pub fn complete(&mut self, targets: &[OperationId]) -> Outcome {
        let needed = self.needed(targets);
        while targets.iter().any(|id| self.is_pending(*id)) {
            match self.step(Some(&needed)) {
                Step::Ran => self.healthy()?,
                Step::Host(id, call) => self.call_host(id, call),
                Step::Stuck if self.host_is_called() => self.wait_for_host(),
                Step::Stuck => return Err(self.stuck()),
            }
        }
        self.healthy()
    }

    /// Waits for everything that was enqueued, as calls that free memory do.
    ///
    /// # Errors
    /// The device's sticky error.
    pub fn complete_everything(&mut self) -> Outcome {
        let everything = self.everything();
        if !everything.is_empty() {
            self.call.host_sync = true;
        }
        self.complete(&everything)
    }

    /// Runs up to `count` operations nobody waits for.
    fn run_unasked(&mut self, count: usize) {
        for _ in 0..count {
            match self.step(None) {
                Step::Ran if self.healthy().is_ok() => {}
                Step::Host(id, call) => self.call_host(id, call),
                Step::Ran | Step::Stuck => return,
            }
        }
    }

    /// Lets the device advance by one operation on the way to `target`, as it does while a host
    /// polls.
    pub fn advance(&mut self, target: OperationId) {
        let needed = self.needed(&[target]);
        if let Step::Host(id, call) = self.step(Some(&needed)) {
            self.call_host(id, call);
        }
    }

    fn call_host(&mut self, id: OperationId, call: crate::driver::state::work::HostCall) {
        let caller = self.caller;
        self.guard = None;
        call.invoke();
        self.guard = Some(lock());
        self.caller = caller;
        self.finish_host_call(id);
        HOST_RETURNED.notify_all();
    }

    fn wait_for_host(&mut self) {
        let caller = self.caller;
        if let Some(guard) = self.guard.take() {
            let guard = HOST_RETURNED.wait(guard).unwrap_or_else(PoisonError::into_inner);
            self.guard = Some(guard);
        }
        self.caller = caller;
    }

    /// Logs the stream of the call.
    pub fn note_stream(&mut self, stream: Handle) {
        self.call.stream = Some(self.stream_number(stream));
    }
}

/// Answers a call: `act` runs with the device locked, and its failure becomes the returned number.
pub fn enter(kind: Kind, name: &'static str, act: impl FnOnce(&mut Session) -> Outcome) -> Status {
    let answer = catch_unwind(AssertUnwindSafe(|| answer(kind, name, act)));
    answer.unwrap_or_else(|_| {
        eprintln!("forerun emulator: {name} panicked; this is a bug of the emulator");
        Code::Unknown as Status
    })
}

fn answer(kind: Kind, name: &'static str, act: impl FnOnce(&mut Session) -> Outcome) -> Status {
    let guard = lock();
    if guard.is_none() {
        return Code::NotInitialized as Status;
    }
    let mut session = Session { guard: Some(guard), call: Call { name, ..Call::default() } };
    session.caller = caller();
    let mut outcome = match kind {
        Kind::Work | Kind::Quiet => session.healthy(),
        Kind::Anytime | Kind::Query => Ok(()),
    };
    let was_healthy = outcome.is_ok();
    if was_healthy {
        outcome = act(&mut session);
        let unasked = session.unasked();
        session.run_unasked(unasked);
    }
    let status = outcome.as_ref().err().map_or(Code::Success, |failure| failure.code) as Status;
    let mut call = std::mem::take(&mut session.call);
    if let Err(failure) = outcome {
        if was_healthy && session.healthy().is_ok() && !call.is_question {
            explain(name, &failure);
        }
        call.code = Some(status);
        call.reason = failure.reason;
    }
    match kind {
        Kind::Work => session.report.called(call),
        Kind::Query | Kind::Quiet => session.report.counted(name),
        Kind::Anytime => {}
    }
    status
}

/// Prints why a call was refused: the code alone rarely says.
fn explain(name: &str, failure: &Failure) {
    if failure.code == Code::NotReady || failure.reason.is_empty() {
        return;
    }
    if REASONS_PRINTED.fetch_add(1, Ordering::Relaxed) < REASONS_PRINTED_MAX {
        eprintln!("forerun emulator: {name}: {failure}");
    }
}

fn make(overrides: &[(&str, &str)]) -> Outcome<Box<Driver>> {
    let settings = Settings::from_environment_with(overrides)?;
    if settings.report.is_some() {
        register_exit();
    }
    Ok(Box::new(Driver::new(settings, Machine::default())))
}

/// Makes the device, once.
///
/// # Errors
/// `InvalidValue` for a variable of the environment that cannot be understood.
pub fn initialise() -> Outcome {
    let mut guard = lock();
    if guard.is_none() {
        *guard = Some(make(&[])?);
    }
    Ok(())
}

/// Throws the device away and makes a fresh one from the environment and what overrides it; every
/// handle is stale.
///
/// # Errors
/// As [`initialise`].
pub fn reset(overrides: &[(&str, &str)]) -> Outcome {
    let fresh = make(overrides)?;
    let old = lock().replace(fresh);
    drop(old);
    with_contexts(Vec::clear);
    Ok(())
}

/// Writes the report to `path`, or to where the environment says.
///
/// # Errors
/// `NotInitialized` before `cuInit`, `InvalidValue` without a path, `FileNotFound` when it cannot
/// be written.
pub fn write_report(path: Option<&std::path::Path>) -> Outcome {
    write_report_of(&lock(), path)
}

fn write_report_of(device: &Option<Box<Driver>>, path: Option<&std::path::Path>) -> Outcome {
    let driver = device.as_deref().ok_or(Code::NotInitialized)?;
    let path = path.or(driver.settings.report.as_deref());
    let path = path.ok_or_else(|| {
        failure(Code::InvalidValue, "FORERUN_EMULATOR_REPORT names no file for the report")
    })?;
    let text = driver.report.to_json().to_string();
    std::fs::write(path, text)
        .map_err(|error| failure(Code::FileNotFound, format!("{}: {error}", path.display())))
}

fn register_exit() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a plain function of this library, which is never unloaded while
        // the process runs: cudarc keeps it in a static.
        unsafe { libc::atexit(report_at_exit) };
    });
}

/// Other threads may be stuck inside the driver while the process ends: the lock is asked for, not
/// waited for without end.
extern "C" fn report_at_exit() {
    let written = catch_unwind(|| {
        for _ in 0..100 {
            match DEVICE.try_lock() {
                Ok(device) => return write_report_of(&device, None),
                Err(TryLockError::Poisoned(device)) => {
                    return write_report_of(&device.into_inner(), None);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(failure(Code::Unknown, "the device is busy in another thread"))
    });
    if let Ok(Err(failure)) = written {
        eprintln!("forerun emulator: the report: {failure}");
    }
}
