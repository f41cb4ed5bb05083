//! Instructions that lanes execute together: shuffles, votes, matches, reductions, elections.
//!
//! A mask names who takes part. Who executes must be named, who is named must execute the same
//! instruction: the warp waits for stragglers, and a lane that has exited is a fault at once.
//! None of these orders memory.

use super::access::lanes;
use super::fault::{Outcome, Wrong};
use super::step::{Flow, Step};
use super::warp::Wait;
use crate::launch::FaultKind;
use crate::ptx::ir::{FloatMode, Op, Operand, PredicateOperand, ReduxOp, ShflMode, Type, VoteMode};

/// Operands of `shfl`.
struct Shuffle {
    mode: ShflMode,
    dst: u32,
    predicate: Option<u32>,
    a: Operand,
    b: Operand,
    c: Operand,
}

impl Step<'_, '_> {
    /// Instructions all 32 lanes must execute together.
    pub(super) fn whole_warp(&mut self, op: &Op) -> Outcome<Flow> {
        if self.mask != u32::MAX {
            return self.wait_for(u32::MAX);
        }
        match op {
            Op::Mma(mma) => self.mma(mma)?,
            Op::LdMatrix { transpose, dsts, address } => {
                self.load_matrix(*transpose, dsts, *address)?;
            }
            Op::StMatrix { transpose, srcs, address } => {
                self.store_matrix(*transpose, srcs, *address)?;
            }
            Op::MovMatrix { dst, a } => self.transpose(*dst, *a),
            other => unreachable!("{other:?} is no instruction of a whole warp"),
        }
        Ok(Flow::Next)
    }

    /// Instructions that carry a mask of the lanes that execute them together.
    pub(super) fn named_lanes(&mut self, op: &Op, mask: Operand) -> Outcome<Flow> {
        let masks = self.registers().words(mask);
        let executing = self.mask;
        let named = lanes(executing).fold(0, |all, lane| all | masks[lane]);
        if named & !executing != 0 {
            return self.wait_for(named);
        }
        // Lanes with one mask are one group; most often there is one.
        let mut left = executing;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let group = masks[first];
            let odd = |lane: &usize| masks[*lane] != group || group >> *lane & 1 == 0;
            if group >> first & 1 == 0 {
                let detail = format!("executes with the mask {group:#010x}, which leaves it out");
                return Err(Wrong::lane(FaultKind::IllegalSync, first, detail));
            }
            if let Some(lane) = lanes(group).find(odd) {
                let detail = format!(
                    "is named by lane {first}'s mask {group:#010x} and has the mask {:#010x}",
                    masks[lane]
                );
                return Err(Wrong::lane(FaultKind::IllegalSync, lane, detail));
            }
            self.perform(op, group)?;
            left &= !group;
        }
        Ok(Flow::Next)
    }

    /// Waits for lanes that do not execute with the others yet, or says why they never will.
    fn wait_for(&self, named: u32) -> Outcome<Flow> {
        let gone = named & !self.warp.live;
        if gone == 0 {
            return Ok(self.here(Wait::Together));
        }
        let lane = gone.trailing_zeros() as usize;
        let detail = format!(
            "needs lanes {named:#010x} together, but lanes {gone:#010x} have exited or never were"
        );
        Err(Wrong::lane(FaultKind::IllegalSync, lane, detail))
    }

    fn perform(&mut self, op: &Op, group: u32) -> Outcome {
        match op {
            Op::Shfl { mode, dst, predicate, a, b, c, .. } => self.shuffle(
                &Shuffle { mode: *mode, dst: *dst, predicate: *predicate, a: *a, b: *b, c: *c },
                group,
            ),
            Op::Vote { mode, dst, a, .. } => {
                self.vote(*mode, *dst, *a, group);
                Ok(())
            }
            Op::Match { all, bits, dst, predicate, a, .. } => {
                self.match_values(*all, *bits, *dst, *predicate, *a, group);
                Ok(())
            }
            Op::Redux { op, ty, mode, dst, a, .. } => self.reduce(*op, *ty, *mode, *dst, *a, group),
            Op::Elect { dst, predicate, .. } => {
                let leader = group.trailing_zeros();
                if let Some(dst) = *dst {
                    self.registers().write_words(dst, group, &[leader; 32]);
                }
                self.registers().write_predicate(*predicate, group, 1 << leader);
                Ok(())
            }
            other => unreachable!("{other:?} carries no mask"),
        }
    }

    fn shuffle(&mut self, shuffle: &Shuffle, group: u32) -> Outcome {
        let registers = self.registers();
        let values = registers.words(shuffle.a);
        let (b, c) = (registers.words(shuffle.b), registers.words(shuffle.c));
        let mut result = values;
        let mut in_range = 0u32;
        let mut idle = None;
        for lane in lanes(group) {
            let (source, inside) = shuffle_source(shuffle.mode, lane as u32, b[lane], c[lane]);
            in_range |= u32::from(inside) << lane;
            if group >> source & 1 == 0 {
                idle = Some((lane, source));
            }
            result[lane] = values[source as usize % 32];
        }
        if let Some((lane, source)) = idle {
            let detail = format!("shuffles from lane {source}, outside the mask {group:#010x}");
            return Err(Wrong::lane(FaultKind::IllegalSync, lane, detail));
        }
        let registers = self.registers();
        registers.write_words(shuffle.dst, group, &result);
        if let Some(predicate) = shuffle.predicate {
            registers.write_predicate(predicate, group, in_range);
        }
        Ok(())
    }

    fn vote(&mut self, mode: VoteMode, dst: u32, a: PredicateOperand, group: u32) {
        let registers = self.registers();
        let holds = registers.predicate(a) & group;
        let every = |yes: bool| if yes { u32::MAX } else { 0 };
        match mode {
            VoteMode::Ballot => registers.write_words(dst, group, &[holds; 32]),
            VoteMode::All => registers.write_predicate(dst, group, every(holds == group)),
            VoteMode::Any => registers.write_predicate(dst, group, every(holds != 0)),
            VoteMode::Uni => {
                registers.write_predicate(dst, group, every(holds == group || holds == 0));
            }
        }
    }

    fn match_values(
        &mut self,
        all: bool,
        bits: u8,
        dst: u32,
        predicate: Option<u32>,
        a: Operand,
        group: u32,
    ) {
        let registers = self.registers();
        let values =
            if bits == 64 { registers.longs(a) } else { registers.words(a).map(u64::from) };
        let like = |value: u64| {
            lanes(group).fold(0u32, |m, lane| m | u32::from(values[lane] == value) << lane)
        };
        if all {
            let same = like(values[group.trailing_zeros() as usize]) == group;
            registers.write_words(dst, group, &[if same { group } else { 0 }; 32]);
            if let Some(predicate) = predicate {
                registers.write_predicate(predicate, group, if same { u32::MAX } else { 0 });
            }
        } else {
            let mut result = [0; 32];
            for lane in lanes(group) {
                result[lane] = like(values[lane]);
            }
            registers.write_words(dst, group, &result);
        }
    }

    fn reduce(
        &mut self,
        op: ReduxOp,
        ty: Type,
        mode: FloatMode,
        dst: u32,
        a: Operand,
        group: u32,
    ) -> Outcome {
        let values = self.registers().words(a);
        let all = lanes(group).map(|lane| values[lane]);
        let result = match ty {
            Type::F32 => all
                .map(f32::from_bits)
                .map(|v| if mode.xorsign_abs { v.abs() } else { v })
                .reduce(|x, y| match op {
                    _ if mode.nan && (x.is_nan() || y.is_nan()) => f32::NAN,
                    ReduxOp::Min => x.min(y),
                    _ => x.max(y),
                })
                .map(f32::to_bits),
            Type::S32 => all.reduce(|x, y| match op {
                ReduxOp::Min => (x as i32).min(y as i32) as u32,
                ReduxOp::Max => (x as i32).max(y as i32) as u32,
                _ => combine(op, x, y),
            }),
            _ => all.reduce(|x, y| combine(op, x, y)),
        };
        let result = result.expect("a group has lanes");
        self.registers().write_words(dst, group, &[result; 32]);
        Ok(())
    }
}

fn combine(op: ReduxOp, x: u32, y: u32) -> u32 {
    match op {
        ReduxOp::Add => x.wrapping_add(y),
        ReduxOp::Min => x.min(y),
        ReduxOp::Max => x.max(y),
        ReduxOp::And => x & y,
        ReduxOp::Or => x | y,
        ReduxOp::Xor => x ^ y,
    }
}

/// The lane `shfl` reads from, and whether it was in range (else it reads its own).
fn shuffle_source(mode: ShflMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let first = lane & segment;
    let last = first | (clamp & !segment);
    let (source, inside) = match mode {
        ShflMode::Up => (lane as i32 - b as i32, lane as i32 - b as i32 >= last as i32),
        ShflMode::Down => ((lane + b) as i32, lane + b <= last),
        ShflMode::Bfly => ((lane ^ b) as i32, lane ^ b <= last),
        ShflMode::Idx => {
            let source = first | (b & !segment);
            (source as i32, source <= last)
        }
    };
    if inside { (source as u32, true) } else { (lane, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CUDA's description of the four shuffles of `width` lanes, written independently of PTX.
    fn by_description(mode: ShflMode, lane: u32, b: u32, width: u32) -> u32 {
        let start = lane / width * width;
        let at = lane - start;
        match mode {
            ShflMode::Idx => start + b % width,
            ShflMode::Up => {
                if at >= b {
                    lane - b
                } else {
                    lane
                }
            }
            ShflMode::Down => {
                if at + b < width {
                    lane + b
                } else {
                    lane
                }
            }
            ShflMode::Bfly => {
                // Crossing into an earlier segment is allowed, into a later one is not.
                let to = lane ^ b;
                if to < start + width { to } else { lane }
            }
        }
    }

    #[test]
    fn shuffles_of_every_width_read_the_lane_cuda_describes() {
        for width in [1, 2, 4, 8, 16, 32] {
            for lane in 0..32 {
                for b in 0..width {
                    for mode in [ShflMode::Idx, ShflMode::Down, ShflMode::Bfly, ShflMode::Up] {
                        let clamp = if mode == ShflMode::Up { 0 } else { 31 };
                        let c = (32 - width) << 8 | clamp;
                        let (source, _) = shuffle_source(mode, lane, b, c);
                        assert_eq!(
                            source,
                            by_description(mode, lane, b, width),
                            "{mode:?} {width}"
                        );
                    }
                }
            }
        }
    }
}
