//! A small pool of persistent workers that share one piece of work at a time with their caller.
//!
//! A forward pass is some two hundred short operations in a row, so handing out work must cost
//! less than a microsecond: workers spin for `SPIN_US` after each piece and only then park. An
//! idle engine uses no processor time. Which worker does which task is left to chance; nothing
//! computed here may depend on it.
//!
//! Invariant: a worker touches the published work only between joining and leaving it (both are
//! counted in `Shared::state`), and the caller does not return before everyone has left.

use crate::error::DeviceError;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker spins for the next piece of work before it parks. The gaps inside a forward
/// pass are a few microseconds; between two tokens of one request there may be some tens.
const SPIN_US: u64 = 50;

/// The environment variable that sets the number of threads.
pub const THREADS_VARIABLE: &str = "FORERUN_THREADS";

/// Threads that compute together, the caller among them.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Callers take turns: two streams may run at once, one piece of work is shared at a time.
    turn: Mutex<()>,
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// The published piece of work. Written by the caller while nobody has joined.
struct Work {
    /// The closure, its lifetime erased; valid while the work is open or joined.
    task: Option<Task<'static>>,
    tasks: usize,
}

struct Shared {
    /// `generation << 32 | open << 31 | joined workers`.
    state: AtomicU64,
    work: UnsafeCell<Work>,
    /// The next task nobody has claimed.
    next: AtomicUsize,
    /// Workers that may be parked; read by the caller to decide whether to wake anybody.
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is the only field that is not `Sync` by itself. It is written by the caller that
// holds `Threads::turn`, while the work is closed and nobody has joined; workers read it only after
// joining an open generation. Joining is an acquire of the release that opened it, and the caller
// reads zero joined workers (acquire of their release) before it writes again.
unsafe impl Sync for Shared {}
// SAFETY: the closure behind `task` is `Sync`, so a reference to it may move between threads.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

fn generation(state: u64) -> u64 {
    state >> 32
}

thread_local! {
    /// Set while this thread runs a task: a nested `run` then computes inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Threads {
    /// Starts `threads - 1` workers; the caller of [`Threads::run`] is the remaining thread.
    ///
    /// # Errors
    /// If `threads` is 0 or the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, DeviceError> {
        if threads == 0 {
            return Err(DeviceError::Failed("0 threads asked for; at least 1 is needed".into()));
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(Work { task: None, tasks: 0 }),
            next: AtomicUsize::new(0),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for worker in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("forerun-cpu-{}", worker + 1))
                .spawn(move || shared.serve(worker))
                .map_err(|e| DeviceError::Failed(format!("starting thread {worker}: {e}")))?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// As many threads as `FORERUN_THREADS` says, by default one per physical core.
    ///
    /// # Errors
    /// If the variable is not a number from 1 to 1024, or a thread cannot be started.
    pub fn from_env() -> Result<Self, DeviceError> {
        let threads = match std::env::var(THREADS_VARIABLE) {
            Ok(text) => match text.trim().parse() {
                Ok(n @ 1..=1024) => n,
                _ => {
                    return Err(DeviceError::Failed(format!(
                        "{THREADS_VARIABLE}: expected a number from 1 to 1024, got {text:?}"
                    )));
                }
            },
            Err(_) => physical_cores(),
        };
        Self::new(threads)
    }

    /// Threads, the caller among them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for every index below `tasks`, on all threads, and returns when all calls
    /// have returned. Inside a task it computes inline.
    ///
    /// # Panics
    /// If a task panics, with the payload of the first panic; no further task is then started.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            (0..tasks).for_each(task);
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.open(tasks, task);
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        self.shared.claim_all(tasks, task);
        self.shared.close();
        let payload = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    /// Calls `part` once for each of at most `parts_max` contiguous ranges that together cover
    /// `0..items`, equal to within one item.
    pub fn run_split(
        &self,
        items: usize,
        parts_max: usize,
        part: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) {
        let parts = parts_max.clamp(1, items.max(1));
        self.run(parts, &|i| part(i * items / parts..(i + 1) * items / parts));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // Tasks' panics are caught, so a worker ends only by `stop`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn open(&self, tasks: usize, task: Task<'_>) {
        // SAFETY: only the lifetime changes. `close` returns after every worker that joined has
        // left, and nobody joins a closed generation, so no use outlives the borrow.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the caller holds the turn, the previous work is closed and left (see `close`).
        unsafe { *self.work.get() = Work { task: Some(task), tasks } };
        self.next.store(0, Ordering::Relaxed);
        let next = generation(self.state.load(Ordering::Relaxed)) + 1;
        // Sequentially consistent: a worker about to park stores its flag before it looks here, and
        // the caller looks at the flag after this store; one of the two sees the other.
        self.state.store(next << 32 | OPEN, Ordering::SeqCst);
    }

    /// Keeps late workers out and waits for those inside.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while self.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins.is_multiple_of(4096) {
                // More threads than cores: let the worker that holds the last task run.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn claim_all(&self, tasks: usize, task: Task<'_>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            INSIDE.set(true);
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index);
            }
        }));
        INSIDE.set(false);
        if let Err(payload) = outcome {
            self.next.store(tasks, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// The life of a worker.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        while let Some(joined) = self.join(worker, seen) {
            seen = joined;
            // SAFETY: this worker has joined the open generation `joined`: the work is written
            // (acquired by the join) and stays unchanged and alive until this worker leaves.
            let work = unsafe { &*self.work.get() };
            if let Some(task) = work.task {
                self.claim_all(work.tasks, task);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for open work newer than `seen` and joins it; `None` when the pool ends.
    fn join(&self, worker: usize, seen: u64) -> Option<u64> {
        let mut spin_until = None;
        loop {
            for _ in 0..64 {
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                let state = self.state.load(Ordering::Acquire);
                let news = state & OPEN != 0 && generation(state) != seen;
                if news
                    && self
                        .state
                        .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                {
                    return Some(generation(state));
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now < *spin_until.get_or_insert(now + Duration::from_micros(SPIN_US)) {
                continue;
            }
            self.parked[worker].store(true, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let news = state & OPEN != 0 && generation(state) != seen;
            if !news && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.parked[worker].store(false, Ordering::SeqCst);
            // A wake-up means work is near even if this piece is already closed: spin again.
            spin_until = None;
        }
    }
}

/// Physical cores this process may use.
#[must_use]
pub fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = std::collections::HashSet::new();
    for cpu in 0..1024 {
        // Hardware threads of one core name the same siblings; elsewhere than Linux none exist.
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => _ = cores.insert(siblings),
            Err(_) => break,
        }
    }
    match cores.len() {
        0 => logical,
        n => n.min(logical),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Threads::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn twenty_thousand_pieces_in_a_row_neither_hang_nor_lose_work() {
        let pool = Threads::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(5, &|i| _ = sum.fetch_add(i + 1, Ordering::Relaxed));
            if round % 4000 == 0 {
                // Long enough that the workers park.
                std::thread::sleep(Duration::from_micros(4 * SPIN_US));
            }
        }
        assert_eq!(sum.load(Ordering::Relaxed), 20_000 * 15);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Threads::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(4, &|_| _ = sum.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 500 * 4);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_still_works() {
        let pool = Threads::new(2).unwrap();
        for round in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(16, &|i| assert!(i != 7, "task {i} of round {round}"));
            }));
            let payload = outcome.expect_err("task 7 panics");
            let text = payload.downcast_ref::<String>().expect("a formatted message");
            assert_eq!(*text, format!("task 7 of round {round}"));
            let done = AtomicUsize::new(0);
            pool.run(16, &|_| _ = done.fetch_add(1, Ordering::Relaxed));
            assert_eq!(done.load(Ordering::Relaxed), 16);
        }
    }

    #[test]
    fn a_run_inside_a_task_computes_inline() {
        let pool = Threads::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| pool.run(4, &|_| _ = sum.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(sum.load(Ordering::Relaxed), 16);
    }

    #[test]
    fn ranges_cover_all_items_without_overlap() {
        let pool = Threads::new(2).unwrap();
        for (items, parts) in [(0, 4), (1, 4), (7, 3), (100, 7)] {
            let counts: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run_split(items, parts, &|range| {
                for i in range {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn idle_workers_use_no_processor_time() {
        /// Clock ticks (10 ms) all threads of this pool have used.
        fn ticks(name: &str) -> u64 {
            let mut total = 0;
            for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
                let (head, tail) = stat.rsplit_once(')').unwrap();
                if head.contains(name) {
                    let fields: Vec<_> = tail.split_whitespace().collect();
                    total +=
                        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
                }
            }
            total
        }
        // Ten workers, so that this pool's threads have names no other test's pool has.
        let pool = Threads::new(11).unwrap();
        pool.run(64, &|_| std::hint::black_box(()));
        std::thread::sleep(Duration::from_millis(20));
        let before = ticks("forerun-cpu-10");
        std::thread::sleep(Duration::from_millis(300));
        assert!(ticks("forerun-cpu-10") - before <= 1);
    }
}
