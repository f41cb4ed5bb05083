//! The sixteen barriers of a CTA.
//!
//! Arrivals are counted in warps of 32 threads, as hardware does. A barrier without a count waits
//! for every warp that has not exited.
//! Invariant: a phase has one expected count; a second one is a fault.

use super::fault::{Outcome, Wrong};
use crate::launch::FaultKind;
use crate::memory::SharedMemory;
use crate::memory::order::{Knowledge, WARPS, join};
use crate::ptx::ir::BarrierReduction;

/// A warp that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) warp: usize,
    /// Where its result goes.
    pub(crate) result: Option<(BarrierReduction, u32)>,
}

/// What a completed reduction says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reduced {
    pub(crate) count: u32,
    pub(crate) all: bool,
}

/// One of the sixteen.
#[derive(Debug, Clone)]
pub(crate) struct Barrier {
    /// Threads, or every live warp when `None`.
    expected: Option<u32>,
    arrived_threads: u32,
    /// Warps that arrived in this phase.
    arrived: u32,
    waiting: Vec<Waiting>,
    knowledge: Knowledge,
    /// Whether somebody arrived without waiting.
    passed: bool,
    reduced: Reduced,
    /// PTX line of the first arrival.
    line: u32,
}

impl Default for Barrier {
    fn default() -> Self {
        Self {
            expected: None,
            arrived_threads: 0,
            arrived: 0,
            waiting: Vec::new(),
            knowledge: [0; WARPS],
            passed: false,
            reduced: Reduced { count: 0, all: true },
            line: 0,
        }
    }
}

/// One warp's arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) warp: usize,
    /// Threads the barrier is said to wait for.
    pub(crate) threads: Option<u32>,
    /// Whether the warp waits, and for what result.
    pub(crate) waiting: Option<Waiting>,
    /// The reduction's source: lanes that hold, lanes that take part.
    pub(crate) vote: (u32, u32),
    pub(crate) line: u32,
}

impl Barrier {
    /// Counts an arrival.
    pub(crate) fn arrive(&mut self, arrival: &Arrival, shared: &mut SharedMemory) -> Outcome {
        let illegal = |detail: String| Err(Wrong::warp(FaultKind::IllegalSync, detail));
        if let Some(threads) = arrival.threads
            && (threads == 0 || !threads.is_multiple_of(32))
        {
            return illegal(format!("a barrier for {threads} threads: not a multiple of 32"));
        }
        if self.arrived == 0 {
            self.expected = arrival.threads;
            self.line = arrival.line;
        } else if self.expected != arrival.threads {
            let say = |n: Option<u32>| n.map_or("all".to_owned(), |n| n.to_string());
            return illegal(format!(
                "arrives at a barrier for {} threads that others (PTX line {}) use for {}",
                say(arrival.threads),
                self.line,
                say(self.expected)
            ));
        }
        self.arrived |= 1 << arrival.warp;
        self.arrived_threads += 32;
        if let Some(expected) = self.expected
            && self.arrived_threads > expected
        {
            let got = self.arrived_threads;
            return illegal(format!("{got} threads arrive at a barrier for {expected}"));
        }
        join(&mut self.knowledge, &shared.release(arrival.warp));
        match arrival.waiting {
            Some(waiting) => self.waiting.push(waiting),
            None => self.passed = true,
        }
        let (holds, lanes) = arrival.vote;
        self.reduced.count += (holds & lanes).count_ones();
        self.reduced.all &= holds & lanes == lanes;
        Ok(())
    }

    /// When everybody is here: who may go on. `live` are the warps that have not exited.
    pub(crate) fn complete(
        &mut self,
        live: u32,
        shared: &mut SharedMemory,
    ) -> Option<(Vec<Waiting>, Reduced)> {
        let here = match self.expected {
            _ if self.arrived == 0 => false,
            None => live & !self.arrived == 0,
            Some(threads) => self.arrived_threads >= threads,
        };
        if !here {
            return None;
        }
        if !self.passed && live & !self.arrived == 0 {
            shared.everybody_met();
        } else {
            for waiting in &self.waiting {
                shared.acquire(waiting.warp, &self.knowledge);
            }
        }
        let done = std::mem::take(self);
        Some((done.waiting, done.reduced))
    }

    /// "2 warps wait for 128 threads (first at PTX line 9)", when anybody waits.
    pub(crate) fn describe(&self) -> Option<String> {
        let threads = self.expected.map_or("all".to_owned(), |n| n.to_string());
        (self.arrived != 0).then(|| {
            format!(
                "{} threads are at a barrier for {threads} threads (PTX line {})",
                self.arrived_threads, self.line
            )
        })
    }
}
