//! Control: indexed branches, calls and returns.

use super::fault::{Outcome, Wrong};
use super::step::{Flow, Step};
use super::warp::{NO_FRAME, Strand, Wait};
use crate::launch::FaultKind;
use crate::memory::FUNCTION_BASE;
use crate::ptx::ir::{Callee, Kind, Op, Operand, ParamCopy};

/// Calls nested deeper than this are a runaway recursion.
const DEEPEST_CALL: u32 = 256;

impl Step<'_, '_> {
    /// Splits the executing lanes by a value; the first group is that of the lowest lane.
    fn groups(&self, values: &[u64; 32]) -> Vec<(u64, u32)> {
        let mut groups: Vec<(u64, u32)> = Vec::new();
        for lane in (0..32).filter(|lane| self.mask >> lane & 1 == 1) {
            match groups.iter_mut().find(|(value, _)| *value == values[lane]) {
                Some((_, lanes)) => *lanes |= 1 << lane,
                None => groups.push((values[lane], 1 << lane)),
            }
        }
        groups
    }

    fn scatter(&mut self, frame: usize, pc: u32, mask: u32) {
        let strand = Strand { frame, pc, mask, wait: Wait::Ready, effects: false };
        self.warp.strands.push(strand);
    }

    /// `brx.idx`.
    pub(super) fn branch_indexed(&mut self, index: Operand, targets: &[u32]) -> Outcome<Flow> {
        let indices = self.registers().words(index).map(u64::from);
        for (index, lanes) in self.groups(&indices) {
            let Some(target) = targets.get(index as usize) else {
                let lane = lanes.trailing_zeros() as usize;
                let detail = format!("brx.idx {index} of a list of {}", targets.len());
                return Err(Wrong::lane(FaultKind::OutOfBounds, lane, detail));
            };
            self.scatter(self.frame, *target, lanes);
        }
        Ok(Flow::Scattered)
    }

    /// `call`: each callee is entered by the lanes that name it.
    pub(super) fn call(
        &mut self,
        callee: Callee,
        args: &[ParamCopy],
        returns: &[ParamCopy],
    ) -> Outcome<Flow> {
        let groups = match callee {
            Callee::Function(index) => vec![(FUNCTION_BASE + u64::from(index), self.mask)],
            Callee::Indirect(plane) => {
                let values = self.registers().longs(Operand::Plane(plane));
                self.groups(&values)
            }
        };
        for (value, lanes) in groups {
            let module = self.cta.grid.module;
            let index = value.wrapping_sub(FUNCTION_BASE) as usize;
            let Some(function) = module.functions.get(index) else {
                let lane = lanes.trailing_zeros() as usize;
                let detail = format!("calls {value:#x}, which is no function");
                return Err(Wrong::lane(FaultKind::OutOfBounds, lane, detail));
            };
            if function.kind == Kind::Extern {
                self.call_extern(&function.name, args, returns, lanes)?;
                self.scatter(self.frame, self.pc + 1, lanes);
                continue;
            }
            if self.warp.frames[self.frame].depth >= DEEPEST_CALL {
                let detail = format!("calls nested deeper than {DEEPEST_CALL}");
                return Err(Wrong::warp(FaultKind::Trap, detail));
            }
            let entered = self.warp.push_frame(lanes, index, function, self.frame, self.pc);
            let [caller, inner] = self
                .warp
                .frames
                .get_disjoint_mut([self.frame, entered])
                .expect("a new frame is not the caller's");
            for copy in args {
                let (to, from) = (copy.callee_offset, copy.caller_offset);
                inner.params.copy_from(lanes, to, &caller.call, from, copy.bytes);
            }
            self.cta.tally.local(inner.local_base + inner.local_bytes);
            self.scatter(entered, 0, lanes);
        }
        Ok(Flow::Scattered)
    }

    /// Functions of the device runtime.
    fn call_extern(
        &mut self,
        name: &str,
        _args: &[ParamCopy],
        returns: &[ParamCopy],
        lanes: u32,
    ) -> Outcome {
        match name {
            // What a kernel prints is nobody's result; it returns the number of arguments, here 0.
            "vprintf" => {
                let call = &mut self.warp.frames[self.frame].call;
                for copy in returns {
                    for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
                        call.store(lane, copy.caller_offset, copy.bytes.min(8), 0);
                    }
                }
                Ok(())
            }
            "__assertfail" => {
                let lane = lanes.trailing_zeros() as usize;
                Err(Wrong::lane(FaultKind::Trap, lane, "an assertion of the kernel failed"))
            }
            _ => Err(Wrong::unsupported(format!("a call of '{name}', which has no body"))),
        }
    }

    /// `ret`: back to after the call, with the results; from an entry, exit.
    pub(super) fn ret(&mut self) -> Outcome<Flow> {
        let frame = &self.warp.frames[self.frame];
        let (parent, call_pc) = (frame.parent, frame.call_pc);
        if parent == NO_FRAME {
            return Ok(Flow::Exit);
        }
        self.return_results(parent, call_pc);
        self.warp.leave_frame(self.frame, self.mask);
        Ok(Flow::Go { frame: parent, pc: call_pc + 1, wait: Wait::Ready })
    }

    fn return_results(&mut self, parent: usize, call_pc: u32) {
        let functions = &self.cta.grid.module.functions;
        let call = &functions[self.warp.frames[parent].function].body[call_pc as usize];
        let Op::Call { returns, .. } = &call.op else { return };
        let [caller, inner] = self
            .warp
            .frames
            .get_disjoint_mut([parent, self.frame])
            .expect("a frame is not its own caller");
        for copy in returns {
            let (to, from) = (copy.caller_offset, copy.callee_offset);
            caller.call.copy_from(self.mask, to, &inner.params, from, copy.bytes);
        }
    }
}
