//! Executes launches: a grid of CTAs on host threads, a CTA as warps, a warp as strands of lanes.
//!
//! [`run`] is the whole interface. CTAs are handed out in a seeded order; inside a CTA the warps
//! take turns in a seeded order. Two runs with one seed and one thread are the same run.
//! Read next: `grid` (limits), `cta` (turns and barriers), `warp` and `step` (one instruction),
//! then a file per family: `access` with `locate`, `atomic`, `copy`, `mbarrier`, `collective`,
//! `sync`, `matrix`, `mma`, `control`, `special`; `alu` is everything that only touches registers.

mod access;
pub mod alu;
mod atomic;
mod barrier;
mod collective;
mod control;
mod copy;
mod cta;
mod fault;
mod grid;
mod locate;
mod matrix;
mod mbarrier;
mod mma;
mod random;
pub mod registers;
mod special;
mod step;
mod sync;
mod tally;
mod warp;

use crate::launch::{Counters, Fault, Launch, Options};
use crate::memory::GlobalMemory;
use cta::{CtaRun, Turn};
use grid::Grid;
use random::Permutation;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tally::Tally;

/// Warp instructions after which a CTA that changed nothing lets another run; it does after four
/// times as many whatever it changed.
const SPIN_LIMIT: u64 = 1 << 20;
/// CTAs a host thread keeps half-run at most, beside those that spin for one another.
const RESIDENT: usize = 256;

/// Runs a launch to its end.
///
/// # Errors
/// The first rule it breaks.
pub fn run(launch: &Launch, memory: &GlobalMemory, options: Options) -> Result<Counters, Fault> {
    run_with_spin_limit(launch, memory, options, SPIN_LIMIT)
}

/// Like [`run`], with another measure of patience: a CTA is set aside after `spin_limit` warp
/// instructions that change nothing.
///
/// # Errors
/// The first rule the launch breaks.
pub fn run_with_spin_limit(
    launch: &Launch,
    memory: &GlobalMemory,
    options: Options,
    spin_limit: u64,
) -> Result<Counters, Fault> {
    let grid = Grid::new(launch, memory, options, spin_limit)?;
    let work = Work::new(&grid);
    let threads = (options.threads.max(1) as u64).min(grid.ctas);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| work.run());
        }
        work.run();
    });
    let (counters, fault) = work.done.into_inner().expect("no worker panics while it holds this");
    fault.map_or(Ok(counters), Err)
}

/// A launch being handed out to host threads.
struct Work<'a> {
    grid: &'a Grid<'a>,
    order: Permutation,
    next: AtomicU64,
    stop: AtomicBool,
    /// Turns that ended in spinning since anything last changed.
    stalled: AtomicU64,
    done: Mutex<(Counters, Option<Fault>)>,
}

impl<'a> Work<'a> {
    fn new(grid: &'a Grid<'a>) -> Self {
        Self {
            grid,
            order: Permutation::new(grid.ctas, grid.options.seed),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
            done: Mutex::default(),
        }
    }

    fn take(&self) -> Option<u64> {
        if self.next.load(Relaxed) >= self.grid.ctas {
            return None;
        }
        let position = self.next.fetch_add(1, Relaxed);
        (position < self.grid.ctas).then(|| self.order.at(position))
    }

    /// Runs CTA after CTA. One that spins is set aside and another begun or resumed.
    fn run(&self) {
        let mut aside: VecDeque<CtaRun<'a>> = VecDeque::new();
        let mut free: Vec<CtaRun<'a>> = Vec::new();
        let mut tallies: Vec<Tally> = Vec::new();
        while !self.stop.load(Relaxed) {
            let begun = if aside.len() < RESIDENT { self.take() } else { None };
            let mut run = match begun {
                Some(linear) => {
                    let mut run = free.pop().unwrap_or_else(|| CtaRun::new(self.grid));
                    run.start(linear);
                    run
                }
                None => match aside.pop_front() {
                    Some(run) => run,
                    None => break,
                },
            };
            match run.run() {
                Ok(Turn::Done) => {
                    self.stalled.store(0, Relaxed);
                    free.push(run);
                }
                Ok(Turn::Spins { helped }) => {
                    if let Some(fault) = self.patience(&run, helped) {
                        self.fail(fault);
                    }
                    aside.push_back(run);
                }
                Err(fault) => self.fail(fault),
            }
        }
        tallies.extend(free.into_iter().chain(aside).map(|run| run.cta.tally));
        let mut done = self.done.lock().expect("no worker panics while it holds this");
        tallies.iter().for_each(|tally| tally.add_to(&mut done.0));
    }

    /// Counts a turn that ended in spinning; a fault when everybody has spun long enough.
    fn patience(&self, run: &CtaRun<'_>, helped: bool) -> Option<Fault> {
        if helped {
            self.stalled.store(0, Relaxed);
            return None;
        }
        let started = self.next.load(Relaxed).min(self.grid.ctas);
        let stalled = self.stalled.fetch_add(1, Relaxed);
        (stalled > 64 + 4 * started).then(|| run.spinning())
    }

    fn fail(&self, fault: Fault) {
        self.stop.store(true, Relaxed);
        let mut done = self.done.lock().expect("no worker panics while it holds this");
        done.1.get_or_insert(fault);
    }
}
