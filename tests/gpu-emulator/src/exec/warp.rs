//! One warp: its call frames and its strands.
//!
//! A strand is a set of lanes at one instruction of one frame. A converged warp is one strand;
//! a divergent branch makes two, and strands that meet at the same instruction become one again.
//! Strands run deepest frame first, then lowest instruction first, so code after an `if` is reached
//! together; but the seed sometimes lets another go ahead, because hardware promises no order.
//! Invariant: the lanes of the strands are disjoint and together are the live lanes.

use super::fault::{Outcome, Wrong};
use super::random::Random;
use super::registers::Registers;
use crate::launch::FaultKind;
use crate::memory::LocalMemory;
use crate::ptx::ir::{Function, Instruction};

/// No frame: what called the entry.
pub(crate) const NO_FRAME: usize = usize::MAX;

/// One activation of a function by some lanes of the warp.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Index of the function.
    pub(crate) function: usize,
    pub(crate) registers: Registers,
    /// The function's parameters and results, of a device function.
    pub(crate) params: LocalMemory,
    /// `.param` variables for calls it makes.
    pub(crate) call: LocalMemory,
    /// Frame of the caller.
    pub(crate) parent: usize,
    /// The caller's call instruction.
    pub(crate) call_pc: u32,
    /// Callers above it.
    pub(crate) depth: u32,
    /// First byte of its local variables in the warp's local memory.
    pub(crate) local_base: u32,
    /// Bytes of its local variables.
    pub(crate) local_bytes: u32,
    /// Lanes still inside.
    pub(crate) inside: u32,
}

/// Why a strand does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It can run.
    Ready,
    /// It stands before an instruction that other lanes must execute with it.
    Together,
    /// Like `Together`, before a barrier of the CTA.
    TogetherAtBarrier,
    /// In `bar.warp.sync` with this mask.
    WarpBarrier(u32),
    /// Arrived at a barrier of the CTA.
    CtaBarrier,
}

/// Lanes that execute together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strand {
    pub(crate) frame: usize,
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
    /// Whether it did anything others can see since a sibling stopped at a barrier.
    pub(crate) effects: bool,
}

/// One warp of a CTA.
#[derive(Debug)]
pub(crate) struct Warp {
    /// Its number in the CTA.
    pub(crate) index: usize,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    pub(crate) frames: Vec<Frame>,
    free_frames: Vec<usize>,
    /// Strands that are not running at this moment.
    pub(crate) strands: Vec<Strand>,
    pub(crate) local: LocalMemory,
    /// Whether a fence came after the last plain store.
    pub(crate) fenced: bool,
    /// Lanes that have not waited for the kernels before, of a launch that may begin early.
    pub(crate) early: u32,
}

impl Warp {
    /// A warp without lanes.
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            live: 0,
            frames: Vec::new(),
            free_frames: Vec::new(),
            strands: Vec::new(),
            local: LocalMemory::default(),
            fenced: false,
            early: 0,
        }
    }

    /// Puts `lanes` at the start of an entry.
    pub(crate) fn start(&mut self, lanes: u32, function: usize, entry: &Function) {
        self.live = lanes;
        self.fenced = false;
        self.strands.clear();
        self.free_frames = (0..self.frames.len()).rev().collect();
        let frame = self.push_frame(lanes, function, entry, NO_FRAME, 0);
        self.strands.push(Strand { frame, pc: 0, mask: lanes, wait: Wait::Ready, effects: false });
    }

    /// Enters a function with `lanes`; its registers are zero, its memory unwritten.
    pub(crate) fn push_frame(
        &mut self,
        lanes: u32,
        function: usize,
        code: &Function,
        parent: usize,
        call_pc: u32,
    ) -> usize {
        let (depth, local_base) = match self.frames.get(parent) {
            None => (0, 0),
            Some(caller) => (caller.depth + 1, self.local_end(parent)),
        };
        let index = self.free_frames.pop().unwrap_or_else(|| {
            self.frames.push(Frame {
                function,
                registers: Registers::new(0, 0),
                params: LocalMemory::default(),
                call: LocalMemory::default(),
                parent,
                call_pc,
                depth,
                local_base,
                local_bytes: 0,
                inside: 0,
            });
            self.frames.len() - 1
        });
        let frame = &mut self.frames[index];
        (frame.function, frame.parent, frame.call_pc) = (function, parent, call_pc);
        (frame.depth, frame.local_base, frame.inside) = (depth, local_base, lanes);
        let registers = &mut frame.registers;
        registers.planes.clear();
        registers.planes.resize(code.planes as usize, [0; 32]);
        registers.predicates.clear();
        registers.predicates.resize(code.predicates as usize, 0);
        registers.carry = 0;
        // An entry's parameters are the launch's.
        frame.params.renew(if parent == NO_FRAME { 0 } else { code.param_bytes });
        frame.call.renew(code.call_bytes);
        frame.local_bytes = code.local_bytes;
        let end = local_base + code.local_bytes;
        if self.local.len() < end {
            self.local.resize(end);
        }
        self.local.forget(lanes, local_base, code.local_bytes);
        index
    }

    /// One past the local variables of a frame, aligned for the next.
    fn local_end(&self, frame: usize) -> u32 {
        self.frames[frame].local_base + self.frames[frame].local_bytes.next_multiple_of(16)
    }

    /// Takes lanes out of a frame; when it is empty it can be used again.
    pub(crate) fn leave_frame(&mut self, frame: usize, lanes: u32) {
        let inside = &mut self.frames[frame].inside;
        *inside &= !lanes;
        if *inside == 0 {
            self.free_frames.push(frame);
        }
    }

    /// Whether every lane has exited.
    pub(crate) fn is_done(&self) -> bool {
        self.live == 0
    }

    /// Whether some strand can run.
    pub(crate) fn is_ready(&self) -> bool {
        self.strands.iter().any(|s| s.wait == Wait::Ready)
    }

    fn rank(&self, strand: &Strand) -> (std::cmp::Reverse<u32>, usize, u32) {
        (std::cmp::Reverse(self.frames[strand.frame].depth), strand.frame, strand.pc)
    }

    /// Takes the strand to run next: the first in rank, or any of the ready ones.
    pub(crate) fn take_strand(&mut self, any: Option<&mut Random>) -> Option<Strand> {
        let ready = self.strands.iter().enumerate().filter(|(_, s)| s.wait == Wait::Ready);
        let index = match any {
            None => ready.min_by_key(|(_, s)| self.rank(s)).map(|(i, _)| i)?,
            Some(random) => {
                let ready: Vec<usize> = ready.map(|(i, _)| i).collect();
                if ready.is_empty() {
                    return None;
                }
                ready[random.below(ready.len() as u64) as usize]
            }
        };
        Some(self.strands.swap_remove(index))
    }

    /// Joins to `strand` every other that stands at the same instruction.
    pub(crate) fn join(&mut self, strand: &mut Strand) {
        let mut i = 0;
        while i < self.strands.len() {
            let other = self.strands[i];
            let stands =
                matches!(other.wait, Wait::Ready | Wait::Together | Wait::TogetherAtBarrier);
            if stands && other.frame == strand.frame && other.pc == strand.pc {
                strand.mask |= other.mask;
                strand.effects |= other.effects;
                self.strands.swap_remove(i);
            } else {
                i += 1;
            }
        }
    }

    /// Whether another ready strand should run before `strand`.
    pub(crate) fn should_yield(&self, strand: &Strand) -> bool {
        let rank = self.rank(strand);
        self.strands.iter().any(|s| s.wait == Wait::Ready && self.rank(s) < rank)
    }

    /// Lanes exit. Strands that waited for them look again.
    pub(crate) fn exit(&mut self, strand: &Strand, lanes: u32) -> Outcome {
        if self.early & lanes != 0 {
            let lane = (self.early & lanes).trailing_zeros() as usize;
            let detail = "exits without griddepcontrol.wait: the kernel behind this one would take \
                          the kernels before it for finished";
            return Err(Wrong::lane(FaultKind::UnwaitedKernel, lane, detail));
        }
        let parked = self.strands.iter().any(|s| s.wait == Wait::TogetherAtBarrier);
        if parked && strand.effects {
            let detail = "exits while other lanes of its warp wait at a barrier it went around: \
                          the barrier is reached under divergence";
            return Err(Wrong::lane(
                FaultKind::IllegalSync,
                lanes.trailing_zeros() as usize,
                detail,
            ));
        }
        self.live &= !lanes;
        for other in &mut self.strands {
            if matches!(other.wait, Wait::Together | Wait::TogetherAtBarrier) {
                other.wait = Wait::Ready;
            }
        }
        self.leave_frame(strand.frame, lanes);
        Ok(())
    }

    /// When no strand can run: those that wait for lanes that will never come.
    pub(crate) fn stuck(&self) -> Option<&Strand> {
        let waits = |s: &&Strand| !matches!(s.wait, Wait::Ready | Wait::CtaBarrier);
        if self.is_ready() { None } else { self.strands.iter().find(waits) }
    }

    /// The instruction a strand stands at.
    pub(crate) fn instruction<'a>(
        &self,
        strand: &Strand,
        functions: &'a [Function],
    ) -> Option<&'a Instruction> {
        functions[self.frames[strand.frame].function].body.get(strand.pc as usize)
    }
}
