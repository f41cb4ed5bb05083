//! Which registers an instruction reads and writes, for passes that move them.

use super::ir::{
    Address, BarrierKind, BarrierReduction, Base, BoolOp, Callee, Mbarrier, Op, Operand,
    PredicateOperand, Register, VoteMode,
};

/// How a register is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Which file a register is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum File {
    /// The index is the register's first plane.
    Planes,
    Predicates,
}

/// Calls `visit` with every register of an instruction; the guard is not part of the operation.
pub(super) fn each_register(op: &mut Op, visit: &mut dyn FnMut(Access, File, &mut u32)) {
    Visitor { visit }.op(op);
}

/// Whether the executor reads every source of the operation before it writes any result, so that a
/// result may lie where a source was.
pub(super) fn reads_before_writing(op: &Op) -> bool {
    matches!(
        op,
        Op::Mov { .. }
            | Op::MovPredicate { .. }
            | Op::Pack { .. }
            | Op::Unpack { .. }
            | Op::Int { .. }
            | Op::IntUnary { .. }
            | Op::MulWide { .. }
            | Op::Mad { .. }
            | Op::Sad { .. }
            | Op::Carry { .. }
            | Op::Shl { .. }
            | Op::Shr { .. }
            | Op::Shf { .. }
            | Op::Lop3 { .. }
            | Op::Prmt { .. }
            | Op::Bfe { .. }
            | Op::Bfi { .. }
            | Op::Float { .. }
            | Op::FloatUnary { .. }
            | Op::Fma { .. }
            | Op::Cvt { .. }
            | Op::Setp { .. }
            | Op::Selp { .. }
            | Op::PredicateLogic { .. }
            | Op::PredicateNot { .. }
    )
}

struct Visitor<'v> {
    visit: &'v mut dyn FnMut(Access, File, &mut u32),
}

impl Visitor<'_> {
    fn read(&mut self, operand: &mut Operand) {
        if let Operand::Plane(plane) = operand {
            (self.visit)(Access::Read, File::Planes, plane);
        }
    }

    fn reads<'o>(&mut self, operands: impl IntoIterator<Item = &'o mut Operand>) {
        operands.into_iter().for_each(|operand| self.read(operand));
    }

    fn write(&mut self, plane: &mut u32) {
        (self.visit)(Access::Write, File::Planes, plane);
    }

    fn write_registers(&mut self, registers: &mut [Option<Register>]) {
        for register in registers.iter_mut().flatten() {
            self.write(&mut register.plane);
        }
    }

    fn test(&mut self, operand: &mut PredicateOperand) {
        if let PredicateOperand::Register { predicate, .. } = operand {
            (self.visit)(Access::Read, File::Predicates, predicate);
        }
    }

    fn set(&mut self, predicate: &mut u32) {
        (self.visit)(Access::Write, File::Predicates, predicate);
    }

    fn address(&mut self, address: &mut Address) {
        if let Base::Register32(plane) | Base::Register64(plane) = &mut address.base {
            (self.visit)(Access::Read, File::Planes, plane);
        }
    }

    fn combination(&mut self, combine: &mut Option<(BoolOp, PredicateOperand)>) {
        if let Some((_, operand)) = combine {
            self.test(operand);
        }
    }

    /// Sources come before results, so that a pass may see reads first.
    fn op(&mut self, op: &mut Op) {
        match op {
            Op::Mov { dst, a, .. }
            | Op::Cvta { dst, a, .. }
            | Op::IntUnary { dst, a, .. }
            | Op::FloatUnary { dst, a, .. }
            | Op::MovMatrix { dst, a } => {
                self.read(a);
                self.write(dst);
            }
            Op::Int { dst, a, b, .. }
            | Op::MulWide { dst, a, b, .. }
            | Op::Shl { dst, a, b, .. }
            | Op::Shr { dst, a, b, .. }
            | Op::Bmsk { dst, a, b, .. }
            | Op::Szext { dst, a, b, .. }
            | Op::Float { dst, a, b, .. } => {
                self.reads([a, b]);
                self.write(dst);
            }
            Op::Mad { dst, a, b, c, .. }
            | Op::Sad { dst, a, b, c, .. }
            | Op::Shf { dst, a, b, c, .. }
            | Op::Lop3 { dst, a, b, c, .. }
            | Op::Prmt { dst, a, b, c, .. }
            | Op::Bfe { dst, a, b, c, .. }
            | Op::Dp4a { dst, a, b, c, .. }
            | Op::Dp2a { dst, a, b, c, .. }
            | Op::Fma { dst, a, b, c, .. }
            | Op::Float3 { dst, a, b, c, .. }
            | Op::Slct { dst, a, b, c, .. } => {
                self.reads([a, b, c]);
                self.write(dst);
            }
            Op::Bfi { dst, a, b, c, d, .. } => {
                self.reads([a, b, c, d]);
                self.write(dst);
            }
            Op::Carry { dst, a, b, c, .. } | Op::CvtPack { dst, a, b, c, .. } => {
                self.reads([a, b]);
                self.reads(c);
                self.write(dst);
            }
            Op::Cvt { dst, a, b, .. } => {
                self.read(a);
                self.reads(b);
                self.write(&mut dst.plane);
            }
            Op::MovPredicate { dst, a } | Op::PredicateNot { dst, a } => {
                self.test(a);
                self.set(dst);
            }
            Op::PredicateLogic { dst, a, b, .. } => {
                self.test(a);
                self.test(b);
                self.set(dst);
            }
            Op::ReadSpecial { dst, .. } => self.write(&mut dst.plane),
            Op::AddressOf { dst, base, .. } => {
                self.address(&mut Address { base: *base, offset: 0 });
                self.write(&mut dst.plane);
            }
            Op::Pack { dst, parts, .. } => {
                self.reads(parts);
                self.write(&mut dst.plane);
            }
            Op::Unpack { dsts, a, .. } => {
                self.read(a);
                self.write_registers(dsts);
            }
            Op::Isspacep { dst, a, .. } | Op::Testp { dst, a, .. } => {
                self.read(a);
                self.set(dst);
            }
            Op::Setp { combine, dst, dst2, a, b, .. } => {
                self.reads([a, b]);
                self.combination(combine);
                dst.iter_mut().chain(dst2).for_each(|dst| self.set(dst));
            }
            Op::Set { combine, dst, a, b, .. } => {
                self.reads([a, b]);
                self.combination(combine);
                self.write(dst);
            }
            Op::Selp { dst, a, b, c, .. } => {
                self.reads([a, b]);
                self.test(c);
                self.write(dst);
            }
            _ => self.together(op),
        }
    }

    /// Instructions that touch memory, other lanes or control.
    fn together(&mut self, op: &mut Op) {
        match op {
            Op::Load { dsts, address, .. } => {
                self.address(address);
                self.write_registers(dsts);
            }
            Op::Store { srcs, address, .. } | Op::StMatrix { srcs, address, .. } => {
                self.address(address);
                self.reads(srcs);
            }
            Op::LdMatrix { dsts, address, .. } => {
                self.address(address);
                dsts.iter_mut().for_each(|dst| self.write(dst));
            }
            Op::Prefetch { address, .. } => self.address(address),
            Op::Atom(atom) => {
                self.address(&mut atom.address);
                self.reads(&mut atom.a);
                self.reads(&mut atom.b);
                self.write_registers(&mut atom.dsts);
            }
            Op::CpAsync(copy) => {
                self.address(&mut copy.dst);
                self.address(&mut copy.src);
                self.reads(&mut copy.source_bytes);
                copy.ignore_source.iter_mut().for_each(|operand| self.test(operand));
            }
            Op::Mbarrier(barrier) => self.mbarrier(barrier),
            Op::Mma(mma) => {
                let mma = &mut **mma;
                self.reads(mma.a.iter_mut().chain(&mut mma.b).chain(&mut mma.c));
                mma.d.iter_mut().for_each(|dst| self.write(dst));
            }
            Op::CreatePolicy { dst } | Op::ActiveMask { dst } => self.write(dst),
            Op::BrxIdx { index: a, .. } | Op::Nanosleep { a } | Op::BarWarp { mask: a } => {
                self.read(a);
            }
            Op::Call { callee: Callee::Indirect(plane), .. } => {
                (self.visit)(Access::Read, File::Planes, plane);
            }
            Op::Shfl { dst, predicate, a, b, c, mask, .. } => {
                self.reads([a, b, c, mask]);
                self.write(dst);
                predicate.iter_mut().for_each(|predicate| self.set(predicate));
            }
            Op::Vote { mode, dst, a, mask } => {
                self.test(a);
                self.read(mask);
                if *mode == VoteMode::Ballot { self.write(dst) } else { self.set(dst) }
            }
            Op::Match { dst, predicate, a, mask, .. } => {
                self.reads([a, mask]);
                self.write(dst);
                predicate.iter_mut().for_each(|predicate| self.set(predicate));
            }
            Op::Redux { dst, a, mask, .. } => {
                self.reads([a, mask]);
                self.write(dst);
            }
            Op::Elect { dst, predicate, mask } => {
                self.read(mask);
                dst.iter_mut().for_each(|dst| self.write(dst));
                self.set(predicate);
            }
            Op::Barrier { kind, id, threads, .. } => {
                self.read(id);
                self.reads(threads);
                if let BarrierKind::Reduce { op, dst, source } = kind {
                    self.test(source);
                    let counts = *op == BarrierReduction::Popc;
                    if counts { self.write(dst) } else { self.set(dst) }
                }
            }
            // What is left has no registers; `op` has handled the rest.
            Op::Call { .. }
            | Op::Fence { .. }
            | Op::FenceProxy
            | Op::CpAsyncCommit
            | Op::CpAsyncWait { .. }
            | Op::Bra { .. }
            | Op::Ret { .. }
            | Op::Exit
            | Op::Trap
            | Op::Brkpt
            | Op::GridDepControl { .. }
            | Op::ClusterArrive { .. }
            | Op::ClusterWait => {}
            other => unreachable!("{other:?} is an instruction of registers alone"),
        }
    }

    fn mbarrier(&mut self, barrier: &mut Mbarrier) {
        match barrier {
            Mbarrier::Init { address, count: operand }
            | Mbarrier::ExpectTx { address, bytes: operand }
            | Mbarrier::CompleteTx { address, bytes: operand } => {
                self.address(address);
                self.read(operand);
            }
            Mbarrier::Invalidate { address } | Mbarrier::ArriveAfterCopies { address, .. } => {
                self.address(address);
            }
            Mbarrier::Arrive { state, address, count, expect_bytes, .. } => {
                self.address(address);
                self.reads(count);
                self.reads(expect_bytes);
                state.iter_mut().for_each(|state| self.write(&mut state.plane));
            }
            Mbarrier::Wait { dst, address, phase, .. } => {
                self.address(address);
                self.read(phase);
                self.set(dst);
            }
            Mbarrier::PendingCount { dst, state } => {
                self.read(state);
                self.write(dst);
            }
        }
    }
}
