//! Barriers of the warp and of the CTA, and fences.

use super::access::lanes;
use super::barrier::{Arrival, Waiting};
use super::cta::{BARRIERS, CLUSTER_BARRIER};
use super::fault::{Outcome, Wrong};
use super::step::{Flow, Step};
use super::warp::{Strand, Wait, Warp};
use crate::launch::FaultKind;
use crate::memory::SharedMemory;
use crate::ptx::ir::{BarrierKind, Operand};

impl Step<'_, '_> {
    /// `bar.warp.sync`: the lanes of each mask wait for one another; those that exited do not
    /// count.
    pub(super) fn bar_warp(&mut self, mask: Operand) -> Outcome<Flow> {
        let masks = self.registers().words(mask);
        for lane in lanes(self.mask) {
            if masks[lane] >> lane & 1 == 0 {
                let detail = format!("executes bar.warp.sync with the mask {:#010x}", masks[lane]);
                return Err(Wrong::lane(FaultKind::IllegalSync, lane, detail));
            }
        }
        let first = masks[self.mask.trailing_zeros() as usize];
        let live = self.warp.live;
        if first & live == self.mask && lanes(self.mask).all(|lane| masks[lane] == first) {
            self.cta.shared.lanes_met(self.warp.index, self.mask, self.mask == live);
            return Ok(Flow::Next);
        }
        let mut left = self.mask;
        while left != 0 {
            let group = masks[left.trailing_zeros() as usize];
            let these = lanes(left).filter(|l| masks[*l] == group).fold(0, |m, l| m | 1 << l);
            let wait = Wait::WarpBarrier(group);
            let (frame, pc) = (self.frame, self.pc);
            self.warp.strands.push(Strand { frame, pc, mask: these, wait, effects: false });
            left &= !these;
        }
        self.warp.release_warp_barriers(&mut self.cta.shared);
        Ok(Flow::Scattered)
    }

    /// `bar.sync`, `bar.arrive`, `bar.red`: the whole warp arrives, or waits until it is together.
    pub(super) fn barrier(
        &mut self,
        kind: BarrierKind,
        id: Operand,
        threads: Option<Operand>,
    ) -> Outcome<Flow> {
        if self.mask != self.warp.live {
            return Ok(self.here(Wait::TogetherAtBarrier));
        }
        let id = self.uniform(id, "a barrier's number")?;
        let threads = threads.map(|t| self.uniform(t, "a barrier's thread count")).transpose()?;
        if id as usize >= BARRIERS {
            let detail = format!("barrier {id} of {BARRIERS}");
            return Err(Wrong::warp(FaultKind::IllegalSync, detail));
        }
        let warp = self.warp.index;
        let (waiting, vote) = match kind {
            BarrierKind::Sync => (Some(Waiting { warp, result: None }), 0),
            BarrierKind::Arrive => (None, 0),
            BarrierKind::Reduce { op, dst, source } => {
                let vote = self.registers().predicate(source);
                (Some(Waiting { warp, result: Some((op, dst)) }), vote)
            }
        };
        let vote = (vote, self.mask);
        let arrival = Arrival { warp, threads, waiting, vote, line: self.line };
        self.cta.barriers[id as usize].arrive(&arrival, &mut self.cta.shared)?;
        self.cta.barriers_changed = true;
        Ok(if waiting.is_some() { self.here(Wait::CtaBarrier) } else { Flow::Next })
    }

    /// `barrier.cluster.wait`: all threads of the CTA, which is the cluster, meet.
    pub(super) fn cluster_wait(&mut self) -> Outcome<Flow> {
        if self.mask != self.warp.live {
            return Ok(self.here(Wait::TogetherAtBarrier));
        }
        let warp = self.warp.index;
        let waiting = Some(Waiting { warp, result: None });
        let vote = (0, self.mask);
        let arrival = Arrival { warp, threads: None, waiting, vote, line: self.line };
        self.cta.barriers[CLUSTER_BARRIER].arrive(&arrival, &mut self.cta.shared)?;
        self.cta.barriers_changed = true;
        Ok(self.here(Wait::CtaBarrier))
    }

    /// An operand that must be the same in all executing lanes.
    fn uniform(&mut self, operand: Operand, what: &str) -> Outcome<u32> {
        let values = self.registers().words(operand);
        let first = values[self.mask.trailing_zeros() as usize];
        match lanes(self.mask).find(|lane| values[*lane] != first) {
            None => Ok(first),
            Some(lane) => {
                let detail = format!("{what} is {} here and {first} in other lanes", values[lane]);
                Err(Wrong::lane(FaultKind::IllegalSync, lane, detail))
            }
        }
    }

    /// `membar`, `fence`.
    pub(super) fn fence(&mut self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.warp.fenced = true;
    }
}

impl Warp {
    /// Lets go the strands of every `bar.warp.sync` all of whose living lanes have come.
    pub(super) fn release_warp_barriers(&mut self, shared: &mut SharedMemory) {
        for i in 0..self.strands.len() {
            let Wait::WarpBarrier(mask) = self.strands[i].wait else { continue };
            let same = |s: &&mut Strand| s.wait == Wait::WarpBarrier(mask);
            let here = self.strands.iter_mut().filter(same).fold(0, |all, s| all | s.mask);
            if mask & self.live & !here != 0 {
                continue;
            }
            shared.lanes_met(self.index, here, here == self.live);
            for strand in self.strands.iter_mut().filter(|s| s.wait == Wait::WarpBarrier(mask)) {
                strand.wait = Wait::Ready;
                strand.pc += 1;
            }
        }
    }
}
