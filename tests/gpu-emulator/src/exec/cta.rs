//! One CTA: its warps in a seeded interleaving until all have exited.
//!
//! A warp runs for a few to a few hundred instructions, then another ready one is drawn. When none
//! is ready and some have not exited, nobody ever will be: a deadlock. A CTA that executes very
//! many instructions without changing memory or passing a barrier spins, and is set aside so that
//! others of the grid can run.
//! Read next: [`super::step`], what a warp does when it is drawn.

use super::barrier::{Barrier, Reduced, Waiting};
use super::fault::{Site, Wrong};
use super::grid::Grid;
use super::mbarrier::Mbarriers;
use super::random::Random;
use super::tally::Tally;
use super::warp::{Wait, Warp};
use crate::launch::{Fault, FaultKind};
use crate::memory::SharedMemory;
use crate::ptx::ir::BarrierReduction;

/// Barriers a CTA has.
pub(crate) const BARRIERS: usize = 16;
/// The barrier of its cluster, which has no other CTA.
pub(crate) const CLUSTER_BARRIER: usize = BARRIERS;

/// What the warps of a CTA share.
#[derive(Debug)]
pub(crate) struct Cta<'a> {
    pub(crate) grid: &'a Grid<'a>,
    pub(crate) index: [u32; 3],
    pub(crate) linear: u64,
    pub(crate) shared: SharedMemory,
    pub(crate) barriers: [Barrier; BARRIERS + 1],
    pub(crate) mbarriers: Mbarriers,
    pub(crate) tally: Tally,
    pub(crate) random: Random,
    /// Warp instructions executed.
    pub(crate) clock: u64,
    /// The clock when something last changed.
    pub(crate) progress: u64,
    /// The clock when global memory last changed: what other CTAs can see.
    pub(crate) effect: u64,
    /// Warps that have not exited.
    pub(crate) live_warps: u32,
    /// Whether an arrival or an exit may have completed a barrier.
    pub(crate) barriers_changed: bool,
}

/// How a turn of a CTA ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Every warp has exited.
    Done,
    /// It has run for long, or changed nothing for long; whether others may go on for what it did.
    Spins { helped: bool },
}

/// A CTA with its warps: the workspace of one host thread, used again for CTA after CTA.
#[derive(Debug)]
pub(crate) struct CtaRun<'a> {
    pub(crate) cta: Cta<'a>,
    warps: Vec<Warp>,
}

impl<'a> CtaRun<'a> {
    /// A workspace for CTAs of this grid.
    pub(crate) fn new(grid: &'a Grid<'a>) -> Self {
        let cta = Cta {
            grid,
            index: [0; 3],
            linear: 0,
            shared: SharedMemory::new(grid.shared_bytes, grid.threads),
            barriers: std::array::from_fn(|_| Barrier::default()),
            mbarriers: Mbarriers::default(),
            tally: Tally::new(),
            random: Random::new(0, 0),
            clock: 0,
            progress: 0,
            effect: 0,
            live_warps: 0,
            barriers_changed: false,
        };
        Self { cta, warps: (0..grid.warps).map(Warp::new).collect() }
    }

    /// Puts the CTA with this linear index at its start.
    pub(crate) fn start(&mut self, linear: u64) {
        let Self { cta, warps } = self;
        let grid = cta.grid;
        cta.index = grid.cta(linear);
        cta.linear = linear;
        cta.shared.next_cta();
        cta.barriers = std::array::from_fn(|_| Barrier::default());
        cta.mbarriers = Mbarriers::default();
        cta.random = Random::new(grid.options.seed ^ grid.launch.serial << 32, linear + 1);
        (cta.clock, cta.progress, cta.effect) = (0, 0, 0);
        cta.live_warps = u32::MAX >> (32 - grid.warps);
        for (index, warp) in warps.iter_mut().enumerate() {
            let lanes = (grid.threads - index as u32 * 32).min(32);
            let mask = u32::MAX >> (32 - lanes);
            warp.start(mask, grid.launch.function, grid.launch.entry());
            warp.early = if grid.launch.unfinished.is_some() { mask } else { 0 };
        }
        cta.tally.local(grid.launch.entry().local_bytes);
    }

    /// Runs until every warp has exited, or the CTA seems to wait for another.
    ///
    /// It may wait in a loop of barriers and shared stores, which are changes. So no turn goes on
    /// for long, and one that is cut off has helped others only if it changed global memory.
    pub(crate) fn run(&mut self) -> Result<Turn, Fault> {
        let start = self.cta.clock;
        let patience = self.cta.grid.spin_limit;
        self.cta.progress = start;
        loop {
            let Some(index) = self.draw() else {
                return if self.cta.live_warps == 0 {
                    Ok(Turn::Done)
                } else {
                    Err(self.deadlock())
                };
            };
            let budget = 4u32 << self.cta.random.below(8);
            let warp = &mut self.warps[index];
            warp.run(&mut self.cta, budget)?;
            if warp.is_done() && self.cta.live_warps >> index & 1 == 1 {
                self.cta.live_warps &= !(1 << index);
                self.cta.barriers_changed = true;
            }
            if self.cta.barriers_changed {
                self.release();
            }
            if self.cta.clock - self.cta.progress > patience {
                return Ok(Turn::Spins { helped: self.cta.progress > start });
            }
            if self.cta.clock - start > 4 * patience {
                return Ok(Turn::Spins { helped: self.cta.effect > start });
            }
        }
    }

    /// A ready warp, by the seed.
    fn draw(&mut self) -> Option<usize> {
        let mut ready = 0u32;
        for warp in &self.warps {
            ready |= u32::from(warp.is_ready()) << warp.index;
        }
        let count = ready.count_ones();
        if count == 0 {
            return None;
        }
        for _ in 0..self.cta.random.below(u64::from(count)) {
            ready &= ready - 1;
        }
        Some(ready.trailing_zeros() as usize)
    }

    /// Lets the warps of completed barriers go on.
    fn release(&mut self) {
        self.cta.barriers_changed = false;
        for id in 0..=CLUSTER_BARRIER {
            let Cta { barriers, shared, live_warps, .. } = &mut self.cta;
            if let Some((waiting, reduced)) = barriers[id].complete(*live_warps, shared) {
                self.cta.progress = self.cta.clock;
                for waiting in waiting {
                    self.go_on(waiting, reduced);
                }
            }
        }
    }

    fn go_on(&mut self, waiting: Waiting, reduced: Reduced) {
        let warp = &mut self.warps[waiting.warp];
        for strand in warp.strands.iter_mut().filter(|s| s.wait == Wait::CtaBarrier) {
            strand.wait = Wait::Ready;
            strand.pc += 1;
            let registers = &mut warp.frames[strand.frame].registers;
            let every = |holds: bool| if holds { u32::MAX } else { 0 };
            match waiting.result {
                None => {}
                Some((BarrierReduction::Popc, plane)) => {
                    registers.write_words(plane, strand.mask, &[reduced.count; 32]);
                }
                Some((BarrierReduction::And, predicate)) => {
                    registers.write_predicate(predicate, strand.mask, every(reduced.all));
                }
                Some((BarrierReduction::Or, predicate)) => {
                    registers.write_predicate(predicate, strand.mask, every(reduced.count > 0));
                }
            }
        }
    }

    /// A fault at the first warp that waits, with the story of all of them.
    fn deadlock(&self) -> Fault {
        let functions = &self.cta.grid.module.functions;
        let mut story: Vec<String> =
            self.cta.barriers.iter().filter_map(Barrier::describe).collect();
        let mut first = None;
        for warp in self.warps.iter().filter(|w| !w.is_done()) {
            for strand in &warp.strands {
                let instruction = warp.instruction(strand, functions);
                first = first.or(Some((warp, strand, instruction)));
                if story.len() < 8 {
                    let line = instruction.map_or(0, |i| i.line);
                    story.push(format!("warp {} waits at PTX line {line}", warp.index));
                }
            }
        }
        let (warp, strand, instruction) = first.expect("a live warp has a strand");
        let site = Site {
            grid: self.cta.grid,
            cta: self.cta.index,
            warp: warp.index,
            function: warp.frames[strand.frame].function,
            instruction,
        };
        let detail = format!("no warp of the CTA can go on: {}", story.join("; "));
        site.fault(&Wrong::warp(FaultKind::Deadlock, detail))
    }

    /// The fault of a CTA that spins while nobody else can help it.
    pub(crate) fn spinning(&self) -> Fault {
        let warp = self.warps.iter().find(|w| w.is_ready()).expect("a spinning warp is ready");
        let strand = warp.strands.iter().find(|s| s.wait == Wait::Ready).expect("and so a strand");
        let site = Site {
            grid: self.cta.grid,
            cta: self.cta.index,
            warp: warp.index,
            function: warp.frames[strand.frame].function,
            instruction: warp.instruction(strand, &self.cta.grid.module.functions),
        };
        let detail = format!(
            "spins: turns of {} warp instructions changed nothing another CTA could see",
            self.cta.grid.spin_limit
        );
        site.fault(&Wrong::warp(FaultKind::Deadlock, detail))
    }
}
