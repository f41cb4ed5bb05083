//! Which instructions are of a loop that multiplies: where a bank conflict costs most.
//!
//! An instruction is of such a loop if it lies on a cycle of the control flow with an `mma`. That
//! is the outermost loop around the `mma`, so whatever is staged or combined once a round counts.

use super::ir::{Instruction, Op};

/// For each instruction of a function whether it lies on a cycle with an `mma`.
#[must_use]
pub fn of_mma_loops(body: &[Instruction]) -> Vec<bool> {
    let next: Vec<Vec<usize>> = (0..body.len()).map(|at| successors(body, at)).collect();
    let mut before = vec![vec![]; body.len()];
    for (at, next) in next.iter().enumerate() {
        next.iter().for_each(|to| before[*to].push(at));
    }
    let mut found = vec![false; body.len()];
    for (at, instruction) in body.iter().enumerate() {
        if !matches!(instruction.op, Op::Mma(_)) || found[at] {
            continue;
        }
        let (after, leading) = (reached(at, &next), reached(at, &before));
        for (found, (after, leading)) in found.iter_mut().zip(after.into_iter().zip(leading)) {
            *found |= after && leading;
        }
    }
    found
}

/// Where control can be after the instruction at `at`.
fn successors(body: &[Instruction], at: usize) -> Vec<usize> {
    let Instruction { guard, op, .. } = &body[at];
    let mut all: Vec<usize> = match op {
        Op::Bra { target, .. } => vec![*target as usize],
        Op::BrxIdx { targets, .. } => targets.iter().map(|target| *target as usize).collect(),
        _ => vec![],
    };
    let leaves =
        matches!(op, Op::Bra { .. } | Op::BrxIdx { .. } | Op::Ret { .. } | Op::Exit | Op::Trap);
    if !leaves || guard.is_some() {
        all.push(at + 1);
    }
    all.retain(|to| *to < body.len());
    all
}

/// What can be reached from `start` by one edge or more.
fn reached(start: usize, edges: &[Vec<usize>]) -> Vec<bool> {
    let mut reached = vec![false; edges.len()];
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        for to in &edges[at] {
            if !std::mem::replace(&mut reached[*to], true) {
                open.push(*to);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::parse;

    const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 \
                       {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r4,%r5},{%f0,%f1,%f2,%f3};";

    fn loops(body: &str) -> Vec<bool> {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n\
             .reg .pred %p<2>;\n.reg .b32 %r<8>;\n.reg .f32 %f<4>;\n{body}\nret;\n}}\n"
        );
        of_mma_loops(&parse(&text).unwrap().functions[0].body)
    }

    #[test]
    fn what_comes_before_and_after_the_loop_is_not_of_it() {
        let body = format!(
            "mov.u32 %r0, 0;\nL: add.s32 %r1, %r0, 1;\n{MMA}\n@%p0 bra L;\nmov.u32 %r2, 0;"
        );
        assert_eq!(loops(&body), [false, true, true, true, false, false]);
    }

    #[test]
    fn a_loop_without_an_mma_and_an_mma_without_a_loop_do_not_count() {
        let body = format!("L: add.s32 %r1, %r0, 1;\n@%p0 bra L;\n{MMA}");
        assert_eq!(loops(&body), [false; 4]);
    }

    #[test]
    fn the_rest_of_an_outer_loop_counts_and_a_way_out_of_it_does_not() {
        let body = format!(
            "A: mov.u32 %r0, 0;\nB: {MMA}\n@%p0 bra B;\nmov.u32 %r1, 0;\n@%p1 bra A;\nbra C;\n\
             C: mov.u32 %r2, 0;"
        );
        assert_eq!(loops(&body), [true, true, true, true, true, false, false, false]);
    }
}
