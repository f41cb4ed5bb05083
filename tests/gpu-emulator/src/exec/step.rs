//! The warp loop: one instruction after another for the strand that has its turn.
//!
//! Instructions are dispatched once for all lanes. What an instruction does to registers alone is
//! `alu`'s; everything that touches memory, other lanes or control is a method of [`Step`], in a
//! file per family. An instruction that must wait leaves registers and memory untouched and is
//! executed again later.
//! Invariant: between two instructions the running strand is not in `warp.strands`.

use super::alu;
use super::cta::Cta;
use super::fault::{Outcome, Site, Wrong};
use super::registers::Registers;
use super::tally::Class;
use super::warp::{Strand, Wait, Warp};
use crate::launch::{Fault, FaultKind};
use crate::ptx::ir::{Instruction, Op};

/// What stands after the last instruction of every function.
static RETURN: Instruction =
    Instruction { guard: None, op: Op::Ret { uniform: false }, line: 0, source: None };

/// Where the executing lanes are after an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flow {
    /// At the next instruction, with those the guard held back.
    Next,
    /// Somewhere else, or waiting.
    Go { frame: usize, pc: u32, wait: Wait },
    /// Nowhere: they have exited.
    Exit,
    /// The instruction has put strands for them into the warp itself.
    Scattered,
}

/// One instruction in execution.
pub(crate) struct Step<'s, 'g> {
    pub(crate) warp: &'s mut Warp,
    pub(crate) cta: &'s mut Cta<'g>,
    pub(crate) frame: usize,
    pub(crate) pc: u32,
    pub(crate) line: u32,
    /// Lanes that execute it: the strand's, less those the guard holds back.
    pub(crate) mask: u32,
}

impl Warp {
    /// Runs about `budget` instructions, or until no strand is ready.
    pub(crate) fn run(&mut self, cta: &mut Cta<'_>, mut budget: u32) -> Result<(), Fault> {
        // Now and then order among strands is left to chance for one turn.
        let any = self.strands.len() > 1 && cta.random.below(8) == 0;
        while budget > 0 {
            let random = any.then_some(&mut cta.random);
            let Some(strand) = self.take_strand(random) else {
                return match self.stuck() {
                    None => Ok(()),
                    Some(strand) => {
                        let strand = *strand;
                        Err(self.fault(cta, &strand, &self.why_stuck(&strand)))
                    }
                };
            };
            self.run_strand(cta, strand, &mut budget, any)?;
        }
        Ok(())
    }

    /// Runs one strand until it ends, waits, splits or gives way.
    fn run_strand(
        &mut self,
        cta: &mut Cta<'_>,
        mut strand: Strand,
        budget: &mut u32,
        any: bool,
    ) -> Result<(), Fault> {
        let grid = cta.grid;
        let mut function = self.frames[strand.frame].function;
        let mut body: &[Instruction] = &grid.module.functions[function].body;
        let mut classes = grid.classes(function);
        loop {
            if !self.strands.is_empty() {
                self.join(&mut strand);
                if !any && self.should_yield(&strand) {
                    break;
                }
            }
            if *budget == 0 {
                break;
            }
            *budget -= 1;
            cta.clock += 1;
            // Running past the end is a return.
            let instruction = body.get(strand.pc as usize).unwrap_or(&RETURN);
            let class = classes.get(strand.pc as usize).copied();
            let class = class.unwrap_or(Class::Control);
            cta.tally.instruction(class);
            let registers = &mut self.frames[strand.frame].registers;
            let mask = registers.guarded(instruction.guard, strand.mask);
            if mask == 0 {
                strand.pc += 1;
                continue;
            }
            if alu::execute(&instruction.op, registers, mask) {
                strand.pc += 1;
                continue;
            }
            let mut step = Step {
                warp: &mut *self,
                cta: &mut *cta,
                frame: strand.frame,
                pc: strand.pc,
                line: instruction.line,
                mask,
            };
            let flow =
                step.execute(&instruction.op).map_err(|wrong| self.fault(cta, &strand, &wrong))?;
            if matches!(flow, Flow::Next) {
                strand.effects |= !self.strands.is_empty() && has_effect(class);
                strand.pc += 1;
                continue;
            }
            self.follow(cta, &mut strand, mask, flow, class)
                .map_err(|wrong| self.fault(cta, &strand, &wrong))?;
            if strand.mask == 0 {
                return Ok(());
            }
            if self.frames[strand.frame].function != function {
                function = self.frames[strand.frame].function;
                body = &grid.module.functions[function].body;
                classes = grid.classes(function);
            }
        }
        self.strands.push(strand);
        Ok(())
    }

    /// Brings strand and warp to where an instruction that did not simply fall through leads.
    /// Afterwards `strand` is what goes on running, with no lanes when nothing does.
    fn follow(
        &mut self,
        cta: &mut Cta<'_>,
        strand: &mut Strand,
        mask: u32,
        flow: Flow,
        class: Class,
    ) -> Outcome {
        let rest = Strand { pc: strand.pc + 1, mask: strand.mask & !mask, ..*strand };
        match flow {
            Flow::Next => unreachable!("handled by the caller"),
            Flow::Scattered => *strand = rest,
            Flow::Exit => {
                self.exit(strand, mask)?;
                self.release_warp_barriers(&mut cta.shared);
                *strand = rest;
            }
            Flow::Go { frame, pc, wait } => {
                let gone = Strand { frame, pc, mask, wait, effects: strand.effects };
                if matches!(wait, Wait::Together | Wait::TogetherAtBarrier) {
                    cta.tally.undo(class);
                    cta.clock -= 1;
                }
                if wait == Wait::TogetherAtBarrier {
                    self.strands.iter_mut().for_each(|s| s.effects = false);
                }
                if wait == Wait::Ready && rest.mask == 0 {
                    *strand = gone;
                } else {
                    self.strands.push(gone);
                    *strand = rest;
                    strand.effects &= wait != Wait::TogetherAtBarrier;
                }
            }
        }
        Ok(())
    }

    /// The fault of an instruction.
    fn fault(&self, cta: &Cta<'_>, strand: &Strand, wrong: &Wrong) -> Fault {
        let site = Site {
            grid: cta.grid,
            cta: cta.index,
            warp: self.index,
            function: self.frames[strand.frame].function,
            instruction: self.instruction(strand, &cta.grid.module.functions),
        };
        site.fault(wrong)
    }

    /// What a strand waits for in vain.
    fn why_stuck(&self, strand: &Strand) -> Box<Wrong> {
        let others: Vec<String> = self
            .strands
            .iter()
            .filter(|s| s.mask != strand.mask)
            .map(|s| format!("lanes {:#010x} wait elsewhere", s.mask))
            .collect();
        let lanes = strand.mask;
        let what = match strand.wait {
            Wait::TogetherAtBarrier => "a barrier reached under divergence",
            Wait::WarpBarrier(_) => "a bar.warp.sync whose mask names lanes that never come",
            _ => "an instruction whose lanes never come together",
        };
        let detail = format!("{what}: lanes {lanes:#010x} wait here, {}", others.join(", "));
        Wrong::warp(FaultKind::IllegalSync, detail)
    }
}

/// Whether others can see that an instruction of this class was executed.
fn has_effect(class: Class) -> bool {
    matches!(
        class,
        Class::GlobalStore
            | Class::SharedStore
            | Class::Atomic
            | Class::Shuffle
            | Class::Barrier
            | Class::Mma
            | Class::LdMatrix
            | Class::CpAsync
            | Class::Generic
    )
}

impl Step<'_, '_> {
    /// The registers of the running function.
    #[inline(always)]
    pub(crate) fn registers(&mut self) -> &mut Registers {
        &mut self.warp.frames[self.frame].registers
    }

    /// Where the executing lanes wait before this same instruction.
    pub(crate) fn here(&self, wait: Wait) -> Flow {
        Flow::Go { frame: self.frame, pc: self.pc, wait }
    }

    /// Executes one instruction that is not `alu`'s.
    fn execute(&mut self, op: &Op) -> Outcome<Flow> {
        match op {
            Op::Bra { target, .. } => {
                return Ok(Flow::Go { frame: self.frame, pc: *target, wait: Wait::Ready });
            }
            Op::Load { space, ty, dsts, address, semantics, cache, .. } => {
                self.load(*space, *ty, dsts, *address, *semantics, cache.non_coherent)?;
            }
            Op::Store { space, ty, srcs, address, semantics, .. } => {
                self.store(*space, *ty, srcs, *address, *semantics)?;
            }
            Op::Mma(_) | Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::MovMatrix { .. } => {
                return self.whole_warp(op);
            }
            Op::Shfl { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Redux { mask, .. }
            | Op::Elect { mask, .. } => return self.named_lanes(op, *mask),
            Op::ActiveMask { dst } => {
                let (mask, dst) = (self.mask, *dst);
                self.registers().write_words(dst, mask, &[mask; 32]);
            }
            Op::BarWarp { mask } => return self.bar_warp(*mask),
            Op::Barrier { kind, id, threads, .. } => return self.barrier(*kind, *id, *threads),
            Op::Atom(atom) => self.atom(atom)?,
            Op::CpAsync(copy) => self.cp_async(copy)?,
            Op::CpAsyncCommit => self.cta.shared.commit(self.warp.index, self.mask),
            Op::CpAsyncWait { pending: Some(open) } => {
                self.cta.shared.wait(self.warp.index, self.mask, *open);
            }
            Op::CpAsyncWait { pending: None } => {
                self.cta.shared.wait_all(self.warp.index, self.mask);
            }
            Op::Mbarrier(mbarrier) => self.mbarrier(mbarrier)?,
            Op::Fence { .. } => self.fence(),
            Op::FenceProxy | Op::Prefetch { .. } | Op::Nanosleep { .. } | Op::Brkpt => {}
            Op::CreatePolicy { dst } => {
                let (mask, dst) = (self.mask, *dst);
                self.registers().write_longs(dst, mask, &[0; 32]);
            }
            Op::GridDepControl { launch } => {
                self.cta.tally.dependency(*launch);
                // Each thread waits for itself, whatever the others do.
                if !launch {
                    self.warp.early &= !self.mask;
                }
            }
            // A cluster is one CTA here, and what it waits for is counted at the wait.
            Op::ClusterArrive { .. } => {}
            Op::ClusterWait => return self.cluster_wait(),
            Op::ReadSpecial { dst, special } => self.read_special(*dst, *special)?,
            Op::AddressOf { dst, base, offset } => self.address_of(*dst, *base, *offset)?,
            Op::Cvta { to, space, bits, dst, a } => self.cvta(*to, *space, *bits, *dst, *a)?,
            Op::Isspacep { space, dst, a } => self.isspacep(*space, *dst, *a),
            Op::BrxIdx { index, targets, .. } => return self.branch_indexed(*index, targets),
            Op::Call { callee, args, returns, .. } => return self.call(*callee, args, returns),
            Op::Ret { .. } => return self.ret(),
            Op::Exit => return Ok(Flow::Exit),
            Op::Trap => {
                let lane = self.mask.trailing_zeros() as usize;
                return Err(Wrong::lane(FaultKind::Trap, lane, "executes trap"));
            }
            other => {
                let name = format!("{other:?}");
                let name = name.split([' ', '(', '{']).next().unwrap_or_default();
                return Err(Wrong::unsupported(format!("the executor does not know {name}")));
            }
        }
        Ok(Flow::Next)
    }
}
